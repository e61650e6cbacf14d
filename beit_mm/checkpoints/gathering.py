"""A sharded state made whole: what the ranks hold of it, put together on the first."""

from pathlib import Path

import torch
from mmengine.dist import is_main_process
from torch.distributed.tensor import DTensor

from . import store
from .files import FOLDER
from .sharded import on_all_ranks


def holds_shards(value) -> bool:
    """Whether there is a sharded tensor anywhere inside of dicts, lists and tuples."""
    if isinstance(value, dict | list | tuple):
        return any(map(holds_shards, value.values() if isinstance(value, dict) else value))
    return isinstance(value, DTensor)


def save_by_ranks(checkpoint: dict, filename: str) -> None:
    """Write a checkpoint with sharded tensors, by all ranks together: as a folder of shards if it is called one, else
    gathered, by the first."""
    if Path(filename).suffix == FOLDER:
        store.save_sharded(checkpoint, filename)
        return
    whole = gathered(checkpoint)
    on_all_ranks(lambda: store.save(whole, filename) if is_main_process() else None)


def gathered(value):
    """The same value with whole tensors, on the CPU, for the first rank; for the others with None in their places.

    All ranks call it with values of the same structure. One tensor at a time is whole on a device.
    """
    if isinstance(value, dict):
        return {key: gathered(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(gathered, value))
    if not isinstance(value, DTensor):
        return value
    # A checkpoint's is on the CPU already, where NCCL does not gather
    shard = value.to_local().detach().to(value.device_mesh.device_type)
    whole = in_shards(shard, value).full_tensor()
    return _on_cpu(whole) if is_main_process() else None


def in_shards(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a parameter, as what it is a shard of; and other tensors themselves."""
    if not isinstance(like, DTensor):
        return value
    return DTensor.from_local(
        value, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _on_cpu(whole: torch.Tensor) -> torch.Tensor:
    return whole.cpu() if whole.is_cuda else whole.clone()
