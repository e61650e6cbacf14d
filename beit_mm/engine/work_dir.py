"""The folder of a run: its own while it runs, and never another run's."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoints.files import leftovers, remove
from ..checkpoints.load import of_beit_mm, read
from ..checkpoints.store import entries, training_checkpoints
from .errors import ConfigError
from .locking import acquire, holder, who

LOCK = 'run.lock'


class WorkDirError(ConfigError):
    """A folder that this run cannot have; the message says whose it is and the ways out."""


def work_dir_of(config: Config, wish: str | None = None) -> Path:
    """Where a run writes: the command line's wish, the config's, or work_dirs/<name of the config>."""
    name = Path(config.filename).stem if config.filename else 'run'
    return Path(wish or config.get('work_dir') or Path('work_dirs') / name)


def checkpoint_folder(config: Config) -> Path:
    """Where the checkpoints of a run lie: its work_dir, or a folder of that name in the CheckpointHook's `out_dir`.

    Raises ConfigError for an out_dir that is no folder of a disk: nothing could be verified there.
    """
    out_dir = ((config.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    if not out_dir or str(out_dir) == str(config.work_dir):
        return Path(config.work_dir)
    if '://' in str(out_dir):
        raise ConfigError(
            f'{config.filename}: default_hooks.checkpoint.out_dir={out_dir}: checkpoints are written to a disk, where '
            f'they are verified; give a folder, and copy them from there'
        )
    return Path(out_dir) / Path(config.work_dir).name


def first_rank(launcher: str) -> bool:
    """Whether this is the first process of a run, asked before the processes have found each other."""
    return launcher == 'none' or os.environ.get('RANK', '0') == '0'


@contextlib.contextmanager
def alone(work_dir: Path, launcher: str = 'none') -> Iterator[None]:
    """No other run trains in this folder meanwhile. Raises WorkDirError, on the first rank, if one does; what started
    the ranks then ends the others. A folder in which nothing was written is removed."""
    if not first_rank(launcher):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                work_dir.rmdir()
        return
    lock = acquire(work_dir / LOCK, inherited=False)
    if lock is None:
        raise WorkDirError(
            f'{work_dir}: another run is training here: {who(holder(work_dir / LOCK) or {})}. Wait for it or end it, '
            f'or give this one a folder of its own: --work-dir'
        )
    lock.say(os.getpid())
    try:
        yield
    finally:
        lock.leave_nothing(work_dir / LOCK)
        lock.release()


def refuse_used(config: Config) -> None:
    """Raise WorkDirError for a new run in a folder that has checkpoints, and one that goes on from another run's."""
    folder = checkpoint_folder(config)
    names = training_checkpoints(folder)
    start = Path(config.load_from).resolve() if config.get('resume') else None
    if not names or (start and start.parent == folder.resolve()):
        return
    if start and (run := of_beit_mm(read(start, map_location='cpu', lazy=True)).get('run')):
        there = {entry.run for entry in entries(folder) if entry.name in names}
        if there <= {run}:
            return
    elif start:
        return
    shown = names if len(names) < 4 else [*names[:2], '...', names[-1]]
    one = f'this run goes on from {config.load_from}' if start else 'this is a new run'
    raise WorkDirError(
        f'{folder}: has the checkpoints of a run ({", ".join(shown)}), and {one}, which would write over them. Either\n'
        f'    go on with that run:            --resume\n'
        f'    or give this one a new folder:  --work-dir DIR\n'
        f'    or move the old checkpoints away, or remove them'
    )


def remove_leftovers(config: Config) -> None:
    """Of runs that were killed while they wrote a checkpoint; the first rank does it."""
    if not first_rank(config.get('launcher', 'none')):
        return
    for folder in {Path(config.work_dir), checkpoint_folder(config)}:
        for path in leftovers(folder):
            remove(path)
            print_log(f'{path}: removed, what a killed process left half written', logger='current', level=logging.INFO)
