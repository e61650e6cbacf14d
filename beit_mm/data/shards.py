"""Images in tar shards, by their number: the data set for what does not lie as files any more. docs/shards.md."""

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine import fileio
from mmengine.dataset import force_full_init
from mmpretrain.datasets.base_dataset import BaseDataset
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

from ..registry import DATASETS
from .ilsvrc import imagenet_synsets
from .images import NextReadable, labels_of_folders
from .shard_index import FOLDER, ShardError, ShardIndex
from .shard_reads import address_of, check_root, is_remote


@DATASETS.register_module()
class TarShards(NextReadable, BaseDataset):
    """Images of tar shards that have an index (`tools/prepare_data.py shards`); samples are as `ImageList`'s.

    data_root, split: the folder of the shards, data_root/split; or a URL (http, https, and what fsspec has: s3, gs).
    index: the folder of the index, where it is not beside the shards; of those behind a URL a copy is needed here.
    with_label: as in `ImageList`, labels may be left out. num_classes (default: that of `classes`) bounds them.
    classes: names; where they are those of the index in another order, or more, labels are places in `classes`.
    indices: only these images, or the first n (the last -n).

    What lies in which shard is read from the index as it is asked for, through a memory map that all processes share:
    start-up takes no longer with 14 million images. It looks at the size of each shard that is on a disk. img_path is
    the address of an image in its shard (shard_reads.py), which every loader of OpenMMLab's can read. Shards are opened
    in the data workers.

    shard_lengths: (S,) images of each shard, for `ShardSampler`.
    """

    def __init__(
        self,
        data_root: str,
        split: str = '',
        index: str | None = None,
        with_label: bool = True,
        num_classes: int | None = None,
        indices: int | Sequence[int] | None = None,
        pipeline: Sequence = (),
        lazy_init: bool = False,
        **kwargs,
    ) -> None:
        self.with_label, self.num_classes = with_label, num_classes
        self.root = fileio.join_path(str(data_root), split) if split else str(data_root)
        if index is None and is_remote(self.root):
            raise ShardError(f'{self.root}: the index of shards behind a URL is read from a copy: index=FOLDER')
        self.index_folder = str(index or Path(self.root) / FOLDER)
        super().__init__(ann_file='', pipeline=pipeline, serialize_data=False, lazy_init=True, **kwargs)
        self._indices = indices
        if not lazy_init:
            self.full_init()

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        check_root(self.root)
        self.index = ShardIndex(self.index_folder)
        if not is_remote(self.root):
            self.index.check_files(self.root)
        self.chosen = None if self._indices is None else self._subset(np.arange(len(self.index)), self._indices)
        self.table = self._labels() if self.with_label else None
        self._fully_initialized = True

    @staticmethod
    def _subset(numbers: np.ndarray, indices: int | Sequence[int]) -> np.ndarray:
        if isinstance(indices, int):
            return numbers[:indices] if indices >= 0 else numbers[indices:]
        return numbers[np.asarray(indices, np.int64)]

    def _labels(self) -> np.ndarray | None:
        """Names of classes; what labels of the index become, None where they stay. Raises ShardError for labels
        outside of the classes."""
        stored, names, where = self.index.labels, self.index.classes, self.index_folder
        if stored is None:
            raise ShardError(f'{where}: these shards have no labels: with_label=False')
        table, given = None, self.CLASSES
        bound = self.num_classes or (len(given) if given is not None else None)
        if names is not None:
            try:
                self.folder_to_idx = labels_of_folders(names, given, where)
            except ValueError as error:
                raise ShardError(str(error)) from error
            if self.num_classes not in (None, len(given or names)):
                raise ShardError(f'{where}: has {len(names)} classes, num_classes={self.num_classes}')
            if given is None:
                known = list(names) == imagenet_synsets()
                self._metainfo['classes'] = tuple(IMAGENET_CATEGORIES if known else names)
            table = np.array([self.folder_to_idx[name] for name in names], np.int64)
            bound = len(table)
        if int(stored.min()) < 0 or (bound is not None and int(stored.max()) >= bound):
            self._name_bad_label(stored, bound)
        return None if table is None or (table == np.arange(len(table))).all() else table

    def _name_bad_label(self, stored: np.ndarray, bound: int | None) -> None:
        bad = np.flatnonzero((stored < 0) | (stored >= (np.iinfo(np.int64).max if bound is None else bound)))
        place = self.index.place(int(bad[0]))
        shifted = ': do they start at 1?' if int(stored.max()) == bound and int(stored.min()) > 0 else ''
        label, limit, shard = (
            int(stored[bad[0]]),
            '' if bound is None else bound - 1,
            self.index.shards[place.shard].name,
        )
        raise ShardError(
            f'{self.root}/{shard}: {place.name} has the label {label}, which is outside 0..{limit} ({len(bad)} of '
            f'{len(stored)} labels are){shifted}'
        )

    @force_full_init
    def __len__(self) -> int:
        return len(self.index) if self.chosen is None else len(self.chosen)

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        place = range(len(self))[idx]
        number = place if self.chosen is None else int(self.chosen[place])
        at = self.index.place(number)
        info = dict(img_path=address_of(self.root, self.index.shards[at.shard].name, at.offset, at.size, at.name))
        if self.with_label:
            label = int(self.index.labels[number])
            info['gt_label'] = label if self.table is None else int(self.table[label])
        info['sample_idx'] = idx if idx >= 0 else place
        return info

    @property
    @force_full_init
    def shard_lengths(self) -> np.ndarray:
        if self.chosen is None:
            return np.diff(self.index.ends, prepend=0)
        if len(self.chosen) and (np.diff(self.chosen) < 0).any():
            raise ShardError(f'{self.root}: indices are not in rising order, as a sampler of shards needs them')
        shards = np.searchsorted(self.index.ends, self.chosen, side='right')
        return np.bincount(shards, minlength=len(self.index.shards))

    @force_full_init
    def digest(self) -> str:
        """sha256 of what the images are: sha256 of shards and of the index, and which of them are taken."""
        what = json.dumps([self.index.shards, sorted(self.index.digests.items()), self._metainfo.get('classes')])
        chosen = b'' if self.chosen is None else self.chosen.tobytes()
        return hashlib.sha256(what.encode() + chosen).hexdigest()

    def get_subset_(self, indices: int | Sequence[int]) -> None:
        self.chosen = self._subset(np.arange(len(self)) if self.chosen is None else self.chosen, indices)

    def get_subset(self, indices: int | Sequence[int]) -> 'TarShards':
        other = copy.copy(self)
        other.get_subset_(indices)
        return other

    def extra_repr(self) -> list[str]:
        return [f'Shards: \t{self.root}', f'Index: \t{self.index_folder}']
