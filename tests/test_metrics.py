"""engine/metrics.py against mmseg and by hand."""

import math

import pytest
import torch
from mmseg.evaluation import IoUMetric as MMSegIoU

from beit_mm.engine.metrics import IoUMetric, MaskedAccuracy, ReassessedAccuracy, TokenizerMetric

CLASSES = ('a', 'b', 'c', 'd')


def samples(count=5):
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        truth = torch.randint(0, 3, (1, 9, 7), generator=generator)  # class d never occurs
        truth[0, 0, :3] = 255
        guess = torch.where(
            torch.rand(1, 9, 7, generator=generator) < 0.6,
            truth % 4,
            torch.randint(0, 3, (1, 9, 7), generator=generator),
        )
        made.append(dict(pred_sem_seg=dict(data=guess), gt_sem_seg=dict(data=truth)))
    return made


def test_equals_mmseg():
    ours, theirs = IoUMetric(), MMSegIoU()
    for metric in (ours, theirs):
        metric.dataset_meta = dict(classes=CLASSES)
        for sample in samples():
            metric.process({}, [sample])
    mine, other = ours.evaluate(5), theirs.evaluate(5)
    for name in ('mIoU', 'mAcc', 'aAcc'):
        assert type(mine[name]) is float
        assert mine[name] == pytest.approx(float(other[name]), abs=0.005)  # mmseg rounds to two digits
    assert math.isnan(mine['IoU.d'])


def test_a_class_out_of_range_is_named():
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=('a', 'b'))
    with pytest.raises(ValueError, match='class 2, but there are 2 classes'):
        metric.process({}, samples(1))


def test_tokenizer_metric():
    metric = TokenizerMetric()
    painters = dict(cell_mean_error=0.2, image_mean_error=0.4, vocab_size=8)
    metric.results = [
        dict(tokens=torch.tensor([[0, 1]]), reconstruction_error=0.1, **painters),
        dict(tokens=torch.tensor([[2, 3]]), reconstruction_error=0.3, **painters),
    ]
    scores = metric.evaluate(2)
    assert scores['perplexity'] == pytest.approx(4.0)
    assert scores['codes_used'] == 4
    assert scores['reconstruction_error'] == pytest.approx(0.2)


def test_masked_accuracy():
    metric = MaskedAccuracy()
    mask = torch.tensor([True, True, False, True])
    metric.process({}, [dict(mask=mask, prediction=torch.tensor([1, 2, 3, 4]), target=torch.tensor([1, 1, 9, 1]))])
    scores = metric.evaluate(1)
    assert scores['masked_accuracy'] == pytest.approx(100 / 3)
    assert scores['most_frequent'] == pytest.approx(100.0)


def test_masked_pixels():
    metric = MaskedAccuracy()
    mask = torch.tensor([True, False])
    metric.process({}, [dict(mask=mask, prediction=torch.zeros(2, 3), target=torch.tensor([[1.0, 2, 0], [9, 9, 9]]))])
    assert metric.evaluate(1) == {'masked_pixel_error': pytest.approx(5 / 3)}


def test_reassessed_labels(tmp_path):
    """Right, wrong, right by its second label, and an image that nobody could label: two of three."""
    file = tmp_path / 'real.json'
    file.write_text('[[1], [0], [2, 0], []]')
    metric = ReassessedAccuracy(str(file))
    scores = torch.eye(3)
    for number, guess in ((3, 0), (1, 1), (4, 2), (2, 1)):  # in any order
        metric.process({}, [dict(img_path=f'val/n01/ILSVRC2012_val_{number:08d}.JPEG', pred_score=scores[guess])])
    assert metric.evaluate(4) == {'real/top1': pytest.approx(200 / 3), 'real/images': 3}
    with pytest.raises(ValueError, match=r'cat\.jpg: its name does not end in a number of 1\.\.4'):
        metric.process({}, [dict(img_path='val/cat.jpg', pred_score=scores[0])])
    file.write_text('{"1": 2}')
    with pytest.raises(ValueError, match=r'real\.json: must be a list of lists of classes'):
        ReassessedAccuracy(str(file))
    with pytest.raises(ValueError, match='not a readable JSON file'):
        ReassessedAccuracy(str(tmp_path / 'none.json'))
