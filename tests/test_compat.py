"""compat.py and registry.py: applied once, undone by nothing, and the promises to OpenMMLab users' configs."""

import copy
import pickle

import mmengine
import mmpretrain.registry
import mmseg.registry
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, OPTIMIZERS, DefaultScope
from mmengine.runner import Runner

from beit_mm import compat


def test_every_workaround_is_idempotent():
    for workaround in compat.WORKAROUNDS:
        assert workaround.apply() == '' or workaround.apply is compat.mmcv_without_compiled_ops
        assert workaround.apply.__doc__
        assert workaround.upstream


def test_mmseg_imports_and_a_missing_op_says_what_to_install():
    import mmcv.ops
    import mmseg.models  # noqa: F401

    if 'mmcv_without_compiled_ops' in compat.ACTIVE:
        with pytest.raises(RuntimeError, match=f'pip install mmcv=={mmcv.__version__}'):
            mmcv.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)


LEAF = """
_base_ = 'beit_mm::{base}'
custom_imports = dict(imports=['beit_mm'])
default_scope = '{scope}'
"""


@pytest.mark.parametrize(
    ('scope', 'base', 'kind'),
    [
        ('mmpretrain', 'classification/beit-mini-p8_ft_1xb64-100_embedded-64.py', 'ImageClassifier'),
        ('mmseg', 'segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py', 'EncoderDecoder'),
    ],
)
def test_a_leaf_inherits_by_package_and_builds(tmp_path, scope, base, kind):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(LEAF.format(base=base, scope=scope))
    config = Config.fromfile(leaf)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(config.model)
    assert type(model).__name__ == kind
    assert type(model.backbone).__module__ == 'beit_mm.models.backbone'


def test_a_missing_package_config_is_named(tmp_path):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text("_base_ = 'beit_mm::classification/nothing.py'")
    with pytest.raises(FileNotFoundError, match=r'leaf\.py: _base_=.beit_mm::classification/nothing\.py'):
        Config.fromfile(leaf)


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmseg', 'beit_mm'])
def test_types_resolve_by_prefix_from_every_scope(scope):
    arch = dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)
    registry = {'mmpretrain': mmpretrain.registry.MODELS, 'mmseg': mmseg.registry.MODELS}.get(scope, MODELS)
    with DefaultScope.overwrite_default_scope(scope):
        built = registry.build(dict(type='beit_mm.BEiTViT', arch=arch, img_size=32))
    assert built.embed_dims == 16
    assert mmengine.registry.MODELS.get('BEiT') is None  # mmseg and mmpretrain own that name


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmseg', 'beit_mm'])
@pytest.mark.parametrize(
    ('registry', 'name', 'arguments', 'module'),
    [
        ('TRANSFORMS', 'MaskPatches', {}, 'beit_mm.data.transforms'),
        ('DATASETS', 'EmbeddedDigits', dict(pipeline=[dict(type='beit_mm.PackMIM')]), 'beit_mm.data.datasets'),
        ('METRICS', 'IoUMetric', {}, 'beit_mm.engine.metrics'),
        ('HOOKS', 'CodebookInitHook', {}, 'beit_mm.engine.hooks'),
        ('MODELS', 'ViTPyramid', dict(embed_dim=4), 'beit_mm.models.pyramid'),
    ],
)
def test_every_kind_resolves_by_prefix(scope, registry, name, arguments, module):
    package = {'mmpretrain': mmpretrain, 'mmseg': mmseg}.get(scope, mmengine)
    with DefaultScope.overwrite_default_scope(scope):
        built = getattr(package.registry, registry).build(dict(type=f'beit_mm.{name}', **arguments))
    assert type(built).__module__ == module


def test_the_projects_own_names_are_left_alone():
    assert mmseg.registry.METRICS.get('IoUMetric').__module__ == 'mmseg.evaluation.metrics.iou_metric'
    assert mmseg.registry.MODELS.get('BEiT').__module__ == 'mmseg.models.backbones.beit'
    assert mmpretrain.registry.MODELS.get('BEiTViT').__module__ == 'mmpretrain.models.backbones.beit'


def test_the_mending_line():
    found = dict(compat.TESTED)
    assert compat.mending_command(found) == ''
    found['torch'] = '2.13.0+cpu'
    assert compat.mending_command(found) == ''
    found['setuptools'], found['ftfy'] = '84.0.0', ''
    assert compat.mending_command(found) == 'pip install setuptools==80.10.2 ftfy==6.3.1'


def test_a_data_loader_inherited_by_package_collates(tmp_path):
    """mmengine hands `_scope_`, its own mark, to the collate function."""
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'beit_mm::tokenizer/dvae-512_1xb64-300_embedded-32.py'\n")
    loader = Config.fromfile(path).train_dataloader
    loader.dataset.length, loader.batch_size = 4, 2
    assert loader.collate_fn['_scope_'] == 'mmpretrain'
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    assert batch['tokens_view'].shape == (2, 1, 32, 32)
    assert batch['tokens_view'].float().std() > 1


def test_adafactor_is_that_of_transformers():
    transformers = pytest.importorskip('transformers')
    weights = [torch.nn.Parameter(torch.ones(3))]
    made = OPTIMIZERS.build(dict(type='Adafactor', params=weights, lr=1e-3, relative_step=False))
    assert type(made) is transformers.Adafactor
    assert made.defaults['lr'] == 1e-3


@pytest.mark.parametrize('most', [1000, 7])
def test_histories_that_grow_in_place_are_those_of_mmengine(most):
    """Against its own update, with copies, pickles and somebody who cuts the history in between."""
    plain = HistoryBuffer.update.__wrapped__
    ours, theirs = HistoryBuffer(max_length=most), HistoryBuffer(max_length=most)
    values = np.random.default_rng(0).normal(size=300).tolist()
    for i, value in enumerate(values):
        before, kept = ours.data[0], ours.data[0].copy()
        ours.update(value, 1 + i % 3)
        plain(theirs, value, 1 + i % 3)
        assert before.tolist() == kept.tolist()  # what was handed out does not change
        for mine, its in zip(ours.data, theirs.data, strict=True):
            assert mine.dtype == its.dtype
            assert mine.tolist() == its.tolist()
        if i == 100:
            ours = copy.deepcopy(ours)
        if i == 150:
            ours = pickle.loads(pickle.dumps(ours))
        if i == 200:
            for buffer in (ours, theirs):
                buffer._log_history, buffer._count_history = buffer._log_history[:5], buffer._count_history[:5]
    assert ours.mean(20) == theirs.mean(20)
    with pytest.raises(TypeError, match='log_val must be int or float'):
        ours.update('1')
