"""checkpoints/tokenizers.py: a tokenizer's weights out of every file that has them, or an error and nothing loaded."""

import importlib.util
import itertools

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from official import golden

from beit_mm.checkpoints.load import CheckpointError, write
from beit_mm.checkpoints.tokenizers import tokenizer_weights
from beit_mm.models import DiscreteVAE, TokenTarget
from beit_mm.models.dalle import Encoder

SMALL = dict(vocab_size=16, in_channels=1, num_downsamples=2, hidden_dims=8, code_dims=8, num_res_blocks=1)


def dalle():
    """The golden's small DALL-E encoder: its config, weights, and what it says of some views."""
    meta, weights, io = golden('dalle_encoder')
    sizes = {key: meta[key] for key in ('n_hid', 'vocab_size', 'n_blk_per_group')}
    return dict(type='beit_mm.DALLEEncoder', **sizes), weights, io


def tokens_from(config, path, io):
    mask = torch.zeros_like(io['tokens'], dtype=torch.bool)
    return TokenTarget(config, str(path))(dict(tokens_view=io['mapped'], mask=mask))


@pytest.mark.parametrize('inside', ['', 'module.', 'target_generator.', 'backbone and target_generator.'])
def test_mmpretrains_files(tmp_path, inside):
    """dalle_encoder.pth, or the tokenizer that every mmpretrain BEiT checkpoint carries beside its backbone."""
    config, weights, io = dalle()
    prefix = inside.split()[-1] if inside else ''
    content = {prefix + key: value for key, value in weights.items()}
    if 'backbone' in inside:
        content['backbone.cls_token'] = torch.zeros(1, 1, 8)
    write(dict(state_dict=content), tmp_path / 'dalle_encoder.pth')
    assert torch.equal(tokens_from(config, tmp_path / 'dalle_encoder.pth', io), io['tokens'].flatten(1))


def test_mmpretrains_encoder_has_our_names():
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        theirs = MODELS.build(dict(type='DALL-E')).state_dict()
        ours = Encoder().state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {key: value.shape for key, value in ours.items()}


@pytest.mark.skipif(importlib.util.find_spec('transformers') is None, reason='transformers is not installed')
def test_flavas_codebook_is_openais_encoder(tmp_path):
    """Hugging Face's copy, under its own names, in safetensors as on its hub; the same logits and tokens."""
    from safetensors.torch import save_file
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    settings = dict(hidden_size=8, vocab_size=32, num_blocks_per_group=1)
    theirs = FlavaImageCodebook(FlavaImageCodebookConfig(**settings)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    view = torch.rand(2, 3, 32, 48) * 0.8 + 0.1
    config = dict(type='beit_mm.DALLEEncoder', n_hid=8, vocab_size=32, n_blk_per_group=1)
    for prefix in ('', 'image_codebook.'):
        weights = {prefix + key: value.contiguous() for key, value in theirs.state_dict().items()}
        save_file(weights, tmp_path / 'model.safetensors')
        target = TokenTarget(config, str(tmp_path / 'model.safetensors'))
        torch.testing.assert_close(target.tokenizer(view), theirs(view), atol=1e-5, rtol=1e-5)
        tokens = target(dict(tokens_view=view, mask=torch.zeros(2, 4, 6).bool()))
        assert torch.equal(tokens, theirs.get_codebook_indices(view).flatten(1))
        assert len(tokens.unique()) > 3


def test_a_tokenizer_saved_before_something_was_counted(tmp_path):
    model = DiscreteVAE(**SMALL)
    weights = {key: value for key, value in model.state_dict().items() if key not in ('num_updates', 'code_counts')}
    write(dict(state_dict=weights), tmp_path / 'dvae.pth')
    target = TokenTarget(dict(type='beit_mm.DiscreteVAE', **SMALL), str(tmp_path / 'dvae.pth'))
    assert all(torch.equal(target.tokenizer.state_dict()[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(vocab_size=32), 'vocab_size is 16 in the file and 32 here'),
        (dict(hidden_dims=12), r'encoder\.0\.weight is \(8, 1, 4, 4\) in the file and \(12, 1, 4, 4\) here'),
        (dict(num_res_blocks=2), 'weights of another model: .* missing'),
        (dict(num_downsamples=1), 'weights of another model: .* unknown to it'),
    ],
)
def test_another_tokenizer_is_refused_whole(tmp_path, changes, message):
    write(dict(state_dict=DiscreteVAE(**SMALL).state_dict()), tmp_path / 'dvae.pth')
    own = DiscreteVAE(**{**SMALL, **changes})
    before = {key: value.clone() for key, value in own.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        tokenizer_weights(DiscreteVAE(**SMALL).state_dict(), own.state_dict(), own.vocab_size)
    assert all(torch.equal(own.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(CheckpointError, match=rf'dvae\.pth: .*{message}.*the tokenizer is beit_mm\.DiscreteVAE'):
        TokenTarget(dict(type='beit_mm.DiscreteVAE', **{**SMALL, **changes}), str(tmp_path / 'dvae.pth'))


def test_a_tokenizer_of_another_kind_is_refused():
    _, weights, _ = dalle()
    own = DiscreteVAE(**SMALL)
    for given, ours in itertools.permutations((weights, own.state_dict())):
        with pytest.raises(CheckpointError, match='these are the weights of another model'):
            tokenizer_weights(given, ours, 16)
