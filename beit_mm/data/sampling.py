"""Randomness of a sample that depends on (seed, epoch, index) and on nothing else.

The samplers hand out indices that know what they were drawn for; a transform asks `generator_of(results)` and
gets the same numbers however many workers there are, in whatever order, and again when a run is repeated.
"""

import zlib
from collections.abc import Iterator

import numpy as np
from mmengine.dataset import DefaultSampler, InfiniteSampler

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

    A sample from another sampler has no key: then from NumPy's global generator, which mmengine seeds per worker.
    A sample of which only so many views are made, `num_views`, gets the same numbers again after as many epochs.
    """
    key = getattr(results.get('sample_idx'), 'key', None)
    if key is None:
        return np.random.default_rng(np.random.randint(0, 2**31, size=4))
    if num_views := results.get('num_views'):
        seed, epoch, index = key
        key = (seed, epoch % num_views, index)
    return np.random.default_rng([*key, zlib.crc32(purpose.encode())])


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's DefaultSampler (one pass, split over the ranks), whose indices are Draws."""

    def __iter__(self) -> Iterator[Draw]:
        for index in super().__iter__():
            yield Draw(index, (self.seed, self.epoch, index))


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's InfiniteSampler (pass after pass without an end), whose indices are Draws."""

    def _infinite_indices(self) -> Iterator[Draw]:
        for position, index in enumerate(super()._infinite_indices()):
            yield Draw(index, (self.seed, position // self.size, index))
