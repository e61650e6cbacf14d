"""engine/checkpointing.py: plain contents, the chain of stages, and `load_from` that fits."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from torch import nn

from beit_mm.checkpoints.load import CheckpointError, read, sha256, write
from beit_mm.engine import checkpointing
from beit_mm.engine.checkpointing import (
    TO_EVALUATE,
    TO_TRAIN_ON,
    FitWeightsHook,
    PlainCheckpointHook,
    code_revision,
    plain,
    preprocessing_of,
    stages_of,
    step_of,
    warn_of_preprocessing,
)
from beit_mm.models.backbone import BEiTViT

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


def test_plain_values():
    value = dict(
        a=np.float64(0.5), b=np.arange(3), c=[np.int64(2), (None, True)], d=Path('x'), e=torch.ones(2), f={1: 'y'}
    )
    made = plain(value)
    assert type(made['a']) is float
    assert torch.equal(made['b'], torch.arange(3))
    assert made['c'] == [2, (None, True)]
    assert type(made['c'][0]) is int
    assert made['d'] == 'x'
    assert made['e'] is value['e']
    assert made['f'] == {1: 'y'}


def test_the_step_in_a_name():
    assert [step_of(Path(n)) for n in ('iter_120.pth', 'epoch_3.pth', 'last.pth', 'iter_x.pth')] == [120, 3, -1, -1]


def fake_runner(model=None, resume=False, **config):
    return SimpleNamespace(
        cfg=Config(config), model=model, logger=logging.getLogger('test'), _resume=resume, _load_from='start.pth'
    )


def test_checkpoints_hold_nothing_but_tensors_and_plain_types(tmp_path):
    buffer = HistoryBuffer([0.5, 0.25, 0.125], [1, 1, 2])
    checkpoint = dict(
        state_dict=dict(a=torch.ones(2)),
        meta=dict(iter=3, seed=np.int64(7), time='now'),
        message_hub=dict(log_scalars={'train/loss': buffer}, runtime_info={'iter': np.int64(3)}),
    )
    hook = PlainCheckpointHook()
    runner = fake_runner()
    hook.before_run(fake_runner())
    runner.cfg.model = dict(backbone=dict(type='beit_mm.BEiTViT', arch='base'), data_preprocessor=dict(mean=[1.0]))
    hook.before_save_checkpoint(runner, checkpoint)
    write(checkpoint, tmp_path / 'iter_3.pth')
    back = read(tmp_path / 'iter_3.pth')  # weights_only
    assert back['meta']['seed'] == 7
    carried = back['meta']['beit_mm']
    assert carried['backbone'] == dict(type='beit_mm.BEiTViT', arch='base')
    assert carried['preprocessing'] == dict(mean=[1.0])
    assert carried['revision'] == code_revision()
    hook.after_load_checkpoint(fake_runner(resume=True), back)
    values, counts = back['message_hub']['log_scalars']['train/loss'].data
    np.testing.assert_array_equal(values, [0.5, 0.25, 0.125])
    np.testing.assert_array_equal(counts, [1, 1, 2])


def test_stages_name_their_checkpoints(tmp_path):
    first, second = tmp_path / 'tokenizer.pth', tmp_path / 'pretrain.pth'
    told = dict(recipe_sha256='r' * 64, train_seconds=7.5)
    write(dict(state_dict={}, meta=dict(experiment_name='tok_20260101_120000', seed=1, beit_mm=told)), first)
    mim = Config(dict(model=dict(target=dict(checkpoint=str(first)))))
    stages = stages_of(mim)
    assert stages == [dict(config='tok', checkpoint='tokenizer.pth', sha256=sha256(first), seed=1, **told, stages=[])]
    own = Config(dict(model=dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=str(first))))))
    assert stages_of(own) == stages
    write(dict(state_dict={}, meta=dict(experiment_name='mim', seed=2, beit_mm=dict(stages=stages))), second)
    tuned = stages_of(Config(dict(load_from=str(second), resume=False)))
    assert tuned[0]['sha256'] == sha256(second)
    assert tuned[0]['stages'] == stages
    assert tuned[0]['recipe_sha256'] is tuned[0]['train_seconds'] is None  # that file does not say
    assert stages_of(Config(dict(load_from=str(second), resume=True))) == []  # goes on: no new stage


class Model(nn.Module):
    def __init__(self, **changes):
        super().__init__()
        self.backbone = BEiTViT(**{'arch': ARCH, 'img_size': 64, **changes})


@pytest.mark.parametrize(('mean', 'warned'), [([1.0, 2.0], False), ([127.5, 2.0], True)])
def test_another_normalisation_is_said(mean, warned, monkeypatch):
    """mmpretrain fine-tunes with another mean than it pre-trained with, and says nothing."""
    said = []
    monkeypatch.setattr(checkpointing, 'print_log', lambda text, **_: said.append(text))
    model = Model()
    carried = dict(preprocessing=dict(mean=[1.0, 2.0], std=[3.0]))
    checkpoint = dict(state_dict=model.state_dict(), meta=dict(beit_mm=carried))
    runner = fake_runner(model, data_preprocessor=dict(mean=mean, std=[3.0]))
    FitWeightsHook().after_load_checkpoint(runner, checkpoint)
    assert len(said) == 1 + warned  # after the report
    if warned:
        assert said[1].startswith('start.pth comes with mean [1.0, 2.0], this config has [127.5, 2.0]')


PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=438, edge='short', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]


def config_of(pipeline=PIPELINE, out_type='avg_featmap', std=(3.0,)):
    return Config(
        dict(
            model=dict(backbone=dict(out_type=out_type)),
            data_preprocessor=dict(mean=[1.0, 2.0], std=list(std)),
            test_dataloader=dict(dataset=dict(pipeline=pipeline)),
        )
    )


def test_what_a_checkpoint_says_about_its_images():
    expected = dict(mean=[1.0, 2.0], std=[3.0], pooling='mean', interpolation='bicubic', crop_ratio=0.8767)
    assert preprocessing_of(config_of()) == expected
    whole = [dict(type='mmpretrain.Resize', scale=(384, 384))]
    assert preprocessing_of(config_of(whole, 'cls_token')) == dict(
        mean=[1.0, 2.0], std=[3.0], pooling='class token', interpolation='bilinear', crop_ratio=1.0
    )
    assert preprocessing_of(config_of(out_type='featmap')) == dict(mean=[1.0, 2.0], std=[3.0])  # a segmentor's
    assert preprocessing_of(Config(dict(model=None))) == {}


@pytest.mark.parametrize(
    ('other', 'said'),
    [
        (dict(), []),
        (dict(out_type='cls_token'), ['pooling mean, this config has class token']),
        (dict(std=[1.0]), ['std [3.0], this config has [1.0]']),
        (dict(pipeline=PIPELINE[:1] + PIPELINE[2:]), []),  # not known here: nothing to say
        (
            dict(pipeline=[dict(PIPELINE[1], interpolation='bilinear'), dict(PIPELINE[2], crop_size=432)]),
            ['crop_ratio 0.8767, this config has 0.9863', 'interpolation bicubic, this config has bilinear'],
        ),
    ],
)
def test_an_evaluation_that_treats_images_otherwise_is_warned_of(monkeypatch, other, said):
    heard = []
    monkeypatch.setattr(checkpointing, 'print_log', lambda text, **_: heard.append(text))
    meta = dict(meta=dict(beit_mm=dict(preprocessing=preprocessing_of(config_of()))))
    warn_of_preprocessing(meta, config_of(**other), 'b.pth', TO_EVALUATE)
    assert sorted(text.removeprefix('b.pth comes with ').split(':')[0] for text in heard) == said
    warn_of_preprocessing(meta, config_of(**{**other, 'std': [3.0]}), 'b.pth', TO_TRAIN_ON)
    assert len(heard) == len(said)  # fine-tuning changes the rest on purpose


def saved(model):
    return dict(state_dict=model.state_dict(), optimizer={}, message_hub={}, meta=dict(iter=1, epoch=0))


def test_a_run_goes_on_from_its_own_checkpoint_only():
    model = Model()
    checkpoint = saved(model)
    untouched = dict(checkpoint)
    FitWeightsHook().after_load_checkpoint(fake_runner(Model(), resume=True), checkpoint)
    assert checkpoint == untouched
    for other, said in (
        (Model(img_size=96), r'bias_table is \(52, 2\), the model has \(124, 2\)'),
        (Model(layer_scale_init_value=0), r'gamma_1 is not in the model'),
        (Model(use_abs_pos_emb=True), r'pos_embed is not in it'),
    ):
        with pytest.raises(CheckpointError, match=rf'start\.pth: is of another model.*{said}.*: --load-from'):
            FitWeightsHook().after_load_checkpoint(fake_runner(other, resume=True), saved(model))
    weights_only = dict(model=model.state_dict())
    with pytest.raises(CheckpointError, match=r'it has no state_dict, optimizer, message_hub, meta\.iter, meta\.epoch'):
        FitWeightsHook().after_load_checkpoint(fake_runner(Model(), resume=True), weights_only)


def test_a_part_is_loaded_if_asked_for(caplog):
    """12 blocks into 3, as for a quick look: what there is room for is taken, what is not is named, loudly."""
    deep, shallow = Model(arch=dict(ARCH, num_layers=3)), Model()
    checkpoint = dict(state_dict=deep.state_dict())
    with pytest.raises(CheckpointError, match=r'num_layers is 3 in the checkpoint and 2 here(?s:.*)--partial-load'):
        FitWeightsHook().after_load_checkpoint(fake_runner(shallow), dict(checkpoint))
    with caplog.at_level(logging.WARNING, logger='test'):
        FitWeightsHook(partial=True).after_load_checkpoint(fake_runner(shallow), checkpoint)
    assert 'refused (backbone.layers.2.gamma_1 is not in the model' in caplog.text
    assert set(checkpoint['state_dict']) == set(shallow.state_dict())
    with pytest.raises(CheckpointError, match='the backbone does not fit'):
        FitWeightsHook(partial=True).after_load_checkpoint(
            fake_runner(shallow), dict(state_dict={'backbone.layers.0.ln1.weight': torch.ones(7)})
        )


@pytest.mark.parametrize('reinit', [(), 'head.', ('head.weight', 'head.bias')])
def test_a_head_that_would_fit_starts_anew_if_its_name_is_given(reinit, caplog):
    """Another data set with as many classes: the old head is no use."""
    models = [Model(), Model()]
    for model in models:
        model.head = nn.Linear(32, 5)
    checkpoint = dict(state_dict=models[0].state_dict())
    with caplog.at_level(logging.INFO, logger='test'):
        FitWeightsHook(reinit=reinit).after_load_checkpoint(fake_runner(models[1]), checkpoint)
    models[1].load_state_dict(checkpoint['state_dict'], strict=False)
    assert torch.equal(models[0].head.weight, models[1].head.weight) == (not reinit)
    assert torch.equal(models[0].backbone.cls_token, models[1].backbone.cls_token)
    assert ('2 reinitialised (head.weight, head.bias)' in caplog.text) == bool(reinit)


def test_load_from_fits_or_refuses():
    pretrained, tuned = Model(use_rel_pos_bias=False, use_shared_rel_pos_bias=True), Model(img_size=96)
    nn.init.ones_(pretrained.backbone.rel_pos_bias.relative_position_bias_table)
    checkpoint = dict(state_dict=pretrained.state_dict())
    FitWeightsHook().after_load_checkpoint(fake_runner(tuned), checkpoint)
    table = checkpoint['state_dict']['backbone.layers.1.attn.relative_position_bias_table']
    torch.testing.assert_close(table, torch.ones_like(tuned.backbone.layers[1].attn.relative_position_bias_table))
    with pytest.raises(CheckpointError, match=r'start\.pth: the backbone does not fit'):
        FitWeightsHook().after_load_checkpoint(
            fake_runner(Model(layer_scale_init_value=0)), dict(state_dict=pretrained.state_dict())
        )


def test_the_images_of_init_cfg_are_compared_too(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(checkpointing, 'print_log', lambda text, **_: heard.append(text))
    model = Model(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'start.pth')))
    meta = dict(beit_mm=dict(preprocessing=dict(mean=[1.0], std=[3.0])))
    write(dict(state_dict=Model().state_dict(), meta=meta), tmp_path / 'start.pth')
    model.backbone.init_weights()
    runner = fake_runner(model, data_preprocessor=dict(mean=[2.0], std=[3.0]))
    FitWeightsHook().before_run(runner)
    assert [text.partition(' comes')[2].partition(':')[0] for text in heard] == [
        ' with mean [1.0], this config has [2.0]'
    ]
    FitWeightsHook().before_run(runner)
    assert len(heard) == 1  # once


def test_a_run_of_the_stock_backbone_goes_on_with_ours():
    """mmpretrain's BEiTViT saves the index of its tables, which ours computes."""
    checkpoint = saved(Model())
    checkpoint['state_dict']['backbone.layers.0.attn.relative_position_index'] = torch.zeros(17, 17)
    checkpoint['state_dict'] = {f'module.{key}': value for key, value in checkpoint['state_dict'].items()}
    FitWeightsHook().after_load_checkpoint(fake_runner(Model(), resume=True), checkpoint)


def test_averages_are_not_lost_on_the_way():
    average = dict(ema_state_dict={})
    runner = fake_runner(Model(), resume=True)
    with pytest.raises(CheckpointError, match='was written with an EMAHook, and this config has none'):
        FitWeightsHook().after_load_checkpoint(runner, {**saved(Model()), **average})
    runner.hooks = [EMAHook()]
    FitWeightsHook().after_load_checkpoint(runner, {**saved(Model()), **average})
    with pytest.raises(CheckpointError, match='was written without an EMAHook, and this config has one'):
        FitWeightsHook().after_load_checkpoint(runner, saved(Model()))


def test_backbones_of_others_are_loaded_whole_or_refused():
    other, model = nn.Module(), nn.Module()
    other.backbone, model.backbone = nn.Linear(3, 4), nn.Linear(3, 4)
    model.head = nn.Linear(4, 2)
    hook, runner = FitWeightsHook(), fake_runner(model)
    hook.after_load_checkpoint(runner, dict(state_dict=other.state_dict()))  # the head is its own affair
    renamed = {f'encoder.{key}': value for key, value in other.state_dict().items()}
    for wrong in (renamed, {**other.state_dict(), 'backbone.weight': torch.ones(4, 5)}):
        with pytest.raises(CheckpointError, match=r'start\.pth: does not fit the backbone .* backbone\.weight is'):
            hook.after_load_checkpoint(runner, dict(state_dict=wrong))
        FitWeightsHook(partial=True).after_load_checkpoint(runner, dict(state_dict=wrong))
