"""One stage, in a process of its own: train, test, record, and say that it is done.

`python -m beit_mm.benchmark.worker WORK_DIR` runs what WORK_DIR/stage.json says, alone or as a rank of torchrun; on a
CPU the benchmark calls `child` instead, in a process that has the imports already.
"""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from mmengine.dist import is_main_process

from ..checkpoints.load import sha256
from ..checkpoints.store import newest_verified
from ..door import door
from ..engine.configs import load_config
from ..engine.errors import ConfigError
from ..engine.launch import evaluate, run
from ..engine.memory import keep_freed_memory
from ..engine.work_dir import checkpoint_folder
from ..engine.workers import die_with_parent
from .evaluation import record_of
from .records import write
from .state import LOG, SETTINGS, Lock, now, read_json, write_json


def _die_with_creator() -> None:
    """As die_with_parent, for a child of a forkserver, whose parent is the server: a thread watches the creator."""
    creator = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([creator.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def child(work_dir: Path, lock: Lock, threads: int, to_log: bool) -> None:
    """Body of a forkserver's child. lock: of the stage; it is free again when this process has ended."""
    os.setpgid(0, 0)  # Ctrl-C is the benchmark's: it ends its children itself; and data workers end with this one
    _die_with_creator()
    torch.set_num_threads(threads)
    if to_log:
        log = os.open(work_dir / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
    run_stage(work_dir)


@door
def main() -> None:
    if 'RANK' in os.environ:  # torchrun's; the benchmark has seen to its own children
        die_with_parent()
    _run(Path(sys.argv[1]), 'pytorch' if 'RANK' in os.environ else 'none')


def run_stage(work_dir: Path) -> None:
    """Run what stage.json says; a mistake ends the process with a few lines and code 1."""
    door(lambda: _run(work_dir))()


def _run(work_dir: Path, launcher: str = 'none') -> None:
    """Train unless only a test is wanted, test unless there is nothing to test on, and leave done.json."""
    began = time.time()
    keep_freed_memory()
    stage = read_json(work_dir / 'stage.json')
    if stage is None:
        raise ConfigError(f'{work_dir / "stage.json"}: is missing or damaged; the benchmark writes it')
    checkpoint = stage['checkpoint']
    if checkpoint is None:
        runner = run(
            load_config(stage['config'], stage['resolved']),
            work_dir=str(work_dir),
            resume='auto',
            amp=stage['amp'],
            seed=stage['seed'],
            launcher=launcher,
        )
        checkpoint = str(newest_verified(checkpoint_folder(runner.cfg)))
    content = dict(
        checkpoint=os.path.relpath(checkpoint, work_dir) if not stage['checkpoint'] else os.path.abspath(checkpoint),
        record=None, metric=None, value=None, protocol=None,
    )  # fmt: skip
    if stage['tested']:
        record = _adopted(stage, work_dir, checkpoint)  # by all ranks alike
        content.update(record or _test(stage, work_dir, checkpoint, launcher))
    if is_main_process():
        content.update(
            sha256=sha256(checkpoint),
            seconds=time.time() - began,
            settings={key: stage[key] for key in SETTINGS},
            finished=now(),
        )
        write_json(work_dir / 'done.json', content)


def _test(stage: dict, work_dir: Path, checkpoint: str, launcher: str) -> dict:
    config = load_config(stage['config'], stage['resolved'])
    runner, metrics, seconds = evaluate(config, checkpoint, tta=stage['tta'], work_dir=str(work_dir), launcher=launcher)
    if not is_main_process():
        return {}
    record = record_of(runner, config, checkpoint, metrics, seconds)
    write_json(work_dir / 'tested.json', dict(of=_deciding(stage), record=_content(record.text)))
    written = write(record, _results(work_dir))
    return dict(
        record=os.path.relpath(written, work_dir), metric=record.metric, value=record.value, protocol=record.protocol
    )


def _results(work_dir: Path) -> Path:
    return work_dir.parents[1] / 'results'


def _adopted(stage: dict, work_dir: Path, checkpoint: str) -> dict | None:
    """The record of this very test, if the process was killed between writing it and saying so: a second one would
    be a duplicate. tested.json says what the record is, to the last field, and what the stage was then."""
    tested = read_json(work_dir / 'tested.json') or {}
    record = tested.get('record')
    if not record or tested.get('of') != _deciding(stage) or record['checkpoint_sha256'] != sha256(checkpoint):
        return None
    for path in (_results(work_dir) / record['task'] / record['config']).glob('*.json'):
        with contextlib.suppress(OSError, ValueError):
            if _content(path.read_text()) == record:
                kept = {key: record[key] for key in ('metric', 'value', 'protocol')}
                return dict(record=os.path.relpath(path, work_dir), **kept)
    return None


def _content(text: str) -> dict:
    """A record but for what it takes the place of, which is decided when it is written."""
    return {key: value for key, value in json.loads(text).items() if key != 'supersedes'}


def _deciding(stage: dict) -> dict:
    """What decides a stage's result; files by content, for their dates may change."""
    files = {path: file['sha256'] for path, file in stage['files'].items()}
    return dict(digest=stage['digest'], starts=stage['starts'], files=files)


if __name__ == '__main__':
    main()
