"""What a checkpoint may ask of memory: not much more than its file holds."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from .errors import CheckpointError

MOST_TIMES, SLACK = 4, 1 << 26  # torch and NumPy store their records uncompressed; 64 MiB are nobody's problem
DEEPEST = 64  # containers inside of each other; a training checkpoint has six


def check_records(path: Path) -> None:
    """Raise CheckpointError for a zip file whose records, unpacked, are far larger than it (a decompression bomb, or
    records that lie on top of each other)."""
    with open(path, 'rb') as file:
        if file.read(4) != b'PK\x03\x04':  # as torch tells one
            return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
    except Exception as error:  # damaged bytes make zipfile raise struct.error, UnicodeError, NotImplementedError, ...
        raise CheckpointError(f'{path}: damaged or cut off ({type(error).__name__}: {error})') from error
    held = path.stat().st_size
    if unpacked > MOST_TIMES * held + SLACK:
        raise CheckpointError(f'{path}: {held} bytes that say they are {unpacked} when unpacked: no checkpoint is so')


def check_tensors(path: Path, content) -> None:
    """Raise CheckpointError for tensors that stand for far more numbers than the file holds, such as one that is
    repeated a million million times, and for containers that have no end. Those without data (meta) take nothing."""
    size = path.stat().st_size
    for tensor in _tensors(content, path):
        dense = tensor.layout is torch.strided and not tensor.is_meta
        asked = tensor.numel() * tensor.element_size() if dense else 0
        if asked > MOST_TIMES * size + SLACK:
            raise CheckpointError(
                f'{path}: {size} bytes with a tensor of shape {tuple(tensor.shape)}: no checkpoint is so'
            )


def _tensors(value, path: Path, depth: int = 0, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
        if depth > DEEPEST:
            raise CheckpointError(f'{path}: more than {DEEPEST} containers inside of each other')
        seen.add(id(value))
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inside, path, depth + 1, seen)
