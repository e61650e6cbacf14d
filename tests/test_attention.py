"""Attention maps against probabilities and overlaps worked out by hand."""

import math

import numpy as np
import pytest
import torch

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


def test_jaccard():
    a, b = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert attention.jaccard(a, b) == 0.5
    assert attention.jaccard(a, ~a) == 0.0
    assert attention.jaccard(a, a) == 1.0
    assert attention.jaccard(~a & a, ~a & a) == 0.0


def test_patch_classes_are_majorities():
    mask = np.array([[1, 1, 2, 2], [1, 0, 2, 2], [3, 3, 0, 0], [3, 3, 0, 3]])
    np.testing.assert_array_equal(attention.patch_classes(mask, (2, 2)), [[1, 2], [3, 0]])


def test_attention_jaccard_by_hand():
    """Image 0: 60 % lie on the left half, the query's region, exactly. Image 1: on one patch of a region of four."""
    maps = torch.tensor([[[[0.4, 0.1], [0.4, 0.1]]], [[[1.0, 0.0], [0.0, 0.0]]]])
    masks = np.array([[[5, 7], [5, 7]], [[5, 5], [5, 5]]])
    found = attention.attention_jaccard(maps, masks, torch.tensor([[0, 0], [1, 1]]))
    assert found['attended'] == (1.0 + 0.25) / 2
    assert found['everywhere'] == (0.5 + 1.0) / 2


def test_shuffled_is_chance():
    """Two of four patches against a region of two: expected Jaccard (1 x 1 + 4 x 1/3 + 1 x 0) / 6."""
    images = 3000
    maps = torch.tensor([[[0.4, 0.1], [0.4, 0.1]]]).expand(images, 1, 2, 2)
    masks = np.broadcast_to(np.array([[5, 7], [5, 7]]), (images, 2, 2))
    found = attention.attention_jaccard(maps, masks, torch.zeros(images, 2, dtype=torch.int64))
    assert found['attended'] == 1.0
    assert found['shuffled'] == pytest.approx((1 + 4 / 3) / 6, abs=0.02)
