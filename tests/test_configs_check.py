"""engine/configs.py: mistakes are named with the nearest right name, and OpenMMLab's own configs pass."""

import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config

from beit_mm.engine.configs import ConfigError, check_config, load_config, parse_overrides
from beit_mm.engine.places import place_of
from beit_mm.engine.values import wrong_values

LEAF = 'configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'
SEGMENTOR = 'configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py'
# Of mmseg's wheel; its OHEM settings stand in `models`, which nobody reads: they have no effect.
HAS_A_MISTAKE = 'bisenetv2_fcn_4xb4-ohem-160k_cityscapes-1024x1024.py'
# Folders whose types are registered only where mmdet, transformers, pycocotools, ... are installed
NEED_MORE_PACKAGES = {
    'mask2former', 'maskformer', 'blip', 'blip2', 'chinese_clip', 'clip', 'flamingo', 'glip', 'llava', 'minigpt4',
    'ofa', 'otter',
}  # fmt: skip
SAMPLED = 24  # stock configs of each project; all 1,219 were tried once


@pytest.mark.parametrize(
    ('addition', 'parts'),
    [
        ('train_dataloadr = dict(batch_size=2)', ['`train_dataloadr` is read by nobody', '`train_dataloader`']),
        ('custom_hook = []', ['`custom_hook`', '`custom_hooks`']),
        (
            "model = dict(backbone=dict(type='beit_mm.BEiTVit'))",
            ["model.backbone.type='beit_mm.BEiTVit'", "did you mean 'beit_mm.BEiTViT'"],
        ),
        (
            'model = dict(backbone=dict(drop_path=0.2))',
            ["model.backbone.drop_path=0.2: beit_mm.BEiTViT has no argument 'drop_path'", "'drop_path_rate'"],
        ),
        (
            "val_evaluator = dict(_delete_=True, type='Acuracy')",
            ["val_evaluator.type='Acuracy' is not registered in scope 'mmpretrain'", "'Accuracy'"],
        ),
        (
            "param_scheduler = [dict(type='CosineAnnealingLR', T_mx=3)]",
            ["param_scheduler[0].T_mx=3: CosineAnnealingLR has no argument 'T_mx'", "did you mean 'T_max'"],
        ),
        (
            "train_dataloader = dict(dataset=dict(pipeline=[dict(type='PackInput')]))",
            ["train_dataloader.dataset.pipeline[0].type='PackInput'", "'PackInputs'"],
        ),
        (
            "custom_hooks = [dict(type='beit_mm.CodebookInitHook', num_image=4)]",
            ['custom_hooks[0].num_image=4', "did you mean 'num_images'"],
        ),
    ],
)
def test_mistakes_in_a_file(tmp_path, addition, parts):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = ['{Path(LEAF).resolve()}']\n{addition}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f'{path}, line 2: ')
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('model = dict(', 'line 1: not valid Python'),
        ("_base_ = ['nothing.py']", r'cannot be read: .*nothing\.py'),
        ('model = dict(type=backbone)', "cannot be read: name 'backbone' is not defined"),
        ('size = 224 // 0', 'cannot be read: .*zero'),
        ("custom_imports = dict(imports=['no_such_module'], allow_failed_imports=False)", 'no_such_module'),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / 'mine.py'
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_gets_the_nearest_names():
    with pytest.raises(ConfigError, match='there is no such config') as caught:
        load_config(LEAF.replace('_ft_', '_fine_'))
    assert LEAF in str(caught.value)


@pytest.mark.parametrize(
    ('overrides', 'parts'),
    [
        ({'optim_wraper.optimizer.lr': 1}, ['optim_wraper', 'did you mean `optim_wrapper`']),
        ({'optim_wrapper.optimizr.lr': 1}, ['`optimizr`', 'did you mean `optim_wrapper.optimizer`']),
        ({'train_cfg.max_iter': 3}, ['no `max_iter` in train_cfg', '`train_cfg.max_iters`']),
        ({'model.hed.num_classes': 3}, ['no `hed` in model', '`model.head`']),
        ({'model.backbone.drop_path': 0.2}, ['no `drop_path` in model.backbone', '`model.backbone.drop_path_rate`']),
        ({'train_dataloader.batchsize': 2}, ['no `batchsize`', '`train_dataloader.batch_size`']),
        ({'train_dataloader.dataset.pipeline.99.size': 2}, ['is a list of', "'99' is no index of it"]),
        ({'train_dataloader.dataset.num_images': 2}, ['no `num_images`', 'there are', ' length, ']),
        ({'randomness.sed': 2}, ['no `sed` in randomness', '`randomness.seed`']),
        ({'model.backbone.arch.embed_dims.x': 2}, ['model.backbone.arch.embed_dims=96 has no keys']),
        ({'model.backbone.img_size': 64, 'model.backbone.typ': 'x'}, ['`typ`', '`model.backbone.type`']),
    ],
)
def test_mistakes_in_overrides(overrides, parts):
    with pytest.raises(ConfigError, match='--cfg-options') as caught:
        load_config(LEAF, overrides)
    for part in parts:
        assert part in str(caught.value)


def test_right_overrides_are_applied():
    config = load_config(
        LEAF,
        {
            'train_cfg.max_iters': 7,  # what is there
            'model.backbone.attn_drop_rate': 0.1,  # an argument that is not
            'optim_wrapper.clip_grad.max_norm': 3.0,
            'train_dataloader.drop_last': True,
            'auto_scale_lr.base_batch_size': 64,
            'custom_hooks': [{'type': 'EMAHook', 'momentum': 1e-4, 'priority': 'NORMAL'}],
        },
    )
    assert config.train_cfg.max_iters == 7
    assert config.model.backbone.attn_drop_rate == 0.1
    assert config.optim_wrapper.clip_grad.max_norm == 3.0
    assert config.train_dataloader.drop_last is True
    assert config.auto_scale_lr.base_batch_size == 64
    assert config.custom_hooks[0].momentum == 1e-4


@pytest.mark.parametrize(
    ('package', 'stock'),
    [
        ('mmseg', 'beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py'),
        ('mmpretrain', 'beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k.py'),
    ],
)
def test_stock_configs_with_only_the_prefix_changed(package, stock):
    """mmseg's and mmpretrain's spellings pass the check of our own tools, as the backbone takes them."""
    path = Path(importlib.util.find_spec(package).origin).parent / '.mim/configs' / stock
    ours = {'model.backbone.type': 'beit_mm.BEiTViT', 'model.pretrained': None, 'model.backbone.init_cfg': None}
    if package == 'mmpretrain':
        del ours['model.pretrained']
    config = load_config(path, ours)
    assert config.model.backbone.type == 'beit_mm.BEiTViT'
    if package == 'mmseg':
        config = load_config(path, {**ours, 'model.backbone.embed_dims': 384})
        assert config.model.backbone.embed_dims == 384


@pytest.mark.parametrize(
    ('place', 'value'), [('pretrained', 'b.pth'), ('init_cfg', dict(type='Pretrained', checkpoint='b.pth'))]
)
def test_weights_for_a_whole_model_without_a_report_are_refused(tmp_path, place, value):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = ['{Path(LEAF).resolve()}']\nmodel = dict({place}={value!r})\n")
    with pytest.raises(ConfigError, match=rf'model\.{place} would load whatever .* load_from=FILE'):
        load_config(path)


def test_overrides_are_python_literals_or_text():
    pairs = ['a.b=1e-3', 'c=[1, 2]', 'd=(64, 32)', 'e=true', 'f=None', 'g=configs/x.py', 'h=a=b', 'i=']
    assert parse_overrides(pairs) == {
        'a.b': 1e-3, 'c': [1, 2], 'd': (64, 32), 'e': True, 'f': None, 'g': 'configs/x.py', 'h': 'a=b', 'i': '',
    }  # fmt: skip
    for wrong in ('lr', '=1'):
        with pytest.raises(ConfigError, match='write key=value'):
            parse_overrides([wrong])


def test_helper_variables_and_prefixes_are_fine(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        f"""_base_ = ['{Path(SEGMENTOR).resolve()}']
crop_size = (64, 64)
num_classes = 12
norm = dict(type='BN')  # a helper variable with a type that no registry needs to know
model = dict(auxiliary_head=None, decode_head=dict(norm_cfg=dict(type='BN', requires_grad=True)))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', priority='LOW'))
"""
    )
    assert load_config(path).crop_size == (64, 64)


def test_new_style_configs(tmp_path):
    """Types given as classes are checked as well."""
    (tmp_path / 'base.py').write_text(
        """from mmpretrain.models import ImageClassifier, LinearClsHead
from beit_mm.models import BEiTViT
model = dict(type=ImageClassifier, backbone=dict(type=BEiTViT, arch='deit-tiny', img_size=32),
             head=dict(type=LinearClsHead, num_classes=3, in_channels=192))
default_scope = 'mmpretrain'
"""
    )
    start = 'from mmengine.config import read_base\nwith read_base():\n    from .base import *\n'
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(start)
    assert load_config(leaf, {'model.backbone.drop_path_rate': 0.3}).model.backbone.drop_path_rate == 0.3
    with pytest.raises(ConfigError, match=r'`model\.backbone\.drop_path_rate`'):
        load_config(leaf, {'model.backbone.drop_path': 0.3})
    leaf.write_text(start + 'model.update(dict(backbone=dict(drop_path=0.1)))\n')
    with pytest.raises(ConfigError, match=r"model\.backbone\.drop_path=0\.1: .* did you mean 'drop_path_rate'"):
        load_config(leaf)


def stock_configs(package: str) -> list[Path]:
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0]) / '.mim' / 'configs'
    leaves = sorted(p for p in root.rglob('*.py') if '_base_' not in p.parts)
    return leaves[:: max(1, len(leaves) // SAMPLED)]


@pytest.mark.parametrize('package', ['mmpretrain', 'mmseg'])
def test_no_false_alarm_on_stock_configs(package):
    checked = 0
    for path in stock_configs(package):
        if path.name == HAS_A_MISTAKE or path.parent.name in NEED_MORE_PACKAGES:
            continue
        text = path.read_text()
        if 'mmdet' in text or 'with read_base()' in text:
            continue
        config = Config.fromfile(path)
        if 'default_scope' not in config:
            continue  # a model only, for mmpretrain.get_model; no Runner takes it
        check_config(config, path.name)
        checked += 1
    assert checked >= 15


def stock(package: str, pattern: str) -> Config:
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0]) / '.mim' / 'configs'
    return Config.fromfile(next(root.rglob(pattern)))


@pytest.mark.parametrize(
    ('package', 'pattern'),
    [
        ('mmpretrain', 'simsiam_resnet50_8xb32-coslr-100e_in1k.py'),  # a hook's priority
        ('mmpretrain', 'resnest50_32xb64_in1k.py'),  # RandAugment's policies
        ('mmpretrain', '*lora*.py'),  # targets=[dict(type='qkv')] names layers
        ('mmpretrain', 'beit-base-p16_8xb128-coslr-100e_in1k.py'),
        ('mmseg', 'beit-base_upernet_8xb2-160k_ade20k-640x640.py'),
        ('mmseg', 'swin-tiny-patch4-window7_upernet_1xb8-20k_levir-256x256.py'),  # albumentations' types
    ],
)
def test_what_was_once_a_false_alarm(package, pattern):
    config = stock(package, pattern)
    check_config(config, pattern)


def test_a_mistake_in_mmseg():
    with pytest.raises(ConfigError, match='`models` is read by nobody; did you mean `model`'):
        check_config(stock('mmseg', HAS_A_MISTAKE), HAS_A_MISTAKE)


@pytest.mark.parametrize('head', ['decode_head', 'auxiliary_head'])
def test_one_class_is_refused(head):
    """mmseg trains on it, with a loss of 0."""
    with pytest.raises(ConfigError, match=rf'model\.{head}\.num_classes=1: .*num_classes=2.*mask_values=\(0, 255\)'):
        load_config(
            'configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py', {f'model.{head}.num_classes': 1}
        )


def test_places_of_what_is_wrong(tmp_path):
    """The last file that gives a path a value, through bases, calls, literals and lists."""
    (tmp_path / 'base.py').write_text("model = dict(\n    head=dict(type='A'),\n    neck={'type': 'B',\n'k': 1},\n)\n")
    path = tmp_path / 'mine.py'
    path.write_text(
        "_base_ = ['base.py']\n\nmodel = dict(head=dict(\n    width=2))\nhooks = [\n    dict(a=1),\n    dict(b=2),\n]\n"
    )
    for dotted, file, line in (
        ('model.head.width', 'mine.py', 4),
        ('model.head.type', 'base.py', 2),
        ('model.neck.k', 'base.py', 4),
        ('hooks[1].b', 'mine.py', 7),
        ('hooks', 'mine.py', 5),
    ):
        assert place_of(path, dotted) == f'{tmp_path / file}, line {line}'
    assert place_of(path, 'model.head.depth') == str(path)  # of the command line, or computed


@pytest.mark.parametrize(
    ('dotted', 'value', 'right'),
    [
        ('train_cfg.max_iters', 2.5, 1e5),
        ('train_cfg.val_interval', 0, 1),
        ('train_dataloader.batch_size', True, 2),
        ('train_dataloader.num_workers', -1, 0),
        ('optim_wrapper.optimizer.lr', 'fast', 0.1),
        ('optim_wrapper.clip_grad.max_norm', '3', 3),
        ('randomness.seed', 'abc', None),
        ('default_hooks.checkpoint.interval', 0, -1),
        ('custom_hooks', [1], []),
        ('optim_wrapper.optimizer', "dict(type='SGD')", dict(type='SGD')),
        ('param_scheduler', dict(end=3), dict(generator=[dict(type='LinearLR')])),
        ('load_from', 5, None),
    ],
)
def test_values_of_a_wrong_kind(dotted, value, right):
    def config(last):
        for key in reversed(dotted.split('.')):
            last = {key: last}
        return last

    ((where, said),) = wrong_values(config(value))
    assert where == dotted
    assert said.startswith(f'{dotted}={value!r}: must be ')
    assert list(wrong_values(config(right))) == []


def test_batch_augmentations_of_mmpretrain(tmp_path):
    """Registered in a registry that is below none of mmengine's."""
    path = tmp_path / 'mine.py'
    start = f"_base_ = ['{Path(LEAF).resolve()}']\nmodel = dict(data_preprocessor=dict(batch_augments=dict(augments=["
    path.write_text(start + "dict(type='Mixup', alpha=0.8)])))\n")
    load_config(path)
    path.write_text(start + "dict(type='Mixupp', alpha=0.8)])))\n")
    with pytest.raises(ConfigError, match=r"augments\[0\]\.type='Mixupp' is not registered .* 'Mixup'"):
        load_config(path)
    path.write_text(start + "dict(type='Mixup', alfa=0.8)])))\n")
    with pytest.raises(ConfigError, match=r"mine\.py, line 2: .*alfa=0\.8: Mixup has no argument 'alfa'.*'alpha'"):
        load_config(path)
