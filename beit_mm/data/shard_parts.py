"""From single shards to their index: what is kept of each that is done, so that work goes on after a kill.

`index/parts/NAME.npz` holds what one tar has; it is written when the tar is. The index is made of them, and they go.
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checkpoints.files import into_place
from .shard_index import ARRAYS, FORMAT, MANIFEST, Shard, ShardError
from .shard_scan import Scanned

PARTS = 'parts'


class Part(NamedTuple):
    """A shard that is done. left_out: (path, reason) of images that could not be read."""

    shard: Shard
    scanned: Scanned
    left_out: list[tuple[str, str]]


def part_file(index: Path, shard: str) -> Path:
    return index / PARTS / f'{shard}.npz'


def save_part(index: Path, part: Part) -> None:
    facts = dict(shard=part.shard, folders=part.scanned.folder_names, left_out=part.left_out)
    arrays = {key: value for key, value in part.scanned._asdict().items() if key != 'folder_names'}
    content = io.BytesIO()
    np.savez(content, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
    into_place(part_file(index, part.shard.name), lambda file: file.write(content.getbuffer()))


def load_part(index: Path, shard: str) -> Part | None:
    """What is kept of a shard; None where there is nothing, or nothing whole."""
    try:
        with np.load(part_file(index, shard), allow_pickle=False) as stored:
            facts = json.loads(stored['facts'].tobytes())
            fields = [stored[key] for key in Scanned._fields if key != 'folder_names']
        return Part(Shard(*facts['shard']), Scanned(*fields, facts['folders']), [tuple(x) for x in facts['left_out']])
    except FileNotFoundError:
        return None
    except Exception:  # a file of ours that was damaged: made again
        return None


def write_index(
    index: Path,
    shards: Sequence[str],
    labels: str,
    classes: Sequence[str] | None = None,
    say: Callable[[str], object] = print,
) -> int:
    """Make the index of all parts, and remove them. Returns the number of images.

    labels: `cls`, `folder`, `tar` or `none`: where they are. classes: the names of `cls` labels; those of folders and
    tars are their sorted names.
    """
    names = classes
    if labels in ('folder', 'tar'):
        names = sorted({name for shard in shards for name in _folders(_loaded(index, shard), labels)})
    place = {name: label for label, name in enumerate(names or ())}
    entries, left_out, digests, names_before = [], [], {}, 0
    files = {name: _Growing(index, name) for name in ARRAYS if name != 'labels' or labels != 'none'}
    for shard in shards:
        part = _loaded(index, shard)
        found = part.scanned
        entries.append(list(part.shard))
        left_out += part.left_out
        columns = dict(offsets=found.offsets, sizes=found.sizes, names=found.names)
        columns['name_ends'] = found.name_ends + names_before
        names_before += len(found.names)
        if labels == 'cls':
            if (found.labels < 0).any():
                raise ShardError(f'{shard}: an image has no .cls, so that it has no label: --labels none')
            columns['labels'] = found.labels
        elif labels in ('folder', 'tar'):
            table = np.array([place[name] for name in _folders(part, labels)], np.int64)
            columns['labels'] = table[found.folders if labels == 'folder' else np.zeros_like(found.folders)]
        for name, file in files.items():
            file.add(columns[name])
    for name, file in files.items():
        digests[name] = file.finish()
    count = sum(entry[2] for entry in entries)
    if left_out:
        text = ''.join(f'{path}\t{reason}\n' for path, reason in left_out)
        into_place(index / 'left_out.txt', lambda file: file.write(text.encode()))
        say(f'{len(left_out)} images could not be read and were left out: {index / "left_out.txt"}')
    manifest = dict(format=FORMAT, samples=count, classes=names and list(names), arrays=digests, shards=entries)
    into_place(index / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=0).encode()))
    shutil.rmtree(index / PARTS)
    return count


def _loaded(index: Path, shard: str) -> Part:
    part = load_part(index, shard)
    if part is None:
        raise ShardError(f'{part_file(index, shard)}: is gone; run the same command again')
    return part


def _folders(part: Part, labels: str) -> Iterable[str]:
    return part.scanned.folder_names if labels == 'folder' else [Path(part.shard.name).stem]


class _Growing:
    """An array file that is written piece by piece, so that memory holds one shard's part at a time."""

    def __init__(self, index: Path, name: str) -> None:
        self.path, self.dtype, self.count = index / f'{name}.npy', np.dtype(ARRAYS[name]), 0
        self.raw = (index / PARTS / f'{name}.raw').open('wb')

    def add(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, self.dtype)
        self.raw.write(values.data)
        self.count += len(values)

    def finish(self) -> str:
        """sha256 of the finished array."""
        self.raw.close()

        def put(file) -> None:
            header = dict(descr=np.lib.format.dtype_to_descr(self.dtype), fortran_order=False, shape=(self.count,))
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, header)
            file.write(head.getvalue())
            with open(self.raw.name, 'rb') as raw:
                while block := raw.read(1 << 22):
                    file.write(block)

        written = into_place(self.path, put)
        os.unlink(self.raw.name)
        return written.sha256
