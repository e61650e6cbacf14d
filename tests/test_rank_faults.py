"""Four ranks, of which one is killed, stops or errs: the others end in time, are started again, and lose nothing.

Each through tools/dist_train.sh: its options, torchrun's agent, real processes and signals. Ranks are forks of the
agent (tests/ranks.py), so that each starts in a second; with ranks that import all anew: tests/test_ranks.py.
"""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from faults import config_file
from ranks import RunningAgent, agent_started, free_port, ranks_started
from tiny import CLASSIFY

from beit_mm.checkpoints.load import read

STEPS = 8
RUN = {
    'train_cfg.max_iters': STEPS,
    'train_cfg.val_interval': 4,
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 1,
    'train_dataloader.dataset.length': 32,
    'default_hooks.checkpoint.interval': 2,
    'default_hooks.checkpoint.max_keep_ckpts': -1,
}
RESTART = ('--resume', 'auto')
DDP, FSDP2 = (), ('--strategy', 'fsdp2')
strategies = pytest.mark.parametrize('more', [DDP, FSDP2], ids=['ddp', 'fsdp2'])
ddp = pytest.mark.parametrize('more', [DDP], ids=['ddp'])  # what has nothing to do with how a model is spread
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def train(folder: Path, *args, hooks: list = (), options: dict | None = None, ranks: int = 4, **env):
    """`tools/dist_train.sh CONFIG RANKS --work-dir FOLDER/w ARGS`."""
    config = config_file(folder, CLASSIFY, *hooks, **{**RUN, **(options or {})})
    return agent_started('tools/dist_train.sh', config, ranks, '--work-dir', folder / 'w', *args, **env)


def fault(rank: int, folder: Path | None = None, **hook) -> list[dict]:
    """On one rank; with a folder once, whatever restarts."""
    return [dict(type='OnRank', rank=rank, fault=hook, once=folder and str(folder / 'once'))]


def last(folder: Path) -> dict:
    (found,) = (folder / 'w').glob(f'iter_{STEPS}.*')
    return read(found)


def assert_equal(one: dict, two: dict) -> None:
    """Two checkpoints: weights and what the optimizer has, to the bit."""
    assert one['state_dict'].keys() == two['state_dict'].keys()
    assert all(torch.equal(value, two['state_dict'][key]) for key, value in one['state_dict'].items())
    for index, state in one['optimizer']['state'].items():
        assert all(torch.equal(value, two['optimizer']['state'][index][key]) for key, value in state.items())


def gone_within(agent: RunningAgent, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while agent.alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not agent.alive()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The last checkpoint of a run that nothing happened to; by the arguments of tools/train.py."""
    kept = {}

    def run(more: tuple[str, ...]) -> dict:
        if more not in kept:
            folder = tmp_path_factory.mktemp('whole')
            with train(folder, *more) as agent:
                assert agent.wait(100) == 0, agent.stderr()
                assert agent.stderr() == ''
            kept[more] = last(folder)
        return kept[more]

    return run


KILLED = 'process {} was ended by SIGKILL. Unless somebody did it by hand, memory ran out (dmesg says so); --resume'
FAULTS = {
    'killed_while_saving': (0, dict(type='KillWhileSaving', step=3, name='write', number=3), KILLED),
    'killed_in_validation': (3, dict(type='SignalInValidation', step=4, batch=1, signal='SIGKILL'), KILLED),
    'data_worker_killed': (1, dict(type='SignalWorkersAt', step=5, signal='SIGKILL'), 'data worker '),
}


def on_each(faults: dict, sharded: list[str]) -> pytest.MarkDecorator:
    """All of them under DDP, some under FSDP2 too."""
    cases = [*((name, DDP) for name in faults), *((name, FSDP2) for name in sharded)]
    ids = [f'{name}-{"fsdp2" if more else "ddp"}' for name, more in cases]
    return pytest.mark.parametrize(('name', 'more'), cases, ids=ids)


@on_each(FAULTS, ['killed_while_saving', 'data_worker_killed'])
def test_started_again_nothing_is_lost(tmp_path, whole, name, more):
    """What ended one rank is told once; the run goes on from a checkpoint to the very end of one left alone."""
    rank, hook, words = FAULTS[name]
    with train(tmp_path, *RESTART, *more, hooks=fault(rank, tmp_path, **hook), MAX_RESTARTS='1') as agent:
        assert agent.wait(100) == 0, agent.stderr()
        assert len(agent.ranks()) == 8
        said = [line for line in agent.stderr().splitlines() if line and not line.startswith('(the traceback is in ')]
        assert said[0].startswith(f'error: rank {rank} of 4: {words.format(agent.ranks()[rank])}')
        assert said[1:] == ['the ranks are started again (1 of MAX_RESTARTS=1)']
    assert (tmp_path / 'once').exists()
    assert_equal(whole(more), last(tmp_path))


@ddp
def test_a_rank_that_hangs(tmp_path, whole, more):
    """It is found within the time-out, killed 30 s after it was asked to end, and not left behind."""
    hooks = fault(2, tmp_path, type='SignalAt', step=5, signal='SIGSTOP')
    options = {'env_cfg.dist_cfg': dict(backend='nccl', timeout=15)}
    with train(tmp_path, *RESTART, *more, hooks=hooks, options=options, MAX_RESTARTS='1') as agent:
        assert agent.wait(150) == 0, agent.stderr()
        stopped = agent.ranks()[2]
        error, _, hung, again = agent.stderr().strip().splitlines()
        assert agent.alive() == []
    assert re.match(r'error: rank [013] of 4: another rank has not answered for 15 s: it hangs, or needs longer', error)
    assert hung == f'rank 2 (process {stopped}) did not end when it was asked to, and was killed'
    assert again == 'the ranks are started again (1 of MAX_RESTARTS=1)'
    assert_equal(whole(more), last(tmp_path))


@strategies
def test_the_agent_is_killed(tmp_path, whole, more):
    """Its ranks save and end; the same command goes on."""
    hook = dict(type='SignalRankAt', step=3, signal='SIGKILL', parent=True, once=str(tmp_path / 'once'))
    with train(tmp_path, *more, hooks=[hook]) as agent:
        assert agent.wait(100) == -9
        assert gone_within(agent, 30)
        assert 'stopped after step 3 of 8, saved as ' in agent.stdout()
    with train(tmp_path, '--resume', *more, hooks=[hook]) as agent:
        assert agent.wait(100) == 0, agent.stderr()
    assert_equal(whole(more), last(tmp_path))


MISTAKES = {
    'unreadable_image': (2, dict(type='RaiseAt', step=5), 'rank 2 of 4: images/7.png: cannot be read as an image\n'),
    'full_disk': (0, dict(type='FullDisk', step=3, room=1000), '{file}: not saved: {where}No space left on device. '),
}


@on_each(MISTAKES, ['full_disk'])
def test_a_mistake_ends_all_ranks(tmp_path, name, more):
    """That is one rank's alone: told once, its traceback beside the run's log; not started again, to end so again."""
    rank, hook, words = MISTAKES[name]
    with train(tmp_path, *RESTART, *more, hooks=fault(rank, **hook), MAX_RESTARTS='3') as agent:
        assert agent.wait(100) == 1
        assert len(agent.ranks()) == 4
        assert gone_within(agent, 1)
        said = agent.stderr()
    file, where = ('iter_4.dcp', 'on rank 0: ') if more == FSDP2 else ('iter_4.pth', '')
    assert said.startswith('\nerror: ' + words.format(file=tmp_path / 'w' / file, where=where))
    assert said.endswith('\nthe ranks are not started again: they would end in the same way\n')
    assert said.count('error: ') == 1
    assert len(said.splitlines()) == 4
    log = Path(re.search(r'the traceback is in (.*)\)', said)[1])
    assert log.name.endswith('_rank2.log') == (rank == 2)
    assert log.read_text().count('Traceback (most recent call last):') > 0


@ddp
def test_two_machines(tmp_path, whole, more):
    """As two agents on one: ranks by NODE_RANK, whoever comes first; both start again, and lose nothing."""
    hooks = fault(3, tmp_path, type='SignalAt', step=5, signal='SIGKILL')
    port = str(free_port())
    common = dict(hooks=hooks, ranks=2, MAX_RESTARTS='1', NNODES='2', PORT=port, MASTER_ADDR='127.0.0.1')
    with (
        train(tmp_path, *RESTART, *more, NODE_RANK='1', **common) as second,
        train(tmp_path, *RESTART, *more, NODE_RANK='0', **common) as first,
    ):
        assert [first.wait(150), second.wait(150)] == [0, 0], first.stderr() + second.stderr()
        assert first.stdout().count('resumed epoch: 0, iter: 4') == 1
        assert second.stdout() == ''
        killed = second.ranks()[1]
        says, _, other, _, again = first.stderr().splitlines()
        assert says == f'2 machines meet at 127.0.0.1:{port}'
        assert re.match('error: rank [01] of 4: another rank has ended, or cannot be reached: it says why in', other)
        assert again == 'the ranks are started again (1 of MAX_RESTARTS=1)'
        assert f'\nerror: rank 3 of 4: {KILLED.format(killed)}' in second.stderr()
    assert_equal(whole(more), last(tmp_path))


@ddp
def test_a_mistake_on_one_of_two_machines(tmp_path, more):
    """The other does not wait for it to come back."""
    hooks = fault(1, type='RaiseAt', step=3)
    common = dict(hooks=hooks, ranks=1, MAX_RESTARTS='3', NNODES='2', PORT=str(free_port()))
    with (
        train(tmp_path, *RESTART, *more, NODE_RANK='0', **common) as first,
        train(tmp_path, *RESTART, *more, NODE_RANK='1', **common) as second,
    ):
        assert [first.wait(150), second.wait(150)] == [1, 1]
        assert first.stderr().endswith('\nerror: the ranks of another machine have ended for good, and say why there\n')
        assert '\nerror: rank 1 of 2: images/7.png: cannot be read as an image\n' in second.stderr()


def test_two_runs_at_once(tmp_path):
    """On one machine, also where both are given the PORT that OpenMMLab's scripts need."""
    with (
        train(tmp_path / '1', ranks=1, PORT='29500') as one,
        train(tmp_path / '2', ranks=1, PORT='29500') as two,
    ):
        assert [one.wait(100), two.wait(100)] == [0, 0], one.stderr() + two.stderr()
    assert_equal(last(tmp_path / '1'), last(tmp_path / '2'))


def test_a_test_is_ended(tmp_path, whole):
    """tools/dist_test.sh too ends with 143, and leaves nothing behind."""
    torch.save(whole(DDP), tmp_path / 'last.pth')
    hook = dict(type='SignalInTest', signal='SIGTERM')
    config = config_file(tmp_path, CLASSIFY, hook, **RUN)
    with agent_started('tools/dist_test.sh', config, tmp_path / 'last.pth', 2, '--work-dir', tmp_path / 'w') as agent:
        assert agent.wait(100) == 143, agent.stderr()
        assert gone_within(agent, 1)
        assert agent.stderr() == 'SIGTERM: the ranks were asked to end, and have ended; exit code 143\n'


def test_fewer_ranks_see_the_same_images(tmp_path):
    """4 ranks, then 2, then 1, with as many images a step: each step has those of a run on one rank."""
    pipeline = {'train_dataloader.dataset.pipeline': [dict(type='PackInputs')], 'train_dataloader.dataset.length': 64}

    def run(folder: Path, ranks: int, end: int) -> None:
        batch = {'train_dataloader.batch_size': 8 // ranks, 'train_dataloader.num_workers': 0}
        options = {**RUN, **pipeline, **batch, 'train_cfg.max_iters': end, 'train_cfg.val_interval': 100}
        config = config_file(folder, CLASSIFY, dict(type='ImagesSeen', folder=str(folder)), **options)
        with ranks_started(ranks, 'tools/train.py', config, '--work-dir', folder / 'w', *RESTART) as started:
            assert [one.wait(100) for one in started] == [0] * ranks, started[0].stderr()

    def seen(folder: Path) -> dict[int, list[str]]:
        steps = {}
        for path in folder.glob('seen_*'):
            for step, images in map(json.loads, path.read_text().splitlines()):
                steps.setdefault(step, []).extend(images)
        return {step: sorted(images) for step, images in sorted(steps.items())}

    for ranks, end in ((4, 4), (2, 8), (1, 12)):
        run(tmp_path / 'fewer', ranks, end)
    run(tmp_path / 'one', 1, 12)
    assert seen(tmp_path / 'fewer') == seen(tmp_path / 'one')
    assert [len(set(images)) for images in seen(tmp_path / 'one').values()] == [8] * 12
