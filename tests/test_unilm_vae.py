"""models/unilm_vae.py: unilm's layout of names, tokens and paintings computed here from its description."""

import pytest
import torch
import torch.nn.functional as F

from beit_mm.checkpoints.load import CheckpointError
from beit_mm.models import TokenTarget, UnilmDiscreteVAE
from beit_mm.ops.pixels import map_pixels

SMALL = dict(vocab_size=16, num_layers=2, hidden_dims=8, code_dims=12)


def test_the_official_size_and_names():
    """get_d_vae's model has 20.08 million parameters; the names are those of its layers."""
    with torch.device('meta'):
        model = UnilmDiscreteVAE()
    assert sum(p.numel() for p in model.parameters()) == 20_081_411
    weights = model.state_dict()
    assert weights['encoder.0.0.weight'].shape == (256, 3, 4, 4)
    assert weights['encoder.1.net.0.weight'].shape == (256, 256, 3, 3)
    assert weights['encoder.6.weight'].shape == (8192, 256, 1, 1)
    assert weights['decoder.0.0.weight'].shape == (512, 256, 4, 4)  # transposed: in, out
    assert weights['decoder.6.bias'].shape == (3,)
    assert weights['codebook.weight'].shape == (8192, 512)
    assert not any(p.requires_grad for p in model.parameters())


def by_hand(weights, images):
    """Logits of images in [0, 1], from the layers' description alone."""

    def conv(x, name, **how):
        return F.conv2d(x, weights[f'{name}.weight'], weights[f'{name}.bias'], **how)

    x = (images - 0.5) / 0.5
    for i in (0, 2):
        x = conv(x, f'encoder.{i}.0', stride=2, padding=1).relu()
        inside = conv(x, f'encoder.{i + 1}.net.0', padding=1).relu()
        inside = conv(inside, f'encoder.{i + 1}.net.2', padding=1).relu()
        x = x + conv(inside, f'encoder.{i + 1}.net.4')
    return conv(x, 'encoder.4')


def test_tokens_are_those_of_the_description(tmp_path):
    """A file as get_d_vae reads it, `pytorch_model.bin` with `weights`, plugs into MIM by config and checkpoint."""
    images = torch.rand(3, 3, 16, 32)
    weights = {key: torch.randn_like(value) * 0.2 for key, value in UnilmDiscreteVAE(**SMALL).state_dict().items()}
    torch.save(dict(weights=weights), tmp_path / 'pytorch_model.bin')
    config = dict(type='beit_mm.UnilmDiscreteVAE', **SMALL)
    target = TokenTarget(config, str(tmp_path / 'pytorch_model.bin'))
    tokens = target(dict(tokens_view=map_pixels(images), mask=torch.zeros(3, 4, 8).bool()))
    expected = by_hand(weights, images).argmax(dim=1)
    assert torch.equal(tokens, expected.flatten(1))
    assert len(expected.unique()) > 4
    with pytest.raises(CheckpointError, match=r'pytorch_model\.bin: vocab_size is 16 in the file and 32 here'):
        TokenTarget(dict(config, vocab_size=32), str(tmp_path / 'pytorch_model.bin'))


def test_paintings_are_those_of_the_description():
    model = UnilmDiscreteVAE(**SMALL)
    weights = model.state_dict()
    tokens = torch.randint(16, (2, 3, 4))
    x = F.embedding(tokens, weights['codebook.weight']).permute(0, 3, 1, 2)
    for i in (0, 2):
        name = f'decoder.{i}.0'
        x = F.conv_transpose2d(x, weights[f'{name}.weight'], weights[f'{name}.bias'], stride=2, padding=1).relu()
        name = f'decoder.{i + 1}.net'
        inside = F.conv2d(x, weights[f'{name}.0.weight'], weights[f'{name}.0.bias'], padding=1).relu()
        inside = F.conv2d(inside, weights[f'{name}.2.weight'], weights[f'{name}.2.bias'], padding=1).relu()
        x = x + F.conv2d(inside, weights[f'{name}.4.weight'], weights[f'{name}.4.bias'])
    x = F.conv2d(x, weights['decoder.4.weight'], weights['decoder.4.bias'])
    torch.testing.assert_close(model.decode(tokens), ((x + 1) / 2).clamp(0, 1))
