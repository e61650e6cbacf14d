"""An official segmentation checkpoint, as it is: tested by our config, then fine-tuned."""

from pathlib import Path

import pytest
import torch
from official import DATA, golden
from safetensors import safe_open
from test_configs import ROOT

from beit_mm.apis import init_model
from beit_mm.checkpoints.load import CheckpointError, read, write
from beit_mm.data.export import export
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import evaluate, run

LEAF = 'configs/segmentation/beit-plus-base-p16_upernet-official-norm_8xb2-160k_ade20k-640.py'
SIZE, CHANNELS = 64, 12


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('ade')
    export(root / 'ade', 'ade20k', train=6, val=3, size=64)
    return root / 'ade'


def config(data: Path, **others):
    """The shipped recipe with the golden's small backbone, in crops of 64 px."""
    meta, _, _ = golden('seg_backbone_relpos')
    dim = meta['embed_dim']
    arch = dict(embed_dims=dim, num_layers=meta['depth'], num_heads=meta['num_heads'], feedforward_channels=4 * dim)
    options = {
        'model.backbone.arch': dict(arch, _delete_=True),
        'model.backbone.img_size': SIZE,
        'model.backbone.out_indices': tuple(meta['out_indices']),
        'model.backbone.layer_scale_init_value': 0.1,
        'model.neck.embed_dim': dim,
        'model.decode_head.in_channels': [dim] * 4,
        'model.decode_head.channels': CHANNELS,
        'model.auxiliary_head.in_channels': dim,
        'model.auxiliary_head.channels': CHANNELS,
        'model.test_cfg.crop_size': (SIZE, SIZE),
        'model.test_cfg.stride': (42, 42),
        'data_preprocessor.size': (SIZE, SIZE),
        'train_dataloader.dataset.pipeline.2.scale': (256, SIZE),
        'train_dataloader.dataset.pipeline.3.crop_size': (SIZE, SIZE),
        'test_dataloader.dataset.pipeline.1.scale': (256, SIZE),
        'val_dataloader.dataset.pipeline.1.scale': (256, SIZE),
        'load_from': None,
    }
    for name in ('train', 'val', 'test'):
        options[f'{name}_dataloader.dataset.data_root'] = str(data)
        options.update({f'{name}_dataloader.num_workers': 0, f'{name}_dataloader.persistent_workers': False})
    options.update({f'tta_pipeline.1.transforms.0.{i}.scale': s for i, s in enumerate((64, 64, 64, 80, 96, 112))})
    return load_config(ROOT / LEAF, {**options, **others})


@pytest.fixture(scope='module')
def official(data, tmp_path_factory) -> str:
    """A file as the official training code leaves it: {'meta', 'state_dict', 'optimizer'}, its names, its buffers."""
    with safe_open(DATA / 'seg_backbone_relpos.safetensors', 'pt') as file:
        keys = [key for key in file.keys() if key.startswith('model.')]  # noqa: SIM118
        weights = {f'backbone.{key.removeprefix("model.")}': file.get_tensor(key) for key in keys}
    torch.manual_seed(0)
    own = init_model(config(data), _own_checkpoint(data, tmp_path_factory)).state_dict()
    heads = {key: value.clone() for key, value in own.items() if 'head.' in key}
    heads['decode_head.conv_seg.bias'][12:] -= 1e3  # classes that the exported scenes do not have
    path = tmp_path_factory.mktemp('official') / 'beit_base_patch16_640_pt22k_ft22ktoade20k.pth'
    meta = dict(CLASSES=[f'class {i}' for i in range(150)], env_info='', mmseg_version='0.11.0')
    torch.save(dict(meta=meta, state_dict={**weights, **heads}, optimizer={}), path)
    return str(path)


def _own_checkpoint(data, tmp_path_factory) -> str:
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(dict(config(data).model, data_preprocessor=None))
    path = tmp_path_factory.mktemp('own') / 'own.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def test_features_are_the_goldens(official, data):
    _, _, io = golden('seg_backbone_relpos')
    model = init_model(config(data), official)
    with torch.no_grad():
        for i, feature in enumerate(model.extract_feat(io['image'])):
            torch.testing.assert_close(feature, io[f'feature_{i}'], atol=1e-5, rtol=2e-6)  # features reach 10
    assert model.dataset_meta['classes'][7] == 'class 7'


def test_it_is_tested_and_shown(official, data, tmp_path):
    runner, scores, _ = evaluate(config(data), official, work_dir=str(tmp_path), show_dir=str(tmp_path / 'show'))
    assert 0 < scores['mIoU'] < 100
    assert len(runner.test_dataloader.dataset) == 3
    assert len(list((tmp_path / 'show').glob('*.png'))) == 3
    several, merged, _ = evaluate(config(data), official, work_dir=str(tmp_path), tta=True)
    assert several.cfg.protocol.endswith(', multi-scale and flip')
    assert merged['mIoU'] != scores['mIoU']


def test_a_segmentor_goes_on_with_other_classes(official, data, tmp_path):
    """150 classes become 12: backbone and necks are kept, the classifiers start anew, by name and aloud."""
    classes = {f'{name}_dataloader.dataset.type': 'beit_mm.MaskFolder' for name in ('train', 'val', 'test')}
    for name in ('train', 'val', 'test'):
        classes[f'{name}_dataloader.dataset.metainfo'] = dict(classes=[f'c{i}' for i in range(12)])
        classes[f'{name}_dataloader.dataset.reduce_zero_label'] = True
    classes.update({'model.decode_head.num_classes': 12, 'model.auxiliary_head.num_classes': 12})
    short = {'train_cfg.max_iters': 1, 'train_cfg.val_interval': 5, 'load_from': official}
    still = {'optim_wrapper.optimizer.lr': 0.0}
    runner = run(config(data, **classes, **short, **still), work_dir=str(tmp_path))
    log = next(tmp_path.glob('*/*.log')).read_text()
    line = next(line for line in log.splitlines() if 'reinitialised' in line)
    assert 'WARNING' in line
    names = [f'{head}.conv_seg.{part}' for head in ('decode_head', 'auxiliary_head') for part in ('weight', 'bias')]
    assert f'4 reinitialised ({names[0]}, ' in line
    assert all(name in line for name in names[:3])
    _, weights, _ = golden('seg_backbone_relpos')
    assert torch.equal(runner.model.backbone.layers[1].attn.qkv.weight, weights['layers.1.attn.qkv.weight'])
    kept = read(official)['state_dict']['decode_head.fpn_bottleneck.conv.weight']
    assert torch.equal(runner.model.decode_head.fpn_bottleneck.conv.weight, kept)
    assert runner.model.decode_head.conv_seg.weight.shape[0] == 12
    # and once more, on as many classes that mean something else: kept, and said so
    last = str(tmp_path / 'iter_1.pth')
    for name in ('train', 'val', 'test'):
        classes[f'{name}_dataloader.dataset.metainfo'] = dict(classes=['c0', *(f'd{i}' for i in range(1, 12))])
    runner = run(config(data, **classes, **{**short, **still, 'load_from': last}), work_dir=str(tmp_path / 'b'))
    log = next((tmp_path / 'b').glob('*/*.log')).read_text()
    assert "was trained on other classes of the same number ('c1' where this data set has 'd1')" in log
    assert "reinit=('auxiliary_head.conv_seg', 'decode_head.conv_seg')" in log
    assert torch.equal(
        runner.model.decode_head.conv_seg.weight, read(last)['state_dict']['decode_head.conv_seg.weight']
    )


def test_a_damaged_one_is_refused(official, data, tmp_path):
    content = read(official)
    content['state_dict'].pop('backbone.fpn2.0.weight')
    write(content, tmp_path / 'less.pth')
    with pytest.raises(CheckpointError, match=r'less\.pth: .*upsample_2x'):
        init_model(config(data), str(tmp_path / 'less.pth'))
