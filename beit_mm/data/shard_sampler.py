"""An order for shards: shuffled, and yet read shard after shard.

A pass is one row of all samples. Shards are shuffled; every `window` of them are mixed, sample by sample; the mixed
windows follow each other in a sequence, which is cut into `lanes` of one length. The row takes one sample of each lane
in turn. Rank r of R takes every R-th of the row, as with mmengine's samplers: so which samples a batch of all ranks has
does not depend on R, and where R divides the lanes, a rank reads lanes / R windows at a time, each to its end.

Any place of the row is computed from its number: a run begins anywhere, at once, and the order takes no memory
but for the windows in use.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Dataset, Sampler

from ..registry import DATA_SAMPLERS
from .failures import DataError
from .sampling import Draw, Keyed

AT_ONCE = 1 << 12  # places of the row that are computed together


class Row:
    """The row of one pass: `row[places]` are indices of samples. lengths (S,): samples of each shard."""

    def __init__(self, lengths: np.ndarray, window: int, lanes: int, seed: int, number: int) -> None:
        self.key, self.window = (seed, number), window
        self.shards = np.random.default_rng([*self.key, 0]).permutation(len(lengths))
        self.lengths, self.first = lengths, np.cumsum(lengths) - lengths  # of a shard: its first sample
        starts = range(0, len(lengths), window)
        self.ends = np.cumsum(np.add.reduceat(lengths[self.shards], starts))  # of a window, in the sequence
        self.count = int(self.ends[-1])
        self.lanes = min(lanes, self.count)
        short, longer = divmod(self.count, self.lanes)  # the first lanes have one sample more
        self.begins = short * np.arange(self.lanes) + np.minimum(np.arange(self.lanes), longer)
        self.mixed: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        at = self.begins[places % self.lanes] + places // self.lanes  # in the sequence
        windows = np.searchsorted(self.ends, at, side='right')
        indices = np.empty_like(at)
        for window in np.unique(windows).tolist():
            chosen = windows == window
            mixed = self._mixed(window)
            indices[chosen] = mixed[at[chosen] - (self.ends[window] - len(mixed))]
        return indices

    def _mixed(self, window: int) -> np.ndarray:
        """The samples of a window in their order; kept while lanes are in it."""
        if window not in self.mixed:
            shards = self.shards[window * self.window : (window + 1) * self.window]
            samples = np.concatenate([self.first[s] + np.arange(self.lengths[s]) for s in shards])
            self.mixed[window] = np.random.default_rng([*self.key, 1, window]).permutation(samples)
            while len(self.mixed) > 2 * self.lanes:
                self.mixed.popitem(last=False)
        self.mixed.move_to_end(window)
        return self.mixed[window]


@DATA_SAMPLERS.register_module()
class ShardSampler(Keyed, Sampler):
    """Samples of `TarShards`, shuffled by shards and windows of them, as the top of this file says.

    window: shards that are mixed. lanes: windows that are read side by side by all ranks together; a multiple of their
    number keeps ranks out of each other's shards. Both are part of the order, as the seed is. shuffle=False: the order
    of the data set. round_up: as mmengine's DefaultSampler, the first of a pass come again, so that all ranks have as
    many.
    """

    def __init__(
        self,
        dataset: Dataset,
        window: int = 4,
        lanes: int = 8,
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
    ) -> None:
        if window < 1 or lanes < 1:
            raise ValueError(f'ShardSampler: window={window}, lanes={lanes}: both have to be 1 or more')
        lengths = getattr(dataset, 'shard_lengths', None)
        if lengths is None:
            raise DataError(
                f'ShardSampler: {type(dataset).__name__} has no shards: it is for beit_mm.TarShards, without a wrapper '
                f'around it; others have DefaultSampler and InfiniteSampler'
            )
        lengths = np.asarray(lengths)
        self.lengths, self.window, self.lanes = lengths[lengths > 0], window, lanes
        self.shuffle, self.round_up = shuffle, round_up
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.size, self.epoch = len(dataset), 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Indices of this rank in a pass."""
        return -(-(self.size if self.round_up else self.size - self.rank) // self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        places = range(self.rank, self.rank + len(self) * self.world_size, self.world_size)
        yield from self._draws(self.epoch, places[self.start :])

    def _draws(self, number: int, places: range) -> Iterator[Draw]:
        row = Row(self.lengths, self.window, self.lanes, self.seed, number) if self.shuffle else None
        for begin in range(0, len(places), AT_ONCE):
            part = np.array(places[begin : begin + AT_ONCE], np.int64) % self.size
            for index in (row[part] if row else part).tolist():
                yield Draw(index, (self.seed, number, index))


@DATA_SAMPLERS.register_module()
class ShardInfiniteSampler(ShardSampler):
    """The same pass after pass, for loops over iterations."""

    endless = True

    def __len__(self) -> int:
        """Of all ranks, as mmengine's InfiniteSampler says."""
        return self.size

    def __iter__(self) -> Iterator[Draw]:
        position = self.rank + self.start * self.world_size  # in the endless row of all ranks
        for number in itertools.count(position // self.size):
            places = range(position - number * self.size, self.size, self.world_size)
            yield from self._draws(number, places)
            position += self.world_size * len(places)
