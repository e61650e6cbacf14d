"""Data workers that are killed, hang or raise: an error in time, in plain words, and no process left over. A38, A39."""

import os
import time

import pytest
import torch
from faults import config_file
from processes import RunningDoor, door_started
from test_signals import ended_within
from tiny import CLASSIFY

from beit_mm.engine.runner import Runner
from beit_mm.engine.workers import TIMEOUT, WatchedDataLoader, in_plain_words, with_safe_workers

LONG = {'train_cfg.max_iters': 1000, 'train_cfg.val_interval': 1000, 'default_hooks.checkpoint.interval': 1000}


def ends_with(run: RunningDoor, *parts: str) -> float:
    """Seconds that a door took; it ended with code 1, a message of at most 15 lines, and no orphans."""
    began = time.monotonic()
    assert run.wait(60) == 1, run.stderr()
    took = time.monotonic() - began
    assert ended_within(run.pid, 6)
    said = run.stderr().strip().splitlines()
    assert len(said) <= 15
    for part in parts:
        assert part in run.stderr()
    assert 'Traceback' not in run.stderr()
    return took


@pytest.mark.parametrize(
    ('signal', 'words'),
    [
        (
            'SIGKILL',
            'Unless somebody did it by hand, the usual reason is that memory ran out: take fewer workers (num_workers',
        ),
        ('SIGSTOP', 'no batch came from the data workers for 2 s: the disk or the network that the data are on may'),
    ],
    ids=['a39_killed', 'a38_stuck'],
)
def test_a_worker_is(tmp_path, signal, words):
    fault = dict(type='SignalWorkersAt', step=3, signal=signal)
    options = {**LONG, 'train_dataloader.num_workers': 2, 'train_dataloader.timeout': 2}
    config = config_file(tmp_path, CLASSIFY, fault, **options)
    with door_started('tools/train.py', config, '--work-dir', tmp_path / 'w') as run:
        assert ends_with(run, 'error: ', words, '--resume goes on from the last checkpoint') < 30
    log = next((tmp_path / 'w').rglob('*.log')).read_text()
    assert 'Traceback (most recent call last)' in log


class Counting(torch.utils.data.Dataset):
    """Four numbers."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index


def loader(**options) -> torch.utils.data.DataLoader:
    config = dict(dataset=Counting(), sampler=dict(type='DefaultSampler', shuffle=False), batch_size=1, **options)
    return Runner.build_dataloader(config, seed=1)


def test_other_errors_are_left_alone():
    assert in_plain_words(RuntimeError('gloo')) is None  # there is one rank
    assert in_plain_words(ValueError('x')) is None


def test_a_bus_error_is_shared_memory():
    text = (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        'shared memory. Please try to raise your shared memory limit.'
    )
    assert '7 was killed by signal: Bus error. Unless somebody did it by hand, shared memory (/dev/shm) is full' in str(
        in_plain_words(RuntimeError(text))
    )


def greets(_: int) -> None:
    os.environ['GREETED'] = '77'


class Greeted(Counting):
    def __getitem__(self, index: int) -> int:
        return int(os.environ.get('GREETED', 0)) + index


def test_the_own_init_function_stays_in_effect():
    config = dict(dataset=Greeted(), sampler=dict(type='DefaultSampler', shuffle=False), batch_size=4, num_workers=1)
    with_init = Runner.build_dataloader({**config, 'worker_init_fn': dict(type=greets)}, seed=1)
    assert list(with_init) == [[77, 78, 79, 80]]
    assert list(Runner.build_dataloader(config, seed=1)) == [[0, 1, 2, 3]]


def test_loaders_get_a_timeout_and_without_workers_none():
    config = dict(num_workers=2, persistent_workers=True, disable_subprocess_warning=True)
    made = with_safe_workers(config, seed=3)
    assert made['timeout'] == TIMEOUT == 600
    assert 'disable_subprocess_warning' not in made
    assert with_safe_workers({**config, 'timeout': 5})['timeout'] == 5
    assert with_safe_workers({**config, 'timeout': 5, 'num_workers': 0}) == dict(
        num_workers=0, disable_subprocess_warning=True
    )
    assert type(loader(num_workers=1)) is WatchedDataLoader
    assert loader(num_workers=1).timeout == 600
    assert [list(loader(num_workers=n)) for n in (0, 2)] == [[[0], [1], [2], [3]]] * 2
