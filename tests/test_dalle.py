"""models/dalle.py: OpenAI's encoder to the number, its size, and that it never trains."""

import sys
import types
from types import SimpleNamespace

import pytest
import torch
from official import golden
from payload import Payload
from torch import nn

from beit_mm.checkpoints.load import CheckpointError, read
from beit_mm.models.dalle import Decoder, Encoder
from beit_mm.models.targets import TokenTarget
from beit_mm.ops.pixels import map_pixels


def test_dalle_encoder_equals_openai():
    meta, weights, io = golden('dalle_encoder')
    encoder = Encoder(meta['n_hid'], meta['vocab_size'], meta['n_blk_per_group'])
    encoder.load_state_dict(weights)
    torch.testing.assert_close(map_pixels(io['image_0_1']), io['mapped'])
    torch.testing.assert_close(encoder(io['mapped']), io['logits'], atol=1e-4, rtol=0)
    assert torch.equal(encoder.tokens(io['mapped']), io['tokens'])


@pytest.fixture
def dall_e(monkeypatch):
    """OpenAI's package as far as its pickles name it: classes under the names of its modules."""

    def made(module, name, base=nn.Module):
        kind = type(name, (base,), dict(__module__=f'dall_e.{module}'))
        holder = sys.modules.get(f'dall_e.{module}') or types.ModuleType(f'dall_e.{module}')
        setattr(holder, name, kind)
        monkeypatch.setitem(sys.modules, f'dall_e.{module}', holder)
        return kind

    monkeypatch.setitem(sys.modules, 'dall_e', types.ModuleType('dall_e'))
    return SimpleNamespace(
        Encoder=made('encoder', 'Encoder'),
        EncoderBlock=made('encoder', 'EncoderBlock'),
        Decoder=made('decoder', 'Decoder'),
        DecoderBlock=made('decoder', 'DecoderBlock'),
        Conv2d=made('utils', 'Conv2d'),
    )


def pickled(ours, dall_e, half='Encoder'):
    """Our module as OpenAI's classes would hold it: the same tree, of their classes and torch's."""
    if hasattr(ours, 'w'):
        module = dall_e.Conv2d()
        module.w, module.b, module.kw, module.use_float16 = ours.w, ours.b, ours.w.shape[-1], True
        return module
    if type(ours).__name__ == half:
        module = getattr(dall_e, half)()
    elif hasattr(ours, 'res_path'):
        module = getattr(dall_e, f'{half}Block')()
    elif isinstance(ours, nn.Upsample):
        module = nn.Upsample(scale_factor=2, mode='nearest')
    else:
        module = type(ours)() if isinstance(ours, (nn.Sequential, nn.ReLU, nn.Identity)) else nn.MaxPool2d(2)
    module.device = torch.device('cpu')
    for name, child in ours.named_children():
        module.add_module(name, pickled(child, dall_e, half))
    return module


def test_openais_pickle_is_read_without_its_package(tmp_path, dall_e, monkeypatch):
    """encoder.pkl is a pickled module. Its tokens are the golden's; none of its classes is imported."""
    meta, weights, io = golden('dalle_encoder')
    ours = Encoder(meta['n_hid'], meta['vocab_size'], meta['n_blk_per_group'])
    ours.load_state_dict(weights)
    torch.save(pickled(ours, dall_e), tmp_path / 'encoder.pkl')
    torch.save(pickled(ours, dall_e), tmp_path / 'old.pkl', _use_new_zipfile_serialization=False)
    for name in [name for name in sys.modules if name.split('.')[0] == 'dall_e']:
        monkeypatch.delitem(sys.modules, name)
    found = read(tmp_path / 'encoder.pkl')
    assert set(found) == set(weights)
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    target = TokenTarget(
        dict(type='beit_mm.DALLEEncoder', **{k: meta[k] for k in ('n_hid', 'vocab_size', 'n_blk_per_group')}),
        checkpoint=str(tmp_path / 'encoder.pkl'),
    )
    with pytest.raises(CheckpointError, match=r'old\.pkl: a whole module, pickled as before torch 1\.6'):
        read(tmp_path / 'old.pkl')
    mask = torch.zeros_like(io['tokens'], dtype=torch.bool)
    assert torch.equal(target(dict(tokens_view=io['mapped'], mask=mask)), io['tokens'].flatten(1))


def test_openais_decoder_too(tmp_path, dall_e, monkeypatch):
    """decoder.pkl: the images painted from its weights are those of the module that was pickled."""
    sizes = dict(n_init=8, n_hid=8, vocab_size=16, n_blk_per_group=1)
    theirs, ours = Decoder(**sizes), Decoder(**sizes)
    torch.save(pickled(theirs, dall_e, 'Decoder'), tmp_path / 'decoder.pkl')
    for name in [name for name in sys.modules if name.split('.')[0] == 'dall_e']:
        monkeypatch.delitem(sys.modules, name)
    tokens = torch.randint(16, (2, 2, 3))
    assert not torch.equal(ours.decode(tokens), theirs.decode(tokens))
    ours.load_state_dict(read(tmp_path / 'decoder.pkl'))
    assert torch.equal(ours.decode(tokens), theirs.decode(tokens))


def test_code_beside_openais_classes_does_not_run(tmp_path, dall_e):
    module = dall_e.Encoder()
    module.payload = Payload(tmp_path / 'ran')
    torch.save(module, tmp_path / 'encoder.pkl')
    with pytest.raises(CheckpointError, match=r'encoder\.pkl: holds Python objects besides tensors'):
        read(tmp_path / 'encoder.pkl')
    assert not (tmp_path / 'ran').exists()


def test_dalle_is_frozen_and_of_the_official_size():
    with torch.device('meta'):
        encoder, decoder = Encoder(), Decoder()
    assert sum(p.numel() for p in encoder.parameters()) == 53_786_240
    assert not any(p.requires_grad for p in [*encoder.parameters(), *decoder.parameters()])
    assert not encoder.train().training
    small = Decoder(n_init=8, n_hid=8, vocab_size=16, n_blk_per_group=1)
    image = small.decode(torch.randint(16, (1, 2, 3)))
    assert image.shape == (1, 3, 16, 24)
    assert 0 <= image.min() <= image.max() <= 1


def test_decoder_by_hand():
    """One block of each kind, computed here from OpenAI's formulas."""
    decoder = Decoder(n_init=8, n_hid=8, vocab_size=16, n_blk_per_group=1)
    state = decoder.state_dict()
    tokens = torch.randint(16, (2, 2, 3))

    def conv(x, name):
        weight = state[f'blocks.{name}.w']
        return torch.nn.functional.conv2d(x, weight, state[f'blocks.{name}.b'], padding=weight.shape[-1] // 2)

    x = conv(torch.nn.functional.one_hot(tokens, 16).permute(0, 3, 1, 2).float(), 'input')
    for group in range(1, 5):
        block = f'group_{group}.block_1'
        inside = x
        for i in range(1, 5):
            inside = conv(inside.relu(), f'{block}.res_path.conv_{i}')
        x = (conv(x, f'{block}.id_path') if f'blocks.{block}.id_path.w' in state else x) + inside / 4**2
        if group < 4:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    stats = conv(x.relu(), 'output.conv')
    torch.testing.assert_close(decoder.decode(tokens), ((torch.sigmoid(stats[:, :3]) - 0.1) / 0.8).clamp(0, 1))


def test_encoder_by_hand_and_its_gradient():
    """With the official two blocks a group: bit-equal to OpenAI's formula, whose gain is then a power of two."""
    encoder = Encoder(n_hid=8, vocab_size=16, n_blk_per_group=2)
    image = torch.rand(2, 3, 16, 24, requires_grad=True)
    x = encoder.blocks.input(image)
    for group in range(1, 5):
        for block in (1, 2):
            part = encoder.blocks.get_submodule(f'group_{group}.block_{block}')
            inside = x
            for i in range(1, 5):
                inside = part.res_path.get_submodule(f'conv_{i}')(inside.relu())
            x = part.id_path(x) + 1 / 8**2 * inside
        x = torch.nn.functional.max_pool2d(x, 2) if group < 4 else x
    expected = encoder.blocks.output.conv(x.relu())
    assert torch.equal(encoder(image), expected)
    weights = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), image)[0] for out in (encoder(image), expected))
    torch.testing.assert_close(ours, theirs)
