"""Several ranks: they equal one process (A36); one that is killed or hangs ends the others in time (A37, A38)."""

import subprocess
import time
from pathlib import Path

import pytest
import torch
from faults import config_file
from processes import ROOT, door_started
from ranks import dist_train, ranks_started
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
    # ten times that, and in one of 32 steps rounding puts a unit on the other side of its ReLU: 1e-2 apart at the end
    SEGMENT: {
        'train_dataloader.dataset.pipeline': [dict(type='PackSegInputs')],
        'model.decode_head.dropout_ratio': 0.0,
        'model.auxiliary_head.dropout_ratio': 0.0,
        'optim_wrapper.optimizer.lr': 2e-4,
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
    """Batches of 4 on two ranks, of 8 on one: the same weights to 1e-5 after 32 steps; the ranks bit for bit."""
    hooks = [dict(type='NormEval')] if kind == SEGMENT else []
    files = [
        config_file(
            tmp_path / str(ranks),
            kind,
            *hooks,
            dict(type='WeightsOfRank', folder=str(tmp_path / str(ranks))),
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
    assert distance < 1e-5
    assert count > 20


FAILING = {
    'train_cfg.max_iters': 8,
    'train_cfg.val_interval': 100,
    'default_hooks.checkpoint.interval': 2,
    'env_cfg.dist_cfg': dict(backend='nccl', timeout=3),
}


def failing(folder: Path, signal: str, **options) -> str:
    fault = dict(type='SignalRankAt', step=5, signal=signal, rank=1, once=str(folder / 'once'))
    return config_file(folder, CLASSIFY, fault, **{**FAILING, **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    ('signal', 'words', 'within'),
    [
        ('SIGKILL', 'rank 0 of 2: another rank has ended, or cannot be reached: it says why in its own output (', 60),
        ('SIGSTOP', 'rank 0 of 2: another rank has not answered for 3 s: it hangs, or needs longer than env_cfg.', 20),
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a37_torchrun_starts_the_ranks_again(tmp_path):
    """A rank is killed at step 5; with MAX_RESTARTS=1 and --resume auto the run goes on from step 4 and is finished."""
    config = failing(tmp_path, 'SIGKILL', **{'env_cfg.dist_cfg': dict(backend='nccl')})
    code, out, err = dist_train(config, 2, '--work-dir', tmp_path / 'w', '--resume', 'auto', MAX_RESTARTS='1')
    assert code == 0, err
    assert (tmp_path / 'once').exists()
    assert 'iter: 4' in out
    assert read(tmp_path / 'w' / 'iter_8.pth')['meta']['iter'] == 8
