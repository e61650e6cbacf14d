"""benchmarks/soak.py in short: a training that is ended five times ends with the weights of one that was left alone."""

import importlib.util
import itertools
import json
import signal
import subprocess

import pytest
import torch
from faults import config_file
from processes import ROOT, call
from tiny import PRETRAIN

spec = importlib.util.spec_from_file_location('soak', ROOT / 'benchmarks/soak.py')
soak = importlib.util.module_from_spec(spec)
spec.loader.exec_module(soak)

LIVES = (  # each begins at the last checkpoint, of every third step, or of the step at which it was asked to end
    ('SIGKILL', 7, -9),
    ('SIGTERM', 11, 143),
    ('SIGKILL', 12, -9),
    ('SIGINT', 16, 130),
    ('SIGUSR1', 19, 75),
)
OPTIONS = {
    'train_cfg.max_iters': 24,
    'train_cfg.val_interval': 8,
    'default_hooks.checkpoint.interval': 3,
    'default_hooks.checkpoint.max_keep_ckpts': 1,
    'model.backbone.drop_path_rate': 0.2,
    'train_dataloader.num_workers': 1,
}
EMA = dict(type='EMAHook')


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    alone = config_file(tmp_path / 'alone', PRETRAIN, EMA, **OPTIONS)
    assert call('tools/train.py', alone, '--work-dir', tmp_path / 'alone/run', '--seed', 3)[0] == 0
    command = ('--work-dir', tmp_path / 'hunted/run', '--resume', 'auto', '--seed', 3)
    for name, step, expected in LIVES:
        hunted = config_file(
            tmp_path / 'hunted', PRETRAIN, EMA, dict(type='SignalAt', step=step, signal=name), **OPTIONS
        )
        code, _, err = call('tools/train.py', hunted, *command)
        assert code == expected, err
    hunted = config_file(tmp_path / 'hunted', PRETRAIN, EMA, **OPTIONS)
    assert call('tools/train.py', hunted, *command)[0] == 0
    last = [tmp_path / name / 'run/iter_24.pth' for name in ('alone', 'hunted')]
    assert soak.unequal(*last) == []
    assert soak.steps_done(tmp_path / 'hunted/run') == 24


def test_one_bit_is_found(tmp_path):
    for name, changed in (('a', 0.0), ('b', 2.0**-126)):
        parts = dict(state_dict=dict(w=torch.tensor([1.0, changed])), ema_state_dict={}, optimizer=dict(state={0: {}}))
        torch.save(parts, tmp_path / name)
    assert soak.unequal(tmp_path / 'a', tmp_path / 'a') == []
    assert soak.unequal(tmp_path / 'a', tmp_path / 'b') == ['.state_dict.w']


class Life:
    """A process that logs a step, and then does as it is told, or ends."""

    def __init__(self, work_dir, number, code=None):
        self.code, self.sent = code, None
        log = work_dir / f'{number}/vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(json.dumps(dict(loss=0.5, step=number)) + '\n{"loss": 0.4, "st')

    def poll(self):
        return self.code

    def wait(self, timeout=None):
        if self.sent is None and self.code is None:
            raise subprocess.TimeoutExpired('train', timeout)
        return self.code if self.sent is None else {9: -9, 15: 143, 2: 130, 10: 75}[self.sent]

    def send_signal(self, number):
        self.sent = number


def test_it_is_called_until_it_is_done(tmp_path):
    numbers = itertools.count(1)

    def start(args):
        number = next(numbers)
        return Life(tmp_path, number, code=0 if number == 6 else None)

    told = soak.kill_until_done(['tools/train.py', 'c.py', '--work-dir', str(tmp_path)], 1.0, start)
    names = [signal.Signals(n).name for n in (9, 15, 2, 10, 9)]
    assert told == [
        (name, code, i + 1) for i, (name, code) in enumerate(zip(names, (-9, 143, 130, 75, -9), strict=True))
    ]


def test_it_stops_at_an_error(tmp_path):
    with pytest.raises(RuntimeError, match='exit code 1 after SIGKILL'):
        soak.kill_until_done(['', '', '', str(tmp_path)], 1.0, lambda _: Life(tmp_path, 1, code=1))
