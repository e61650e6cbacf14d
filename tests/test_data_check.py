"""data/check.py and engine/data_check.py: what is wrong with masks is named before the first step, and nothing else."""

import re

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, Resize
from mmseg.models import UPerHead
from PIL import Image
from torch import nn

from beit_mm.data.check import check_dataset, check_pipeline
from beit_mm.data.classes import check_names
from beit_mm.data.datasets import EmbeddedScenes
from beit_mm.data.failures import DataError
from beit_mm.data.loading import LoadImage
from beit_mm.data.masks import LoadMask, MaskFolder
from beit_mm.data.verify import Report
from beit_mm.engine.configs import load_config
from beit_mm.engine.data_check import check_batch, check_data_of
from beit_mm.engine.errors import ConfigError
from beit_mm.engine.launch import run

RECIPE = 'configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py'


def folder(root, masks, classes=('a', 'b', 'c'), stock=False, **options):
    for name, mask in masks.items():
        for kind, array in (('images', np.zeros((8, 8, 3), np.uint8)), ('masks', mask)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / kind / f'{name}.png')
    shared = dict(data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='masks'))
    shared.update(metainfo=dict(classes=classes), **options)
    if stock:
        return BaseSegDataset(**shared, img_suffix='.png', pipeline=[LoadImage(), LoadAnnotations()])
    return MaskFolder(**shared, pipeline=[LoadImage(), LoadMask()])


def checked(dataset, num_classes=3, **options) -> Report:
    report = Report()
    check_dataset(dataset, num_classes, 'train', report, **options)
    assert all(remedy for _, remedy in report.problems)
    return report


def halves(*ids):
    """(8, 8): columns of these ids."""
    return np.array(ids, np.uint8).repeat(8 // len(ids))[None].repeat(8, axis=0)


def test_good_data_are_described(tmp_path):
    report = checked(folder(tmp_path, dict(x=halves(0, 1), y=halves(0, 255))))
    assert report.problems == []
    assert report.facts == [
        'train: images with masks: 2 of 2 good (2 there)',
        'train: of 2 masks 25.0 % of the pixels are ignored; of the rest: a 66.7 %, b 33.3 %',
        'train: no pixel of c (1 of 3 classes) in any mask: their IoU will be nan or 0',
    ]


def test_a_sample_says_that_it_is_one(tmp_path):
    report = checked(folder(tmp_path, {str(i): halves(0, 1) for i in range(9)}), sample=4)
    assert report.facts[0] == 'train: images with masks: 4 of 4 good (9 there)'
    assert report.facts[2].endswith('no pixel of c (1 of 3 classes) in these 4 of 9 masks')


@pytest.mark.parametrize('stock', [False, True])
@pytest.mark.parametrize(
    ('mask', 'said'),
    [
        (halves(0, 7), r'(x\.png: holds 7;|the ids 7, and 3 classes are 0 to 2, 255 being ignored)'),
        (np.zeros((8, 6), np.uint8), r'x\.png: the mask is 8 x 6 pixels .* 8 x 8'),
        (np.zeros((8, 8, 3), np.uint8), r'x\.png: (is a picture of|the mask has) 3 bands'),
    ],
)
def test_unfit_masks_are_named_for_our_loader_and_mmsegs(tmp_path, mask, said, stock):
    report = checked(folder(tmp_path, dict(x=mask, y=halves(0, 1)), stock=stock))
    ((what, _),) = report.problems
    assert what.startswith('train: ')
    assert re.search(said, what), what


def test_what_is_missing_is_looked_for_among_all(tmp_path):
    """mmseg's data set does not look; it dies in the middle of an epoch."""
    dataset = folder(tmp_path, {str(i): halves(0, 1) for i in range(8)}, stock=True)
    for i in (2, 5):
        (tmp_path / 'masks' / f'{i}.png').unlink()
    ((what, remedy),) = checked(dataset, sample=1).problems
    assert what == f'train: 2 of 8 masks are not there: {tmp_path}/masks/2.png, {tmp_path}/masks/5.png'
    assert 'seg_map_suffix' in remedy


def test_black_and_white_masks(tmp_path):
    """0 and 255: what is meant as the object is ignored, and the loss falls to 0 without learning."""
    dataset = folder(tmp_path, dict(x=halves(0, 255)), classes=('ground', 'thing'))
    ((what, remedy),) = checked(dataset, num_classes=2).problems
    assert what == 'train: every pixel that counts is ground: there is nothing to tell apart'
    assert 'mask_values=(0, 255)' in remedy
    ((what, _),) = checked(folder(tmp_path / 'b', dict(x=halves(255))), num_classes=3).problems
    assert 'every pixel of the 1 masks is 255, which is ignored: the loss would be 0' in what


def test_another_number_of_classes_than_the_head(tmp_path):
    report = Report()
    check_names(folder(tmp_path, dict(x=halves(0, 1))), 150, 'train', report)
    ((what, remedy),) = report.problems
    assert what == 'train: the data set names 3 classes (a, b, c), the head tells 150 apart'
    assert 'num_classes=3' in remedy


def test_wrapped_and_made_data_sets(tmp_path):
    bad, good = folder(tmp_path / 'a', dict(x=halves(0, 9))), folder(tmp_path / 'b', dict(x=halves(0, 1)))
    for wrapped in (ConcatDataset([good, bad]), RepeatDataset(bad, 3)):
        assert len(checked(wrapped).problems) == 1
    scenes = EmbeddedScenes(pipeline=[], split='train', length=20, size=32)
    assert checked(scenes, num_classes=12).problems == []
    assert len(checked(scenes, num_classes=11).problems) == 1


def test_a_run_stops_before_its_first_step(tmp_path):
    """All of it in one message, and nothing is trained; sample=0 turns the look off."""
    folder(tmp_path, dict(x=halves(0, 13), y=halves(1, 2)))
    files = dict(
        _delete_=True,
        type='BaseSegDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        img_suffix='.png',
        metainfo=dict(classes=[str(i) for i in range(5)]),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
    )
    options = {
        'train_dataloader.dataset': files,
        'val_dataloader': None,
        'val_evaluator': None,
        'val_cfg': None,
        'data_preprocessor.mean': [1.0] * 3,
        'data_preprocessor.std': [1.0] * 3,
        'model.backbone.in_channels': 3,
        'train_cfg.max_iters': 2,
        'train_dataloader.batch_size': 2,
    }
    with pytest.raises(DataError) as caught:
        run(load_config(RECIPE, options), work_dir=str(tmp_path / 'w'))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith('train: the data set names 5 classes')
    assert lines[1].startswith('    do:  set num_classes=5')
    assert lines[2].startswith('train: masks hold the ids 13, and')
    assert 'reduce_zero_label' in lines[3]
    assert not list((tmp_path / 'w').glob('*.pth'))


def test_batches_of_one():
    """mmseg dies in the first step with a line about values per channel."""
    options = ConfigDict(in_channels=[8, 8], in_index=[0, 1], channels=4, num_classes=3, norm_cfg=dict(type='BN'))
    head = UPerHead(**options)
    with pytest.raises(ConfigError, match=r'batch_size=1: the pooling module .* Take 2 or more'):
        check_batch(head, 1)
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        head([torch.randn(1, 8, 8, 8)] * 2)
    check_batch(head, 2)
    check_batch(nn.SyncBatchNorm.convert_sync_batchnorm(head), 1)
    check_batch(head.eval(), 1)


def test_what_was_found_is_in_the_log(tmp_path):
    options = {'train_cfg.max_iters': 1, 'train_dataloader.batch_size': 2, 'val_dataloader.dataset.length': 3}
    options.update({'train_dataloader.dataset.length': 8, 'train_cfg.val_interval': 5})
    run(load_config(RECIPE, options), work_dir=str(tmp_path))
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'data: train: images with masks: 8 of 8 good (8 there)' in log
    assert 'data: val: of 3 masks 0.0 % of the pixels are ignored; of the rest: ' in log


def test_the_data_of_a_config(tmp_path):
    options = {'train_dataloader.dataset.length': 8, 'val_dataloader.dataset.length': 3}
    report = check_data_of(load_config(RECIPE, {**options, 'test_dataloader.dataset.length': 3}))
    assert report.problems == []
    assert [fact.partition(':')[0] for fact in report.facts if 'good' in fact] == ['train', 'val']
    wrong = load_config(RECIPE, {**options, 'model.decode_head.num_classes': 11})
    assert [what.partition(':')[0] for what, _ in check_data_of(wrong).problems] == [
        'train',
        'train',
        'val',
        'val',
        'test',
        'test',
    ]
    with pytest.raises(ConfigError, match='it segments nothing'):
        check_data_of(load_config('configs/tokenizer/dvae-512_1xb64-300_embedded-32.py'))


def piped(root, names, sizes, **options):
    """A validation set whose pipeline packs; the mask is loaded where `late` says."""
    for name, size in zip(names, sizes, strict=True):
        for kind, array in (('images', np.zeros((*size, 3), np.uint8)), ('masks', np.zeros(size, np.uint8))):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / kind / f'{name}.png')
    resize = [LoadMask(), Resize(scale=(20, 10), keep_ratio=True)]
    steps = resize[::-1] if options.pop('late') else resize
    return MaskFolder(
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=('a', 'b')),
        pipeline=[LoadImage(), *steps, PackSegInputs()],
        test_mode=True,
    )


@pytest.mark.parametrize(
    ('late', 'sizes', 'batch', 'said'),
    [
        (True, [(8, 8), (8, 12)], 1, None),
        (True, [(8, 8), (16, 16)], 2, None),
        (
            True,
            [(8, 8), (8, 12)],
            2,
            r'val: batch_size=2, and images come out in different sizes: \(10, 10\), \(10, 15\)',
        ),
        (False, [(8, 8), (8, 8)], 1, r'val: a mask comes out as \(10, 10\) .* its image was \(8, 8\)'),
    ],
)
def test_the_first_evaluation_is_tried_before_the_training(tmp_path, late, sizes, batch, said):
    report = Report()
    check_pipeline(piped(tmp_path, 'ab', sizes, late=late), batch, 'val', report)
    assert len(report.problems) == (said is not None)
    if said:
        assert re.search(said, report.problems[0][0]), report.problems


def test_pipelines_that_load_no_mask_are_left_alone(tmp_path):
    dataset = folder(tmp_path, dict(x=halves(0, 1)))
    dataset.pipeline.transforms = dataset.pipeline.transforms[:1]
    report = checked(dataset)
    assert report.problems == []
    assert report.facts[-1] == 'train: no step of the pipeline named Load... gives masks: they are not looked at'
