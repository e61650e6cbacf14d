"""What is in a tar: the images with their places and labels, found by reading its headers.

Tars of three makings are known: webdataset's (members of one key: `key.jpg`, `key.cls`), timm's (images in folders of
their classes), and tars of class tars, as ImageNet-22K is handed out.
"""

import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .ilsvrc import SYNSET
from .loading import EXTENSIONS
from .shard_index import LONGEST_NAME, MOST_IMAGE, ShardError

LABELS = ('auto', 'cls', 'folder', 'tar', 'none')
WHOLE_NUMBER = re.compile(rb'\s*([0-9]{1,18})\s*')
MOST_CLS = 64  # bytes of a label
MOST_NAMES = 1 << 16  # bytes of a header that holds nothing but a long name: tarfile would read what it says of itself
NAMES_ONLY = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
COMPRESSED = {b'\x1f\x8b': 'gunzip', b'BZ': 'bunzip2', b'\xfd7': 'unxz', b'(\xb5': 'unzstd'}


class Found(NamedTuple):
    """An image in a tar. label: of its `.cls`; folder: the last one that it lies in, or the tar in the tar."""

    name: str
    offset: int
    size: int
    label: int | None
    folder: str


class _Header(tarfile.TarInfo):
    """A header that is refused where its long name would fill the memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in NAMES_ONLY and self.size > MOST_NAMES:
            raise ShardError(f'{tar.name}: at {self.offset} is a name of {self.size} bytes')
        return super()._proc_member(tar)


class _Member(NamedTuple):
    name: str
    offset: int
    size: int
    cls: bytes | None


def _members(file, path: Path, begin: int, end: int, within: str = '') -> Iterator[_Member]:
    """Regular files of a tar that lies in a file from `begin` to `end`, and of the tars in it; links are left out."""
    file.seek(begin)
    with tarfile.open(fileobj=file, mode='r:', tarinfo=_Header, errorlevel=0) as tar:
        tar.name = str(path)
        while (member := tar.next()) is not None:
            tar.members = []  # it keeps all headers
            if member.offset >= end:
                break
            if not member.isreg() or member.issparse():
                continue
            name = f'{within}{member.name.removeprefix("./")}'
            if member.offset_data + member.size > end:
                raise ShardError(f'{path}: is cut off: {name} is {member.size} bytes at {member.offset_data}')
            if member.name.lower().endswith('.tar') and not within:
                yield from _members(file, path, member.offset_data, member.offset_data + member.size, f'{name}/')
                continue
            cls = None
            if name.endswith('.cls') and member.size <= MOST_CLS:
                file.seek(member.offset_data)
                cls = file.read(member.size)
            yield _Member(name, member.offset_data, member.size, cls)
        file.seek(tar.offset)
        last = file.read(tarfile.BLOCKSIZE) if tar.offset < end else b''
        if len(last) < tarfile.BLOCKSIZE or any(last):  # tarfile takes either for the end
            what = 'is no header of a member' if last else 'it ends'
            raise ShardError(f'{path}: is damaged or cut off: at {tar.offset} {what}')


def _key(name: str) -> tuple[str, str]:
    """(key, extension) as webdataset has them: the extension begins at the first dot of the last part."""
    folder, _, last = name.rpartition('/')
    stem, _, extension = last.partition('.')
    return f'{folder}/{stem}', extension.lower()


def images_in(path: Path) -> Iterator[Found]:
    """The images of a tar, in its order. Raises ShardError for what is no plain tar, or is damaged."""
    images = {extension[1:] for extension in EXTENSIONS}
    with open(path, 'rb') as file:
        start = file.read(2)
        if start in COMPRESSED:
            raise ShardError(
                f'{path}: is compressed; images are read from their places in a plain tar: {COMPRESSED[start]} it'
            )
        try:
            members = _members(file, path, 0, path.stat().st_size)
            for _, group in groupby(members, key=lambda member: _key(member.name)[0]):
                group = list(group)
                plain = [member for member in group if _key(member.name)[1] in images]
                chosen = plain or [member for member in group if Path(member.name).suffix.lower()[1:] in images]
                label = _label(path, next((member for member in group if member.cls is not None), None))
                for member in chosen:
                    _check(path, member)
                    yield Found(member.name, member.offset, member.size, label, _folder(member.name))
        except (tarfile.TarError, EOFError) as error:
            raise ShardError(f'{path}: is no tar, or is damaged ({error})') from error


def _folder(name: str) -> str:
    last = name.rpartition('/')[0].rpartition('/')[2]
    return last.removesuffix('.tar')


def _label(path: Path, member: _Member | None) -> int | None:
    if member is None:
        return None
    number = WHOLE_NUMBER.fullmatch(member.cls)
    if not number:
        raise ShardError(f'{path}: {member.name} holds {member.cls!r}, and a label is a number from 0')
    return int(number[1])


def _check(path: Path, member: _Member) -> None:
    if member.size > MOST_IMAGE or len(member.name.encode(errors='replace')) > LONGEST_NAME or '://' in member.name:
        raise ShardError(f'{path}: {member.name[:200]!r} of {member.size} bytes is no image that can be indexed')


class Scanned(NamedTuple):
    """The images of a shard as arrays. labels (n,): of `.cls`, -1 where there is none; folders (n,): places in
    `folder_names`."""

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    folders: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray
    folder_names: list[str]


def scan(path: Path) -> Scanned:
    """All images of a tar. Raises ShardError where there is none."""
    offsets, sizes, labels, folders, ends = [], [], [], [], []
    blob, places = bytearray(), {}
    for image in images_in(path):
        offsets.append(image.offset)
        sizes.append(image.size)
        labels.append(-1 if image.label is None else image.label)
        folders.append(places.setdefault(image.folder, len(places)))
        blob += image.name.encode(errors='replace')
        ends.append(len(blob))
    if not offsets:
        raise ShardError(f'{path}: no image in it (of {", ".join(sorted(EXTENSIONS))})')
    numbers = (np.array(one, np.int64) for one in (offsets, sizes, labels, folders))
    return Scanned(*numbers, np.frombuffer(bytes(blob), np.uint8), np.array(ends, np.int64), list(places))


def labels_from(first: Scanned, path: Path) -> str:
    """Where the labels of tars are, going by the first: `cls`, `folder`, `tar` or `none`."""
    if (first.labels >= 0).all():
        return 'cls'
    if all(first.folder_names):
        return 'folder'
    return 'tar' if SYNSET.fullmatch(path.stem) else 'none'
