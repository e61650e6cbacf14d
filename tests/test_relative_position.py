"""ops/relative_position.py against the official resizing (interp2d of SciPy 1.13) and by hand."""

import numpy as np
import pytest
import torch
from official import golden
from scipy.interpolate import RectBivariateSpline

from beit_mm.ops.relative_position import (
    num_offsets,
    relative_position_index,
    resize_matrix,
    resize_positions,
    resize_table,
)


@pytest.mark.parametrize('name', ['14to24', '14to32', '14to40', '4to8'])
def test_equals_official_resize(name):
    _, _, io = golden('relpos_resize')
    src, dst = (int(side) for side in name.split('to'))
    resized = resize_table(io[f'src_{name}'], (src, src), (dst, dst))
    torch.testing.assert_close(resized, io[f'dst_{name}'], atol=1e-5, rtol=0)


def official_resize(table, src, dst):
    """The official procedure for squares, its interp2d replaced by the FITPACK spline that was behind it."""
    left, right, half, wanted = 1.01, 1.5, (2 * src - 1) // 2, (2 * dst - 1) // 2
    while right - left > 1e-6:
        q = (left + right) / 2
        left, right = (left, q) if (1 - q**half) / (1 - q) > wanted else (q, right)
    steps = np.cumsum([q**i for i in range(half)])
    at = np.concatenate([-steps[::-1], [0], steps])
    grid = np.arange(-wanted, wanted + 1)
    columns = []
    for head in table[:-3].T.reshape(-1, 2 * src - 1, 2 * src - 1).double().numpy():
        columns.append(RectBivariateSpline(at, at, head.T)(grid, grid).T.reshape(-1))
    return torch.cat([torch.from_numpy(np.stack(columns, axis=1)).float(), table[-3:]])


@pytest.mark.parametrize(('src', 'dst'), [(14, 24), (14, 12), (7, 20), (20, 7), (3, 4), (5, 32), (24, 23)])
def test_any_square_as_the_official_procedure(src, dst):
    """Growing and shrinking, where the ratio sticks at 1.01 and the centre is kept."""
    torch.manual_seed(src)
    table = torch.randn(num_offsets((src, src)), 3)
    resized = resize_table(table, (src, src), (dst, dst))
    torch.testing.assert_close(resized, official_resize(table, src, dst), atol=1e-5, rtol=0)


def test_index_by_hand():
    index = relative_position_index((2, 3))
    assert num_offsets((2, 3)) == 3 * 5 + 3
    assert index[0, 0] == 17  # class to class
    assert index[0, 1:].eq(15).all()  # class to patch
    assert index[1:, 0].eq(16).all()  # patch to class
    # query at (0, 0), key at (1, 2): offset (-1, -2) is row 0; query (1, 2), key (0, 0) is the last offset
    assert index[1, 6] == 0
    assert index[6, 1] == 14
    assert index.diagonal()[1:].eq(7).all()  # offset (0, 0) is the middle


def test_same_grid_is_identity_and_rectangles_separate():
    table = torch.randn(num_offsets((3, 5)), 2)
    assert resize_table(table, (3, 5), (3, 5)) is table
    resized = resize_table(table, (3, 5), (6, 4))
    by_hand = resize_matrix(3, 6).float() @ table[:-3].T.reshape(2, 5, 9) @ resize_matrix(5, 4).float().T
    torch.testing.assert_close(resized[:-3], by_hand.reshape(2, -1).T)
    assert torch.equal(resized[-3:], table[-3:])
    with pytest.raises(ValueError, match='has 48 rows, not 47'):
        resize_table(table[1:], (3, 5), (6, 4))


def test_a_constant_stays_constant_and_gradients_flow():
    table = torch.full((num_offsets((4, 4)), 1), 2.5, requires_grad=True)
    resized = resize_table(table, (4, 4), (9, 7))
    torch.testing.assert_close(resized, torch.full_like(resized, 2.5))
    resized.sum().backward()
    # every target row's weights sum to one, so all offsets' gradients together count the targets
    torch.testing.assert_close(table.grad[:-3].sum(), torch.tensor(float(17 * 13)))


def test_positions_equal_interpolation_and_keep_the_class_token():
    positions = torch.randn(1, 1 + 16, 6)
    resized = resize_positions(positions, (4, 4), (6, 5))
    image = positions[:, 1:].transpose(1, 2).reshape(1, 6, 4, 4)
    expected = torch.nn.functional.interpolate(image, (6, 5), mode='bicubic', align_corners=False)
    torch.testing.assert_close(resized[:, 1:], expected.flatten(2).transpose(1, 2))
    assert torch.equal(resized[:, 0], positions[:, 0])
