"""Images that lie as files: ImageNet in its layouts, any folder with or without labels, list files."""

import io
import logging
import re
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine import fileio
from mmengine.dataset import force_full_init
from mmengine.logging import print_log
from mmpretrain.datasets import CustomDataset
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from mmpretrain.datasets.custom import find_folders, get_samples

from ..registry import DATASETS
from .ilsvrc import ORDERS, REMEDIES, imagenet_synsets, label_order
from .loading import EXTENSIONS
from .sampling import Draw

LABEL = re.compile('-?[0-9]{1,18}')
NUMBER = struct.Struct('<q')  # a label in memory
MOST_IN_A_ROW = 100  # unreadable images: then it is not the files


class ListError(ValueError):
    """A line of a list file that cannot be meant; the message has file, line and value."""


class Entry(NamedTuple):
    """One line of a list file; label None where there is none."""

    line: int
    path: str
    label: int | None


def read_list(file: str | Path, with_label: bool = True, num_classes: int | None = None) -> Iterator[Entry]:
    """The entries of a list file, one image a line: `path label`, separated by the last blank or tab, or `path` alone.

    Without labels both are taken, so that one file serves classification and masked image modeling. Empty lines are
    passed over. Raises ListError for a line without a label and for a label outside 0..num_classes-1.
    """
    for number, text in _lines(file):
        path, _, last = text.replace('\t', ' ').rpartition(' ')
        is_label = bool(path) and LABEL.fullmatch(last) is not None
        if not with_label:
            yield Entry(number, text[: -len(last)].rstrip() if is_label else text, int(last) if is_label else None)
            continue
        if not is_label:
            raise ListError(
                f'{file}, line {number}: {text!r} has no label; write `path label` with an integer, or set '
                f'with_label=False'
            )
        label = int(last)
        if label < 0 or (num_classes is not None and label >= num_classes):
            hint = ': do they start at 1?' if label == num_classes else ''
            raise ListError(
                f'{file}, line {number}: label {label} is outside 0..{"" if num_classes is None else num_classes - 1}'
                f'{hint}'
            )
        yield Entry(number, text[: -len(last)].rstrip(), label)


def _lines(file: str | Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are not empty, one at a time: a list may have 14 million."""
    lines = io.TextIOWrapper(io.BytesIO(fileio.get(file)), encoding='utf-8')
    try:
        for number, line in enumerate(lines, start=1):
            if text := line.strip():
                yield number, text
    except UnicodeDecodeError as error:
        raise ListError(f'{file}: not a list file: {error}; write it as UTF-8 text') from error


def labels_of_folders(folders: Sequence[str], classes: Sequence[str] | None, where: str) -> dict[str, int]:
    """{folder: label}: its place in `classes` where those are folder names, else its place in sorted order."""
    if classes is None:
        return {name: label for label, name in enumerate(folders)}
    place = {name: label for label, name in enumerate(classes)}
    if all(name in place for name in folders):
        return {name: place[name] for name in folders}
    if len(classes) != len(folders):
        stray = [name for name in folders if name not in place][:3]
        raise ValueError(
            f'{where}: has {len(folders)} class folders, and {len(classes)} classes were given; {", ".join(stray)} '
            f'is none of them'
        )
    return {name: label for label, name in enumerate(folders)}


def _wrong_order(labels: Iterable[tuple[str, int]]) -> str:
    """What to say of a list of ImageNet whose labels are surely in another order than everybody's; else nothing."""
    order = label_order(labels)
    if order in (None, 'sorted', 'other'):
        return ''
    return f'its labels are in the order: {ORDERS[order]}; {REMEDIES[order]}'


class NextReadable:
    """Mixin of data sets: an image that `LoadImage(on_error='skip')` cannot read is replaced by the next that can be
    read, the same one in every run; in test_mode it is an error."""

    def __getitem__(self, idx: int) -> dict:
        first = None
        for step in range(min(MOST_IN_A_ROW, len(self))):
            place = (int(idx) + step) % len(self)
            data = self.prepare_data(Draw(place, idx.key) if isinstance(idx, Draw) else place)
            if data is not None:
                return data
            first = first or self.get_data_info(place)['img_path']
            if self.test_mode:
                raise ValueError(f'{first}: cannot be read (its reason is in the log), and a test leaves no image out')
        raise ValueError(f'{first}: cannot be read, nor the {step} images after it')


class _Entries(Sequence):
    """Samples of a list, stored as bytes until one is asked for: 14 million dicts would take 6 GB.

    records: of each image its label (8 bytes, where there are labels) and its path below the prefix. info: what a
    record says.
    """

    def __init__(self, records: Iterable[bytes], info: Callable[[bytes], dict]) -> None:
        self.info, self.blob, self.ends = info, bytearray(), array('q')
        for record in records:
            self.blob += record
            self.ends.append(len(self.blob))

    def __len__(self) -> int:
        return len(self.ends)

    def record(self, index: int) -> bytes:
        index = range(len(self))[index]
        return bytes(self.blob[self.ends[index - 1] if index else 0 : self.ends[index]])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self.info(self.record(index))


@DATASETS.register_module()
class ImageList(NextReadable, CustomDataset):
    """Images of folders or of a list file; samples hold img_path and, with labels, gt_label.

    split: 'train' means data_prefix='train', and ann_file='meta/train.txt' where that file exists, as in mmpretrain's
        ImageNet. Without it give data_prefix or ann_file, both below data_root.
    Without ann_file: data_prefix/<class>/**/<image>; labels are places in the sorted folder names, or in `classes` if
        those are folder names (so a validation set that lacks a class keeps its labels). The 1,000 synsets of ILSVRC
        get their English names. with_label=False takes every image below data_prefix, whatever the folders.
    With ann_file: see `read_list`. num_classes (default: that of `classes`) bounds the labels.
    allow_empty: a class folder without images is otherwise an error.
    """

    def __init__(
        self,
        data_root: str = '',
        split: str = '',
        data_prefix: str | dict = '',
        ann_file: str = '',
        with_label: bool = True,
        extensions: Sequence[str] = EXTENSIONS,
        num_classes: int | None = None,
        allow_empty: bool = False,
        **kwargs,
    ) -> None:
        self.num_classes, self.allow_empty = num_classes, allow_empty
        if split:
            data_prefix = data_prefix or split
            meta = fileio.join_path(data_root, 'meta', f'{split}.txt')
            if not ann_file and fileio.exists(meta):
                ann_file = fileio.join_path('meta', f'{split}.txt')
        if not (data_root or data_prefix or ann_file):
            raise ValueError('ImageList: say where the images are: data_root, data_prefix or ann_file')
        super().__init__(
            data_root=data_root,
            data_prefix=data_prefix,
            ann_file=ann_file,
            with_label=with_label,
            extensions=extensions,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        backend = fileio.get_file_backend(self.img_prefix or '.')
        if self.ann_file and not fileio.exists(self.ann_file):
            raise FileNotFoundError(f'{self.ann_file}: there is no such list file')
        if self.img_prefix and not backend.isdir(self.img_prefix):
            raise FileNotFoundError(
                f'{self.img_prefix}: there is no such folder of images (data_root={self.data_root!r}). To check a '
                f'whole data set: python tools/prepare_data.py verify'
            )
        pairs = self._from_list() if self.ann_file else self._find_samples()
        records = (
            (NUMBER.pack(label) if self.with_label else b'') + path.encode(errors='surrogateescape')
            for path, label in pairs
        )
        samples = _Entries(records, self._sample)
        if not samples:
            raise FileNotFoundError(
                f'{self.ann_file or self.img_prefix}: no image in it (of {", ".join(sorted(self.extensions))})'
            )
        return samples if self.serialize_data else list(samples)

    def _sample(self, record: bytes) -> dict:
        """What a list says of an image, of its record in `_Entries`."""
        path = record[NUMBER.size if self.with_label else 0 :].decode(errors='surrogateescape')
        sample = dict(img_path=fileio.join_path(self.img_prefix, path) if self.img_prefix else path)
        if self.with_label:
            sample['gt_label'] = NUMBER.unpack_from(record)[0]
        return sample

    def _serialize_data(self) -> tuple[np.ndarray, np.ndarray]:
        """mmengine's (bytes, ends), with records instead of pickles."""
        entries, self.data_list = self.data_list, []
        return np.frombuffer(entries.blob, np.uint8), np.frombuffer(entries.ends, np.int64)

    def _get_unserialized_subset(self, indices: int | Sequence[int]) -> Sequence[dict]:
        """mmengine's; of records, records."""
        if not isinstance(self.data_list, _Entries):
            return super()._get_unserialized_subset(indices)
        if isinstance(indices, int):
            indices = range(len(self.data_list))[:indices] if indices >= 0 else range(len(self.data_list))[indices:]
        return _Entries((self.data_list.record(i) for i in indices), self._sample)

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        if not self.serialize_data:
            return super().get_data_info(idx)
        place = range(len(self))[idx]
        begin = self.data_address[place - 1] if place else 0
        sample = self._sample(self.data_bytes[begin : self.data_address[place]].tobytes())
        sample['sample_idx'] = idx if idx >= 0 else place
        return sample

    def _from_list(self) -> Iterator[tuple[str, int | None]]:
        count = self.num_classes or (len(self.CLASSES) if self.CLASSES is not None else None)
        some = []  # of the entries, enough to tell the order of labels
        try:
            for place, entry in enumerate(read_list(self.ann_file, self.with_label, count)):
                if place < 1000 or place % 25 == 0:
                    some.append((entry.path, entry.label))
                yield entry.path, entry.label
        except ListError as error:
            everything = read_list(self.ann_file, with_label=False)
            hint = _wrong_order((e.path, e.label) for e in everything if e.label is not None)
            raise ListError(f'{error} {hint}'.strip()) from error
        if self.with_label and (hint := _wrong_order(some)):
            print_log(f'{self.ann_file}: {hint}', logger='current', level=logging.WARNING)

    def _find_samples(self) -> Iterator[tuple[str, int | None]]:
        if not self.with_label:
            yield from ((name, None) for name in get_samples(self.img_prefix, None, self.is_valid_file)[0])
            return
        folders, _ = find_folders(self.img_prefix)
        if not folders:
            raise FileNotFoundError(
                f'{self.img_prefix}: has no class folders. For images without labels: with_label=False; for labels in '
                f'a file: ann_file'
            )
        self.folder_to_idx = labels_of_folders(folders, self.CLASSES, self.img_prefix)
        if self.num_classes not in (None, len(self.CLASSES or folders)):
            raise ValueError(f'{self.img_prefix}: has {len(folders)} class folders, num_classes={self.num_classes}')
        if self.CLASSES is None:
            known = folders == imagenet_synsets()
            self._metainfo['classes'] = tuple(IMAGENET_CATEGORIES if known else folders)
        names = []
        for folder in folders:  # one at a time: each tuple of 14 million takes 150 bytes
            samples, empty = get_samples(self.img_prefix, {folder: self.folder_to_idx[folder]}, self.is_valid_file)
            names += empty
            yield from samples
        if names and not self.allow_empty:
            raise ValueError(
                f'{self.img_prefix}: no image in the class folder{"s" if len(names) > 1 else ""} '
                f'{", ".join(names[:5])}{f" and {len(names) - 5} more" if len(names) > 5 else ""}; fill or remove '
                f'them, or set allow_empty=True'
            )
