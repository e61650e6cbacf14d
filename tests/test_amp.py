"""engine/amp.py: bfloat16 where it is asked for, float32 weights."""

import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from beit_mm.engine.amp import with_amp


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
