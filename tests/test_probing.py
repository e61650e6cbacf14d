"""engine/probing.py: who chooses a probe's block, on what images, and what is reported."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import PARAM_SCHEDULERS
from processes import TORCHRUN, call

from beit_mm.checkpoints.load import read
from beit_mm.data.datasets import EmbeddedScenes
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import evaluate, run
from beit_mm.engine.probing import ProbeAccuracy, name_of
from beit_mm.models import BEiTViT
from beit_mm.models.probe import Choice

pytestmark = pytest.mark.usefixtures('no_pretty_printing')
LINEAR = 'configs/classification/beit-mini-p8_linear-probe_1xb64-300_embedded-64.py'
NEIGHBOURS = 'configs/classification/beit-mini-p8_knn_1xb64-0e_embedded-64.py'
OFFICIAL = 'configs/classification/beit-base-p16_linear-probe_8xb128-100e_in1k-224.py'
PAPER = 'configs/classification/beit-{}-p16_linear-probe-block{}_8xb128-50e_in1k-224.py'
SMALL = {
    'model.backbone.arch': dict(embed_dims=16, num_heads=2, feedforward_channels=32),
    'custom_hooks.0.held_out.dataset.dataset.length': 64,
    'val_dataloader.dataset.length': 40,
    'test_dataloader.dataset.length': 40,
    'visualizer.vis_backends': [{'type': 'LocalVisBackend'}],
}
SHORT = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 1,
    'train_dataloader.batch_size': 8,
    'train_dataloader.dataset.dataset.length': 64,
}


def linear(**changes):
    return load_config(LINEAR, {**SMALL, **SHORT, **changes})


def neighbours(**changes):
    return load_config(NEIGHBOURS, {**SMALL, 'custom_hooks.0.bank.dataset.dataset.length': 64, **changes})


def records(work_dir):
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [json.loads(line) for line in lines if 'loss' not in line]


@pytest.fixture
def pretrained(tmp_path):
    """A pre-training checkpoint of the official kind of model: one table for all blocks, a mask token, a norm."""
    arch = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
    backbone = BEiTViT(arch, 64, 8, 1, variant='beit_plus', with_mask_token=True, final_norm=True, out_type='raw')
    torch.nn.init.normal_(backbone.rel_pos_bias.relative_position_bias_table)
    weights = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    torch.save(dict(state_dict=dict(weights, **{'head.cls_head.bias': torch.zeros(8)})), tmp_path / 'pretrained.pth')
    return str(tmp_path / 'pretrained.pth')


PLUS = {'model.backbone.variant': 'beit_plus'}


def test_the_road_of_a_linear_probe(tmp_path, pretrained, monkeypatch):
    """Trained from a pre-training checkpoint, chosen, saved, tested; the choice does not look at val's labels."""
    start = read(pretrained)['state_dict']
    runner = run(linear(**PLUS), work_dir=str(tmp_path / 'train'), load_from=pretrained, seed=0)
    saved = read(tmp_path / 'train' / 'iter_2.pth')['state_dict']
    for key, value in saved.items():
        if key.endswith('relative_position_bias_table'):
            assert torch.equal(value, start['backbone.rel_pos_bias.relative_position_bias_table'])
        elif key.startswith('backbone.'):
            assert torch.equal(value, start[key]), key
    last = records(tmp_path / 'train')[-1]
    _, metrics, _ = evaluate(linear(**PLUS), str(tmp_path / 'train/iter_2.pth'), work_dir=str(tmp_path / 't'), seed=0)
    assert all(type(value) is float for value in metrics.values())
    for key in metrics.keys() - {'time', 'data_time'}:
        assert metrics[key] == last[key], key
    block = int(metrics['chosen_block'])
    assert metrics['accuracy/top1'] == metrics[f'top1.block{block}']
    assert metrics['held_out_top1'] == runner.model.choice.held_out_top1
    assert metrics['optimistic_top1'] == max(metrics[f'top1.block{i}'] for i in (1, 2, 3, 4))

    make = EmbeddedScenes.make
    monkeypatch.setattr(
        EmbeddedScenes, 'make', lambda data, i: dict(make(data, i), **({'gt_label': 0} if data.split == 'val' else {}))
    )
    _, other, _ = evaluate(linear(**PLUS), str(tmp_path / 'train/iter_2.pth'), work_dir=str(tmp_path / 't'), seed=0)
    assert other['accuracy/top1'] != metrics['accuracy/top1']
    for key in ('chosen_block', 'held_out_top1'):
        assert other[key] == metrics[key]


def test_the_choice_is_the_best_on_held_out_images(tmp_path, pretrained):
    config = neighbours(**PLUS)
    runner, metrics, _ = evaluate(config, pretrained, work_dir=str(tmp_path), seed=0)
    model, hook = runner.model, next(hook for hook in runner.hooks if type(hook).__name__ == 'ProbeHook')
    held_out = [sample for batch in hook.loaders['held_out'] for sample in model.val_step(batch)]
    right = [sum(int(s['top'][i, 0]) == s['label'] for s in held_out) for i in range(12)]
    assert len(held_out) == 32
    assert model.choice == Choice(int(np.argmax(right)), 100 * max(right) / 32)
    chosen = model.candidates[model.choice.index]
    assert (metrics['chosen_block'], metrics['chosen_k']) == (chosen['block'], chosen['k'])
    assert metrics['accuracy/top1'] == metrics[f'top1.{name_of(chosen)}']
    assert metrics['held_out_top1'] == model.choice.held_out_top1
    assert len(model.bank()[1]) == 32
    runner.test()
    assert len(model.bank()[1]) == 32  # filled anew
    again = evaluate(neighbours(**PLUS), pretrained, work_dir=str(tmp_path), seed=5)[1]
    assert {k: v for k, v in again.items() if 'time' not in k} == {k: v for k, v in metrics.items() if 'time' not in k}


def sample(top, label, choice=None, number=2):
    return dict(
        top=torch.tensor(top), label=label, candidates=[dict(block=b + 1) for b in range(number)], choice=choice
    )


def report(samples):
    metric = ProbeAccuracy()
    Evaluator(metric).process(data_samples=samples)
    return metric.compute_metrics(metric.results)


def test_the_report_by_hand():
    choice = Choice(0, 75.0)
    told = report([sample([[1, 2], [2, 1]], 1, choice), sample([[0, 1], [1, 0]], 1, choice),
                   sample([[0, 3], [1, 2]], 1, choice), sample([[0, 3], [2, 0]], 2, choice)])  # fmt: skip
    assert told == {
        'accuracy/top1': 25.0, 'accuracy/top5': 50.0, 'chosen_block': 1.0, 'held_out_top1': 75.0,
        'optimistic_top1': 75.0, 'optimistic_block': 2.0, 'top1.block1': 25.0, 'top1.block2': 75.0,
    }  # fmt: skip
    assert all(type(value) is float for value in told.values())


def test_without_a_choice_there_is_no_accuracy():
    told = report([sample([[1], [2]], 1), sample([[1], [2]], 2)])
    assert set(told) == {'optimistic_top1', 'optimistic_block', 'top1.block1', 'top1.block2'}
    assert report([sample([[1, 0]], 1, number=1), sample([[1, 0]], 0, number=1)]) == {
        'accuracy/top1': 50.0, 'accuracy/top5': 100.0, 'chosen_block': 1.0
    }  # fmt: skip


def test_shared_images_are_refused(tmp_path, pretrained):
    def refused(config, pair):
        trains = config.get('train_cfg') is not None
        start = functools.partial(run, config) if trains else functools.partial(evaluate, config, pretrained)
        with pytest.raises(ValueError, match=rf'ProbeHook: \d+ images of {pair[0]} are in the {pair[1]} data too'):
            start(work_dir=str(tmp_path), seed=0)

    refused(linear(**{'train_dataloader.dataset.rest': False}), ('held_out', 'training'))
    refused(linear(**{'custom_hooks.0.held_out.dataset.dataset.split': 'val'}), ('held_out', 'evaluation'))
    refused(neighbours(**PLUS, **{'custom_hooks.0.bank.dataset.rest': False}), ('held_out', 'bank'))
    refused(neighbours(**PLUS, **{'custom_hooks.0.bank.dataset.dataset.split': 'val'}), ('bank', 'evaluation'))
    with pytest.raises(ValueError, match='a KNNProbe needs a bank: give the hook bank='):
        evaluate(neighbours(**PLUS, **{'custom_hooks.0.bank': None}), pretrained, work_dir=str(tmp_path), seed=0)


def test_the_official_recipe():
    """run_linear_eval.py: 1e-3 for 256 images, AdamW with 1e-4, a cosine to 0 that moves once an epoch."""
    config = load_config(OFFICIAL)
    optimizer = config.optim_wrapper.optimizer
    assert optimizer.lr == 1e-3 * 8 * config.train_dataloader.batch_size / 256
    assert (optimizer.weight_decay, optimizer.betas, optimizer.eps) == (1e-4, (0.9, 0.999), 1e-8)
    assert 'clip_grad' not in config.optim_wrapper  # it would tie the heads together
    assert config.train_cfg.max_epochs == 100
    steps = config.train_dataloader.dataset.dataset.pipeline
    assert [step.type for step in steps] == ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'PackInputs']
    for loader in (config.val_dataloader.dataset, config.custom_hooks[0].held_out.dataset.dataset):
        resize, crop = loader.pipeline[1:3]
        assert (resize.scale, resize.interpolation, crop.crop_size) == (256, 'bicubic', 224)
    assert config.model.features == 'both'
    assert tuple(config.model.backbone.out_indices) == tuple(range(12))
    assert not config.model.get('batch_norm')
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.AdamW([weight], 4e-3), 100, eta_min=0)
    ours = rates(config, 100)
    for epoch in range(100):
        assert ours[epoch] == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12), epoch
        theirs.optimizer.step()
        theirs.step()


def rates(config, epochs):
    """The learning rate of every epoch, as the config's schedule gives it."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], config.optim_wrapper.optimizer.lr)
    schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in config.param_scheduler]
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return seen


@pytest.mark.parametrize(('size', 'block', 'arch'), [('base', 9, 'base'), ('large', 14, 'large')])
def test_the_papers_recipe(size, block, arch):
    """Appendix D: the mean of the patches of one block, 50 epochs, 4e-3 for 1,024 images, weight decay 1e-4."""
    config = load_config(PAPER.format(size, block))
    assert (config.model.backbone.arch, config.model.backbone.out_indices) == (arch, block - 1)
    assert config.model.features == 'mean'
    assert config.train_dataloader.batch_size * 8 == 1024
    assert (config.optim_wrapper.optimizer.lr, config.optim_wrapper.optimizer.weight_decay) == (4e-3, 1e-4)
    assert config.train_cfg.max_epochs == 50
    assert config.train_dataloader.dataset.type == 'CustomDataset'  # all of train
    assert not config.custom_hooks
    ours = rates(config, 50)
    assert ours[25] == pytest.approx(2e-3)
    assert ours[49] == pytest.approx(2e-3 * (1 + math.cos(math.pi * 49 / 50)))


@pytest.mark.parametrize('percent', [1, 5, 10])
def test_few_shot_recipes_keep_the_images_pipeline(percent):
    full = load_config('configs/classification/beit-base-p16_ft_8xb128-100e_in1k-224.py')
    few = load_config(next(Path('configs/classification').glob(f'beit-base-p16_ft-{percent}pct_*.py')))
    assert few.train_dataloader.dataset.dataset == full.train_dataloader.dataset
    assert few.train_dataloader.dataset.percent == percent
    assert few.val_dataloader == full.val_dataloader
    listed = {'train_dataloader.dataset.percent': None, 'train_dataloader.dataset.file': '1percent.txt'}
    assert load_config(few.filename, listed).train_dataloader.dataset.file == '1percent.txt'


@pytest.mark.slow
def test_two_ranks_choose_as_one_would(tmp_path):
    """23 held-out images over two ranks, each counted once; BatchNorm's statistics are those of the checkpoint."""
    options = {
        'train_cfg.max_iters': 4, 'train_cfg.val_interval': 4, 'train_dataloader.batch_size': 8,
        'model.batch_norm': True, 'custom_hooks.0.held_out.dataset.percent': 4.5, 'test_dataloader.dataset.length': 51,
        'val_dataloader.dataset.length': 51,
    }  # fmt: skip
    command = [
        *TORCHRUN,
        'tools/train.py',
        LINEAR,
        '--launcher',
        'pytorch',
        '--seed',
        0,
        '--work-dir',
        tmp_path / 'two',
    ]
    code, _, err = call(*command, '--cfg-options', *(f'{key}={value}' for key, value in options.items()))
    assert code == 0, err[-3000:]
    last = records(tmp_path / 'two')[-1]
    _, metrics, _ = evaluate(load_config(LINEAR, options), str(tmp_path / 'two/iter_4.pth'), work_dir=str(tmp_path))
    for key in metrics.keys() - {'time', 'data_time'}:
        assert metrics[key] == last[key], key
    assert 'chosen on 23 held-out images' in next((tmp_path / 'two').glob('*/*.log')).read_text()
