"""engine/amp.py: bfloat16 where it is asked for, float32 weights."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from beit_mm.engine import amp
from beit_mm.engine.amp import with_amp
from beit_mm.engine.errors import ConfigError


def build(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return OPTIM_WRAPPERS.build(with_amp(dict(optimizer=optimizer), 'bf16'))


def test_bf16_step_is_near_the_float32_step():
    x, y = torch.randn(64, 16), torch.randn(64, 4)
    models = [nn.Linear(16, 4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    start = models[0].weight.detach().clone()
    wrapper = build(models[0])
    with wrapper.optim_context(models[0]):
        out = models[0](x)
    assert out.dtype is torch.bfloat16
    wrapper.update_params((out.float() - y).square().mean())
    loss = (models[1](x) - y).square().mean()
    loss.backward()
    expected = start - 0.1 * models[1].weight.grad
    assert models[0].weight.dtype is torch.float32
    torch.testing.assert_close(models[0].weight.detach(), expected, atol=2e-3, rtol=0)
    assert not torch.equal(models[0].weight.detach(), start)
    assert not torch.is_autocast_enabled('cpu')  # nothing leaks out of the context


def test_a_stock_amp_config_turned_to_bf16():
    """mmpretrain's and mmseg's BEiT configs say AmpOptimWrapper with a loss scale, which bf16 has not."""
    stock = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16', clip_grad=dict(max_norm=3.0))
    changed = with_amp(stock, 'bf16')
    assert changed == dict(type='beit_mm.AmpOptimWrapper', clip_grad=dict(max_norm=3.0))
    assert stock['loss_scale'] == 'dynamic'  # the config is not changed behind its owner's back


def test_bf16_of_a_large_config_is_for_cuda(monkeypatch):
    """On a CPU it trains in float32, to the bit, and says so once; --amp bf16 asks for bf16 there too."""
    lines: list[str] = []
    monkeypatch.setattr(amp, 'print_log', lambda text, **_: lines.append(text))
    monkeypatch.setattr(amp, 'get_device', lambda: 'cpu')
    model, x = nn.Linear(16, 4), torch.randn(8, 16)
    wanted = dict(type='beit_mm.AmpOptimWrapper', devices=['cuda'], optimizer=torch.optim.SGD(model.parameters(), lr=1))
    with OPTIM_WRAPPERS.build(wanted).optim_context(model):
        assert torch.equal(model(x), nn.functional.linear(x, model.weight, model.bias))
    assert lines == ['training in float32 on cpu: the config asks for bf16 on cuda only; --amp bf16 asks for it here']
    with OPTIM_WRAPPERS.build(with_amp(wanted, 'bf16')).optim_context(model):
        assert model(x).dtype is torch.bfloat16
    assert len(lines) == 1
    assert 'devices' not in with_amp(wanted, 'fp16')
    with pytest.raises(ConfigError, match=r"optim_wrapper\.devices: \['gpu'\] are none of cpu, cuda"):
        OPTIM_WRAPPERS.build({**wanted, 'devices': ['gpu']})


def test_large_configs_train_in_bf16_on_cuda():
    """Large models, and ImageNet-22K, but for probes, which train a layer. Each says so where it says its recipe."""
    paths = [path for path in Path('configs').glob('*/*.py') if path.parent.name in TASKS]
    large = [path for path in paths if ('-large-' in path.name or '_in22k-' in path.name) and 'probe' not in path.name]
    assert len(large) == 21
    for path in paths:
        text = path.read_text()
        bases = [path.parent / name for name in re.findall(r"'([\w./-]+\.py)'", text.partition('_base_ =')[2])]
        ours = WANTED in ' '.join(text.split()) or any(base in large for base in bases)
        assert ours == (path in large), path
        assert ('bf16 autocast on' in ' '.join(text.split())) == (path in large), path
    for path in large[::7]:
        wrapper = Config.fromfile(path).optim_wrapper
        assert (wrapper.type, wrapper.devices) == ('beit_mm.AmpOptimWrapper', ['cuda'])


TASKS = ('pretrain', 'classification', 'segmentation')
WANTED = "type='beit_mm.AmpOptimWrapper', devices=['cuda']"
