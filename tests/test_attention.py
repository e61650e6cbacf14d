"""Attention maps, rollout and overlaps against other projects' softmax, NumPy re-derivations and counts by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import BEiTViT as MMPretrainBEiT
from test_parity import NO_POSITIONS, POSITIONS, arch, in_timm, randomised
from timm.models.beit import Beit as TimmBeit

from beit_mm.benchmark import attention
from beit_mm.models.backbone import BEiTViT

ARCH = dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)


def test_relative_bias_sends_a_head_where_it_says():
    """Logits are zero but for head 0's bias towards the patch on the right, so 5 keys share e^b + 4 and more."""
    model = BEiTViT(ARCH, img_size=(8, 12), patch_size=4)  # 2 x 3 patches
    torch.nn.init.zeros_(model.layers[-1].attn.qkv.weight)
    table = model.layers[-1].attn.relative_position_bias_table
    boost, columns, rows = 2.0, 3, 2
    with torch.no_grad():
        table[(rows - 1) * (2 * columns - 1) + (columns - 1) - 1, 0] = boost  # query minus key = (0, -1)
    maps = attention.self_attention(model.train(), torch.rand(2, 3, 8, 12), torch.tensor([[0, 0], [1, 1]]))
    assert maps.shape == (2, 2, 2, 3)
    assert not model.training
    right = math.exp(boost) / (math.exp(boost) + 5)
    other = 1 / (math.exp(boost) + 5)
    expected = np.full((2, 3), other)
    expected[0, 1] = right
    np.testing.assert_allclose(maps[0, 0], expected, rtol=1e-5)
    expected = np.full((2, 3), other)
    expected[1, 2] = right
    np.testing.assert_allclose(maps[1, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(maps[:, 1], 1 / 6, rtol=1e-5)
    with pytest.raises(ValueError, match='no patch in row 2, column 0: 2 x 3 patches are counted from 0'):
        attention.self_attention(model, torch.rand(1, 3, 8, 12), torch.tensor([[2, 0]]))


def entering(modules, run) -> list[torch.Tensor]:
    """What enters each of the modules while `run` runs."""
    found = []
    handles = [m.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for m in modules]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


def softmax_of(x: torch.Tensor, qkv: torch.Tensor, heads: int, scale: float, bias) -> torch.Tensor:
    b, t, _ = x.shape
    q, k, _ = qkv.reshape(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4)
    logits = torch.einsum('bhqd,bhkd->bhqk', q, k) * scale
    return (logits if bias is None else logits + bias).softmax(-1)


@pytest.mark.parametrize('positions', ['absolute', 'per block', 'shared'])
def test_maps_are_timms(positions):
    """Of every block, for images that are not square; timm's own weights, projections, tables and index."""
    kind = {**NO_POSITIONS, **POSITIONS[positions]}
    ours = randomised(BEiTViT(arch(64, 3, 4), img_size=(48, 96), patch_size=16, **kind, out_type='avg_featmap')).eval()
    theirs = TimmBeit(
        img_size=(48, 96), patch_size=16, embed_dim=64, depth=3, num_heads=4, num_classes=0, init_values=0.1,
        global_pool='avg', **kind,
    ).eval()  # fmt: skip
    theirs.load_state_dict({in_timm(k): v for k, v in ours.state_dict().items()}, strict=False)
    images = torch.randn(2, 3, 48, 96)
    entered = entering([block.attn for block in theirs.blocks], lambda: theirs(images))
    maps = ours.attention_maps(images, range(3))
    shared = theirs.rel_pos_bias() if theirs.rel_pos_bias is not None else None
    for block, x, ours_map in zip(theirs.blocks, entered, maps, strict=True):
        attn = block.attn
        qkv = F.linear(x, attn.qkv.weight, torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]))
        bias = attn._get_rel_pos_bias() if attn.relative_position_bias_table is not None else shared
        expected = softmax_of(x, qkv, attn.num_heads, attn.scale, bias)
        torch.testing.assert_close(ours_map, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.attention_maps(images, [-1, 0]), [maps[2], maps[0]])


def test_maps_are_mmpretrains():
    kind = dict(arch=arch(48, 2, 3), img_size=(32, 64), patch_size=16, **{**NO_POSITIONS, 'use_rel_pos_bias': True})
    ours, theirs = randomised(BEiTViT(**kind)).eval(), MMPretrainBEiT(**kind)
    theirs.eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    images = torch.randn(1, 3, 32, 64)
    entered = entering([layer.attn for layer in theirs.layers], lambda: theirs(images))
    for layer, x, ours_map in zip(theirs.layers, entered, ours.attention_maps(images, [0, 1]), strict=True):
        attn = layer.attn
        qkv = F.linear(x, attn.qkv.weight, torch.cat([attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias]))
        index = attn.relative_position_index
        bias = attn.relative_position_bias_table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)
        expected = softmax_of(x, qkv, attn.num_heads, attn.scale, bias)
        torch.testing.assert_close(ours_map, expected, atol=1e-5, rtol=1e-5)


def test_rollout_is_the_product_of_half_residual_blocks():
    """Against NumPy: the mean over heads, half of it the identity, rows normalised, the last block's from the left."""
    rng = np.random.default_rng(0)
    maps = [torch.tensor(rng.dirichlet(np.ones(5), (2, 3, 5))) for _ in range(4)]
    found = attention.rollout(maps).numpy()
    for image in range(2):
        expected = np.eye(5)
        for one in maps:
            fused = sum(one[image, head].numpy() for head in range(3)) / 3
            step = np.array([[0.5 * fused[i, j] + (0.5 if i == j else 0.0) for j in range(5)] for i in range(5)])
            expected = (step / step.sum(axis=1)[:, None]) @ expected
        np.testing.assert_allclose(found[image], expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-12)
    alone = torch.eye(5, dtype=torch.float64).expand(1, 2, 5, 5)  # blocks in which every token sees itself
    np.testing.assert_array_equal(attention.rollout([alone] * 3)[0], np.eye(5))


@pytest.mark.parametrize(
    ('keep', 'expected'),
    [
        (0.4, [[True, False], [False, False]]),
        (0.6, [[True, False], [True, False]]),
        (0.8, [[True, True], [True, False]]),
        (1.0, [[True, True], [True, True]]),
    ],
)
def test_mass_mask_is_the_fewest_patches(keep, expected):
    values = np.array([[0.5, 0.125], [0.25, 0.125]])
    np.testing.assert_array_equal(attention.mass_mask(values, keep), expected)
    np.testing.assert_array_equal(attention.mass_mask(8 * values, keep), expected)  # of the mass that is there


def test_mass_mask_is_the_official_one():
    """beit2/visualize_attention.py sorts upwards and keeps what lies above the first 40 % of the cumulated mass."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.gamma(0.5, size=(6, 9))
        flat = values.ravel()
        order = np.argsort(flat)
        above = np.cumsum(flat[order] / flat.sum()) > 1 - attention.KEPT_MASS
        expected = np.zeros(flat.size, bool)
        expected[order] = above
        np.testing.assert_array_equal(attention.mass_mask(values), expected.reshape(6, 9))


def test_effective_patches():
    assert attention.effective_patches(np.full((2, 4), 1 / 8)) == pytest.approx(8)
    assert attention.effective_patches(np.array([[1.0, 0.0]])) == 1.0


def test_jaccard():
    a, b = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert attention.jaccard(a, b) == 0.5
    assert attention.jaccard(a, ~a) == 0.0
    assert attention.jaccard(a, a) == 1.0
    assert attention.jaccard(~a & a, ~a & a) == 0.0


def test_attention_jaccard_by_hand():
    """Object 0: the mean holds 60 % on the left half, which is it. Object 1: on one patch of four that are it. Heads:
    object 0 has one good (1) and one bad (0), object 1 the other way round (1 / 4 and 1 / 2)."""
    everything = np.ones((2, 2), bool)
    left, right = np.array([[1, 0], [1, 0]], bool), np.array([[0, 1], [0, 1]], bool)
    first = np.stack([left * 0.5, right * 0.5])
    first[0] *= 1.6
    first[1] *= 0.4
    second = np.array([[[1.0, 0.0], [0.0, 0.0]], [[0.5, 0.5], [0.0, 0.0]]])
    found = attention.attention_jaccard([(first, left, everything), (second, everything, everything)])
    assert found['attended'] == (1.0 + 0.25) / 2
    assert found['everywhere'] == (0.5 + 1.0) / 2
    assert found['head 0'] == (1.0 + 0.25) / 2
    assert found['head 1'] == (0.0 + 0.5) / 2
    assert found['best_head'] == 0.625
    assert found['best_head_each'] == (1.0 + 0.5) / 2
    assert found['objects'] == 2
    assert attention.attention_jaccard([]) == {}


def test_void_pixels_do_not_count():
    """One of the two patches of 2 x 2 pixels is attended; of its pixels one is void, as one of the object's outside."""
    maps = np.array([[[1.0, 0.0]]])
    inside = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    valid = np.array([[0, 1, 1, 1], [1, 1, 1, 1]], bool)
    found = attention.attention_jaccard([(maps, inside, valid)])
    assert found['attended'] == 3 / 4  # of 3 valid attended pixels all are it; of its own 4 valid ones, one is outside
    assert found['everywhere'] == 4 / 7
    assert attention.attention_jaccard([(maps, inside, np.ones_like(valid))])['attended'] == 4 / 5


def test_shuffled_is_chance():
    """Two of four patches against a region of two: expected Jaccard (1 x 1 + 4 x 1/3 + 1 x 0) / 6."""
    maps, left = np.array([[[0.4, 0.1], [0.4, 0.1]]]), np.array([[1, 0], [1, 0]], bool)
    found = attention.attention_jaccard([(maps, left, np.ones_like(left))] * 3000)
    assert found['attended'] == 1.0
    assert found['shuffled'] == pytest.approx((1 + 4 / 3) / 6, abs=0.02)
