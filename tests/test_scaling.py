"""engine/scaling.py: what is said of a step's size and done about it; steps in parts (engine/accumulation.py) from
outside."""

import json
import re
from pathlib import Path

import pytest
import torch
from faults import config_file
from mmengine.config import Config
from processes import ROOT, call
from ranks import ranks_started
from test_finite import assert_same_run
from test_ranks import farthest
from tiny import CLASSIFY, PRETRAIN, tiny

from beit_mm.apis import build_model
from beit_mm.benchmark.analysis import schedule
from beit_mm.checkpoints.load import read
from beit_mm.engine.accumulation import images_in, split
from beit_mm.engine.configs import load_config
from beit_mm.engine.errors import ConfigError
from beit_mm.engine.launch import run
from beit_mm.engine.scaling import Step, accumulate, rates_scaled, said, step_of

# The recipes

IMAGES = {  # of a step, by what a config is called: Tables 12 to 14 and the official commands, then ours
    r'pretrain/.*': 2048,
    r'classification/.*_ft(-pt22k)?_.*(100|50)e_in1k-224': 1024,
    r'classification/.*cifar100?-224': 512,
    r'classification/.*_in1k-(384|512)': 512,
    r'classification/.*30e_in1k-224': 512,
    r'classification/beit-plus-base.*_in22k-224': 4096,
    r'classification/beit-plus-large.*_in22k-224': 2048,
    r'classification/.*_linear-probe.*_in1k-224': 1024,
    r'segmentation/.*ade20k.*': 16,
    r'tokenizer/.*8192.*': 512,
    r'classification/.*(in-mmpretrain|-ft|scratch).*in1k-224': 1024,
    r'classification/.*_ft-(1|5|10)pct.*in1k-224': 512,
    r'classification/vit-tiny.*cifar.*-32': 128,
}
NAMED = [
    path
    for path in sorted((ROOT / 'configs').glob('*/*.py'))
    if re.search(r'_\d+xb\d+-', path.name) and not re.search(r'_(digits|embedded|scenes|mosaics)-', path.name)
]


@pytest.mark.parametrize('path', NAMED, ids=lambda path: path.stem)
def test_recipes_say_for_which_batch_they_are(path):
    """As many images as the name says, 8xb64 -> 512, and as the paper; `configs` of the miniature have no other."""
    config = Config.fromfile(path)
    if config.get('optim_wrapper') is None:  # k-NN
        return
    ranks, batch = map(int, re.search(r'_(\d+)xb(\d+)-', path.name).groups())
    step = step_of(config, ranks)
    assert step.batch == batch
    assert step.images == step.reference
    assert not step.scaled
    name = f'{path.parent.name}/{path.stem}'
    assert step.images == next(images for pattern, images in IMAGES.items() if re.fullmatch(pattern, name))


# What is said

EQUAL = "batch 2,048 (4 processes x 64 x 8 accumulated), which the recipe's learning rate is for"
SAID = [
    (Step(4, 512, 8, 1, 2048), None, EQUAL),
    (Step(4, 64, 1, 8, 2048, True), None, f'{EQUAL}: scaled by 1'),
    (Step(4, 64, 1, 8, 2048), 800, f'{EQUAL}. 800 iterations are 100 steps (accumulative_counts)'),
    (
        Step(1, 64, 1, 1, 512, True),
        None,
        "batch 64 (1 process x 64); the recipe's learning rate is for 512: scaled by 0.125",
    ),
    (
        Step(2, 2, 1, 1, 16),
        160_000,
        "batch 4 (2 processes x 2), but the recipe's learning rate is for 16 (auto_scale_lr.base_batch_size): results "
        'will differ. Ways out: --accumulate 4 (the same steps and schedule, in the same memory), or 8 processes, or '
        '--auto-scale-lr (the learning rate times 0.25). 160,000 iterations will see 0.25 of the images that the '
        'recipe sees',
    ),
    (
        Step(1, 128, 2, 1, 512),
        None,
        "batch 128 (1 process x 64 x 2 accumulated), but the recipe's learning rate is for 512 (auto_scale_lr.base_"
        'batch_size): results will differ. Ways out: --accumulate 8 instead of 2 (the same steps and schedule, in the '
        'same memory), or 4 processes, or --auto-scale-lr (the learning rate times 0.25)',
    ),
    (
        Step(16, 64, 1, 1, 512),
        None,
        "batch 1,024 (16 processes x 64), but the recipe's learning rate is for 512 (auto_scale_lr.base_batch_size): "
        'results will differ. Ways out: 8 processes, or --auto-scale-lr (the learning rate times 2)',
    ),
    (
        Step(3, 50, 1, 1, 120),
        None,
        "batch 150 (3 processes x 50), but the recipe's learning rate is for 120 (auto_scale_lr.base_batch_size): "
        'results will differ. Ways out: train_dataloader.batch_size=40, or --auto-scale-lr (the learning rate times '
        '1.25)',
    ),
    (
        Step(2, 64, 1, 1, 64, True),
        4,
        "batch 128 (2 processes x 64); the recipe's learning rate is for 64: scaled by 2. 4 iterations will see 2 "
        'times the images that the recipe sees',
    ),
    (
        Step(2, 256, 4),
        800,
        'batch 512 (2 processes x 64 x 4 accumulated); the config does not say which batch its learning rate is for '
        '(auto_scale_lr.base_batch_size)',
    ),
]


@pytest.mark.parametrize(('step', 'iterations', 'line'), SAID)
def test_what_is_said_of_a_step(monkeypatch, step, iterations, line):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert said(step, iterations) == line


def test_of_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert str(Step(1, 64)) == 'batch 64 (1 GPU x 64)'
    assert str(Step(4, 512, 8)) == 'batch 2,048 (4 GPUs x 64 x 8 accumulated)'


def test_schedules_scale_where_they_are_rates():
    given = [
        dict(type='LinearLR', start_factor=0.1, end=5),
        dict(type='mmengine.CosineAnnealingLR', eta_min=1e-6, eta_min_ratio=None),
        dict(type='PolyLR', eta_min=0.0, power=0.9),
        dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min=0.1),
        dict(type='OneCycleLR', eta_max=0.1),
    ]
    scaled = rates_scaled(given, 0.5)
    assert scaled == [given[0], dict(given[1], eta_min=5e-7), given[2], given[3], dict(given[4], eta_max=0.05)]
    assert given[4]['eta_max'] == 0.1
    assert rates_scaled(dict(one=given, two=given[4]), 0.5) == dict(one=scaled, two=scaled[4])
    assert rates_scaled(None, 0.5) is None


# Parts of a batch


def test_parts_are_what_ranks_would_get():
    batch = dict(
        inputs=torch.arange(5),
        data_samples=list('abcde'),
        views=[torch.arange(10, 15), list('vwxyz')],
        scale=torch.ones(()),
    )
    assert images_in(batch) == 5
    first, second = split(batch, 2)
    assert first['inputs'].tolist() == [0, 2, 4]
    assert first['views'][0].tolist() == [10, 12, 14]
    assert (first['data_samples'], first['views'][1]) == (['a', 'c', 'e'], ['v', 'x', 'z'])
    assert second['data_samples'] == ['b', 'd']
    assert second['scale'] is batch['scale']
    assert [images_in(part) for part in split(batch, 8)] == [1] * 5
    assert images_in(dict(inputs=[[torch.zeros(3)] * 4, [torch.zeros(3)] * 4])) == 4  # views of pseudo_collate


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'optim_wrapper': dict(type='Foreign', optimizer=dict())}, "type='Foreign' takes no step in parts"),
        ({'optim_wrapper': dict(constructor='Several', one=dict())}, 'needs a train_dataloader.batch_size, and an'),
        ({'train_dataloader': None}, 'needs a train_dataloader.batch_size, and an optim_wrapper.optimizer'),
    ],
)  # fmt: skip
def test_steps_that_cannot_be_taken_in_parts(change, message):
    config = dict(
        train_dataloader=dict(batch_size=2), optim_wrapper=dict(type='beit_mm.OptimWrapper', optimizer=dict())
    )
    with pytest.raises(ConfigError, match=message):
        accumulate(Config({**config, **change}), 2)


def test_a_loop_that_takes_no_step_in_parts(tmp_path):
    config = tiny(CLASSIFY, **{'optim_wrapper.micro_batches': 2, 'train_cfg.max_iters': 2})
    config.train_cfg.type = 'mmengine.IterBasedTrainLoop'
    with pytest.raises(ConfigError, match='micro_batches=2: IterBasedTrainLoop takes no step in parts'):
        run(config, work_dir=str(tmp_path), no_validate=True)


# From outside

STEPS = 32
PLAIN = {'train_cfg.max_iters': STEPS, 'default_hooks.logger.interval': 1, 'default_hooks.checkpoint.interval': 100}
SETTINGS = {
    # drop path, mixup and random crops are drawn for each part as the rank that it stands for would
    CLASSIFY: {'model.backbone.drop_path_rate': 0.2, 'model.train_cfg': dict(augments=dict(type='Mixup', alpha=0.8))},
    PRETRAIN: {},
}


def trained(folder: Path, kind: str, *wishes, ranks: int = 1, hooks=(), **options):
    """({tensor: of the weights at the end}, [line of tests/injected.py's Recorder], stdout of the first rank)."""
    records = [dict(type='WeightsOfRank', folder=str(folder)), dict(type='Recorder', file=str(folder / 'steps.jsonl'))]
    config = config_file(folder, kind, *records, *hooks, **{**PLAIN, **SETTINGS[kind], **options})
    args = ('tools/train.py', config, '--work-dir', folder / 'run', '--no-validate', *wishes)
    if ranks == 1:
        code, out, err = call(*args)
        assert code == 0, err
    else:
        with ranks_started(ranks, *args) as doors:
            assert [door.wait(150) for door in doors] == [0] * ranks, doors[0].stderr()
            out = doors[0].stdout()
    lines = [json.loads(line) for line in (folder / 'steps.jsonl').read_text().splitlines()]
    return torch.load(folder / 'rank0.pt'), lines, out


@pytest.mark.slow
@pytest.mark.parametrize('kind', [CLASSIFY, PRETRAIN], ids=['cls', 'mim'])
def test_a_step_in_parts_is_the_step_in_one_32_times(tmp_path, kind):
    """4 x 2 against 8 images: ragged masks, AdamW, a schedule over iterations; rates equal in every bit."""
    same = {'optim_wrapper.optimizer.lr': 5e-4}  # at four times that, rounding grows to 7e-7 in classification
    if kind == CLASSIFY:
        same.update({'model.backbone.drop_path_rate': 0.0, 'model.train_cfg': None})
    whole, steps, _ = trained(tmp_path / 'whole', kind, **{**same, 'train_dataloader.batch_size': 8})
    twos = {**same, 'train_dataloader.batch_size': 2}
    parts, others, _ = trained(tmp_path / 'parts', kind, '--accumulate', 4, **twos)
    assert len(steps) == STEPS
    assert [(step['step'], step['batch'], step['lr']) for step in others] == [
        (step['step'], step['batch'], step['lr']) for step in steps
    ]
    assert len({step['lr'] for step in steps}) > 20
    assert farthest(whole, parts)[0] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize('kind', [CLASSIFY, PRETRAIN], ids=['cls', 'mim'])
def test_parts_stand_for_ranks(tmp_path, kind):
    """Two ranks that take two parts, and one process that takes four, are four ranks: drop path, mixup and crops
    included. Gradients are reduced once a step."""
    options = {'train_dataloader.batch_size': 2, 'train_cfg.max_iters': 4}
    count = dict(type='CountReductions', folder=str(tmp_path / 'two'))
    one, _, _ = trained(tmp_path / 'one', kind, '--accumulate', 4, **options)
    two, _, _ = trained(tmp_path / 'two', kind, '--accumulate', 2, ranks=2, hooks=[count], **options)
    four, _, _ = trained(tmp_path / 'four', kind, ranks=4, **options)
    assert farthest(four, one)[0] < 1e-6
    assert farthest(four, two)[0] < 1e-6
    reduced = [(tmp_path / 'two' / f'reductions_{rank}.txt').read_text().splitlines() for rank in (0, 1)]
    learning = sum(value.requires_grad for value in build_model(tiny(kind)).parameters())
    assert reduced == [[f'1 {learning}'] * 4] * 2


@pytest.mark.slow
def test_accumulated_iterations_are_reduced_once(tmp_path):
    """mmengine's own accumulation too, whose iterations are batches."""
    count = dict(type='CountReductions', folder=str(tmp_path))
    options = {'optim_wrapper.accumulative_counts': 4, 'train_cfg.max_iters': 8, 'train_dataloader.batch_size': 2}
    trained(tmp_path, CLASSIFY, ranks=2, hooks=[count], **options)
    lines = (tmp_path / 'reductions_1.txt').read_text().splitlines()
    assert [line.split()[0] for line in lines] == ['0', '0', '0', '1'] * 2


@pytest.mark.slow
def test_a_last_batch_that_is_not_full(tmp_path):
    """Epochs of 30 images in steps of 8: the last step has 6, in 4 parts or, of 8, in 6."""
    epochs = {
        'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2, val_interval=10),
        'train_dataloader.sampler': dict(type='DefaultSampler', shuffle=True),
        'model.backbone.drop_path_rate': 0.0,
        'model.train_cfg': None,
    }
    whole, steps, _ = trained(tmp_path / 'whole', CLASSIFY, **{**epochs, 'train_dataloader.batch_size': 8})
    assert len(steps) == 8
    for times in (4, 8):
        parts = {**epochs, 'train_dataloader.batch_size': 8 // times}
        found, others, _ = trained(tmp_path / str(times), CLASSIFY, '--accumulate', times, **parts)
        assert farthest(whole, found)[0] < 1e-6
        for step, other in zip(steps, others, strict=True):
            assert float.fromhex(other['loss']) == pytest.approx(float.fromhex(step['loss']), rel=1e-6)


@pytest.mark.slow
def test_a_nan_batch_in_parts_leaves_no_trace(tmp_path):
    """The step is skipped whole; the schedule waits for it, and for it alone."""
    ends = []
    for name, fault in (('nan', dict(type='BadBatch', steps=[3])), ('undone', dict(type='Undone', first=3))):
        options = {'train_cfg.max_iters': 6, 'default_hooks.checkpoint.interval': 6}
        _, _, out = trained(tmp_path / name, CLASSIFY, '--accumulate', 2, hooks=[fault], **options)
        ends.append(read(tmp_path / name / 'run/iter_6.pth'))
        assert ('step 3 skipped (1 in a row)' in out) == (name == 'nan')
    assert_same_run(*ends)


@pytest.mark.slow
def test_every_rate_is_the_recipes_times_the_factor(tmp_path):
    """Of all groups, with an absolute floor; and no other batch can go on with it unnoticed."""
    schedule = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
        dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=4, end=12),
        dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min=0.2, by_epoch=False),
    ]
    options = {
        'param_scheduler': schedule,
        'optim_wrapper.paramwise_cfg.layer_decay_rate': 1.0,
        'auto_scale_lr': dict(base_batch_size=40),
        'train_cfg.max_iters': 12,
        'default_hooks.checkpoint.interval': 4,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
    }
    _, recipe, out = trained(tmp_path / 'recipe', CLASSIFY, **options)
    assert 'batch 10 (1 process x 10), but' in out
    _, rates, out = trained(tmp_path / 'scaled', CLASSIFY, '--auto-scale-lr', **options)
    assert "batch 10 (1 process x 10); the recipe's learning rate is for 40: scaled by 0.25" in out
    assert 'base_lr: 5.0000e-04 lr: 5.0000e-04' in out
    expected = [0.25 * step['lr'] for step in recipe]
    assert [step['lr'] for step in rates] == pytest.approx(expected, rel=1e-12)
    assert rates[-1]['lr'] < 0.25 * 1e-5 + 0.05 * 5e-4

    # On with half the batch, and so half the rate; then with the same batch in other parts
    file = tmp_path / 'scaled/run/iter_4.pth'
    halves = {**options, 'train_dataloader.batch_size': 5}
    _, rates, out = trained(tmp_path / 'half', CLASSIFY, '--auto-scale-lr', '--resume', file, **halves)
    assert (
        'train_dataloader.batch_size: 10, now 5: the data go on at the same image; a step is of another size, the lr '
        'is scaled by it: 0.25 was, 0.125 is\n' in out
    )
    assert [step['lr'] for step in rates] == pytest.approx([0.5 * rate for rate in expected[4:]], rel=1e-12)
    wishes = ('--auto-scale-lr', '--accumulate', 2, '--resume', file)
    _, rates, out = trained(tmp_path / 'parts', CLASSIFY, *wishes, **halves)
    assert 'optim_wrapper.micro_batches: not set, now 2: a step is of the same size\n' in out
    assert [step['lr'] for step in rates] == pytest.approx(expected[4:], rel=1e-12)


@pytest.mark.slow
def test_other_ranks_with_as_many_parts_go_on_exactly(tmp_path):
    """Two ranks, killed at step 6, go on from step 4 as one process that takes each step in two parts."""
    options = {'train_cfg.max_iters': 8, 'default_hooks.checkpoint.interval': 4, 'train_dataloader.batch_size': 4}
    options['default_hooks.checkpoint.max_keep_ckpts'] = -1
    whole, _, _ = trained(tmp_path / 'ranks', CLASSIFY, ranks=2, **options)
    file = tmp_path / 'ranks/run/iter_4.pth'
    found, _, out = trained(tmp_path / 'parts', CLASSIFY, '--accumulate', 2, '--resume', file, **options)
    assert 'ranks: 2, now 1: the data go on at the same image; a step is of the same size\n' in out
    assert (
        'train_dataloader.batch_size: 4, now 8: the data go on at the same image; a step is of the same size\n' in out
    )
    assert farthest(whole, found)[0] < 1e-6


def test_a_schedule_for_other_ranks(capsys):
    """`analyze.py schedule --ranks`: batch, factor, epochs and steps of a run, without starting it."""
    short = {
        'train_cfg.max_iters': 40,
        'param_scheduler': [dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=9)],
    }
    config = load_config('configs/segmentation/beit-plus-large-p16_upernet-ft22k_8xb1-320k_ade20k-640.py', short)
    assert schedule.ranks_of(config) == 8
    text = schedule.show(config, images=80)
    assert text.endswith(
        "40 iterations, 4 epochs of 80 images\nbatch 16 (8 processes x 1 x 2 accumulated), which the recipe's learning "
        'rate is for. 40 iterations are 20 steps (accumulative_counts)'
    )
    config.auto_scale_lr.enable = True
    peak = schedule.follow(config).peak
    assert schedule.follow(config, ranks=2).peak == pytest.approx(0.25 * peak, rel=1e-12)
    text = schedule.show(config, images=80, ranks=2, accumulate=2)
    assert 'batch 8 (2 processes x 1 x 4 accumulated)' in text
    assert 'is for 16: scaled by 0.5. 40 iterations are 20 steps' in text


@pytest.mark.slow
def test_parts_of_a_sharded_model(tmp_path):
    """Two ranks with FSDP2 that take two parts are two with DDP that do."""
    options = {'train_dataloader.batch_size': 2, 'train_cfg.max_iters': 4}
    whole, _, _ = trained(tmp_path / 'ddp', PRETRAIN, '--accumulate', 2, ranks=2, **options)
    wishes = ('--accumulate', 2, '--strategy', 'fsdp2')
    shards, _, out = trained(tmp_path / 'fsdp2', PRETRAIN, *wishes, ranks=2, **options)
    assert 'FSDP2: ' in out
    assert farthest(whole, shards)[0] < 1e-6
