"""Randomness of a sample that depends on (seed, epoch, index) and on nothing else.

The samplers hand out indices that know what they were drawn for, and can begin anywhere: nothing is read again to get
there. A transform of ours asks `generator_of(results)`; for those of others the global generators are seeded before
each sample (samples.py). So a sample is the same however many workers there are, in whatever order, and again
when a run is repeated or goes on.
"""

import hashlib
import itertools
import random
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS as ROOT
from torch.utils.data import Dataset, Sampler

from ..registry import DATA_SAMPLERS


class Draw(int):
    """An index of a data set, with the (seed, epoch, index) that it was drawn for as its `key`.

    Data sets made of others look an index up by subtracting offsets or taking remainders: the key stays.
    """

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...]) -> 'Draw':
        draw = super().__new__(cls, index)
        draw.key = key
        return draw

    def __reduce__(self):
        return Draw, (int(self), self.key)

    def __sub__(self, offset: int) -> 'Draw':
        return Draw(int(self) - offset, self.key)

    def __mod__(self, length: int) -> 'Draw':
        return Draw(int(self) % length, self.key)


def generator_of(results: dict, purpose: str) -> np.random.Generator:
    """The generator of one sample for one purpose (a transform's name), so that transforms draw apart.

    A sample from another sampler has no key: then from NumPy's global generator.
    A sample of which only so many views are made, `num_views`, gets the same numbers again after as many epochs.
    """
    key = getattr(results.get('sample_idx'), 'key', None)
    if key is None:
        return np.random.default_rng(np.random.randint(0, 2**31, size=4))
    if num_views := results.get('num_views'):
        seed, epoch, index = key
        key = (seed, epoch % num_views, index)
    return np.random.default_rng([*key, zlib.crc32(purpose.encode())])


def seed_globals(*counter: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU) by what is next, such as ('step', seed, 7, rank)."""
    digest = hashlib.blake2b(repr(counter).encode(), digest_size=32).digest()
    words = np.frombuffer(digest, np.uint32)
    random.seed(digest)
    np.random.seed(words)
    torch.default_generator.manual_seed(int.from_bytes(digest[:7], 'little'))


class Keyed:
    """Mixin of samplers whose indices are Draws of the key (seed, pass, index).

    start: how many indices of this rank the next passes leave out. endless: pass after pass follows.
    """

    start, endless = 0, False


AT_ONCE = 1 << 16  # indices that become Python's numbers at a time: 14 million of them would be 570 MB


@DATA_SAMPLERS.register_module()
class SeededSampler(Keyed, DefaultSampler):
    """mmengine's DefaultSampler (one pass, split over the ranks), in the same order, whose indices are Draws."""

    def __iter__(self) -> Iterator[Draw]:
        count = len(self.dataset)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        if self.total_size > count:  # as many to each rank: the first come again
            order = order.repeat(-(-self.total_size // count))[: self.total_size]
        for part in order[self.rank :: self.world_size][self.start :].split(AT_ONCE):
            for index in part.tolist():
                yield Draw(index, (self.seed, self.epoch, index))


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(Keyed, InfiniteSampler):
    """mmengine's InfiniteSampler (pass after pass without an end), whose indices are Draws.

    start: how many indices of this rank to leave out. Every `iter()` begins there, and not where the last one ended.
    """

    endless = True

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed)
        position = self.rank + self.start * self.world_size  # in the endless row of all ranks
        for number in itertools.count():
            # a pass that is left out is drawn too: the next one's order depends on it
            order = torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
            mine = order[max(0, position - number * self.size) :: self.world_size]
            for part in mine.split(AT_ONCE):
                for index in part.tolist():
                    yield Draw(index, (self.seed, number, index))
            position += self.world_size * len(mine)


class ResumableSampler(Sampler):
    """Any other sampler, with a `start` and Draws: their key is (seed, epoch, index, a count of its draws).

    It is asked for what is left out too, which for an endless one takes as long as drawing it did.
    """

    start = 0

    def __init__(self, wrapped: Sampler, seed: int) -> None:
        self.wrapped, self.seed, self.epoch = wrapped, seed, 0
        self.endless = isinstance(wrapped, InfiniteSampler)
        self.rank, self.world_size = get_dist_info()  # repeated augmentation gives an index to several ranks

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.wrapped, 'set_epoch'):
            self.wrapped.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.wrapped)

    def __iter__(self) -> Iterator[Draw]:
        came: dict[int, int] = {}
        for place, index in enumerate(self.wrapped):
            before = came.get(index, 0)
            came[index] = before + 1
            if place >= self.start:
                yield Draw(index, (self.seed, self.epoch, index, before * self.world_size + self.rank))


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(Sampler):
    """Any batch sampler (the config `of`), with a `start` in batches."""

    start = 0

    def __init__(self, sampler: Sampler, batch_size: int, of: dict) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.batches = ROOT.build(of, default_args=dict(sampler=sampler, batch_size=batch_size))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        return itertools.islice(iter(self.batches), self.start, None)


# mmengine's samplers, and those of ours that give the same indices in the same order
KEYED = {DefaultSampler: SeededSampler, InfiniteSampler: SeededInfiniteSampler}


@DATA_SAMPLERS.register_module()
def keyed_sampler(of: dict, dataset: Dataset, seed: int | None) -> Sampler:
    """The sampler of a config, `of`, or one with the same order, that hands out Draws and can begin anywhere."""
    built = ROOT.build(of, default_args=dict(dataset=dataset, seed=seed))
    ours = KEYED.get(type(built))
    if ours:
        arguments = {key: value for key, value in of.items() if key not in ('type', '_scope_')}
        return ours(**{**arguments, 'dataset': dataset, 'seed': built.seed})
    if isinstance(built, Keyed):
        return built
    return ResumableSampler(built, getattr(built, 'seed', seed) or 0)
