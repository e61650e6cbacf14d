"""engine/preflight.py and data/classes.py: what is looked at before the first step, and what at each of them."""

import os
import random
import re
from types import SimpleNamespace

import broken
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmpretrain.datasets import CustomDataset
from mmpretrain.evaluation import Accuracy
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import nn

from beit_mm.data.check import check_images
from beit_mm.data.classes import check_labels, check_names, check_same_classes
from beit_mm.data.failures import DataError
from beit_mm.data.images import ImageList
from beit_mm.data.verify import Report
from beit_mm.engine.preflight import (
    NoRoom,
    amount,
    check_top,
    check_truth,
    checkpoint_bytes,
    head_of,
    randomness_kept,
    room_for,
)

LOAD = [dict(type='mmpretrain.LoadImageFromFile')]


@pytest.fixture
def root(tmp_path):
    return broken.class_folders(tmp_path, images=3)


def images_of(root, split='train', kind=CustomDataset, **options):
    return kind(data_root=str(root), data_prefix=split, pipeline=LOAD, **options)


def found(check, *args, **options) -> list[str]:
    report = Report()
    check(*args, report, **options)
    assert all(remedy for _, remedy in report.problems)
    return [what for what, _ in report.problems]


def test_good_folders(root):
    train, val = images_of(root), images_of(root, 'val')
    assert found(check_names, train, 3, 'train') == found(check_labels, train, 3, 'train') == []
    assert found(check_same_classes, train, val) == []
    report = Report()
    check_images(train, 'train', report)
    assert report.facts == ['train: images: 9 of 9 good (9 there)', 'train: images of 32 x 32 pixels (height x width)']


def test_labels_that_start_at_1(root):
    (root / 'list.txt').write_text('\n'.join(f'{name}/0.png {label}' for label, name in enumerate('abc', start=1)))
    report = Report()
    check_labels(images_of(root, ann_file='list.txt'), 3, 'train', report)
    assert report.problems == [
        (
            f'train: {root}/train/c/0.png: label 3 in {root}/list.txt; '
            f'the classes of the head are 0 to 2 (1 label outside)',
            'labels that start at 1: write them from 0',
        )
    ]


def test_classes_without_an_image(root):
    """Of the whole training set only, and not where they were left out on purpose."""
    whole = images_of(root)
    said = 'train: images of 3 classes, and the head tells 4 apart: no image of label 3'
    assert found(check_labels, whole, 4, 'train') == [said]
    assert found(check_labels, whole, 4, 'val') == []
    assert found(check_labels, whole, 4, 'train', complete=False) == []
    assert found(check_labels, images_of(root, indices=2), 3, 'train') == []
    for path in (root / 'train/b').iterdir():
        path.unlink()
    assert found(check_labels, images_of(root, kind=ImageList, allow_empty=True), 3, 'train') == []
    assert found(check_labels, images_of(root), 3, 'train') == [
        'train: images of 2 classes, and the head tells 3 apart: no image of b'
    ]


def test_names_in_another_order_than_labels(root):
    """CustomDataset numbers folders by their sorted names, whatever `classes` says; ImageList follows `classes`."""
    (what,) = found(check_names, images_of(root, classes=['b', 'a', 'c']), 3, 'train')
    assert 'the images of folder a have label 0, which the names call b' in what
    assert found(check_names, images_of(root, kind=ImageList, classes=['b', 'a', 'c']), 3, 'train') == []


def test_classes_of_one_order_in_folders_that_differ(root):
    """English names on both sides hide that the folders behind them differ."""
    names = ['ant', 'bee', 'cow']
    train = images_of(root, classes=names)
    (root / 'val/a').rename(root / 'val/z')
    (what,) = found(check_same_classes, train, images_of(root, 'val', classes=names))
    assert what == "val: names 3 classes (b, c, z), train 3 (a, b, c): label 0 is 'a' in train, 'b' in val"


def test_top_5_of_three_classes():
    """Else it is found out at the first validation, after a part of the training."""
    assert found(check_top, [Accuracy(topk=(1, 5)), SimpleNamespace(topk=(9,))], 5) == []
    report = Report()
    check_top([Accuracy(topk=(1, 5))], 3, report)
    assert report.problems == [
        (
            'val_evaluator: top-5 accuracy, and the head tells 3 classes apart',
            'val_evaluator=dict(topk=(1,)), and test_evaluator alike',
        )
    ]


def sample(label=None, mask=None):
    one = (SegDataSample if mask is not None else DataSample)(metainfo=dict(img_path='i.jpg', seg_map_path='m.png'))
    if mask is not None:
        one.gt_sem_seg = PixelData(data=torch.tensor([mask]))
    else:
        one.set_gt_label(label)
    return one


@pytest.mark.parametrize(
    ('wrong', 'said'),
    [
        (sample(3), r'^i\.jpg: has the label 3, and the 3 classes of the head are 0 to 2: correct it'),
        (sample(-1), r'^i\.jpg: has the label -1, '),
        (sample([0, 9]), r'^i\.jpg: has the label 9, '),
        (sample(mask=[[0, 77], [255, 1]]), r'^m\.png: has the id 77, .* 0 to 2, 255 being ignored: '),
        (sample(mask=[[0, -1], [255, 1]]), r'^m\.png: has the id -1, '),
    ],
)
def test_labels_at_a_step(wrong, said):
    good = [sample(0), sample(2), sample(-100), sample([0, 1]), sample(mask=[[0, 255], [2, 1]])]
    check_truth(good, 3)
    with pytest.raises(DataError, match=said):
        check_truth([*good, wrong], 3)


def test_the_head_that_tells_classes_apart():
    model, head, last = nn.Module(), nn.Module(), nn.Module()
    assert head_of(model) is None  # masked image modeling
    head.num_classes, last.num_classes = 3, 4
    model.head = head
    assert head_of(model) is head
    model.decode_head = nn.ModuleList([head, last])
    assert head_of(model) is last


@pytest.mark.parametrize(('kind', 'moments'), [(torch.optim.AdamW, 2), (torch.optim.SGD, 1)])
def test_the_size_of_a_checkpoint(tmp_path, kind, moments):
    model = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300))
    optimizer = kind(model.parameters(), lr=0.1, **({'momentum': 0.9} if moments == 1 else {}))
    about = checkpoint_bytes(model, SimpleNamespace(optimizer=optimizer))
    assert checkpoint_bytes(model, SimpleNamespace(optimizer=optimizer), averages=True) - about == 366_008
    model(torch.randn(4, 300)).sum().backward()
    optimizer.step()
    torch.save(dict(state_dict=model.state_dict(), optimizer=optimizer.state_dict()), tmp_path / 'a.pth')
    assert abs(about - os.path.getsize(tmp_path / 'a.pth')) < 6000


def test_room(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'statvfs', lambda path: SimpleNamespace(f_bavail=1500, f_frsize=1000))
    assert room_for(tmp_path / 'not/yet/there', 1_500_000) == 1_500_000
    with pytest.raises(NoRoom, match=rf'^{re.escape(str(tmp_path))}: 1\.5 MB are free .* need 2\.0 GB\. Make room, '):
        room_for(tmp_path, 2_000_000_000)
    assert [amount(size) for size in (0, 999, 1000, 5.5e12)] == ['0 bytes', '999 bytes', '1.0 kB', '5.5 TB']


def test_a_look_draws_nothing_from_the_runs_randomness():
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with randomness_kept():
        assert draws() == expected
    assert draws() == expected
