"""A checkpoint of a sharded training: a folder that all ranks write, and any number of ranks reads.

    iter_100.dcp/
        files.json                          what it is made of: sha256 and bytes of each file, and a digest of that
        rest-5f0c1a2b.pth                   the checkpoint, where each sharded tensor is one without data (meta)
        shard-00001-5f0c1a2b.safetensors    the parts of those that the first rank had, and so on

torch's distributed checkpoint (DCP) writes a rank's parts, and reads a rank's part of what others wrote. Its files are
safetensors, as its own format has a pickle in it. A tensor is named by the keys that lead to it, joined by dots. What
is in the folder and not in files.json does not belong to it: that is how a folder is replaced (store.py).
"""

import contextlib
import copy
import hashlib
import json
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed.checkpoint as dcp
from mmengine.dist import all_gather_object, get_rank, is_main_process
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.tensor import DTensor

from .chunks import Reader, chunks_of, tiled
from .convert import few
from .errors import CheckpointError
from .files import FOLDER, LISTING, Written, into_place, sync_folder, verified
from .load import read, sha256

T = TypeVar('T')
NAME = re.compile(r'(?:rest|shard)[\w-]*\.(?:pth|safetensors)')
MOST_LISTED = 1 << 24  # bytes of a listing: of 80,000 ranks


# Writing


def on_all_ranks(do: Callable[[], T]) -> list[T]:
    """What `do` returns on each rank. What it raises on one, all raise: OSError or CheckpointError, naming the rank."""
    done = failed = None
    try:
        done = do()
    except CheckpointException as error:  # of DCP
        failed = _sendable(next(iter(error.failures.values()))[0])
    except Exception as error:
        failed = _sendable(error)
    found = all_gather_object((done, failed))
    rank, error = next(((rank, failed) for rank, (_, failed) in enumerate(found) if failed), (0, None))
    if error is not None:
        everywhere = all(str(failed) == str(error) for _, failed in found)  # one process, or they know of each other
        where = '' if everywhere else f'on rank {rank}: '
        if isinstance(error, OSError):
            raise OSError(error.errno, f'{where}{error.strerror}')
        told = CheckpointError(f'{where}{error}')
        told.of_another_rank = not is_main_process()  # door.py: one says it
        raise told
    return [done for done, _ in found]


def _sendable(error: BaseException) -> OSError | CheckpointError:
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error))
    return CheckpointError(str(error) if isinstance(error, CheckpointError) else f'{type(error).__name__}: {error}')


class _VerifiedFiles(FileSystem):
    """The file that DCP writes: synced, read again and compared; what it holds is kept. It has a name of ours: DCP
    numbers the ranks that it knows, which is this one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.written: dict[str, Written] = {}

    @contextlib.contextmanager
    def create_stream(self, path, mode: str) -> Iterator:
        path = Path(path).with_name(f'{self.name}.safetensors')
        with verified(path) as stream:
            yield stream
        self.written[path.name] = stream.written


def write_sharded(checkpoint: dict, folder: Path, mark: str) -> Written:
    """Write a checkpoint, whose sharded tensors are DTensors, into a folder that is there; on all ranks together.

    checkpoint: of the same structure on all ranks; what is no DTensor is taken from the first. mark: of this writing,
    the same on all ranks: names of files end in it. Returns, on the first rank, what the folder holds: the sha256 of
    its listing, all bytes. What one rank raises, all raise: OSError, CheckpointError.
    """
    shards: dict[str, DTensor] = {}
    rest: dict = {}

    def separate() -> str:
        rest.update(_without_shards(checkpoint, shards))
        return _digest({name: str((value.shape, value.dtype, value.placements)) for name, value in shards.items()})

    if len(set(on_all_ranks(separate))) > 1:
        raise CheckpointError('the ranks have different tensors to save')
    files: dict[str, Written] = {}
    for written in on_all_ranks(lambda: _write_shards(shards, folder, mark)):
        files.update(written)
    return on_all_ranks(lambda: _write_rest(rest, files, folder, mark) if is_main_process() else None)[0]


class _OwnPlan(DefaultSavePlanner):
    """DCP's plan of what this rank writes, without the one of all ranks, which the first would make at every checkpoint
    and takes seconds for 64 of them: parts of DTensors lie side by side."""

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return all_plans, Metadata({})


def _own(name: str, tensor: DTensor) -> bool:
    """Whether this rank writes its part: of those that have the same, one does, another for another tensor."""
    mesh, turn = tensor.device_mesh, zlib.crc32(name.encode())
    same = [dim for dim, placement in enumerate(tensor.placements) if placement.is_replicate()]
    return all(mesh.get_local_rank(dim) == turn % mesh.size(dim) for dim in same)


def _write_shards(shards: dict[str, DTensor], folder: Path, mark: str) -> dict[str, Written]:
    own = {name: value for name, value in shards.items() if _own(name, value)}
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writer.fs, writer.sync_files = _VerifiedFiles(f'shard-{get_rank() + 1:05d}-{mark}'), False  # syncing it has done
    planner = _OwnPlan(flatten_state_dict=False, flatten_sharded_tensors=False)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='torch.distributed is disabled')  # nothing is sent
        dcp.save(own, storage_writer=writer, planner=planner, no_dist=True)
    return writer.fs.written


def _write_rest(rest: dict, files: dict[str, Written], folder: Path, mark: str) -> Written:
    for name, written in files.items():
        there = folder / name
        if not there.is_file() or there.stat().st_size != written.bytes:
            raise CheckpointError(
                f'{name}, which another rank has written, is not there: the ranks see different folders'
            )
    name = f'rest-{mark}.pth'
    files = {**files, name: into_place(folder / name, lambda file: torch.save(rest, file))}
    files = {name: files[name]._asdict() for name in sorted(files)}
    content = json.dumps(dict(files=files, sha256=_digest(files)), indent=1) + '\n'
    listing = into_place(folder / LISTING, lambda file: file.write(content.encode()))
    return Written(listing.sha256, listing.bytes + sum(file['bytes'] for file in files.values()))


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_shards(value, shards: dict[str, DTensor], name: str = ''):
    """The same with an empty tensor on `meta` for each DTensor, which is put into `shards` by its name."""
    if isinstance(value, DTensor):
        if name in shards:
            raise CheckpointError(f'{name}: two tensors would have this name')
        shards[name] = value.detach().contiguous()
        return torch.empty(value.shape, dtype=value.dtype, device='meta')
    if isinstance(value, torch.Tensor) and value.is_meta:
        raise CheckpointError(f'{name}: has no data')
    if isinstance(value, dict):
        found = {key: _without_shards(one, shards, f'{name}.{key}' if name else str(key)) for key, one in value.items()}
        if any(found[key] is not value[key] for key in found):
            value = copy.copy(value)  # of the same type, with torch's `_metadata`
            value.update(found)
    elif isinstance(value, list | tuple):
        found = [_without_shards(one, shards, f'{name}.{i}') for i, one in enumerate(value)]
        if any(one is not before for one, before in zip(found, value, strict=True)):
            return found
    return value


def put_in_place(temporary: Path, path: Path, ready: Callable[[], object]) -> None:
    """Give a folder that was written its name, which only ever holds a whole one. ready: is called just before.

    One of that name is replaced when its listing is: files of either have names of their own, and those of the old one
    go afterwards. (A folder cannot be renamed to one that is not empty.) Raises OSError.
    """
    sync_folder(temporary)
    ready()
    if not path.is_dir():
        os.replace(temporary, path)
        sync_folder(path.parent)
        return
    kept = files_of(temporary)
    for name in kept:
        os.replace(temporary / name, path / name)
    sync_folder(path)
    os.replace(temporary / LISTING, path / LISTING)
    sync_folder(path)
    for file in path.iterdir():
        if file.name != LISTING and file.name not in kept and NAME.fullmatch(file.name):
            with contextlib.suppress(OSError):  # it is none of the folder's any more
                file.unlink()


# What a folder is made of


def files_of(folder: Path) -> dict[str, Written]:
    """By name, as its listing says. Raises CheckpointError if that is missing, damaged, or names something outside."""
    path = folder / LISTING
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > MOST_LISTED:
            raise ValueError
        content = json.loads(path.read_text())
        files = {str(name): Written(str(one['sha256']), int(one['bytes'])) for name, one in content['files'].items()}
        if content['sha256'] != _digest(content['files']) or not all(map(NAME.fullmatch, files)):
            raise ValueError
        if sum(name.endswith('.pth') for name in files) != 1:
            raise ValueError
    except FileNotFoundError:
        raise CheckpointError(f'{folder}: a folder without {LISTING}: no checkpoint{_beside(folder)}') from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise CheckpointError(f'{folder}: damaged: its {LISTING} is not as it was written') from error
    return files


def _beside(folder: Path) -> str:
    near = sorted(path.name for path in folder.iterdir() if path.suffix in ('.pth', FOLDER))[:5]
    return f'. It has {", ".join(near)}: give one of these' if near else ''


def check_sizes(folder: Path, files: dict[str, Written]) -> None:
    """Raise CheckpointError for a file that is missing, of another size, or no plain file."""
    for name, written in files.items():
        path = folder / name
        if not path.exists() and not path.is_symlink():
            raise CheckpointError(f'{folder}: damaged: {name} is missing')
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f'{folder}: {name} is a link or no file, and a checkpoint has only files')
        if found.st_size != written.bytes:
            raise CheckpointError(
                f'{folder}: damaged: {name} has {found.st_size:,} bytes, and {written.bytes:,} were written'
            )


def check_digests(folder: Path, known: Collection[str] = ()) -> None:
    """Raise CheckpointError unless every file is what was written. known: sha256 that the listing may have, if any."""
    if known and (folder / LISTING).is_file() and sha256(folder) not in known:
        raise CheckpointError(f'{folder}: damaged: it is not what was written (the sha256 of {LISTING} differs)')
    files = files_of(folder)
    check_sizes(folder, files)
    for name, written in files.items():
        if sha256(folder / name) != written.sha256:
            raise CheckpointError(f'{folder}: damaged: {name} is not what was written (its sha256 differs)')


# Reading


def read_whole(folder: Path, map_location=None, lazy: bool = False) -> dict:
    """The checkpoint as one file would have it: whole tensors. In one process, which needs no process group.

    lazy: sharded tensors have names and shapes, and no data: they are on `meta`. Raises CheckpointError.
    """
    files = files_of(folder)
    check_sizes(folder, files)
    rest = read(next(folder / name for name in files if name.endswith('.pth')), map_location, lazy)
    if lazy:
        return rest
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    return _filled(folder, files, rest, lambda _, saved: torch.empty(saved.shape, dtype=saved.dtype, device=device))


def read_shards(folder: Path, like: dict, without: Collection[str] = ()) -> dict:
    """The checkpoint, where each sharded tensor that is a DTensor in `like` is one too, of the same mesh and placements
    and of the saved type; of its data this rank reads only its part. All else is whole: what was saved whole, what is
    no DTensor in `like`, or not there. without: parts of the checkpoint, such as `optimizer`, that are left out.

    On any number of ranks; each for itself, nothing is sent. Raises CheckpointError, also for another shape.
    """
    files = files_of(folder)
    check_sizes(folder, files)
    rest = read(next(folder / name for name in files if name.endswith('.pth')), 'cpu')

    def target(path: tuple, saved: torch.Tensor) -> torch.Tensor | None:
        if path[0] in without:
            return None
        model = like
        for key in path:
            model = model.get(key) if isinstance(model, dict) else None
        if not isinstance(model, DTensor):
            return torch.empty(saved.shape, dtype=saved.dtype)
        if model.shape != saved.shape:
            raise CheckpointError(
                f'{folder}: {_name(path)} is {tuple(saved.shape)}, and {tuple(model.shape)} is asked for'
            )
        return torch.empty_like(model.detach(), dtype=saved.dtype)

    filled = _filled(folder, files, rest, target)
    return {part: value for part, value in filled.items() if part not in without}


def like_parameters(optimizer: dict, parameters: Sequence[torch.Tensor]) -> dict:
    """For `read_shards`: the optimizer's part of `like`, where the state of a parameter is sharded as the parameter.

    optimizer: of the checkpoint, read lazily. parameters: in the order of the optimizer's groups.
    """
    state = {
        index: {key: parameters[index] for key, one in own.items() if one.shape == parameters[index].shape}
        for index, own in optimizer['state'].items()
        if isinstance(index, int) and index < len(parameters)
    }
    return dict(state=state)


def _name(path: tuple) -> str:
    return '.'.join(map(str, path))


def _filled(
    folder: Path, files: dict[str, Written], rest: dict, target: Callable[[tuple, torch.Tensor], torch.Tensor | None]
) -> dict:
    """The rest, in place, with `target(path, empty)`, read from the shards, for each tensor without data; where that is
    None, it stays so."""
    chunks = chunks_of(folder, [name for name in files if not name.endswith('.pth')])
    empty = list(_without_data(rest))
    places = {_name(path): (path, container) for path, container, _ in empty}
    tensors = {_name(path): tensor for path, _, tensor in empty}
    if len(places) < len(empty) or set(places) != set(chunks):
        strange = sorted(set(places) ^ set(chunks)) or sorted(places)
        raise CheckpointError(f'{folder}: its shards have other tensors than it: {few(strange, 4)}')
    for name, tensor in tensors.items():
        if not all(chunk.dtype is tensor.dtype for chunk in chunks[name]) or not tiled(tensor.shape, chunks[name]):
            raise CheckpointError(f'{folder}: the parts of {name} do not make up a tensor of {tuple(tensor.shape)}')
    wanted = {name: target(places[name][0], tensor) for name, tensor in tensors.items()}
    targets = {name: tensor for name, tensor in wanted.items() if tensor is not None}
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='torch.distributed is disabled')  # as it should be
            dcp.load(targets, storage_reader=Reader(folder, tensors, chunks), planner=planner, no_dist=True)
    except CheckpointException as error:
        said = next(iter(error.failures.values()))[0]
        raise CheckpointError(f'{folder}: cannot be read ({type(said).__name__}: {said})') from error
    for name, tensor in targets.items():
        path, container = places[name]
        container[path[-1]] = tensor
    return rest


def _without_data(value, path: tuple = (), seen: set[int] | None = None) -> Iterator[tuple[tuple, dict | list, object]]:
    """(keys that lead to it, dict or list that has it, tensor) of each tensor on `meta`."""
    seen = set() if seen is None else seen
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(one, torch.Tensor) and one.is_meta:
            yield (*path, key), value, one
        elif isinstance(one, dict | list) and id(one) not in seen:
            seen.add(id(one))
            yield from _without_data(one, (*path, key), seen)
