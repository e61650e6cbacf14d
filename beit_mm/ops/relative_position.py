"""Where patches stand to each other: the index of relative positions, and resizing of tables and positions.

A table has one row per offset (query minus key), (2h - 1)(2w - 1) of them, and three rows more: class token
to patch, patch to class token, class token to itself. Source: official modeling_finetune.py,
RelativePositionBias, and run_class_finetuning.py (resizing).
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F

Grid = tuple[int, int]  # (rows, columns) of patches
NUM_CLASS_ROWS = 3


def num_offsets(grid: Grid) -> int:
    """Rows of a table for `grid`, the three rows of the class token included."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + NUM_CLASS_ROWS


def square_of_table(rows: int) -> Grid | None:
    """The square grid whose table has so many rows; None where there is none."""
    side = (math.isqrt(max(rows - NUM_CLASS_ROWS, 0)) + 1) // 2
    return (side, side) if num_offsets((side, side)) == rows else None


def square_of_patches(patches: int) -> Grid | None:
    """The square grid of so many patches; None where there is none."""
    side = math.isqrt(max(patches, 0))
    return (side, side) if side * side == patches else None


def relative_position_index(grid: Grid, device: torch.device | str = 'cpu') -> torch.Tensor:
    """(1 + h*w, 1 + h*w) int64: the table row for each pair (query, key); position 0 is the class token."""
    h, w = grid
    patches = torch.arange(h * w, device=device)
    rows, columns = patches // w, patches % w
    down = rows[:, None] - rows[None, :] + h - 1
    right = columns[:, None] - columns[None, :] + w - 1
    of_patches = down * (2 * w - 1) + right
    total = num_offsets(grid)
    to_patches = patches.new_full((1, h * w), total - 3)
    to_class = torch.cat([patches.new_full((1, 1), total - 1), patches.new_full((h * w, 1), total - 2)])
    return torch.cat([to_class, torch.cat([to_patches, of_patches])], dim=1)


def _geometric_ratio(half_src: int, half_dst: int) -> float:
    """The ratio q in [1.01, 1.5] at which 1 + q + q^2 + ... (half_src terms) reaches half_dst.

    Bisection to 1e-6 as in the official code: when shrinking, q stays at 1.01 and the centre of the table
    is kept instead of the whole being squeezed.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2.0
        if (1.0 - q**half_src) / (1.0 - q) > half_dst:
            high = q
        else:
            low = q
    return q


def resize_matrix(src: int, dst: int) -> torch.Tensor:
    """(2*dst - 1, 2*src - 1) float64: resamples offsets along one axis, from `src` to `dst` patches.

    Source samples stand at geometrically growing distances, so near offsets keep their resolution; between
    them runs a cubic spline, and outside the outermost sample is repeated.
    """
    return torch.from_numpy(_matrix(src, dst))


# What is kept is an array: a tensor would remember the mode (inference, meta, export) of whoever asked first.
@functools.lru_cache(maxsize=64)
def _matrix(src: int, dst: int) -> np.ndarray:
    n_src, n_dst = 2 * src - 1, 2 * dst - 1
    if src == dst:
        return np.eye(n_src)
    if n_src == 1:
        return np.ones((n_dst, 1))
    q = _geometric_ratio(n_src // 2, n_dst // 2)
    distance = np.cumsum(q ** np.arange(n_src // 2))
    at = np.concatenate([-distance[::-1], [0.0], distance])
    wanted = np.clip(np.arange(-(n_dst // 2), n_dst // 2 + 1, dtype=float), at[0], at[-1])
    from scipy.interpolate import make_interp_spline  # half a second to import, for models that are resized

    spline = make_interp_spline(at, np.eye(n_src), k=min(3, n_src - 1))
    return spline(wanted)


# To torch.compile the matrix is an operator of ours: it cannot see through SciPy, and would cut the graph in two.
@torch.library.custom_op('beit_mm::resize_matrix', mutates_args=())
def _compiled_resize_matrix(like: torch.Tensor, src: int, dst: int) -> torch.Tensor:
    return torch.tensor(_matrix(src, dst)).to(like)


@_compiled_resize_matrix.register_fake
def _(like: torch.Tensor, src: int, dst: int) -> torch.Tensor:
    return like.new_empty(2 * dst - 1, 2 * src - 1)


def _resize_matrix_like(table: torch.Tensor, src: int, dst: int) -> torch.Tensor:
    """resize_matrix of the table's device and type."""
    if torch.compiler.is_dynamo_compiling():
        return _compiled_resize_matrix(table.detach(), src, dst)
    return resize_matrix(src, dst).to(table)


def resize_table(table: torch.Tensor, src_grid: Grid, dst_grid: Grid, interpolation: str = 'geometric') -> torch.Tensor:
    """Resize a table ((2h-1)(2w-1)+3, heads) from one grid to another; the class token's rows are kept.

    interpolation: `geometric`, or `bicubic` or `bilinear` of the table as an image (Hugging Face does the latter).
    Differentiable. The first equals the official geometric progression with cubic `interp2d` (removed from SciPy
    1.14) to 1e-5, and serves grids with h != w, which the official code does not.
    """
    if table.shape[0] != num_offsets(src_grid):
        raise ValueError(
            f'a table for {src_grid[0]} x {src_grid[1]} patches has {num_offsets(src_grid)} rows, not {table.shape[0]}'
        )
    if src_grid == dst_grid:
        return table
    offsets, of_class = table[:-NUM_CLASS_ROWS], table[-NUM_CLASS_ROWS:]
    heads = table.shape[1]
    image = offsets.T.reshape(heads, 2 * src_grid[0] - 1, 2 * src_grid[1] - 1)
    if interpolation != 'geometric':
        size = (2 * dst_grid[0] - 1, 2 * dst_grid[1] - 1)
        image = F.interpolate(image[None], size=size, mode=interpolation, align_corners=False)
        return torch.cat([image.flatten(2)[0].T, of_class])
    a_h = _resize_matrix_like(table, src_grid[0], dst_grid[0])
    a_w = _resize_matrix_like(table, src_grid[1], dst_grid[1])
    return torch.cat([(a_h @ image @ a_w.T).reshape(heads, -1).T, of_class])


def resize_positions(positions: torch.Tensor, src_grid: Grid, dst_grid: Grid, mode: str = 'bicubic') -> torch.Tensor:
    """Resize absolute position embeddings (1, 1 + h*w, dim); the class token's row is kept.

    mode: `bicubic` (official code) or `bilinear` (paper, Table 14).
    """
    of_any_size = isinstance(dst_grid[0], torch.SymInt)  # an export cannot ask whether it is this one
    if not of_any_size and src_grid == dst_grid:
        return positions
    of_class, of_patches = positions[:, :1], positions[:, 1:]
    image = of_patches.reshape(1, *src_grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=dst_grid, mode=mode, align_corners=False)
    return torch.cat([of_class, image.flatten(2).transpose(1, 2)], dim=1)
