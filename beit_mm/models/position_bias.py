"""The relative position bias of the blocks: its table, looking it up, and keeping it between calls in eval.

Letters in shapes: T = 1 + N tokens (the class token first), h heads.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..ops.biased_attention import eager
from ..ops.relative_position import num_offsets, relative_position_index, resize_table

Grid = tuple[int, int]
MOST_KEPT = 2**30  # bytes; BEiT-B has 0.02 GB of biases at 224 pixels, 0.6 GB at 512


class RelativePositionBias(nn.Module):
    """The table of all blocks together: a bias per head and offset (query minus key), zero at the start.

    See ops/relative_position.py. `PositionBiases` looks it up, as it does the tables of single blocks.
    """

    def __init__(self, grid: Grid, num_heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_offsets(grid), num_heads))


def position_bias(table: torch.Tensor, own_grid: Grid, grid: Grid, index: torch.Tensor) -> torch.Tensor:
    """Look the table (rows, h) up for every pair of tokens of `grid`, by its index: (h, T, T). It is resized from
    `own_grid` where they differ."""
    by_head = resize_table(table, own_grid, grid).T.contiguous()
    return by_head.index_select(1, index.flatten()).view(-1, *index.shape)


class PositionBiases:
    """What gives the biases of all blocks. In eval on the CPU they are kept, while their tables hold the same values.

    Nobody says that weights have changed: mmengine's EMA hook writes into `.data`, which no version counter sees. So
    the tables (0.4 MB in BEiT-B) are compared with what they were, value by value, at every use. Elsewhere than on the
    CPU a comparison would make the host wait, and looking the bias up costs little. What is kept is not copied,
    pickled or saved along with a model.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.tables: list[torch.Tensor] = []  # as they were
        self.by_grid: dict[Grid, list[torch.Tensor]] = {}

    def __deepcopy__(self, memo: dict) -> 'PositionBiases':
        return PositionBiases()

    def __reduce__(self) -> tuple:
        return PositionBiases, ()

    def of(
        self, tables: Sequence[torch.Tensor], own_grid: Grid, grid: Grid, tokens: torch.Tensor, keep: bool
    ) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """For each table what makes its bias (h, T, T) for `grid` of it, on the device of `tokens`."""

        def look_up() -> list[torch.Tensor]:
            index = relative_position_index(grid, tokens.device)
            return [position_bias(table, own_grid, grid, index) for table in tables]

        # Of another grid's table it is a product, which autocast rounds: it would not be the same without
        keep = keep and (grid == own_grid or not torch.is_autocast_enabled('cpu'))
        if keep and _may_outlive_a_call(tables, tokens) and _size(tables, grid) <= MOST_KEPT:
            return [lambda table, bias=bias: bias for bias in self._kept(tables, grid, look_up)]
        if len(tables) == 1:  # of all blocks together
            (bias,) = look_up()
            return [lambda table: bias]
        index = relative_position_index(grid, tokens.device)
        return [lambda table: position_bias(table, own_grid, grid, index)] * len(tables)

    def _kept(self, tables: Sequence[torch.Tensor], grid: Grid, look_up: Callable) -> list[torch.Tensor]:
        if list(map(len, tables)) != list(map(len, self.tables)) or not all(map(_equal, tables, self.tables)):
            self.clear()
            self.tables = [table.detach().clone() for table in tables]
        by_grid = self.by_grid  # another thread may put an empty one in its place
        if grid not in by_grid:
            if sum(_size(tables, other) for other in (*by_grid, grid)) > MOST_KEPT:
                self.by_grid = by_grid = {}
            with torch.inference_mode(False), torch.no_grad():  # made in inference mode they would serve no gradient
                by_grid[grid] = look_up()
        return by_grid[grid]


def _equal(now: torch.Tensor, before: torch.Tensor) -> bool:
    return now.dtype == before.dtype and torch.equal(now, before)


def _size(tables: Sequence[torch.Tensor], grid: Grid) -> int:
    """Bytes of the biases of one grid."""
    return sum(table.shape[1] * table.element_size() for table in tables) * (1 + grid[0] * grid[1]) ** 2


def _may_outlive_a_call(tables: Sequence[torch.Tensor], tokens: torch.Tensor) -> bool:
    """Plain tensors on the CPU, of which no gradient is wanted; and not what a compiler or an export would record."""
    if not eager():
        return False
    if torch.is_grad_enabled() and any(table.requires_grad for table in tables):
        return False
    # A fake one of an export has no values, a sharded one not all of them
    return type(tokens) is torch.Tensor and all(
        type(table) in (torch.Tensor, nn.Parameter) and table.device.type == 'cpu' for table in tables
    )
