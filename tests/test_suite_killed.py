"""A suite that is killed comes out as one that was not: nothing lost, nothing twice, nothing left over."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import started
from tiny_suite import tiny_suite

from beit_mm.checkpoints.load import read

TIMES = ('time', 'data_time')  # metrics of the clock
COMMAND = ('tools/benchmark.py', '--jobs', '2', '--no-page')


def run(suite: Path, root: Path):
    return started(COMMAND[0], suite, '--root', root, *COMMAND[1:])


def check_ended(process) -> None:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out + err)[-3000:]


def processes_with(root: Path) -> list[int]:
    """Processes that have anything below root open, such as a log or a lock."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            links = [os.readlink(link) for link in (folder / 'fd').iterdir()]
            if any(link.startswith(str(root)) for link in links):
                found.append(int(folder.name))
    return found


def what_came_out(root: Path) -> dict:
    """All that must be equal, however the suite was run."""
    stages, records = {}, {}
    for path in sorted(root.glob('seed*/*/done.json')):
        done = json.loads(path.read_text())
        stages[path.parent.name] = {key: done[key] for key in ('checkpoint', 'metric', 'value', 'protocol')}
    for path in sorted((root / 'results').rglob('*.json')):
        record = json.loads(path.read_text())
        metrics = {key: value for key, value in record['metrics'].items() if key not in TIMES}
        key = record['config'], record['seed'], record['protocol']
        assert key not in records, f'{key} twice'
        records[key] = dict(value=record['value'], metrics=metrics, images=record['num_images'])
    return dict(stages=stages, records=records)


def kill_once(suite: Path, root: Path, kill, after: float) -> None:
    """Begin, or go on, and kill it so many seconds after its first stage started; nothing of it lives on."""
    with run(suite, root) as process:
        deadline = time.monotonic() + 100
        while not processes_with(root) and time.monotonic() < deadline:
            time.sleep(0.1)  # imports are not the interesting part
        time.sleep(after)
        assert process.poll() is None, 'it had ended before it was killed: make its stages longer'
        kill(process.pid, signal.SIGKILL)
        time.sleep(2)
        assert processes_with(root) == [], 'a child trains on'


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_three_times_is_never_killed(tmp_path):
    """At random moments: the whole process group, as when a terminal is closed, then the benchmark alone, twice.

    Checkpoints are written at the end of a stage, so that a stage that was cut off begins anew, with the same numbers.
    """
    suite = tiny_suite(tmp_path, steps=24, interval=24, images=40)
    root, straight, moments = tmp_path / 'root', tmp_path / 'straight', random.Random(7)
    with run(suite, straight) as unhurt:  # meanwhile: most of a process's time is imports
        for kill in (os.killpg, os.kill, os.kill):
            kill_once(suite, root, kill, moments.uniform(0.5, 7))
        with run(suite, root) as last:
            check_ended(last)
        check_ended(unhurt)
    expected = what_came_out(straight)
    assert len(expected['stages']) == len(expected['records']) == 4
    assert what_came_out(root) == expected
    for path in straight.glob('seed0/*/iter_24.pth'):
        weights, again = (read(p)['state_dict'] for p in (path, root / path.relative_to(straight)))
        assert all(torch.equal(value, again[name]) for name, value in weights.items()), path
    assert list(root.rglob('*.tmp')) == []
    index = json.loads((root / 'suite.json').read_text())
    assert {stage['status'] for stage in index['stages']} == {'finished'}


def wait_for(root: Path, text: str) -> None:
    """Until the log of the first stage says so."""
    deadline = time.monotonic() + 100
    while not any(text in log.read_text() for log in (root / 'seed0' / 'tokenizer').rglob('2*.log')):
        assert time.monotonic() < deadline, f'no {text!r} in its log'
        time.sleep(0.1)


@pytest.mark.slow
def test_a_stage_that_is_told_to_end_saves(tmp_path):
    """A suite that gets SIGTERM tells its stages; they save the step they are at, and the next call goes on there."""
    suite, root = tiny_suite(tmp_path, steps=1_000_000, interval=1_000_000), tmp_path / 'root'
    with run(suite, root) as process:
        wait_for(root, 'Iter(train) [')
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert processes_with(root) == []
    (saved,) = (root / 'seed0' / 'tokenizer').glob('iter_*.pth')
    step = read(saved)['meta']['iter']
    assert saved.name == f'iter_{step}.pth'
    with run(suite, root):
        wait_for(root, f'resumed epoch: 0, iter: {step}')
