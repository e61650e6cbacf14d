"""What a loader gets of a data set: for the same draw the same sample, and errors that name their file."""

import functools
from collections.abc import Sequence

from torch.utils.data import Dataset

from .failures import named
from .sampling import Draw, seed_globals


def seed_samples(dataset: Dataset) -> None:
    """Have a data set seed the global generators for each sample that a loader with keyed indices asks it for, and
    name the file of a sample that it cannot make.

    torch's loaders ask for a batch by `__getitems__` where a data set has one: it gets one. `dataset[i]` is as it was.
    """
    dataset.__getitems__ = functools.partial(_items, dataset)


def _items(dataset: Dataset, indices: Sequence[int]) -> list:
    samples = []
    for index in indices:
        if isinstance(index, Draw):
            seed_globals('sample', *index.key)
        try:
            samples.append(dataset[index])
        except Exception as error:
            failure = named(error, dataset, index)
            if failure is error:
                raise
            raise failure from error
    return samples
