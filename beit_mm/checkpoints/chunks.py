"""Which part of which tensor lies in which shard of a checkpoint, and reading by that (sharded.py)."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from .errors import CheckpointError

DTYPES = dict(
    BOOL=torch.bool, U8=torch.uint8, I8=torch.int8, I16=torch.int16, I32=torch.int32, I64=torch.int64,
    F16=torch.float16, BF16=torch.bfloat16, F32=torch.float32, F64=torch.float64, C64=torch.complex64,
)  # fmt: skip


class Chunk(NamedTuple):
    """A part of a tensor. file: path of its shard."""

    file: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    @property
    def metadata(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size(self.offsets), torch.Size(self.shape))

    @property
    def relative_path(self) -> str:
        """As DCP's reader calls it."""
        return self.file


def chunks_of(folder: Path, names: list[str]) -> dict[str, list[Chunk]]:
    """Of all tensors in shards, by name; a part of no numbers is none."""
    chunks: dict[str, list[Chunk]] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework='pt') as file:
                placed = json.loads((file.metadata() or {})['DCP_SHARDING_INFO'])
                for key in file.keys():  # noqa: SIM118  (it is no dict)
                    part = file.get_slice(key)
                    shape, offsets = tuple(part.get_shape()), tuple(placed[key]['saved_offsets'])
                    if len(shape) != len(offsets) or not all(type(n) is int and n >= 0 for n in offsets):
                        raise ValueError(f'{key} is nowhere')
                    own = chunks.setdefault(key, [])
                    if math.prod(shape):
                        own.append(Chunk(str(folder / name), offsets, shape, DTYPES.get(part.get_dtype())))
        except (OSError, SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(f'{folder}: {name} is not a readable shard ({error})') from error
    return chunks


def tiled(shape: torch.Size, chunks: list[Chunk]) -> bool:
    """Whether the chunks make up a tensor: inside of it, and every number of it in one of them."""
    if sum(math.prod(chunk.shape) for chunk in chunks) != math.prod(shape):
        return False
    for chunk in chunks:
        ends = [start + length for start, length in zip(chunk.offsets, chunk.shape)]
        if len(ends) != len(shape) or any(end > size for end, size in zip(ends, shape)):
            return False
    if len(chunks) < 2:
        return True
    across = max(range(len(shape)), key=lambda dim: len({chunk.offsets[dim] for chunk in chunks}))
    reaching: list[Chunk] = []  # beyond the start of the one that is looked at
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets[across]):
        reaching = [one for one in reaching if one.offsets[across] + one.shape[across] > chunk.offsets[across]]
        if any(_overlap(one, chunk) for one in reaching):
            return False
        reaching.append(chunk)
    return True


def _overlap(one: Chunk, other: Chunk) -> bool:
    return all(
        a < b + m and b < a + n for a, n, b, m in zip(one.offsets, one.shape, other.offsets, other.shape, strict=True)
    )


class Reader(HuggingFaceStorageReader):
    """DCP's, which is told what is where, after that was checked, and looks for no files itself.

    tensors: the whole ones, by name; of their shapes and types. chunks: of each.
    """

    def __init__(self, folder: Path, tensors: dict[str, torch.Tensor], chunks: dict[str, list[Chunk]]) -> None:
        super().__init__(str(folder))
        whole = {
            name: TensorStorageMetadata(
                TensorProperties(dtype=tensor.dtype), tensor.shape, [chunk.metadata for chunk in chunks[name]]
            )
            for name, tensor in tensors.items()
        }
        places = {MetadataIndex(name, chunk.offsets): chunk for name in whole for chunk in chunks[name]}
        self.known = Metadata(whole, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))

    def read_metadata(self) -> Metadata:
        return self.known
