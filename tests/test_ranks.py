"""Several ranks: they equal one process (A36); one that is killed or hangs ends the others in time (A37, A38)."""

import re
import subprocess
import time
from pathlib import Path

import pytest
import torch
from faults import config_file
from processes import ROOT, call, door_started
from ranks import agent_started, dist_train, ranks_started
from tiny import CLASSIFY, PRETRAIN, SEGMENT

from beit_mm.checkpoints.load import read

STEPS = 32
ALIKE = {  # what is random on each rank for itself is left out
    'train_cfg.max_iters': STEPS,
    'train_cfg.val_interval': 100,
    'default_hooks.checkpoint.interval': 100,
    'model.backbone.drop_path_rate': 0.0,
    'param_scheduler': [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5)],
}
CASES = {
    CLASSIFY: {'train_dataloader.dataset.pipeline': [dict(type='PackInputs')]},
    PRETRAIN: {},
    SEGMENT: {
        'train_dataloader.dataset.pipeline': [dict(type='PackSegInputs')],
        'model.decode_head.dropout_ratio': 0.0,
        'model.auxiliary_head.dropout_ratio': 0.0,
    },
}


def farthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> tuple[float, int]:
    """The largest relative distance of two tensors of a name, and of how many it is the largest."""
    assert one.keys() == two.keys()
    kept = [key for key, value in one.items() if value.is_floating_point() and value.norm() > 0]
    return max(((one[key] - two[key]).double().norm() / one[key].double().norm()).item() for key in kept), len(kept)


@pytest.mark.slow
@pytest.mark.parametrize('kind', CASES, ids=['cls', 'mim', 'seg'])
def test_a36_two_ranks_equal_one_process(tmp_path, kind):
    """Batches of 4 on two ranks, of 8 on one: the same weights to 1e-5 after 32 steps; the ranks bit for bit.

    Segmentation in float64, to 1e-9: in float32 rounding puts a unit of UPerNet on the other side of its ReLU in one of
    32 steps, and the ends are up to 1e-2 apart.
    """
    imports, close = (['in_double'], 1e-9) if kind == SEGMENT else ([], 1e-5)
    hooks = [dict(type='NormEval')] if kind == SEGMENT else []
    files = [
        config_file(
            tmp_path / str(ranks),
            kind,
            *hooks,
            dict(type='WeightsOfRank', folder=str(tmp_path / str(ranks))),
            imports=imports,
            **{**ALIKE, **CASES[kind], 'train_dataloader.batch_size': 8 // ranks},
        )
        for ranks in (1, 2)
    ]
    with (
        door_started('tools/train.py', files[0], '--work-dir', tmp_path / '1' / 'w') as alone,
        ranks_started(2, 'tools/train.py', files[1], '--work-dir', tmp_path / '2' / 'w') as ranks,
    ):
        assert [run.wait(100) for run in (alone, *ranks)] == [0, 0, 0], ranks[0].stderr()
    one, two, other = (torch.load(tmp_path / name) for name in ('1/rank0.pt', '2/rank0.pt', '2/rank1.pt'))
    assert all(torch.equal(value, other[name]) for name, value in two.items())
    start = torch.load(tmp_path / '1' / 'start.pt')
    assert farthest(start, one)[0] > 0.01  # it has trained
    distance, count = farthest(one, two)
    assert distance < close
    assert count > 20


FAILING = {
    'train_cfg.max_iters': 8,
    'train_cfg.val_interval': 100,
    'default_hooks.checkpoint.interval': 2,
    'env_cfg.dist_cfg': dict(backend='nccl', timeout=10),
}


def failing(folder: Path, signal: str, **options) -> str:
    fault = dict(type='SignalRankAt', step=5, signal=signal, rank=1, once=str(folder / 'once'))
    return config_file(folder, CLASSIFY, fault, **{**FAILING, **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    ('signal', 'words', 'within'),
    [
        ('SIGKILL', 'rank 0 of 2: another rank has ended, or cannot be reached: it says why in its own output (', 60),
        ('SIGSTOP', 'rank 0 of 2: another rank has not answered for 10 s: it hangs, or needs longer than env_cfg.', 30),
    ],
    ids=['a37_killed', 'a38_stuck'],
)
def test_a_rank_is(tmp_path, signal, words, within):
    config = failing(tmp_path, signal)
    with ranks_started(2, 'tools/train.py', config, '--work-dir', tmp_path / 'w') as ranks:
        assert ranks[0].wait(100) == 1
        assert time.time() - (tmp_path / 'once').stat().st_mtime < within
        assert words in ranks[0].stderr()
        assert len(ranks[0].stderr().strip().splitlines()) <= 15
    assert read(tmp_path / 'w' / 'iter_4.pth')['meta']['iter'] == 4


@pytest.mark.parametrize(('resume', 'code'), [('', 2), ('--resume', 2), ('--resume auto', 0), ('--resume=auto', 0)])
def test_restarts_need_a_run_to_go_on_with(resume, code):
    """Ranks that start again without it would begin anew; with `--resume` alone the first start would find nothing."""
    command = ['bash', 'tools/dist_train.sh', 'config.py', '2', *resume.split()]
    done = subprocess.run(
        command, cwd=ROOT, env={'MAX_RESTARTS': '1', 'PYTHON': 'true'}, capture_output=True, text=True
    )
    assert done.returncode == code
    assert done.stderr.startswith('error: MAX_RESTARTS=1 needs --resume auto: ' if code else '')


WRONG = [
    ('train', 'config.py eight', {}, 'GPUS=eight: must be a whole number, 1 or more'),
    ('train', 'config.py 0', {}, 'GPUS=0: must be a whole number, 1 or more'),
    ('test', 'config.py 2 last.pth', {}, 'GPUS=last.pth: must be a whole number, 1 or more'),
    ('train', 'config.py 2', dict(NNODES='1:2'), 'NNODES=1:2: another number of machines is another training; give'),
    ('train', 'config.py 2', dict(NNODES='2', NODE_RANK='2'), 'NODE_RANK=2: of NNODES=2 machines the last is 1'),
    ('train', 'config.py 2', dict(NNODES='2', PORT='http'), 'PORT=http: must be a whole number, 1 or more'),
    ('train', 'config.py 2', dict(MAX_RESTARTS='yes'), 'MAX_RESTARTS=yes: must be a whole number, 0 or more'),
]


@pytest.mark.parametrize(('script', 'args', 'env', 'words'), WRONG)
def test_positions_and_variables_are_checked(script, args, env, words):
    command = ['bash', f'tools/dist_{script}.sh', *args.split()]
    done = subprocess.run(command, cwd=ROOT, env={**env, 'PYTHON': 'true'}, capture_output=True, text=True)
    assert (done.returncode, done.stderr[: len(words) + 7]) == (2, f'error: {words}')


@pytest.mark.parametrize(
    ('script', 'args', 'env', 'options'),
    [
        ('train', 'c.py 4 --seed 1', {}, '--nproc_per_node=4 --max_restarts=0 --standalone --local_addr=127.0.0.1'),
        (
            'test',
            'c.py last.pth 8 --tta',
            dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='29511'),
            '--nproc_per_node=8 --max_restarts=0 --nnodes=2 --rdzv_backend=by_node_rank --rdzv_endpoint=10.0.0.1:29511 '
            '--rdzv_conf=node_rank=1,is_host=0,read_timeout=600',
        ),
    ],
)
def test_what_torchrun_gets(script, args, env, options):
    command = ['bash', f'tools/dist_{script}.sh', *args.split()]
    said = subprocess.run(command, cwd=ROOT, env={**env, 'PYTHON': 'echo'}, capture_output=True, text=True).stdout
    positions, more = (args.split()[:-2], args.split()[-2:]) if script == 'train' else (args.split()[:2], ['--tta'])
    wanted = [*options.split(), f'tools/{script}.py', *[p for p in positions if p not in '48'], '--launcher', 'pytorch']
    assert said.split() == ['tools/_torchrun.py', *wanted, *more]


MORE_GPUS_THAN_THERE_ARE = """
import runpy, sys, torch
torch.cuda.device_count = lambda: 2
sys.path.insert(0, 'tools')
sys.argv = ['tools/_torchrun.py', '--nproc_per_node=4', 'tools/train.py', 'config.py']
runpy.run_path('tools/_torchrun.py', run_name='__main__')
"""


INTERRUPTED = MORE_GPUS_THAN_THERE_ARE.replace('lambda: 2', 'lambda: (_ for _ in ()).throw(KeyboardInterrupt)')


@pytest.mark.slow
def test_interrupted_before_the_ranks_start():
    code, _, err = call('-c', INTERRUPTED)
    assert (code, err) == (130, 'interrupted\n')


@pytest.mark.slow
def test_more_gpus_than_there_are():
    code, _, err = call('-c', MORE_GPUS_THAN_THERE_ARE)
    assert (code, err) == (2, 'error: GPUS=4: there are 2 here (CUDA_VISIBLE_DEVICES can hide some)\n')


def test_a_mistake_of_all_ranks_is_told_once(tmp_path):
    """And leaves no folder behind."""
    with agent_started('tools/dist_train.sh', CLASSIFY, 4, '--work-dir', tmp_path / 'w', '--resume') as agent:
        assert agent.wait(60) == 1
        assert len(agent.ranks()) == 4
        said = agent.stderr()
    assert said.startswith(f'\nerror: {tmp_path}/w: there is no checkpoint to resume from. To start')
    assert said.count('error') == 1
    assert not (tmp_path / 'w').exists()


@pytest.mark.slow
def test_a_mistake_of_all_ranks_with_a_log_each_is_told_once(tmp_path):
    """Their logs have different names, which are a part of what each says."""
    with agent_started(
        'tools/dist_train.sh', CLASSIFY, 2, '--work-dir', tmp_path, '--cfg-options', 'model.head.num_classes=5'
    ) as agent:
        assert agent.wait(60) == 1
        said = agent.stderr()
    assert said.count('the head tells 5 apart') == said.count('error: ') == said.count('the traceback is in') == 1
    assert '_rank1.log' not in said


@pytest.mark.slow
def test_wrong_arguments_of_all_ranks_are_told_once():
    with agent_started('tools/dist_test.sh', 'config.py', 'last.pth', 3, '--tta', '--ta') as agent:
        assert agent.wait(60) == 2
        said = agent.stderr()
    assert said.count('usage: test.py') == 1
    assert said.endswith('\ntest.py: error: unrecognized arguments: --ta\n')


@pytest.mark.parametrize('script', ['train.py zz/y.py', 'test.py zz/y.py last.pth'])
@pytest.mark.parametrize('argument', ['--local-rank=1', '--local_rank=1', '--local-rank 1'])
def test_arguments_of_old_launchers_are_taken(script, argument):
    code, _, err = call(*f'tools/{script} {argument}'.split())
    assert (code, err.strip()) == (1, 'error: zz/y.py: there is no such config')


@pytest.mark.slow
def test_another_rank_speaks_after_the_first(tmp_path):
    """Started by others than dist_train.sh, each rank for itself: those that the first one's end did not end."""
    with ranks_started(2, 'tools/train.py', 'configs/nowhere.py') as ranks:
        first, second = ((rank.wait(60), time.monotonic(), rank.stderr()) for rank in ranks)
    assert first[::2] == (1, second[2].replace('rank 1: ', ''))
    assert second[2].startswith('\nerror: rank 1: configs/nowhere.py: there is no such config')
    assert second[1] - first[1] > 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a37_torchrun_starts_the_ranks_again(tmp_path):
    """A rank is killed at step 5; with MAX_RESTARTS=1 and --resume auto the run goes on from step 4 and is finished."""
    config = failing(tmp_path, 'SIGKILL', **{'env_cfg.dist_cfg': dict(backend='nccl')})
    code, out, err = dist_train(config, 2, '--work-dir', tmp_path / 'w', '--resume', 'auto', MAX_RESTARTS='1')
    assert code == 0, err
    assert (tmp_path / 'once').exists()
    assert re.fullmatch(
        r'\nerror: rank 1 of 2: process \d+ was ended by SIGKILL. Unless somebody did it by hand, memory ran out '
        r'\(dmesg says so\); --resume goes on from the last checkpoint\n'
        r'the ranks are started again \(1 of MAX_RESTARTS=1\)\n',
        err,
    )
    assert 'iter: 4' in out
    assert read(tmp_path / 'w' / 'iter_8.pth')['meta']['iter'] == 8
