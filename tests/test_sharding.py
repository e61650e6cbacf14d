"""FSDP2 (engine/sharding.py) against DDP: the same weights, moments and averages, whatever the number of ranks.

In float64 both agree to its rounding, so what they differ by in float32 is rounding too (measured: 1e-7 of the weights'
norm, and 2e-5 for UPerNet, whose ReLUs enlarge it).
"""

import contextlib
from pathlib import Path

import pytest
import torch
from faults import config_file
from injected import digest
from mmengine.config import Config
from processes import call
from ranks import ranks_started
from tiny import CLASSIFY, PRETRAIN, SEGMENT, TOKENIZE

from beit_mm.checkpoints.load import read
from beit_mm.engine.errors import ConfigError
from beit_mm.engine.sharding import check_strategy
from beit_mm.ops.relative_position import resize_table

STEPS = 32
RUN = {
    'train_cfg.max_iters': STEPS,
    'train_cfg.val_interval': 100,
    'default_hooks.checkpoint.interval': 16,
    'param_scheduler': [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5)],
}
PLUS = {
    'model.backbone.use_abs_pos_emb': False,
    'model.backbone.layer_scale_init_value': 0.1,
    'model.backbone.drop_path_rate': 0.2,
}
KINDS = {
    PRETRAIN: {**PLUS, 'model.backbone.use_shared_rel_pos_bias': True},
    CLASSIFY: {**PLUS, 'model.backbone.use_rel_pos_bias': True},
    SEGMENT: {'model.decode_head.dropout_ratio': 0.0, 'model.auxiliary_head.dropout_ratio': 0.0},
}
FSDP2 = dict(type='beit_mm.FSDP2')
EMA = dict(type='EMAHook', momentum=0.1)
VALIDATED = {'hooks': [EMA], 'train_cfg.val_interval': 16}  # which puts the averages into the model, and back


def trained(folder: Path, kind: str, ranks: int, *arguments, double: bool = True, hooks=(), **options) -> dict:
    """The last checkpoint of a run on so many ranks, with batches of 8 together."""
    imports = ['in_double'] if double else []
    batch = {'train_dataloader.batch_size': 8 // ranks}
    config = config_file(folder, kind, *hooks, imports=imports, **{**RUN, **KINDS[kind], **batch, **options})
    with ranks_started(ranks, 'tools/train.py', config, '--work-dir', folder / 'w', *arguments) as running:
        assert [one.wait(200) for one in running] == [0] * ranks, running[0].stderr()
    (found,) = (folder / 'w').glob(f'iter_{STEPS}.*')
    return read(found)


def apart(one: dict, other: dict) -> float:
    """The largest distance of the weights, the averages and the moments of two checkpoints, relative to their norms."""

    def numbers(checkpoint: dict, part: str) -> torch.Tensor:
        content = checkpoint[part] if part != 'optimizer' else checkpoint[part]['state']
        values = content.values() if part != 'optimizer' else [v for i in sorted(content) for v in content[i].values()]
        return torch.cat([value.double().flatten() for value in values if value.is_floating_point()])

    parts = {'state_dict', 'optimizer', 'ema_state_dict'} & one.keys()
    assert one.keys() == other.keys()
    assert list(one['state_dict']) == list(other['state_dict'])
    return max(((numbers(one, p) - numbers(other, p)).norm() / numbers(one, p).norm()).item() for p in parts)


def test_fsdp2_equals_ddp(tmp_path):
    """On two gloo processes, in float32 as users have it: the same weights and moments to 1e-6 after 32 steps."""
    ddp = trained(tmp_path / 'ddp', PRETRAIN, 2, '--strategy', 'ddp', double=False)
    fsdp = trained(tmp_path / 'fsdp2', PRETRAIN, 2, '--strategy', 'fsdp2', double=False)
    assert apart(ddp, fsdp) < 1e-6
    assert ddp['meta']['iter'] == fsdp['meta']['iter'] == STEPS
    start = read(tmp_path / 'ddp' / 'w' / 'iter_16.pth')
    assert apart(ddp, start) > 1e-3  # it has trained


SHARED, KEPT = dict(FSDP2, shard_size=2), dict(FSDP2, reshard_after_forward=False)
CASES = {  # kind, ranks, options of both, options of each of those with FSDP2, how close
    'mim, 4 batches a step': (PRETRAIN, 2, {'optim_wrapper.accumulative_counts': 4}, [{}], 1e-13),
    'mim, 4 ranks, in one row and in two': (PRETRAIN, 4, VALIDATED, [{}, {'strategy': SHARED}], 1e-13),
    'cls, computed twice, shards kept': (
        CLASSIFY,
        2,
        VALIDATED,
        [{'model.backbone.with_cp': True}, {'strategy': KEPT}],
        1e-13,
    ),
    'seg': (SEGMENT, 2, {}, [{}], 1e-11),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_fsdp2_equals_ddp_in_double(tmp_path, case):
    kind, ranks, options, each, close = CASES[case]
    ddp = trained(tmp_path / 'ddp', kind, ranks, '--strategy', 'ddp', **options)
    for number, own in enumerate(each):
        fsdp = trained(tmp_path / f'fsdp2-{number}', kind, ranks, '--strategy', 'fsdp2', **options, **own)
        assert apart(ddp, fsdp) < close
        assert set(fsdp) - {'ema_state_dict'} == {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'}


@pytest.mark.slow
def test_fsdp2_equals_one_process(tmp_path):
    one = trained(tmp_path / 'one', PRETRAIN, 1)
    two = trained(tmp_path / 'two', PRETRAIN, 2, '--strategy', 'fsdp2', **{'model.backbone.drop_path_rate': 0.0})
    assert apart(one, two) > 1e-6  # stochastic depth is drawn on each rank
    one = trained(tmp_path / 'same', PRETRAIN, 1, **{'model.backbone.drop_path_rate': 0.0})
    assert apart(one, two) < 1e-13


@pytest.mark.slow
def test_bf16_is_that_of_ddp(tmp_path):
    """The matrices of blocks are gathered as what autocast makes of them: what is left is the order of sums in bf16,
    which parts runs of 32 steps by 2e-4 and is 10 times as much where all that is gathered is rounded."""
    ddp = trained(tmp_path / 'ddp', CLASSIFY, 2, '--strategy', 'ddp', '--amp', 'bf16', double=False)
    fsdp = trained(tmp_path / 'fsdp2', CLASSIFY, 2, '--strategy', 'fsdp2', '--amp', 'bf16', double=False)
    assert apart(dict(state_dict=ddp['state_dict']), dict(state_dict=fsdp['state_dict'])) < 5e-4
    assert all(value.dtype is torch.float32 for value in fsdp['state_dict'].values() if value.is_floating_point())
    log = next((tmp_path / 'fsdp2' / 'w').rglob('*.log')).read_text()
    assert 'over 2 ranks, 0.0 M on this one; gathered in bfloat16' in log


RESUMED = [(4, 'fsdp2'), (1, 'fsdp2'), (2, 'ddp')]


@pytest.mark.slow
def test_resume_on_other_ranks_and_strategies(tmp_path):
    """From step 16 of a sharded run to 32, on 4 ranks, on 1, and under DDP; and from DDP's file into shards."""
    options = {'model.backbone.drop_path_rate': 0.0, 'hooks': [EMA]}
    whole = trained(tmp_path / 'whole', PRETRAIN, 2, '--strategy', 'ddp', **options)
    trained(tmp_path / 'shards', PRETRAIN, 2, '--strategy', 'fsdp2', **options)
    half = tmp_path / 'shards' / 'w' / 'iter_16.dcp'
    for ranks, strategy in RESUMED:
        again = tmp_path / f'{ranks}-{strategy}'
        resumed = trained(again, PRETRAIN, ranks, '--strategy', strategy, '--resume', half, **options)
        assert apart(whole, resumed) < 1e-13, (ranks, strategy)
    half = tmp_path / 'whole' / 'w' / 'iter_16.pth'
    resumed = trained(tmp_path / 'into', PRETRAIN, 2, '--strategy', 'fsdp2', '--resume', half, **options)
    assert apart(whole, resumed) < 1e-13


@pytest.mark.slow
def test_one_file_on_request_and_for_the_best(tmp_path):
    options = {
        **VALIDATED,
        'default_hooks.checkpoint.full': True,
        'default_hooks.checkpoint.save_best': 'accuracy/top1',
        'default_hooks.checkpoint.rule': 'greater',
    }
    file = trained(tmp_path / 'file', CLASSIFY, 2, '--strategy', 'fsdp2', **options)
    options.pop('default_hooks.checkpoint.full')
    folder = trained(tmp_path / 'folder', CLASSIFY, 2, '--strategy', 'fsdp2', **options)
    assert [path.name for path in sorted((tmp_path / 'file' / 'w').glob('iter_*'))] == ['iter_16.pth', 'iter_32.pth']
    assert [path.name for path in sorted((tmp_path / 'folder' / 'w').glob('iter_*'))] == ['iter_16.dcp', 'iter_32.dcp']
    assert apart(file, folder) == 0
    (best,) = (tmp_path / 'folder' / 'w').glob('best_accuracy_top1_iter_*.pth')
    step = 16 if best.stem.endswith('_16') else 32
    expected = read(tmp_path / 'folder' / 'w' / f'iter_{step}.dcp')['state_dict']
    best = read(best)['state_dict']
    assert all(torch.equal(best[name], value) for name, value in expected.items())


SAID = [
    (
        CLASSIFY,
        ['--strategy', 'fsdp2'],
        {},
        'strategy fsdp2 shards a model over ranks, and this is one process: start several by tools/dist_train.sh',
    ),
    (CLASSIFY, ['--cfg-options', 'strategy=fsdp3'], {}, "strategy='fsdp3' is none of ddp, fsdp2"),
]


@pytest.mark.parametrize(('kind', 'arguments', 'options', 'said'), SAID)
def test_what_cannot_be_sharded_is_said_before_the_start(tmp_path, kind, arguments, options, said):
    config = config_file(tmp_path, kind, **options)
    code, _, err = call('tools/train.py', config, '--work-dir', tmp_path / 'w', *arguments)
    assert code == 1
    assert said in err
    assert 'Traceback' not in err


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(optim_wrapper=dict(type='beit_mm.Fp16OptimWrapper')), 'asks for fp16: --amp bf16'),
        (dict(optim_wrapper=dict(type='ApexOptimWrapper')), 'which knows norms of shards, not ApexOptimWrapper'),
        (dict(optim_wrapper=dict(optimizer=dict(type='Lamb'))), 'takes whole ones only: AdamW, or --strategy ddp'),
        (dict(model_wrapper_cfg=dict(type='X')), 'the config has a model_wrapper_cfg: remove it'),
    ],
)
def test_what_does_not_go_with_shards(options, said):
    config = Config(dict(strategy='fsdp2', launcher='pytorch', optim_wrapper=dict(type='beit_mm.OptimWrapper')))
    check_strategy(config)
    config.merge_from_dict(options)
    with pytest.raises(ConfigError, match=said):
        check_strategy(config)


ON_RANKS = [
    (TOKENIZE, [], {}, 'strategy fsdp2: DiscreteVAE has no list of blocks (layers or blocks), as transformers have'),
    (
        CLASSIFY,
        [],
        {'strategy': dict(type='beit_mm.FSDP2', shard_size=3)},
        'strategy fsdp2: shard_size=3 does not divide the 2 ranks',
    ),
    (
        CLASSIFY,
        [],
        {'val_dataloader.dataset.length': 21, 'val_dataloader.sampler.round_up': False},
        'strategy fsdp2: the ranks have from 1 to 2 batches of val_dataloader, and need as many each',
    ),
    (CLASSIFY, ['--compile'], {}, '--compile and --strategy fsdp2 do not go together yet'),
]


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'arguments', 'options', 'said'), ON_RANKS)
def test_what_cannot_be_sharded_is_said_on_ranks(tmp_path, kind, arguments, options, said):
    config = config_file(tmp_path, kind, **options)
    arguments = ['--work-dir', tmp_path / 'w', '--strategy', 'fsdp2', *arguments]
    with ranks_started(2, 'tools/train.py', config, *arguments) as running:
        with contextlib.suppress(Exception):
            running[1].wait(60)
        assert running[0].wait(60) == 1
        assert said in running[0].stderr()
        assert 'Traceback' not in running[0].stderr()


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_as_under_ddp(tmp_path):
    """Of one rank at step 3, of both at 20; and a checkpoint is refused by all ranks where one has a bad shard."""
    hooks = [dict(type='BadBatch', steps=[3], rank=1), dict(type='BadBatch', steps=[20]), EMA]
    ddp = trained(tmp_path / 'ddp', CLASSIFY, 2, '--strategy', 'ddp', hooks=hooks)
    fsdp = trained(tmp_path / 'fsdp2', CLASSIFY, 2, '--strategy', 'fsdp2', hooks=hooks)
    assert apart(ddp, fsdp) < 1e-13
    assert ddp['message_hub']['runtime_info']['finite_steps']['skipped'] == 2
    listed = [(tmp_path / strategy / 'w' / 'skipped_steps.txt').read_text() for strategy in ('ddp', 'fsdp2')]
    assert listed[0] == listed[1]
    config = config_file(tmp_path / 'bad', CLASSIFY, dict(type='SpoilShard', step=16, rank=1), **RUN)
    with ranks_started(2, 'tools/train.py', config, '--work-dir', tmp_path / 'w', '--strategy', 'fsdp2') as running:
        assert [one.wait(100) for one in running] == [1, 1]
        assert 'step 16: not saved: 1 tensors hold values that are not finite (NaN or inf): ' in running[0].stderr()
    assert not list((tmp_path / 'w').glob('iter_*'))


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_the_shards_of_all(tmp_path):
    whole = trained(tmp_path / 'whole', CLASSIFY, 2, '--strategy', 'fsdp2', double=False)
    once = str(tmp_path / 'once')
    hooks = [dict(type='SignalRankAt', step=5, signal='SIGUSR1', rank=1, once=once)]
    config = config_file(tmp_path, CLASSIFY, *hooks, **{**RUN, **KINDS[CLASSIFY], 'train_dataloader.batch_size': 4})
    arguments = ['tools/train.py', config, '--work-dir', tmp_path / 'w', '--strategy', 'fsdp2']
    with ranks_started(2, *arguments) as running:
        assert [one.wait(100) for one in running] == [75, 75], running[0].stderr()
    assert (tmp_path / 'w' / 'last_checkpoint').read_text() == 'iter_5.dcp'
    with ranks_started(2, *arguments, '--resume') as running:
        assert [one.wait(100) for one in running] == [0, 0], running[0].stderr()
    resumed = read(tmp_path / 'w' / 'iter_32.dcp')
    for part in ('state_dict', 'optimizer'):
        assert digest(resumed[part]) == digest(whole[part])  # in every bit


def ended(folder: Path, kind: str, *arguments, ranks: int = 2, **options) -> tuple[int, str]:
    """(exit code, stderr of the first rank) of a run of two steps under FSDP2."""
    short = {'train_cfg.max_iters': 2, 'default_hooks.checkpoint.interval': 2, 'train_dataloader.batch_size': 2}
    config = config_file(folder, kind, **{**RUN, **short, **options})
    arguments = ['--work-dir', folder / 'w', '--strategy', 'fsdp2', *arguments]
    with ranks_started(ranks, 'tools/train.py', config, *arguments) as running:
        codes = {one.wait(100) for one in running}
        return codes.pop() if len(codes) == 1 else -1, running[0].stderr()


@pytest.mark.slow
def test_weights_of_another_shape_are_resized_from_a_folder(tmp_path):
    """As from a file; without it, the optimizer's part is not read. A folder to go on from without one is refused."""
    tables = {'model.backbone.use_rel_pos_bias': True, 'model.backbone.use_abs_pos_emb': False}
    small = {**tables, 'model.backbone.img_size': 32, 'default_hooks.checkpoint.save_optimizer': False}
    assert ended(tmp_path / 'small', CLASSIFY, **small) == (0, '')
    start = tmp_path / 'small' / 'w' / 'iter_2.dcp'
    still = {**tables, 'optim_wrapper.optimizer.lr': 0.0, 'param_scheduler': []}
    assert ended(tmp_path / 'large', CLASSIFY, '--load-from', start, **still) == (0, '')
    found = read(tmp_path / 'large' / 'w' / 'iter_2.dcp')['state_dict']
    for name, value in read(start)['state_dict'].items():
        if 'table' in name:
            value = resize_table(value, (4, 4), (8, 8))
        assert torch.equal(found[name], value), name
    code, said = ended(tmp_path / 'small', CLASSIFY, '--resume', start, **small)
    assert code == 1
    assert said.startswith(
        f'\nerror: {start}: no run can go on from it: it has no optimizer. To start from its weights'
    )
