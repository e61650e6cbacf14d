"""A run that goes on from a checkpoint is the run that was never stopped: batches, losses, weights, optimizer.

Checks A01 to A06, A08 and A09 of docs/reliability.md, through tools/train.py.
"""

import itertools
import json
from pathlib import Path

import pytest
import torch
from faults import config_file
from processes import call
from tiny import CLASSIFY, PRETRAIN, SEGMENT, TOKENIZE

from beit_mm.checkpoints.load import read
from beit_mm.checkpoints.store import newest_verified
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import run

EMA = dict(type='EMAHook', momentum=0.1)
CLASSIFIED = [
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.3, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='Noise'),
    dict(type='PackInputs'),
]
SEGMENTED = [
    dict(type='RandomResize', scale=(64, 64), ratio_range=(0.8, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
MIXED = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
RANDOM = {  # everything in a recipe that draws
    CLASSIFY: {
        'train_dataloader.dataset.pipeline': CLASSIFIED,
        'model.backbone.drop_path_rate': 0.3,
        'model.train_cfg': MIXED,
    },
    SEGMENT: {'train_dataloader.dataset.pipeline': SEGMENTED, 'model.backbone.drop_path_rate': 0.3},
    PRETRAIN: {'model.backbone.drop_path_rate': 0.3},
    TOKENIZE: {},  # Gumbel noise, dead codes
}
ITERATIONS = {'train_cfg.max_iters': 8, 'train_cfg.val_interval': 2, 'default_hooks.checkpoint.interval': 1}
BY_EPOCH = {
    'train_cfg': dict(_delete_=True, by_epoch=True, max_epochs=3, val_interval=1),  # of 3 batches
    'train_dataloader.sampler': dict(type='DefaultSampler', shuffle=True, _delete_=True),
    'default_hooks.checkpoint.interval': 1,
}


def train(folder: Path, kind: str, *args, workers: int = 0, **options) -> tuple[list[dict], Path, str]:
    """Train a tiny config with all randomness: what Recorder wrote, the work_dir, and what was printed."""
    options = {
        **RANDOM[kind],
        'train_dataloader.num_workers': workers,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        **options,
    }
    hooks = [EMA, dict(type='Recorder', file=str(folder / 'steps.jsonl'))]
    if kind == TOKENIZE:
        hooks += [
            dict(type='beit_mm.CodebookInitHook', num_images=30),
            dict(type='beit_mm.DeadCodesHook', interval=3, threshold=0.5),
        ]
    config = config_file(folder, kind, *hooks, **options)
    code, out, err = call('tools/train.py', config, '--work-dir', folder / 'run', *args)
    assert code == 0, err
    return steps_in(folder), folder / 'run', out + err


def steps_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / 'steps.jsonl').read_text().splitlines()]


def differences(first, second, where: str = '') -> list[str]:
    """Where two checkpoints are not equal in every bit; what a clock or a path says does not count."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [where]
    if isinstance(first, dict):
        keys = {key for key in {*first, *second} if 'time' not in str(key) and key not in ('last_ckpt', 'memory')}
        missing = [f'{where}.{key}' for key in keys if key not in first or key not in second]
        return missing + [
            d
            for k in keys - {m.rsplit('.', 1)[-1] for m in missing}
            for d in differences(first[k], second[k], f'{where}.{k}')
        ]
    if isinstance(first, (list, tuple)):
        pairs = itertools.zip_longest(first, second)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f'{where}[{i}]')]
    return [] if first == second else [f'{where}: {first} {second}']


WHOLE = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'message_hub')


def check_exact(tmp_path: Path, kind: str, at: int, last: str, *args, **options) -> str:
    """The run from step `at` on, started from that checkpoint in another folder, is the rest of the first run."""
    steps, run, _ = train(tmp_path / 'whole', kind, *args, workers=2, **options)
    rest, again, said = train(tmp_path / 'rest', kind, '--resume', run / f'iter_{at}.pth', **options)
    assert rest == steps[at:]
    assert len(rest) == len(steps) - at > 0
    a, b = (read(folder / last) for folder in (run, again))
    assert a['meta']['iter'] == b['meta']['iter'] == len(steps)
    for part in WHOLE:
        assert differences(a[part], b[part], part) == []
    return said


@pytest.mark.slow
@pytest.mark.parametrize('kind', [CLASSIFY, SEGMENT, PRETRAIN, TOKENIZE], ids=['cls', 'seg', 'mim', 'tokenizer'])
def test_a05_a06_a09_iterations_all_randomness(tmp_path, kind):
    check_exact(tmp_path, kind, 4, 'iter_8.pth', **ITERATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'at'),
    [(CLASSIFY, 3), (CLASSIFY, 4), (SEGMENT, 4), (PRETRAIN, 6), (PRETRAIN, 8)],
    ids=['a03_end_of_epoch_cls', 'a04_mid_cls', 'a04_mid_seg', 'a03_end_of_epoch_mim', 'a04_mid_mim'],
)
def test_epochs_all_randomness(tmp_path, kind, at):
    check_exact(tmp_path, kind, at, 'iter_9.pth', **BY_EPOCH)


def test_a01_a04_in_one_process(tmp_path):
    """The fast suite's: an epoch of 3 batches, gone on with after its first."""
    options = {**RANDOM[CLASSIFY], **BY_EPOCH, 'train_cfg.max_epochs': 1, 'default_hooks.checkpoint.max_keep_ckpts': 3}
    for name, start in (('whole', None), ('rest', str(tmp_path / 'whole/iter_1.pth'))):
        recorder = dict(type='Recorder', file=str(tmp_path / name / 'steps.jsonl'))
        config = load_config(config_file(tmp_path / name, CLASSIFY, EMA, recorder, **options))
        run(config, work_dir=str(tmp_path / name), resume=start)
    assert steps_in(tmp_path / 'rest') == steps_in(tmp_path / 'whole')[1:]
    a, b = (read(tmp_path / name / 'iter_3.pth') for name in ('whole', 'rest'))
    assert [d for part in WHOLE for d in differences(a[part], b[part], part)] == []


@pytest.mark.slow
def test_a08_without_a_seed_the_drawn_one_is_kept(tmp_path):
    said = check_exact(tmp_path, CLASSIFY, 4, 'iter_8.pth', **ITERATIONS, randomness=dict(_delete_=True))
    seeds = {read(tmp_path / name / 'run/iter_8.pth')['meta']['seed'] for name in ('whole', 'rest')}
    assert len(seeds) == 1
    assert f'seed {seeds.pop()}, ' in said


@pytest.mark.slow
def test_a02_a09_one_seed_is_one_run_whatever_the_workers(tmp_path):
    options = {**BY_EPOCH, 'train_cfg.max_epochs': 2}
    runs = [train(tmp_path / str(n), CLASSIFY, workers=n, **options)[0] for n in (0, 2, 3)]
    again = train(tmp_path / 'again', CLASSIFY, workers=2, **options)[0]
    other = train(tmp_path / 'other', CLASSIFY, '--seed', 1, workers=2, **options)[0]
    assert runs[0] == runs[1] == runs[2] == again
    assert not {step['batch'] for step in again} & {step['batch'] for step in other}


@pytest.mark.slow
def test_another_batch_size_goes_on_at_the_same_image(tmp_path):
    _, run, _ = train(tmp_path / 'whole', CLASSIFY, **BY_EPOCH)  # epochs of 30 images, 10 a step
    fives = {**BY_EPOCH, 'train_dataloader.batch_size': 5}
    steps, again, _ = train(tmp_path / 'rest', CLASSIFY, '--resume', run / 'iter_4.pth', **fives)
    images, _, _ = train(tmp_path / 'fives', CLASSIFY, **fives)
    assert [step['batch'] for step in steps] == [step['batch'] for step in images[8:]]
    assert steps[-1]['step'] == 18
    assert read(again / 'iter_18.pth')['meta']['beit_mm']['images'] == 30


@pytest.mark.slow
def test_larger_batches_count_on_from_a_smaller_step(tmp_path):
    """The newest checkpoint is the one that was written last; accumulation counts from there."""
    parts = {**BY_EPOCH, 'optim_wrapper.accumulative_counts': 3}
    train(tmp_path, CLASSIFY, **{**parts, 'train_dataloader.batch_size': 2, 'train_cfg.max_epochs': 2})  # 15 an epoch
    (tmp_path / 'steps.jsonl').unlink()
    steps, run, _ = train(tmp_path, CLASSIFY, '--resume', **parts)  # 3 an epoch
    assert [(step['step'], step['epoch']) for step in steps] == [(7, 2), (8, 2), (9, 2)]
    assert newest_verified(run).name == 'iter_9.pth'


@pytest.mark.slow
def test_a_run_that_was_stopped_in_its_last_validation(tmp_path):
    """It is made up for: nobody would know how good the model is."""
    options = {**ITERATIONS, 'train_cfg.max_iters': 4, 'train_cfg.val_interval': 100}
    fault = dict(type='SignalInValidation', batch=1, step=4, signal='SIGTERM')
    config = config_file(tmp_path, CLASSIFY, fault, **options)
    code, out, _ = call('tools/train.py', config, '--work-dir', tmp_path / 'w')
    assert code == 143
    assert 'accuracy/top1' not in out
    config = config_file(tmp_path, CLASSIFY, **options)
    code, out, _ = call('tools/train.py', config, '--work-dir', tmp_path / 'w', '--resume')
    assert code == 0
    assert 'accuracy/top1' in out


@pytest.mark.slow
def test_a_validation_that_a_checkpoint_has_seen_is_not_repeated(tmp_path):
    """With `save_best` it is written again after the validation, in which a schedule may have moved on."""
    options = {**ITERATIONS, 'train_cfg.max_iters': 4, 'default_hooks.checkpoint.save_best': 'accuracy/top1'}
    _, run, said = train(tmp_path / 'whole', CLASSIFY, **options)
    assert said.count('accuracy/top1:') == 2
    _, _, said = train(tmp_path / 'rest', CLASSIFY, '--resume', run / 'iter_2.pth', **options)
    assert said.count('accuracy/top1:') == 1


@pytest.mark.slow
def test_epochs_of_others_go_on_with_batches_of_another_size(tmp_path):
    """mmengine's checkpoints do not say how far the data were read: an epoch that does not fit begins anew."""
    _, run, _ = train(tmp_path / 'whole', CLASSIFY, **BY_EPOCH)  # 3 batches an epoch
    for iteration in (1, 100):
        content = read(run / 'iter_3.pth')
        content['meta'].update(iter=iteration, epoch=1)
        del content['meta']['beit_mm']['images']
        path = tmp_path / f'{iteration}' / 'iter_3.pth'
        path.parent.mkdir()
        torch.save(content, path)
        steps, _, _ = train(path.parent, CLASSIFY, '--resume', path, **BY_EPOCH)
        assert [(step['step'], step['epoch']) for step in steps] == [(n, (n - 1) // 3) for n in range(4, 10)]
