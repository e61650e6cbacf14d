"""The embedded data as files: the stock data set classes read back the same pixels and labels."""

import json

import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope, init_default_scope

from beit_mm.data import embedded
from beit_mm.data.export import export


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


def expected(split, index, size, grey=False):
    return embedded.scene(0, split, index, size, grey)


@pytest.mark.parametrize('kind', ['mmpretrain.ImageNet', 'mmpretrain.CustomDataset'])
def test_imagefolder(tmp_path, kind):
    export(tmp_path / 'd', 'imagefolder', train=30, val=5, size=48)
    where = (
        dict(split='train')
        if kind.endswith('ImageNet')
        else dict(data_prefix='train', classes=sorted(embedded.CLASSES))
    )
    names = sorted(embedded.CLASSES)
    if kind.endswith('ImageNet'):
        where['metainfo'] = dict(classes=names)
    pipeline = [dict(type='LoadImageFromFile', imdecode_backend='pillow', _scope_='mmpretrain')]
    dataset = DATASETS.build(dict(type=kind, data_root=str(tmp_path / 'd'), pipeline=pipeline, **where))
    assert len(dataset) == 30
    for sample in dataset:
        index = int(sample['img_path'].rsplit('/', 1)[1][:-4])
        scene = expected('train', index, 48)
        np.testing.assert_array_equal(sample['img'][..., ::-1], scene.image)  # mmcv loads BGR
        assert names[sample['gt_label']] == embedded.CLASSES[scene.label]


def test_ade20k(tmp_path):
    import mmseg.datasets  # noqa: F401

    export(tmp_path / 'd', 'ade20k', train=5, val=6, size=48, grey=True)
    init_default_scope('mmseg')
    dataset = DATASETS.build(
        dict(
            type='mmseg.ADE20KDataset',
            data_root=str(tmp_path / 'd'),
            data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
            img_suffix='.png',
            pipeline=[
                dict(type='LoadImageFromFile', color_type='grayscale'),
                dict(type='LoadAnnotations', reduce_zero_label=True),
            ],
        )
    )
    assert len(dataset) == 6
    for index, sample in enumerate(dataset):
        scene = expected('val', index, 48, grey=True)
        np.testing.assert_array_equal(sample['img'].reshape(48, 48, 1), scene.image)
        np.testing.assert_array_equal(sample['gt_seg_map'], scene.mask)


def test_cifar(tmp_path):
    export(tmp_path / 'd', 'cifar', train=23, val=7, size=32)
    md5s = json.loads((tmp_path / 'd' / 'cifar-10-batches-py' / 'md5s.json').read_text())

    def build(split, md5s):
        return DATASETS.build(
            dict(type='beit_mm.CIFAR10', data_root=str(tmp_path / 'd'), split=split, md5s=md5s, pipeline=[])
        )

    for split, ours, count in (('train', 'train', 23), ('test', 'val', 7)):
        dataset = build(split, md5s)
        assert len(dataset) == count
        assert dataset.metainfo['classes'] == embedded.CLASSES
        for index, sample in enumerate(dataset):
            scene = expected(ours, index, 32)
            np.testing.assert_array_equal(sample['img'], scene.image)
            assert sample['gt_label'] == scene.label
    with pytest.raises(ValueError, match=r'batches\.meta: md5 is .* expected 5ff9c542aee3614f3951f8cda6e48888'):
        build('train', None)  # the published md5s: these are other pixels


def test_refuses_to_overwrite(tmp_path):
    (tmp_path / 'mine.txt').write_text('keep')
    with pytest.raises(FileExistsError, match='not empty'):
        export(tmp_path, 'ade20k', train=5, val=1)
    assert (tmp_path / 'mine.txt').read_text() == 'keep'


def test_credits_name_every_photograph(tmp_path):
    export(tmp_path / 'd', 'imagefolder', train=5, val=1, size=48)
    text = (tmp_path / 'd' / 'CREDITS.txt').read_text()
    for photograph in embedded.PHOTOGRAPHS:
        assert photograph.sha256 in text
        assert photograph.licence in text
