"""models/block.py: what is dropped, how often, and that fused attention and the bias are what they say."""

import math

import pytest
import torch
import torch.nn.functional as F

from beit_mm.models.block import Attention, Block, DropPath, FeedForward
from beit_mm.models.position_bias import position_bias
from beit_mm.ops.relative_position import num_offsets, relative_position_index

GRID = (2, 3)


def attention(**changes):
    arguments = dict(dim=48, num_heads=3, bias='qv_bias', grid=None, attn_drop=0.0, proj_drop=0.0, fused=True)
    module = Attention(**{**arguments, **changes})
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def test_attention_by_hand():
    """Softmax of q k / sqrt(d) plus bias, times v; biases for q and v, none for k (official Attention)."""
    module, x, bias = attention(), torch.randn(2, 7, 48), torch.randn(3, 7, 7)
    weight = module.qkv.weight
    q = (F.linear(x, weight[:48], module.q_bias)).view(2, 7, 3, 16)
    k = F.linear(x, weight[48:96]).view(2, 7, 3, 16)
    v = F.linear(x, weight[96:], module.v_bias).view(2, 7, 3, 16)
    logits = torch.einsum('bqhd,bkhd->bhqk', q, k) / math.sqrt(16) + bias
    out = torch.einsum('bhqk,bkhd->bqhd', logits.softmax(-1), v).reshape(2, 7, 48)
    expected = F.linear(out, module.proj.weight, module.proj.bias)
    torch.testing.assert_close(module(x, bias), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('grid', [(2, 2), (3, 5), (1, 4)])
def test_bias_by_hand(grid):
    """Every pair of patches reads the row of its offset, query minus key."""
    h, w = grid
    table = torch.randn(num_offsets(grid), 2)
    bias = position_bias(table, grid, grid, relative_position_index(grid))
    assert bias.shape == (2, 1 + h * w, 1 + h * w)
    for query in range(h * w):
        for key in range(h * w):
            down, right = query // w - key // w + h - 1, query % w - key % w + w - 1
            assert torch.equal(bias[:, 1 + query, 1 + key], table[down * (2 * w - 1) + right])
    assert torch.equal(bias[:, 0, 1:], table[-3][:, None].expand(-1, h * w))
    assert torch.equal(bias[:, 1:, 0], table[-2][:, None].expand(-1, h * w))
    assert torch.equal(bias[:, 0, 0], table[-1])


@pytest.mark.parametrize('rate', [0.3, 0.5])
def test_samples_are_dropped_whole_at_the_stated_rate(rate):
    drop = DropPath(rate).train()
    out = drop(torch.ones(20_000, 2, 2))
    assert out[:, 0, 0].eq(0).float().mean().item() == pytest.approx(rate, abs=0.015)
    torch.testing.assert_close(out.max(), torch.tensor(1 / (1 - rate)))
    assert out.flatten(1).std(dim=1).max() == 0
    assert torch.equal(drop.eval()(torch.ones(9, 2)), torch.ones(9, 2))


def test_each_branch_is_dropped_once():
    """Branches that each add one: 0, 1 or 2 of them survive, scaled by 1 / keep."""
    block = Block(
        dim=48, num_heads=3, hidden=96, bias='qv_bias', grid=None, drop=0.0, attn_drop=0.0, drop_path=0.5,
        layer_scale=0.0, eps=1e-6, fused=True,
    ).train()  # fmt: skip
    block.attn.forward = lambda x, bias: torch.ones_like(x)
    block.ffn.forward = lambda x: torch.ones_like(x)
    added = block(torch.zeros(8000, 1, 48), None)[:, 0, 0]
    shares = [added.eq(value).float().mean().item() for value in (0.0, 2.0, 4.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)  # mmpretrain's FFN branch survives 0.25, not 0.5


@pytest.mark.parametrize(('which', 'fused'), [('attn_drop', True), ('attn_drop', False), ('proj_drop', True)])
def test_dropout_acts_and_is_right_on_average(which, fused):
    """mmpretrain and mmseg take these rates and lose them."""
    module, x = attention(fused=fused, **{which: 0.5}), torch.randn(1, 5, 48)
    with torch.no_grad():
        exact = module(x, None)
        draws = torch.stack([module.train()(x, None) for _ in range(2000)])
    spread = draws.std(dim=0)
    assert spread.min() > 0
    assert ((draws.mean(dim=0) - exact).abs() / (spread / 2000**0.5)).max() < 5
    if which == 'proj_drop':
        assert draws.eq(0).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_mlp_drops_its_output_only():
    """Not what is between its two layers, as timm, mmcv and PASSL do."""
    mlp, x = FeedForward(48, 96, drop=0.5), torch.randn(50, 48)
    exact = mlp.eval()(x)
    dropped = mlp.train()(x)
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.04)
    torch.testing.assert_close(dropped[kept], 2 * exact[kept])


def test_fused_equals_plain_with_gradients():
    """With a bias that learns or not, and without one."""
    fused, plain = attention(), attention(fused=False)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 7, 48)
    for bias in (None, torch.randn(3, 7, 7), torch.randn(3, 7, 7, requires_grad=True)):
        results = []
        for module in (fused, plain):
            module.zero_grad()
            out = module(x, bias)
            out.square().mean().backward()
            results.append([out, *(p.grad for p in module.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
