"""A folder of checkpoints: what is in it, what of it is whole, and which one a run goes on from.

    checkpoints.json    the manifest: what each file must be (sha256, bytes) and what it holds, in the order of writing
    last_checkpoint     the pointer: the name of the newest, relative to its own folder; in the work_dir

A file is whole if its digest is in the manifest; of one that no manifest knows, the checksums inside must be right.
Both are replaced whole, and the manifest knows a digest before a file has its name: killed at any moment, what has a
checkpoint's name is whole and known. A checkpoint of several ranks is a folder (sharded.py), for which all of this
holds too: its digest is that of its listing, which has those of its files.
"""

import contextlib
import datetime
import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from torch.distributed.tensor import DTensor

from .errors import CheckpointError
from .files import FOLDER, Written, into_place, temporary_of
from .load import of_beit_mm, read, sha256, write
from .sharded import check_digests, on_all_ranks, put_in_place, write_sharded

MANIFEST, POINTER = 'checkpoints.json', 'last_checkpoint'
SUFFIXES = ('.pth', FOLDER)
TRAINING = re.compile(r'(?:iter|epoch)_(\d+)\.(?:pth|dcp)')
RESUMABLE = {'state_dict', 'optimizer', 'message_hub', 'meta'}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Entry(NamedTuple):
    """A checkpoint of the manifest. bytes: of all its files. step: iterations. resumable: a run can go on from it.
    abandoned: its run went on from an earlier step instead, as it was asked to."""

    name: str
    sha256: str
    bytes: int
    step: int
    epoch: int
    run: str
    date: str
    resumable: bool
    abandoned: bool = False


# The manifest


def entries(folder: Path) -> list[Entry]:
    """Of the manifest, in the order of writing; none where it is lost or damaged, which is said.

    A name can be there twice: while a file is replaced, either content is whole.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        listed = [Entry(**entry) for entry in content['checkpoints']]
        if content['sha256'] != _digest(listed):
            raise ValueError
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError):
        _warn_of_manifest(path)
        return []
    return listed


@functools.lru_cache(maxsize=16)
def _warn_of_manifest(path: Path) -> None:
    """Once: it is read several times before it is written anew."""
    _warn(f'{path}: damaged; the checksums inside the checkpoints decide')


def _digest(listed: list[Entry]) -> str:
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _list(folder: Path, listed: list[Entry]) -> None:
    content = dict(checkpoints=[entry._asdict() for entry in listed], sha256=_digest(listed))
    into_place(folder / MANIFEST, lambda file: file.write((json.dumps(content, indent=1) + '\n').encode()))


def abandon(folder: Path, run: str, step: int) -> list[str]:
    """A run goes on from `step`: what it had written beyond is no candidate any more. Returns the names of these."""
    listed = entries(folder)
    gone = {e.name for e in listed if e.run == run and e.step > step and e.resumable and not e.abandoned}
    gone = sorted(name for name in gone if (folder / name).exists())
    if gone:
        _list(folder, [e._replace(abandoned=e.abandoned or e.name in gone) for e in listed])
    return gone


# Writing


def save(checkpoint: dict, filename: str | os.PathLike) -> None:
    """Write a checkpoint of a run and list it. Raises CheckpointError where the disk does not take it; older ones, also
    one of the same name, are then as they were."""
    path = Path(filename)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _listed(path, checkpoint) as announce:
            into_place(path, lambda file: torch.save(checkpoint, file), announce)
    except OSError as error:
        raise CheckpointError(_not_saved(path, checkpoint, error)) from error


def save_sharded(checkpoint: dict, filename: str | os.PathLike) -> None:
    """The same of one with DTensors, as a folder `filename`, .dcp: all ranks together, each its part.

    checkpoint: of the same structure on all ranks; what is no DTensor is the first rank's. All raise what one raises.
    """
    path, begun = Path(filename), []
    try:
        on_all_ranks(lambda: begun.append(_begun(path)) if is_main_process() else None)
        temporary, mark = on_all_ranks(lambda: begun[0] if begun else None)[0]
        written = write_sharded(checkpoint, temporary, mark)

        def finish() -> None:
            with _listed(path, checkpoint) as announce:
                put_in_place(temporary, path, lambda: announce(written))

        on_all_ranks(lambda: finish() if is_main_process() else None)
    except OSError as failed:
        error = failed  # on all ranks, which say the same of a disk that others fill, too
        said = on_all_ranks(lambda: _not_saved(path, checkpoint, error) if is_main_process() else None)[0]
        raise CheckpointError(said) from error
    except CheckpointError as error:
        raise CheckpointError(f'{path}: not saved: {error}') from error
    finally:
        for temporary, _ in begun:
            shutil.rmtree(temporary, ignore_errors=True)


def _begun(path: Path) -> tuple[Path, str]:
    """A new folder beside that which is to be, and a mark that nothing else has."""
    temporary = temporary_of(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary, uuid.uuid4().hex[:8]


@contextlib.contextmanager
def _listed(path: Path, checkpoint: dict) -> Iterator[Callable[[Written], None]]:
    """What is to be called inside, with what the checkpoint holds, puts it into the manifest; one of the same name that
    is there already is forgotten at the end."""
    before = [e for e in entries(path.parent) if e.name == path.name or (path.parent / e.name).exists()]
    made: list[Entry] = []

    def announce(written: Written) -> None:
        made.append(_entry(path.name, written, checkpoint))
        _list(path.parent, before + made)

    yield announce
    if any(entry.name == path.name for entry in before):
        with contextlib.suppress(OSError):  # to know an old content too does no harm
            _list(path.parent, [entry for entry in before if entry.name != path.name] + made)


def as_one_file(source: Path, destination: Path) -> str:
    """Write a checkpoint, as a rule a folder of several ranks, as one file with all that it holds, from which a run can
    go on. Returns a line about it. Raises CheckpointError if it is damaged, or the file is there already."""
    if destination.suffix != '.pth':
        raise CheckpointError(f'{destination}: a training checkpoint is written to a file that ends in .pth')
    if destination.exists():
        raise CheckpointError(f'{destination}: is there already; choose another name or remove it')
    verify(source)
    content = read(source, map_location='cpu')
    if not set(content) >= RESUMABLE:
        lacking = ', '.join(sorted(RESUMABLE - set(content)))
        raise CheckpointError(f'{source}: is no training checkpoint: it has no {lacking}')
    destination.parent.mkdir(parents=True, exist_ok=True)
    write(content, destination)
    return f'{destination}: {_mb(destination.stat().st_size)}, all of {source}; a run goes on from it by --resume'


def _entry(name: str, written: Written, checkpoint: dict) -> Entry:
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    return Entry(
        name=name,
        **written._asdict(),
        step=int(meta.get('iter', -1)),
        epoch=int(meta.get('epoch', -1)),
        run=str(of_beit_mm(checkpoint).get('run', '')),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        resumable=set(checkpoint) >= RESUMABLE and {'iter', 'epoch'} <= set(meta),
    )


def _not_saved(path: Path, checkpoint: dict, error: OSError) -> str:
    older = next((c.path.name for c in _candidates(path.parent)), None)
    after = f'`--resume` goes on from {older}' if older else 'the run starts anew, as nothing was saved before'
    said, when = f'{path}: not saved: {error.strerror or error}', 'when that is mended'
    if error.errno in FULL:
        free = shutil.disk_usage(path.parent).free
        said, when = f'{said}. It takes {_mb(size_of(checkpoint))}, {_mb(free)} are free', 'when there is room'
    return f'{said}. Older checkpoints are as they were; {when}, {after}'


def _mb(size: int) -> str:
    return f'{size / 1e6:,.1f} MB'


def size_of(value) -> int:
    """Bytes of all tensors inside, whole ones; shared storage counts once."""
    seen: dict[int, int] = {}

    def visit(value) -> None:
        if isinstance(value, DTensor):
            seen[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, torch.Tensor):
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, Mapping):
            for one in value.values():
                visit(one)
        elif isinstance(value, list | tuple):
            for one in value:
                visit(one)

    visit(value)
    return sum(seen.values())


def point_to(work_dir: Path, checkpoint: Path) -> None:
    """Write the pointer of a work_dir."""
    name = os.path.relpath(checkpoint, work_dir)
    try:
        into_place(work_dir / POINTER, lambda file: file.write(name.encode()))
    except OSError as error:
        _warn(f'{work_dir / POINTER}: not written ({error.strerror}); `--resume` finds {name} without it')


# Finding


def folders_of(work_dir: Path) -> list[Path]:
    """Where the checkpoints of a work_dir can be: where its pointer points, and there."""
    pointed = Path(os.path.normpath(work_dir / _pointed(work_dir))).parent
    return [work_dir] if pointed == work_dir else [pointed, work_dir]


def _pointed(work_dir: Path) -> str:
    """What the pointer says; the name of nothing where it is lost."""
    with contextlib.suppress(OSError, ValueError):
        return (work_dir / POINTER).read_text().strip() or 'none'
    return 'none'


class Candidate(NamedTuple):
    """A checkpoint to go on from. digests: (sha256, bytes) that it may have; none if no manifest knows it. place: in
    the manifest."""

    path: Path
    step: float
    run: str
    digests: tuple[tuple[str, int], ...] = ()
    place: int = -1


def training_checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints that a training in this folder wrote, whole or not, the best ones among them."""
    known = {entry.name for entry in entries(folder)} | {Path(_pointed(folder)).name}
    names = [path.name for path in _named(folder)]
    return [name for name in names if name in known or TRAINING.fullmatch(re.sub('^best_.*_(?=iter|epoch)', '', name))]


def _named(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob('[!.]*') if path.suffix in SUFFIXES)


def newest_verified(folder: Path, run: str | None = None, quiet: bool = False) -> Path | None:
    """The newest training checkpoint of a folder, by its step, that is whole; None where there is none.

    run: of which; by default the one that wrote last, and others' where it left nothing. Each one that is passed over
    is named in a warning, unless quiet. No more is read than the files down to the one that is found.
    """
    pointed = folder / Path(_pointed(folder)).name
    if pointed.suffix in SUFFIXES and not pointed.exists() and not quiet:
        _warn(f'{pointed}: is gone, and {POINTER} names it; an older checkpoint is tried instead')
    for candidate in _candidates(folder, run):
        if not (said := _damage(candidate)):
            return candidate.path
        if not quiet:
            _warn(f'{candidate.path}: {said}; an older checkpoint is tried instead')
    return None


def verify(path: Path) -> None:
    """Raise CheckpointError if a checkpoint is not as it was written; the newest whole one beside it is named. What is
    missing, or no file of torch's, is for its reader to refuse."""
    listed = tuple((entry.sha256, entry.bytes) for entry in entries(path.parent) if entry.name == path.name)
    if not path.exists() or not (listed or path.suffix in SUFFIXES):
        return
    if said := _damage(Candidate(path, 0, '', listed)):
        other = newest_verified(path.parent, quiet=True)
        hint = f'. The newest whole one beside it is {other}' if other else ''
        raise CheckpointError(f'{path}: {said}{hint}')


def _candidates(folder: Path, run: str | None = None) -> list[Candidate]:
    """The best one first."""
    listed = entries(folder)
    by_name: dict[str, list[Entry]] = {}
    reached: dict[str, int] = {}  # by run: one that goes on with larger batches counts on from a smaller step
    newest: dict[str, Candidate] = {}
    for place, entry in enumerate(listed):
        by_name.setdefault(entry.name, []).append(entry)
        newest.pop(entry.name, None)
        if entry.resumable and not entry.abandoned and (folder / entry.name).exists():
            reached[entry.run] = max(reached.get(entry.run, 0), entry.step)
            digests = tuple((known.sha256, known.bytes) for known in by_name[entry.name])
            newest[entry.name] = Candidate(folder / entry.name, reached[entry.run], entry.run, digests, place)
    found = list(newest.values())
    pointed = Path(_pointed(folder)).name  # where its name is of a template of the config's
    others = [path for path in _named(folder) if TRAINING.fullmatch(path.name) or path.name == pointed]
    others = [path for path in others if path.name not in by_name]
    found += filter(None, map(_unlisted, others))
    found.sort(key=lambda candidate: (candidate.step, candidate.place, candidate.path.name), reverse=True)
    run = run or next((e.run for e in reversed(listed) if e.resumable), None)
    run = run or next((candidate.run for candidate in found if candidate.path.name == pointed), None)
    run = run or next((candidate.run for candidate in found), '')
    return sorted(found, key=lambda candidate: candidate.run != run)


def _unlisted(path: Path) -> Candidate | None:
    """One that no manifest knows, if a run can go on from it; one that cannot be read is for `_damage` to name."""
    try:
        content = read(path, map_location='cpu', lazy=True)
        if not set(content) >= RESUMABLE:
            return None
        return Candidate(path, int(content['meta']['iter']), str(of_beit_mm(content).get('run', '')))
    except (CheckpointError, OSError):
        number = TRAINING.fullmatch(path.name)
        return Candidate(path, int(number[1]) if number and path.name.startswith('iter') else float('inf'), '')
    except (KeyError, TypeError, ValueError):
        return None


def _damage(candidate: Candidate) -> str:
    """What is wrong with a checkpoint, in words; an empty string for a whole one."""
    path, digests = candidate.path, candidate.digests
    try:
        if path.is_dir():
            check_digests(path, [digest for digest, _ in digests])
        elif digests:
            size = path.stat().st_size
            if all(size != expected for _, expected in digests):
                return f'damaged: it has {size:,} bytes, and {digests[-1][1]:,} were written'
            whole = any(sha256(path) == digest for digest, _ in digests)
            return '' if whole else 'damaged: it is not what was written (its sha256 differs)'
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if wrong := file.testzip():
                    return f'damaged: the checksum of {wrong} in it is wrong'
        read(path, map_location='cpu', lazy=True)
    except CheckpointError as error:
        return str(error).removeprefix(f'{path}: ')
    except Exception as error:  # zipfile meets damaged bytes with BadZipFile, zlib.error, struct.error, ...
        return f'damaged ({type(error).__name__}: {error})'
    return ''


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)
