"""The index of tar shards: where each image lies in them, as arrays that are mapped into memory, and what refuses it.

An index is a folder, `index` beside the shards unless it is elsewhere. Of N samples in the order of the shards:

    offsets.npy    (N,) int64    where the bytes of the image begin in its shard, behind its tar header
    sizes.npy      (N,) int64    how many they are
    labels.npy     (N,) int64    only of labelled shards
    names.npy      (M,) uint8    names of the members, UTF-8, one after the other
    name_ends.npy  (N,) int64    where each of them ends
    shards.json    of each shard its name, bytes, samples and sha256; names of classes; sha256 of the arrays

shards.json is written last: a folder that has it is whole. All processes of a machine share the pages of the arrays.
"""

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .failures import DataError

FOLDER, MANIFEST, FORMAT = 'index', 'shards.json', 1
ARRAYS = dict(offsets='int64', sizes='int64', labels='int64', names='uint8', name_ends='int64')
HEADER = 512  # bytes of a tar's block; a member's header is the one before its content
MOST_MANIFEST = 1 << 28  # bytes
MOST_IMAGE = 1 << 30  # bytes of one image
LONGEST_NAME = 4096  # bytes of a member's name
SHARD = re.compile(r'[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,250}\.tar')  # a plain file name: no path, nothing hidden
DIGEST = re.compile('[0-9a-f]{64}')
FEW = 3  # names in a message
THREADS = 16  # that ask for the sizes of shards: a network disk answers them side by side


class ShardError(DataError):
    """A shard, or an index of shards, that is missing, damaged, or other than it was; the message names it."""


class Shard(NamedTuple):
    """A tar. samples: images in it; sha256: hex digest."""

    name: str
    bytes: int
    samples: int
    sha256: str


class Place(NamedTuple):
    """Where an image is: the number of its shard, the offset and size of its bytes there, its name in the tar."""

    shard: int
    offset: int
    size: int
    name: str


def remake(folder: str | os.PathLike) -> str:
    """How to make an index again."""
    return f'make it anew: remove {folder}, then: python tools/prepare_data.py shards {Path(folder).parent} --index'


class ShardIndex:
    """An open index: `len`, `place(i)`, `labels`, `shards`, `ends` (S,) int64 (samples up to the end of each shard),
    `classes` (names, or None).

    Opening reads the manifest, and of the arrays types and lengths only. What an array says of one image is checked
    when it is asked for. Raises ShardError. A copy, or what a spawned worker gets, is opened anew.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        manifest = _manifest(self.folder / MANIFEST)
        self.shards: list[Shard] = manifest['shards']
        self.classes: tuple[str, ...] | None = manifest['classes']
        self.digests: dict[str, str] = manifest['arrays']
        self.ends = np.cumsum([shard.samples for shard in self.shards], dtype=np.int64)
        count = int(self.ends[-1])
        arrays = {name: self._array(name) for name in ARRAYS if name in self.digests}
        for name, array in arrays.items():
            if name != 'names' and len(array) != count:
                self._damaged(f'{name}.npy is of {len(array)} images, and the shards hold {count}')
        self.offsets, self.sizes = arrays['offsets'], arrays['sizes']
        self.names, self.name_ends = arrays['names'], arrays['name_ends']
        self.labels: np.ndarray | None = arrays.get('labels')

    def __reduce__(self):
        return ShardIndex, (self.folder,)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _array(self, name: str) -> np.ndarray:
        path = self.folder / f'{name}.npy'
        try:
            array = np.load(path, mmap_mode='r', allow_pickle=False)
        except Exception as error:  # damaged bytes make NumPy raise SyntaxError, tokenize.TokenError, ...
            raise ShardError(
                f'{path}: cannot be read ({type(error).__name__}: {error}); {remake(self.folder)}'
            ) from error
        if array.dtype != ARRAYS[name] or array.ndim != 1:
            self._damaged(f'{name}.npy is {array.dtype} of shape {array.shape}')
        return array

    def _damaged(self, what: str) -> None:
        raise ShardError(f'{self.folder}: damaged: {what}; {remake(self.folder)}')

    def place(self, index: int) -> Place:
        """Where an image is. Raises ShardError for what cannot be in the shard that it is said to be in."""
        number = int(np.searchsorted(self.ends, index, side='right'))
        shard = self.shards[number]
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        if not (offset >= HEADER and offset % HEADER == 0 and 0 <= size <= min(MOST_IMAGE, shard.bytes - offset)):
            self._damaged(f'image {index} is {size} bytes at {offset} of {shard.name}, which has {shard.bytes}')
        begin, end = int(self.name_ends[index - 1]) if index else 0, int(self.name_ends[index])
        if not (0 <= begin < end <= len(self.names) and end - begin <= LONGEST_NAME):
            self._damaged(f'the name of image {index} is {begin} to {end} of names.npy, which has {len(self.names)}')
        name = self.names[begin:end].tobytes().decode(errors='replace')
        if '://' in name:  # the sign of an address
            self._damaged(f'image {index} of {shard.name} is named {name!r}')
        return Place(number, offset, size, name)

    def check_files(self, root: str | os.PathLike) -> None:
        """Raise ShardError for shards that are missing, or have another size than they had; side by side."""

        def wrong(shard: Shard) -> str:
            try:
                size = os.stat(os.path.join(root, shard.name)).st_size
            except FileNotFoundError:
                return f'{shard.name} is missing'
            except OSError as error:
                return f'{shard.name}: {error.strerror}'
            return '' if size == shard.bytes else f'{shard.name} has {size} bytes, the index says {shard.bytes}'

        parts = [self.shards[begin::THREADS] for begin in range(THREADS)]
        with ThreadPoolExecutor(THREADS) as pool:
            found = sorted(
                text for texts in pool.map(lambda part: [*map(wrong, part)], parts) for text in texts if text
            )
        if found:
            more = f', and {len(found) - FEW} more' if len(found) > FEW else ''
            raise ShardError(
                f'{root}: {len(found)} of {len(self.shards)} shards are not what the index says: '
                f'{"; ".join(found[:FEW])}{more}. Put them back as they were, or {remake(self.folder)}'
            )


def _manifest(path: Path) -> dict:
    """shards.json as data. Raises ShardError."""
    if not path.is_file():
        begun = 'is not complete' if path.parent.is_dir() else 'is not there'
        root = path.parent.parent
        raise ShardError(
            f'{path.parent}: the index of the shards {begun}. Shards of others get one by: python '
            f'tools/prepare_data.py shards {root} --index; those that were being written, by the same command again'
        )
    try:
        if path.stat().st_size > MOST_MANIFEST:
            raise ValueError(f'{path.stat().st_size} bytes')
        manifest = json.loads(path.read_text())
        if manifest['format'] != FORMAT:
            raise ValueError(f'format {manifest["format"]!r}, and this code reads {FORMAT}')
        shards = [_shard(entry) for entry in manifest['shards']]
        if not shards or len({shard.name for shard in shards}) < len(shards):
            raise ValueError('no shards, or one twice')
        classes, arrays = manifest['classes'], manifest['arrays']
        if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise TypeError('classes are no list of names')
        needed = set(ARRAYS) - {'labels'}
        if not needed <= set(arrays) <= set(ARRAYS) or not all(DIGEST.fullmatch(text) for text in arrays.values()):
            raise ValueError(f'arrays {sorted(arrays)}')
        return dict(shards=shards, classes=None if classes is None else tuple(classes), arrays=arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ShardError(f'{path}: damaged ({type(error).__name__}: {error}); {remake(path.parent)}') from error


def _shard(entry: list) -> Shard:
    name, size, samples, sha256 = entry
    if not SHARD.fullmatch(name) or len(os.fsencode(name)) > 255:
        raise ValueError(f'{name[:300]!r} is not the plain name of a tar')
    if type(size) is not int or type(samples) is not int or not (0 < samples <= size // HEADER and size < 1 << 50):
        raise ValueError(f'{name}: {size!r} bytes with {samples!r} images')
    if not DIGEST.fullmatch(sha256):
        raise ValueError(f'{name}: sha256 {sha256!r}')
    return Shard(name, size, samples, sha256)


def sha256_of(path: str | os.PathLike) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
