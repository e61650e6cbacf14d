"""What signals do to a training: the step ends, its checkpoint is saved, the exit code says why. A15, A16, A17."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from faults import config_file
from processes import RunningDoor, alive_in_session, door_started
from ranks import agent_started, ranks_started
from tiny import CLASSIFY

from beit_mm.checkpoints.load import read
from beit_mm.door import EXIT_CODES
from beit_mm.engine import signals
from beit_mm.engine.launch import SAFETY_HOOKS
from beit_mm.engine.signals import Stopped, ending_between_steps, largest

SHORT = {'train_cfg.max_iters': 6, 'train_cfg.val_interval': 100, 'default_hooks.checkpoint.interval': 100}
PLAIN = {'train_dataloader.dataset.pipeline': [dict(type='PackInputs')], 'model.backbone.drop_path_rate': 0.0}
CODES = [('SIGTERM', 143), ('SIGINT', 130), ('SIGUSR1', 75)]


def train(folder: Path, *hooks: dict, args=(), **options) -> contextlib.AbstractContextManager[RunningDoor]:
    config = config_file(folder, CLASSIFY, *hooks, **{**SHORT, **options})
    return door_started('tools/train.py', config, '--work-dir', folder / 'w', *args)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / 'w').glob('*.pth'))


def ended_within(leader: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive_in_session(leader) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive_in_session(leader)


@pytest.mark.parametrize(('name', 'code'), CODES)
def test_a15_a16_the_step_ends_and_is_saved(tmp_path, name, code):
    """Sent to the whole group, as Slurm and a terminal do: the data workers leave it to the main process."""
    fault = dict(type='SignalAt', step=3, signal=name, group=True)
    with train(tmp_path, fault, **{'train_dataloader.num_workers': 2}) as run:
        assert run.wait(60) == code, run.stderr()
        assert ended_within(run.pid, 6)  # A17
        out, err = run.stdout(), run.stderr()
    assert checkpoints(tmp_path) == ['iter_3.pth']
    assert read(tmp_path / 'w' / 'iter_3.pth')['meta']['iter'] == 3
    assert err == f'{name}: this step will be the last; then its checkpoint is saved\n'
    said = f'{name}: stopped after step 3 of 6, saved as {tmp_path}/w/iter_3.pth. The same command with --resume'
    assert f'{said} goes on from there (exit code {code})' in out
    assert said in next((tmp_path / 'w').rglob('*.log')).read_text()


@pytest.mark.slow
def test_a15_nothing_is_lost(tmp_path):
    """Stopped at a step and gone on with: the weights, averages and optimizer of a run that was not stopped."""
    ema, fault = dict(type='EMAHook', momentum=0.1), dict(type='SignalAt', step=3, signal='SIGTERM')
    with train(tmp_path / 'whole', ema, **PLAIN) as whole, train(tmp_path, ema, fault, **PLAIN) as run:
        assert run.wait(60) == 143
        with train(tmp_path, ema, args=['--resume'], **PLAIN) as rest:
            assert rest.wait(60) == 0, rest.stderr()
        assert whole.wait(60) == 0
    one, two = (read(folder / 'w' / 'iter_6.pth') for folder in (tmp_path / 'whole', tmp_path))
    for part in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, two[part][key]) for key, value in one[part].items())
    for index, state in one['optimizer']['state'].items():
        assert all(torch.equal(value, two['optimizer']['state'][index][key]) for key, value in state.items())


@pytest.mark.parametrize(
    ('name', 'code'), [CODES[0], *(pytest.param(*row, marks=pytest.mark.slow) for row in CODES[1:])]
)
def test_a15_a16_before_the_first_step(tmp_path, name, code):
    """There is nothing to save, and it ends at once."""
    fault = dict(type='SignalBeforeTraining', signal=name)
    with train(tmp_path, fault, **{'train_dataloader.num_workers': 2}) as run:
        assert run.wait(60) == code, run.stderr()
        assert ended_within(run.pid, 6)
        assert run.stderr() == f'{name} before the first step: there is nothing to save\n'
    assert checkpoints(tmp_path) == []


BOTH = dict(evaluate_on_ema=True, evaluate_on_origin=True)  # the averages, then the model's own


@pytest.mark.slow
@pytest.mark.parametrize('ema', [dict(type='EMAHook'), dict(type='mmpretrain.EMAHook', **BOTH)], ids=['', 'both'])
def test_a15_in_a_validation(tmp_path, ema):
    """The batch ends; the checkpoint has the model's weights and their averages where they belong, not exchanged."""
    ema = dict(ema, momentum=0.1)
    options = {'train_cfg.val_interval': 2, 'default_hooks.checkpoint.interval': 2, 'val_dataloader.batch_size': 10}
    hooks = [ema, dict(type='SignalInValidation', batch=1, step=4, signal='SIGTERM')]
    with train(tmp_path, *hooks, **options) as run, train(tmp_path / 'whole', ema, **options) as whole:
        assert run.wait(60) == 143, run.stderr()
        assert whole.wait(60) == 0
        out = run.stdout()
    assert 'stopped after step 4 of 6' in out
    assert out.count('Iter(val)') == 1  # of step 2; of step 4 none
    one, two = (read(folder / 'w' / 'iter_4.pth') for folder in (tmp_path / 'whole', tmp_path))
    for part in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, two[part][key]) for key, value in one[part].items())
    assert not torch.equal(one['state_dict']['head.fc.weight'], one['ema_state_dict']['module.head.fc.weight'])


@pytest.mark.slow
def test_a15_while_a_checkpoint_is_written(tmp_path):
    """It is written to the end, also when the signal comes a second time; with the third the process ends at once."""
    options = {'default_hooks.checkpoint.interval': 2}
    for times, code, left in ((2, 143, ['iter_2.pth']), (3, 143, [])):
        folder = tmp_path / str(times)
        with train(folder, dict(type='SignalWhileSaving', signal='SIGTERM', times=times), **options) as run:
            assert run.wait(60) == code, run.stderr()
            assert ('again: ending at once' in run.stderr()) == (times == 3)
        assert checkpoints(folder) == left
        for name in left:
            assert read(folder / 'w' / name)['meta']['iter'] == 2


@pytest.mark.slow
def test_a15_accumulated_gradients_are_not_lost(tmp_path):
    """A checkpoint has no gradients: it is saved when the optimizer has used them."""
    fault = dict(type='SignalAt', step=3, signal='SIGTERM')
    with train(tmp_path, fault, **{'optim_wrapper.accumulative_counts': 2}) as run:
        assert run.wait(60) == 143, run.stderr()
    assert checkpoints(tmp_path) == ['iter_4.pth']


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a17_no_orphans(tmp_path, number):
    """kill -9 of the main process takes its data workers along, at once."""
    fault = dict(type='SignalAt', step=3, signal=number.name)
    with train(tmp_path, fault, **{'train_dataloader.num_workers': 3}) as run:
        assert run.wait(60) in (-9, 143)
        assert ended_within(run.pid, 1)


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.slow
def test_a15_ranks_stop_at_one_step(tmp_path, rank):
    """Whichever rank gets the signal: all save one checkpoint and end with the same code."""
    fault = dict(type='SignalRankAt', step=3, signal='SIGTERM', once=str(tmp_path / 'once'), rank=rank)
    config = config_file(tmp_path, CLASSIFY, fault, **SHORT)
    with ranks_started(2, 'tools/train.py', config, '--work-dir', tmp_path / 'w') as ranks:
        assert [run.wait(60) for run in ranks] == [143, 143]
        assert ranks[1 - rank].stderr() == ''
    assert checkpoints(tmp_path) == ['iter_3.pth']
    assert read(tmp_path / 'w' / 'iter_3.pth')['meta']['iter'] == 3


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(('name', 'code'), CODES[::2])
def test_a15_a16_under_torchrun(tmp_path, name, code):
    """Sent to torchrun, which hands it on: dist_train.sh ends with the code of the ranks, and nothing lives on."""
    fault = dict(type='SignalRankAt', step=3, signal=name, once=str(tmp_path / 'once'), parent=True)
    config = config_file(
        tmp_path, CLASSIFY, fault, **{**SHORT, 'train_cfg.max_iters': 100_000, 'train_dataloader.num_workers': 1}
    )
    with agent_started('tools/dist_train.sh', config, 2, '--work-dir', tmp_path / 'w') as agent:
        assert agent.wait(100) == code, agent.stderr()
        assert agent.alive() == []
        says = f'{name}: the ranks were asked to end, and have ended; exit code {code}\n'
        assert agent.stderr().splitlines()[-1] == says.strip()
        assert len(agent.stderr().splitlines()) == 2
    (saved,) = checkpoints(tmp_path)  # torchrun looks for signals every 0.1 s
    assert 3 <= read(tmp_path / 'w' / saved)['meta']['iter'] == int(saved[5:-4])


def test_handlers_are_as_they_were():
    """In a notebook and under pytest; what is ignored, as in a script's background jobs, stays ignored."""
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with ending_between_steps():
            os.kill(os.getpid(), signal.SIGUSR1)
            with ending_between_steps():  # one in another changes nothing
                pass
            with pytest.raises(Stopped, match='stopped by SIGTERM') as stopped:
                os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.exit_code == 143
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert signals._watch is None
    finally:
        signal.signal(signal.SIGUSR1, before[signal.SIGUSR1])
    assert {number: signal.getsignal(number) for number in EXIT_CODES} == before
    assert largest(3, 0) == [3, 0]


def test_every_run_has_the_hook():
    assert SAFETY_HOOKS[-1] == dict(type='beit_mm.StopHook')  # of those of the lowest priority the last
