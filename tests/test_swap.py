"""docs/swap.md: ours in stock mmpretrain, mmseg and mmdet configs, theirs in our recipes."""

import contextlib
import copy
import functools
import importlib.util
import json
import math
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from mmengine.runner import Runner
from mmpretrain.models.selfsup.beit import BEiTPretrainViT
from processes import started
from scenes import on_scenes
from test_parity import randomised

from beit_mm import compat
from beit_mm.checkpoints.convert import convert_state_dict
from beit_mm.checkpoints.load import CheckpointError, write
from beit_mm.engine.configs import check_config, load_config
from beit_mm.engine.launch import evaluate, prepare
from beit_mm.engine.optim import layer_decay_table
from beit_mm.models.backbone import BEiTViT
from beit_mm.ops.relative_position import resize_positions, resize_table

ROOT = Path(__file__).parents[1]
IN_MMPRETRAIN = 'classification/beit-base-p16_in-mmpretrain_8xb128-100e_in1k-224.py'
IN_MMSEG = 'segmentation/beit-base-p16_upernet-in-mmseg_8xb2-160k_ade20k-640.py'
MMPRETRAINS = 'classification/vit-mini-p8_mmpretrain-scratch_1xb64-100_embedded-64.py'
TIMMS = 'segmentation/vit-mini-p8_timm-upernet-scratch_1xb32-150_embedded-64.py'
THEIR_BEIT = dict(mmpretrain='mmpretrain.BEiTViT', mmseg='mmseg.BEiT')
SHORT = {'train_dataloader.batch_size': 4, 'train_dataloader.dataset.length': 8}
BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/swap.md').read_text(), re.DOTALL)


pytestmark = pytest.mark.usefixtures('no_pretty_printing')


class Watch(Hook):
    """The backbone's parameters before training, and the losses."""

    def before_train(self, runner) -> None:
        self.losses = []
        self.before = {name: p.detach().clone() for name, p in runner.model.backbone.named_parameters()}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(float(outputs['loss']))

    def unchanged(self, runner) -> list[str]:
        return [name for name, p in runner.model.backbone.named_parameters() if torch.equal(p, self.before[name])]


def quick(config: Config, work_dir: Path, iters: int = 2) -> Config:
    """No validation, no files, a rate that shows."""
    config.work_dir, config.experiment_name = str(work_dir / 'work'), f'swap{next(COUNT)}'
    config.train_cfg.update(max_iters=iters)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.test_cfg = config.test_dataloader = config.test_evaluator = None
    config.param_scheduler = config.visualizer = None
    config.default_hooks = dict(checkpoint=None)
    config.optim_wrapper.optimizer.lr = 1e-3
    config.log_level = 'WARNING'
    return config


COUNT = iter(range(10**6))


@functools.cache
def text_config(text: str) -> Config:
    """A config file of this text, read once."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / 'leaf.py').write_text(text)
        return Config.fromfile(Path(folder) / 'leaf.py')


def small(path: Path, work_dir: Path, options: dict | None = None, iters: int = 2) -> Config:
    """A config as the projects' own tools read it, made small; no function of ours is between it and their Runner."""
    config = copy.deepcopy(text_config(Path(path).read_text()))
    scenes = config.train_dataloader.dataset.type.startswith('beit_mm.')
    made_small = SHORT if scenes else on_scenes(config)
    config.merge_from_dict({**made_small, **copy.deepcopy(options or {})})
    return quick(config, work_dir, iters)


def trained(config: Config) -> tuple[Runner, Watch]:
    runner, watch = Runner.from_cfg(config), Watch()
    runner.register_hook(watch)
    runner.train()
    assert all(math.isfinite(loss) for loss in watch.losses)
    assert len(watch.losses) == config.train_cfg.max_iters
    return runner, watch


# One config per direction


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmseg'])
@pytest.mark.parametrize(
    ('name', 'module', 'lowest'),
    [
        (IN_MMPRETRAIN, 'beit_mm.models.backbone', 0.65**4),  # of three blocks, the stem and the head
        (IN_MMSEG, 'beit_mm.models.backbone', 0.9**5),  # four blocks in what follows
        (MMPRETRAINS, 'mmpretrain.models.backbones.vision_transformer', 0.75**5),
        (TIMMS, 'mmpretrain.models.backbones.timm_backbone', 0.75**5),
    ],
    ids=['ours in mmpretrain', 'ours in mmseg', 'mmpretrain in ours', 'timm in ours'],
)
def test_shipped_configs_step_under_every_default_scope(name, module, lowest, scope, tmp_path):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = 'beit_mm::{name}'\ncustom_imports = dict(imports=['beit_mm'])\n")
    config = small(leaf, tmp_path)
    home, constructor = config.default_scope, config.optim_wrapper.constructor
    config.default_scope = scope
    if '.' not in constructor:  # mmengine looks it up in the default scope, whatever the config's own
        config.optim_wrapper.constructor = f'{home}.{constructor}'
    runner, watch = trained(config)
    assert type(runner.model.backbone).__module__ == module
    assert type(runner.model).__module__.startswith(home)
    assert watch.unchanged(runner) == []
    rates = [group['lr'] for group in runner.optim_wrapper.param_groups]
    assert min(rates) / max(rates) == pytest.approx(lowest)  # layer decay, by each project's constructor


def without_scopes(node):
    """mmengine marks what it inherits from another package with `_scope_`."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return [without_scopes(value) for value in node] if isinstance(node, (list, tuple)) else node


@pytest.mark.parametrize('name', [IN_MMPRETRAIN, IN_MMSEG])
def test_stock_configs_are_changed_in_one_word(name):
    config = Config.fromfile(ROOT / 'configs' / name)
    package, _, path = re.search(r"'(mm\w+)(::)(.*)'", (ROOT / 'configs' / name).read_text()).groups()
    stock = Config.fromfile(Path(importlib.util.find_spec(package).origin).parent / '.mim/configs' / path)
    changed = without_scopes(config.to_dict())
    assert changed.pop('custom_imports') == dict(imports=['beit_mm'], allow_failed_imports=False)
    assert changed['model']['backbone']['type'] == 'beit_mm.BEiTViT'
    changed['model']['backbone']['type'] = stock.model.backbone.type
    if 'auto_scale_lr' not in stock:  # mmseg's configs leave it to their names
        assert changed.pop('auto_scale_lr') == dict(base_batch_size=16)
    assert changed == without_scopes(stock.to_dict())
    check_config(load_config(ROOT / 'configs' / name), name)  # our own tools take the stock config as well


# Ours in theirs: weights


@pytest.fixture(scope='module')
def their_checkpoint(tmp_path_factory):
    """project -> a model with its own BEiT, and a training checkpoint of it as its own Runner writes it."""

    @functools.cache
    def made(project: str) -> tuple[torch.nn.Module, str]:
        folder = tmp_path_factory.mktemp(project)
        name = dict(mmpretrain=IN_MMPRETRAIN, mmseg=IN_MMSEG)[project]
        runner, _ = trained(small(ROOT / 'configs' / name, folder, {'model.backbone.type': THEIR_BEIT[project]}))
        randomised(runner.model)
        runner.save_checkpoint(str(folder), 'theirs.pth', by_epoch=False)
        return runner.model.eval(), str(folder / 'theirs.pth')

    return made


@pytest.mark.parametrize(
    ('project', 'way'),
    [
        ('mmpretrain', 'init_cfg'),
        ('mmpretrain', 'load_from'),
        ('mmseg', 'init_cfg'),
        ('mmseg', 'pretrained'),
        ('mmseg', 'load_from'),
    ],
)
def test_their_checkpoints_load_unchanged(project, way, their_checkpoint, tmp_path):
    """Their Runner's file, in their Runner, with their model around our backbone: the same numbers as theirs."""
    theirs, file = their_checkpoint(project)
    name = dict(mmpretrain=IN_MMPRETRAIN, mmseg=IN_MMSEG)[project]
    start = dict(type='Pretrained', checkpoint=file, prefix='backbone.')
    options = {'init_cfg': {'model.backbone.init_cfg': start}, 'pretrained': {'model.pretrained': file}}
    runner = Runner.from_cfg(small(ROOT / 'configs' / name, tmp_path, options.get(way, {'load_from': file})))
    if way == 'load_from':
        runner.load_or_resume()
    else:
        runner.model.init_weights()
    ours = runner.model.eval()
    assert type(ours.backbone) is BEiTViT
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for a, b in zip(ours.backbone(x), theirs.backbone(x), strict=True):
            assert b.std() > 0.1
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        if way == 'load_from':  # neck and head too: the whole model
            a, b = (model(x, mode='tensor') for model in (ours, theirs))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_load_from_resizes_and_expands_under_their_runner(tmp_path):
    """mmpretrain's pre-training checkpoint, one table for all blocks, at another size: their Runner alone."""
    arch = dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=48)
    kind = dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True, use_abs_pos_emb=True)
    pretrained = randomised(BEiTPretrainViT(arch, img_size=32, patch_size=8, **kind))
    file = tmp_path / 'pretrained.pth'
    write(dict(state_dict={f'backbone.{k}': v for k, v in pretrained.state_dict().items()}), file)
    wanted = {'img_size': (48, 32), 'patch_size': 8, 'use_abs_pos_emb': True}
    options = {f'model.backbone.{key}': value for key, value in wanted.items()}
    runner = Runner.from_cfg(small(ROOT / 'configs' / IN_MMPRETRAIN, tmp_path, {**options, 'load_from': str(file)}))
    runner.load_or_resume()
    own, theirs = runner.model.backbone.state_dict(), pretrained.state_dict()
    table = resize_table(theirs['rel_pos_bias.relative_position_bias_table'], (4, 4), (6, 4))
    for i in range(3):
        torch.testing.assert_close(own[f'layers.{i}.attn.relative_position_bias_table'], table)
        assert torch.equal(own[f'layers.{i}.attn.qkv.weight'], theirs[f'layers.{i}.attn.qkv.weight'])
    torch.testing.assert_close(own['pos_embed'], resize_positions(theirs['pos_embed'], (4, 4), (6, 4)))


def test_loading_a_state_dict_stays_strict():
    """What is fitted on the way is tables and positions; the rest is torch's to refuse."""
    arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
    shared = dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    weights = randomised(BEiTViT(arch, img_size=32, **shared)).state_dict()
    for side in (2, 3):
        model = BEiTViT(arch, img_size=16 * side)
        model.load_state_dict(weights)
        expected = resize_table(weights['rel_pos_bias.relative_position_bias_table'], (2, 2), (side, side))
        assert torch.equal(model.layers[1].attn.relative_position_bias_table, expected)
    with pytest.raises(RuntimeError, match=r'Missing key.*layers\.1\.ln1\.weight'):
        BEiTViT(arch, img_size=32).load_state_dict({k: v for k, v in weights.items() if k != 'layers.1.ln1.weight'})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*mask_token'):
        BEiTViT(arch, img_size=32).load_state_dict({**weights, 'mask_token': torch.zeros(1, 1, 24)})
    with pytest.raises(RuntimeError, match=r'size mismatch for cls_token'):
        BEiTViT({**arch, 'embed_dims': 32}, img_size=32).load_state_dict(weights)


def test_no_file_named():
    """The stock recipe's checkpoint=''."""
    model = BEiTViT('deit-tiny', img_size=32, init_cfg=dict(type='Pretrained', checkpoint='', prefix='backbone.'))
    with pytest.raises(CheckpointError, match=r"init_cfg has checkpoint='': name a file, or set init_cfg=None"):
        model.init_weights()


def test_the_official_file_under_their_runner(tmp_path):
    """The page's table: load_from leaves everything as it was, unless its one line is in the config."""
    weights = randomised(BEiTViT(dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=48), img_size=32))
    official, _ = convert_state_dict(weights.state_dict(), 'beit_mm', 'unilm', grid=(2, 2))
    assert 'blocks.0.attn.qkv.weight' in official
    write(dict(model=official), tmp_path / 'official.pth')
    lines = [block for block in BLOCKS if block.startswith('custom_hooks')]
    assert len(lines) == 1
    for line, loads in (('', False), (lines[0], True)):
        leaf = tmp_path / 'leaf.py'
        leaf.write_text(f"_base_ = '{ROOT / 'configs' / IN_MMPRETRAIN}'\n{line}")
        runner = Runner.from_cfg(small(leaf, tmp_path, {'load_from': str(tmp_path / 'official.pth')}))
        before = runner.model.backbone.cls_token.clone()
        runner.load_or_resume()
        assert torch.equal(runner.model.backbone.cls_token, weights.cls_token if loads else before)
        assert loads != torch.equal(runner.model.backbone.cls_token, before)
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pth'))
    options = {'model.backbone.init_cfg': start}
    with pytest.raises(CheckpointError, match=r"no key starts with the prefix 'backbone\.'"):  # the stock config's
        Runner.from_cfg(small(leaf, tmp_path, options)).model.init_weights()
    runner = Runner.from_cfg(small(leaf, tmp_path, {'model.backbone.init_cfg': dict(start, prefix=None)}))
    runner.model.init_weights()
    assert torch.equal(runner.model.backbone.cls_token, weights.cls_token)


# Theirs in ours

ARCH = dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48)
PLAIN = dict(img_size=32, patch_size=8, in_channels=1, out_indices=(0, 1, 2, 3))
MMSEGS = dict(embed_dims=24, num_layers=4, num_heads=2, mlp_ratio=2, **PLAIN)
TIMM = dict(type='mmpretrain.TIMMBackbone', features_only=True, in_channels=1)
TIMM_PLAIN = dict(TIMM, **PLAIN, embed_dim=24, depth=4, num_heads=2)
SWIN = dict(type='mmpretrain.TIMMBackbone', model_name='swin_tiny_patch4_window7_224', features_only=True, img_size=64,
            in_channels=1, window_size=2, embed_dim=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))  # fmt: skip
CONVNEXT = dict(model_name='convnext_atto', in_channels=1, dims=(8, 12, 16, 24), depths=(1, 1, 1, 1))
# (backbone, channels of its four maps or None for a plain ViT of 24, depths in layer decay or 0 where it knows none)
THEIRS = {
    'mmpretrain ViT': (dict(type='mmpretrain.VisionTransformer', arch=ARCH, out_type='featmap', **PLAIN), None, 6),
    'mmpretrain EVA-02': (dict(type='mmpretrain.ViTEVA02', arch=ARCH, out_type='featmap', **PLAIN), None, 6),
    'mmpretrain BEiT': (dict(type='mmpretrain.BEiTViT', arch=ARCH, out_type='featmap', **PLAIN), None, 6),
    'mmseg ViT': (dict(type='mmseg.VisionTransformer', **MMSEGS), None, 0),
    'mmseg BEiT': (dict(type='mmseg.BEiT', init_values=0.1, **{**MMSEGS, 'img_size': (32, 32)}), None, 0),
    'timm ViT': (dict(TIMM_PLAIN, model_name='vit_tiny_patch16_224'), None, 6),
    'timm BEiT': (dict(TIMM_PLAIN, model_name='beit_base_patch16_224'), None, 6),
    'timm DINOv2': (dict(TIMM_PLAIN, model_name='vit_small_patch14_dinov2'), None, 6),
    'timm ViT by mmseg': (
        dict(TIMM_PLAIN, model_name='vit_tiny_patch16_224', type='mmseg.TIMMBackbone', pretrained=False), None, 6,
    ),
    'mmpretrain Swin': (
        dict(type='mmpretrain.SwinTransformer', arch=dict(embed_dims=12, depths=[1] * 4, num_heads=[1, 2, 2, 2]),
             img_size=32, patch_size=2, window_size=2, in_channels=1, out_indices=(0, 1, 2, 3)),
        [12, 24, 48, 96], 6,
    ),
    'mmpretrain ConvNeXt': (
        dict(type='mmpretrain.ConvNeXt', arch=dict(depths=[1] * 4, channels=[8, 12, 16, 24]), in_channels=1,
             out_indices=(0, 1, 2, 3), gap_before_final_norm=False),
        [8, 12, 16, 24], 8,
    ),
    'mmseg Swin': (
        dict(type='mmseg.SwinTransformer', embed_dims=12, depths=[1] * 4, num_heads=[1, 2, 2, 2], patch_size=2,
             strides=(2, 2, 2, 2), window_size=2, in_channels=1, pretrain_img_size=32),
        [12, 24, 48, 96], 0,
    ),
    'mmseg MiT': (dict(type='mmseg.MixVisionTransformer', in_channels=1, embed_dims=8, num_layers=[1] * 4),
                  [8, 16, 32, 64], 0),
    'timm Swin': (dict(SWIN, feature_cls='getter'), [12, 24, 48, 96], 6),
    'timm ConvNeXt': (dict(TIMM, **CONVNEXT, feature_cls='getter'), [8, 12, 16, 24], 6),
    'timm ConvNeXt by mmseg, listed': (dict(type='mmseg.TIMMBackbone', pretrained=False, **CONVNEXT),
                                       [8, 12, 16, 24], 0),
    'timm ResNet, listed': (dict(TIMM, model_name='resnet18', out_indices=(1, 2, 3, 4)), [64, 128, 256, 512], 0),
}  # fmt: skip


def recipe(backbone: dict, channels: list[int] | None, rate: float) -> Config:
    """The shipped segmentor with another backbone, and the heads it needs."""
    config = load_config(ROOT / 'configs' / TIMMS)
    model = config.model
    model.backbone = backbone
    if channels:
        model.neck = None
    else:
        model.neck.embed_dim = 24
    channels = channels or [24] * 4
    model.decode_head.update(in_channels=channels, channels=8, dropout_ratio=0.0)
    model.auxiliary_head.update(in_channels=channels[2], channels=8, dropout_ratio=0.0)
    side = backbone.get('img_size', 32)
    side = side if isinstance(side, int) else side[0]
    config.train_dataloader.dataset.size = side
    model.data_preprocessor = {**config.data_preprocessor, 'size': (side, side)}
    config.optim_wrapper.paramwise_cfg.layer_decay_rate = rate
    return config


def built(config: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model)


def optimizer_of(config: Config, model: torch.nn.Module):
    options = copy.deepcopy(config.optim_wrapper)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(type=options.pop('constructor'), paramwise_cfg=options.pop('paramwise_cfg'), optim_wrapper_cfg=options)
        )
        return constructor(model)


def batch_of(config: Config) -> dict:
    dataset = {**config.train_dataloader.dataset, 'length': 4, 'pipeline': [dict(type='PackSegInputs')]}
    with DefaultScope.overwrite_default_scope('mmseg'):
        scenes = DATASETS.build(dataset)
    return pseudo_collate([scenes[i] for i in range(4)])


@pytest.mark.parametrize('name', THEIRS)
def test_their_backbones_learn_in_our_segmentor(name):
    backbone, channels, depths = THEIRS[name]
    config = recipe(backbone, channels, 0.75 if depths else 1.0)
    check_config(config, name)  # every argument passes the check of our tools
    model = built(config)
    if not depths:
        with pytest.raises(ValueError, match=r"layer decay needs a backbone .* feature_cls='getter'.*rate=1\.0"):
            layer_decay_table(model, 0.75, 0.05)
    optimizer = optimizer_of(config, model)
    rates = [group['lr'] for group in optimizer.param_groups]
    assert max(rates) == 2e-3
    assert min(rates) == pytest.approx(2e-3 * 0.75 ** (max(depths, 1) - 1))
    before = {key: p.detach().clone() for key, p in model.backbone.named_parameters()}
    batch = batch_of(config)
    losses = [model.train_step(batch, optimizer)['loss'].item() for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    changed = [key for key, p in model.backbone.named_parameters() if not torch.equal(p, before[key])]
    assert len(changed) > 0.9 * len(before)  # a last norm or a second class token may be of no use to feature maps


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(features_only=False, out_indices=None), r'takes four maps; the backbone gives 1: set four out_indices'),
        (dict(out_indices=(1, 2, 3)), 'takes four maps; the backbone gives 3'),
        (dict(embed_dim=32), r'embed_dim=24, .* \(2, 32, 4, 4\): set its width here'),
    ],
)
def test_a_backbone_that_does_not_fit_the_pyramid(changes, message):
    backbone = {k: v for k, v in {**THEIRS['timm ViT'][0], **changes}.items() if v is not None}
    model = built(recipe(backbone, None, 0.75))
    with pytest.raises(ValueError, match=message):
        model.extract_feat(torch.randn(2, 1, 32, 32))


def test_timm_maps_are_timms_own():
    """The maps that reach our neck: outputs of timm's blocks, patches only, row by row."""
    model = built(load_config(ROOT / 'configs' / TIMMS)).eval()
    theirs = timm.create_model(
        'vit_tiny_patch16_224', img_size=64, patch_size=8, in_chans=1, embed_dim=96, depth=4, num_heads=3, num_classes=0
    ).eval()
    theirs.load_state_dict(model.backbone.timm_model.model.state_dict(), strict=False)  # all but the last norm
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        maps, tokens = model.backbone(x), theirs.norm_pre(theirs._pos_embed(theirs.patch_embed(x)))
        for got, block in zip(maps, theirs.blocks, strict=True):
            tokens = block(tokens)
            torch.testing.assert_close(
                got, tokens[:, 1:].reshape(2, 8, 8, 96).permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5
            )
        assert [tuple(scale.shape[1:]) for scale in model.neck(maps)] == [(96, side, side) for side in (32, 16, 8, 4)]


def test_mmpretrains_features_are_its_own():
    model = built(load_config(ROOT / 'configs' / MMPRETRAINS)).eval()
    by_class_token = dict(load_config(ROOT / 'configs' / MMPRETRAINS).model.backbone, out_type='raw')
    theirs = MODELS.build(by_class_token)
    theirs.eval()
    theirs.load_state_dict(model.backbone.state_dict(), strict=False)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        tokens = theirs(x)[0]
        expected = model.backbone.ln2(tokens[:, 1:].mean(dim=1))
        torch.testing.assert_close(model.extract_feat(x)[0], expected, atol=1e-5, rtol=1e-5)


def test_a_trained_timm_backbone_is_evaluated(tmp_path):
    """What `tools/test.py` does, on the checkpoint of the shipped config."""
    runner, _ = trained(quick(load_config(ROOT / 'configs' / TIMMS, SHORT), tmp_path))
    runner.save_checkpoint(str(tmp_path), 'trained.pth', by_epoch=False)
    config = load_config(ROOT / 'configs' / TIMMS, {'test_dataloader.dataset.length': 4})
    _, metrics, _ = evaluate(config, str(tmp_path / 'trained.pth'), work_dir=str(tmp_path))
    assert 0 <= metrics['mIoU'] <= 100


# The page


def write_block(block: str, folder: Path) -> Path:
    leaf = folder / 'mine.py'
    leaf.write_text(block)
    return leaf


@pytest.mark.parametrize('project', ['mmpretrain', 'mmseg'])
def test_the_pages_stock_configs(project, their_checkpoint, tmp_path, monkeypatch):
    """Written to a file, run by the project's own Runner from the weights they name: a checkpoint of the project."""
    block = next(block for block in BLOCKS if f"_base_ = '{project}::" in block)
    assert len(block.splitlines()) <= 5
    theirs, file = their_checkpoint(project)
    monkeypatch.chdir(tmp_path)
    Path('pretrained.pth').symlink_to(file)
    leaf = write_block(block, tmp_path)
    wanted = Config.fromfile(leaf).model
    kept = {'model.pretrained': wanted.get('pretrained')} if project == 'mmseg' else {}
    if project == 'mmpretrain':
        kept = {'model.backbone.init_cfg': wanted.backbone.init_cfg.to_dict()}
    runner, watch = trained(small(leaf, tmp_path, kept))
    assert watch.unchanged(runner) == []
    for key, value in theirs.backbone.named_parameters():
        assert torch.equal(watch.before[key], value), key
    load_config(leaf)  # our own tools take the page's files too


OURS = [block for block in BLOCKS if "_base_ = 'beit_mm::" in block]


@pytest.mark.parametrize('block', OURS, ids=['timm-vit', 'mmpretrain-vit', 'timm-swin', 'timm-convnext'])
def test_the_pages_blocks_of_theirs_in_ours(block, tmp_path):
    assert len(block.splitlines()) <= 5
    config = load_config(write_block(block, tmp_path), SHORT)
    runner, watch = trained(quick(prepare(config, work_dir=str(tmp_path)), tmp_path))
    assert not isinstance(runner.model.backbone, BEiTViT)
    assert len(watch.unchanged(runner)) <= 0.1 * len(watch.before)


def test_every_block_of_the_page_is_tested():
    kinds = [re.search(r"_base_ = '(\w+)::|^(custom_hooks)", block) for block in BLOCKS]
    found = [kind[1] or kind[2] for kind in kinds]
    assert found == ['mmpretrain', 'mmseg', 'mmdet', 'custom_hooks', *['beit_mm'] * 4]
    page = (ROOT / 'docs/swap.md').read_text()
    for path in re.findall(r'`(configs/[^`]+)`', page):
        assert (ROOT / path).is_file()


def coco(folder: Path) -> dict:
    """Two images with a box each, in COCO's format; a data set's settings."""
    from PIL import Image

    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    images = [dict(id=i, file_name=f'{i}.png', height=64, width=96) for i in range(2)]
    boxes = [dict(id=i, image_id=i, category_id=1, bbox=[8, 8, 40, 30], area=1200, iscrowd=0) for i in range(2)]
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='person')])
    (folder / 'boxes.json').write_text(json.dumps(content))
    return dict(data_root=str(folder), ann_file='boxes.json', data_prefix=dict(img=''))


def test_the_pages_detector(tmp_path):
    """ViTDet's plain backbone in mmdet's RetinaNet: its own Runner, data set and loss; boxes need the compiled mmcv."""
    pytest.importorskip('mmdet', reason='mmdet is not installed: pip install mmdet==3.3.0 pycocotools')
    block = next(block for block in BLOCKS if 'mmdet::' in block)
    assert len(block.splitlines()) <= 5
    config = Config.fromfile(write_block(block, tmp_path))
    arch = dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48)
    changes = dict(arch=arch, img_size=64, out_indices=(0, 1, 2, 3))
    config.merge_from_dict({f'model.backbone.{key}': value for key, value in changes.items()})
    config.model.neck[0].embed_dim, config.model.neck[1].in_channels = 24, [24] * 4
    config.merge_from_dict({f'train_dataloader.dataset.{key}': value for key, value in coco(tmp_path).items()})
    loader = dict(num_workers=0, persistent_workers=False, batch_size=2)
    config.merge_from_dict({f'train_dataloader.{key}': value for key, value in loader.items()})
    for step in config.train_dataloader.dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (96, 64)
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
    runner, watch = trained(quick(config, tmp_path, iters=4))
    assert type(runner.model.backbone) is BEiTViT
    assert watch.unchanged(runner) == []
    assert watch.losses[-1] < watch.losses[0]
    if 'mmcv_without_compiled_ops' in compat.ACTIVE:
        runner.model.test_cfg.score_thr = runner.model.bbox_head.test_cfg.score_thr = 0.0
        batch = next(iter(runner.train_dataloader))
        with torch.no_grad(), pytest.raises(RuntimeError, match="mmcv op 'nms' needs the compiled mmcv"):
            runner.model.eval().test_step(batch)


def test_mmpretrain_beside_new_transformers(monkeypatch):
    """mmdet brings pycocotools, with which mmpretrain wants its language models, which transformers 5 has broken."""
    from mmpretrain.utils import dependency

    version = '5.0.0'
    monkeypatch.delitem(sys.modules, 'mmpretrain.models')
    monkeypatch.setattr(compat.importlib.util, 'find_spec', lambda name: name)
    monkeypatch.setattr(compat.importlib.metadata, 'version', lambda name: version)
    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
    assert 'language models are left out' in compat.mmpretrain_without_language_models()
    assert dependency.WITH_MULTIMODAL is False
    assert compat.mmpretrain_without_language_models() == ''
    version = '4.49.0'
    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
    assert compat.mmpretrain_without_language_models() == ''
    assert dependency.WITH_MULTIMODAL is True


# Twice, and side by side

PROCESS = """
import importlib, json, sys
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

path, options = sys.argv[1], json.loads(sys.argv[2])

def classes():
    found = []
    for scope in ('mmengine', 'mmpretrain', 'mmseg'):
        with DefaultScope.overwrite_default_scope(scope):
            found.append(MODELS.get('beit_mm.BEiTViT'))
    return found

assert 'beit_mm' not in sys.modules
config = Config.fromfile(path)  # its custom_imports import beit_mm, the first time
before = classes()
again = Config.fromfile(path)  # and the second
import beit_mm, beit_mm.models
importlib.reload(beit_mm), importlib.reload(beit_mm.models)
assert all(found is before[0] is beit_mm.models.BEiTViT for found in before + classes()), classes()
assert MODELS.get('BEiTViT') is None and MODELS.get('BEiT') is None  # those names are theirs
assert again.model == config.model
config.merge_from_dict(options)
runner = Runner.from_cfg(config)
runner.train()
assert type(runner.model.backbone) is before[0]
print('losses', *runner.message_hub.get_scalar('train/loss').data[0])
"""


@pytest.mark.slow
def test_imported_twice_in_two_processes_at_once(tmp_path):
    """As the projects' own tools/train.py do it, in fresh processes that start together."""
    with contextlib.ExitStack() as stack:
        running = []
        for name in (IN_MMPRETRAIN, IN_MMSEG):
            path = ROOT / 'configs' / name
            no_validation = dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator'))
            options = {**on_scenes(Config.fromfile(path)), **no_validation, 'work_dir': str(tmp_path / path.stem)}
            options = {key: value for key, value in options.items() if not key.startswith('val_dataloader.')}
            command = ['-c', PROCESS, path, json.dumps(options)]
            running.append(stack.enter_context(started(*command, PYTHONPATH=str(ROOT))))
        said = [(*process.communicate(timeout=300), process.returncode) for process in running]
    for out, err, code in said:
        assert code == 0, err[-2000:]
        losses = [float(loss) for loss in out.splitlines()[-1].split()[1:]]
        assert len(losses) == 2
        assert all(map(math.isfinite, losses))
