"""What has become of a stage, read from its folder: finished, running, failed, stale, missing, blocked or pending.

Beside and in root/seed<n>/<name>:

    <name>.lock    held (flock) by the process that runs the stage; says who and since when
    stage.json     what it was begun with
    tested.json    what its record will say, from before that is written: after a kill it is known by it
    failed.json    exit code and last lines, if it failed; gone when it starts again
    done.json      what it left, written last: without it, whole and with its record, a stage is not finished
"""

import datetime
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.files import into_place
from ..checkpoints.load import sha256
from ..checkpoints.store import TRAINING, training_checkpoints
from ..engine import locking
from ..engine.locking import Lock, who
from .suite import Stage, digest, weights_of

DONE = {'checkpoint', 'sha256', 'record', 'metric', 'value', 'protocol', 'seconds', 'settings'}
RECORD = {'task', 'metric', 'value', 'checkpoint_sha256'}  # by which a record is one
SETTINGS = ('config', 'options', 'digest', 'starts', 'files')  # of which a stage was made
LOG = 'stage.log'


class State(NamedTuple):
    """name: see above. text: why, for a reader."""

    name: str
    text: str = ''


def write_json(path: Path, content) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    into_place(path, lambda file: file.write((json.dumps(content, indent=1) + '\n').encode()))


def read_json(path: Path) -> dict | None:
    """A dict, or None for what is not there or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec='seconds')


def slurm_key(stage: Stage) -> str:
    """What a stage's Slurm job is called, in root/slurm and in the queue."""
    return f'seed{stage.seed}-{stage.name}'


# Who runs it


def lock_file(stage: Stage) -> Path:
    return stage.work_dir.with_name(f'{stage.name}.lock')


def acquire(stage: Stage) -> Lock | None:
    """The stage's lock, or None if a process, here or on another machine of the same disk, holds it."""
    return locking.acquire(lock_file(stage))


def holder(stage: Stage) -> dict | None:
    """Who runs it now (pid, host, since, job), or None."""
    return locking.holder(lock_file(stage))


# What it was made of


def settings_of(stage: Stage) -> dict:
    """All that decides what comes out of a stage, to be kept beside it: files and earlier stages by their sha256."""
    starts = {parent.name: (finished(parent) or {}).get('sha256') for parent in stage.parents}
    files = {path: _fingerprint(Path(path)) for path in weights_of(stage) if Path(path).exists()}
    return dict(
        config=stage.config,
        options=stage.options,
        digest=digest(stage),
        starts=starts,
        files=files,
    )


def _fingerprint(path: Path) -> dict:
    status = path.stat()
    return dict(size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=sha256(path))


def differences(stage: Stage, before: dict) -> list[str]:
    """How the settings that a stage was begun with differ from today's, in words."""
    said = []
    tables = {key: before[key] for key in ('starts', 'files', 'options') if isinstance(before.get(key), dict)}
    for name, was in tables.get('starts', {}).items():
        parent = next((parent for parent in stage.parents if parent.name == name), None)
        current = finished(parent) if parent else None
        if current and current['sha256'] != was:
            said.append(f'{name}, which it started from, has been run again since')
    for path, was in tables.get('files', {}).items():
        file = Path(path)
        if path in weights_of(stage) and file.exists() and isinstance(was, dict):
            status = file.stat()
            touched = (status.st_size, status.st_mtime_ns) != (was.get('size'), was.get('mtime_ns'))
            if touched and sha256(file) != was.get('sha256'):
                said.append(f'{path} is another file than then')
    if before.get('digest') == digest(stage):
        return said
    old, new = tables.get('options', {}), json.loads(json.dumps(stage.options, default=repr))
    keys = [key for key in {**old, **new} if old.get(key, '-') != new.get(key, '-')]
    said += [f'{key} was {old.get(key, "not set")}, is {new.get(key, "not set")}' for key in keys]
    if before.get('config') != stage.config:
        said.append(f'config was {before.get("config")}, is {stage.config}')
    return said or [f'{stage.config}, or a base of it, or how it is run (gpus, amp, tta) was changed']


# What it left


def finished(stage: Stage) -> dict | None:
    """The content of done.json, or None; it is not believed unless it and the record that it names are whole."""
    done = read_json(stage.work_dir / 'done.json')
    if done is None or not set(done) >= DONE or not _sound(done):
        return None
    if done['record'] and not set(read_json(stage.work_dir / done['record']) or {}) >= RECORD:
        return None
    return done


def _sound(done: dict) -> bool:
    """Whether all that is asked of a done.json is of the kind that was written."""
    words = all(isinstance(done[key], str) for key in ('checkpoint', 'sha256'))
    or_none = all(done[key] is None or isinstance(done[key], str) for key in ('record', 'metric', 'protocol'))
    numbers = _number(done['seconds']) and (not done['metric'] or _number(done['value']))
    return words and or_none and numbers and isinstance(done['settings'], dict)


def _number(value) -> bool:
    return type(value) in (int, float)


def weights_left(stage: Stage) -> Path | None:
    """The checkpoint of a finished stage, if it is still there."""
    done = finished(stage)
    path = stage.work_dir / done['checkpoint'] if done else None
    return path if path and path.exists() else None


def stale(stage: Stage) -> list[str]:
    """Why what there is of a stage is not what the suite asks for now; empty where it is, or there is nothing."""
    done = finished(stage)
    before = done['settings'] if done else read_json(stage.work_dir / 'stage.json')
    if not before or not (done or training_checkpoints(stage.work_dir)):
        return []
    return differences(stage, before)


def states(stages: list[Stage], lacking: Iterable[Stage] = ()) -> dict[Stage, State]:
    """What has become of each; lacking: those that need a file that is not there."""
    found: dict[Stage, State] = {}
    lacking = set(lacking)
    for stage in stages:
        found[stage] = _state(stage, found, stage in lacking)
    return found


def _state(stage: Stage, earlier: dict[Stage, State], lacks: bool) -> State:
    held = holder(stage)
    if held:
        return State('running', f'{who(held)}; {progress(stage)}')
    done = finished(stage)
    if changed := stale(stage):
        begun = 'finished' if done else 'begun'
        return State('stale', f'was {begun} with other settings: {"; ".join(changed[:3])}')
    if done:
        result = f'{done["metric"]} {done["value"]:.4g}, ' if done['metric'] else ''
        return State('finished', f'{result}{done["seconds"]:.0f} s')
    failed = read_json(stage.work_dir / 'failed.json')
    if failed:
        return State('failed', f'exit code {failed.get("code")} at {failed.get("when")}; see {log_of(stage)}')
    if lacks:
        return State('missing', 'needs a file that is not there')
    before = {parent: earlier.get(parent) or _state(parent, {}, False) for parent in stage.parents}
    bad = [p.name for p, s in before.items() if s.name in ('failed', 'missing', 'blocked', 'stale')]
    gone = [p.name for p, s in before.items() if s.name == 'finished' and weights_left(p) is None]
    if bad or gone:
        reasons = [f'needs {", ".join(bad)}'] if bad else []
        reasons += [f'the checkpoint of {", ".join(gone)} is gone: --rerun makes another'] if gone else []
        return State('blocked', '; '.join(reasons))
    waits = [parent.name for parent, state in before.items() if state.name != 'finished']
    said = [f'waits for {", ".join(waits)}'] if waits else []
    job = (read_json(stage.root / 'slurm' / 'jobs.json') or {}).get(slurm_key(stage))
    said += [f'was submitted as job {job}'] if job else []
    return State('pending', '; '.join(said + _cut_off(stage)) or 'ready')


def _cut_off(stage: Stage) -> list[str]:
    """What a stage that was begun and is not running has to go on from."""
    done = read_json(stage.work_dir / 'done.json')
    if done is not None and not set(done) >= DONE:
        return ['done.json is of an older version; done again']
    if (stage.work_dir / 'done.json').is_file():
        return ['done.json or its record is damaged; done again']
    if not (stage.work_dir / 'stage.json').is_file():
        return []
    steps = [TRAINING.fullmatch(path.name) for path in stage.work_dir.iterdir()]
    newest = max((step for step in steps if step), key=lambda step: int(step[1]), default=None)
    return [f'was cut off; goes on from {newest[0]}' if newest else 'was cut off before its first checkpoint']


def log_of(stage: Stage) -> Path:
    """The log to read: the newest of the stage's, of its Slurm jobs' and of mmengine's."""
    logs = [path for pattern in (LOG, 'slurm-*.log', '*/*.log') for path in stage.work_dir.glob(pattern)]
    return max(logs, key=lambda path: path.stat().st_mtime, default=stage.work_dir)


def last_lines(stage: Stage, count: int) -> list[str]:
    """Of the log, from its last 64 KiB."""
    path = log_of(stage)
    if not path.is_file():
        return []
    with open(path, 'rb') as file:
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().decode(errors='replace').splitlines()
    return [line for line in lines if line.strip()][-count:]


def progress(stage: Stage) -> str:
    """`Iter(train) [ 500/1500] eta: 0:04:10` of the last line of a stage's log that has it."""
    for line in reversed(last_lines(stage, 40)):
        found = re.search(r'((?:Iter|Epoch)\(\w+\) +(?:\[ *\d+\])?\[ *\d+/\d+\]).*?(eta: (?:\d+ days?, )?\S+)', line)
        if found:
            return f'{found[1]} {found[2]}'
    return 'starting'
