"""engine/metrics.py against mmseg and by hand."""

import math

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric as MMSegIoU
from PIL import Image

from beit_mm.engine import metrics
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


KINDS = ['mIoU', 'mDice', 'mFscore']


def evaluated(metric, made=None, **meta) -> dict:
    metric.dataset_meta = dict(classes=CLASSES, **meta)
    made = samples() if made is None else made
    for sample in made:
        metric.process({}, [sample])
    return metric.evaluate(len(made))


def test_equals_mmseg(monkeypatch):
    """All of its scores, of every class, before it rounds them."""
    monkeypatch.setattr('numpy.round', lambda value, digits=0: value)
    ours, theirs = evaluated(IoUMetric(iou_metrics=KINDS, beta=2)), evaluated(MMSegIoU(iou_metrics=KINDS, beta=2))
    summary = {name: value for name, value in ours.items() if '.' not in name}
    assert summary.keys() == theirs.keys() == {
        'mIoU', 'mAcc', 'aAcc', 'mDice', 'mFscore', 'mPrecision', 'mRecall'
    }  # fmt: skip
    for name, value in summary.items():
        assert type(value) is float
        assert value == pytest.approx(float(theirs[name]), rel=1e-5)
    assert math.isnan(ours['IoU.d'])


@pytest.mark.parametrize('ignored', [True, False])
def test_equals_torchmetrics(ignored):
    """Its dataset-level Jaccard index; its MeanIoU averages batches and is another number."""
    classification = pytest.importorskip('torchmetrics.classification')
    made = samples(7)
    if not ignored:
        for sample in made:
            sample['gt_sem_seg']['data'][0, 0, :3] = 2
    options = dict(num_classes=4, ignore_index=255 if ignored else None)
    jaccard = classification.MulticlassJaccardIndex(**options, average='none')
    recall = classification.MulticlassRecall(**options, average='none')
    for sample in made:
        for metric in (jaccard, recall):
            metric.update(sample['pred_sem_seg']['data'], sample['gt_sem_seg']['data'])
    ours = evaluated(IoUMetric(), made)
    for name, theirs in (('IoU', jaccard), ('Acc', recall)):
        expected = 100 * theirs.compute()
        assert [ours[f'{name}.{c}'] for c in CLASSES[:3]] == pytest.approx(expected[:3].tolist(), rel=1e-6)
    macro = classification.MulticlassJaccardIndex(**options, average='macro')  # of the classes that are there
    guess, truth = (torch.stack([s[key]['data'] for s in made]) for key in ('pred_sem_seg', 'gt_sem_seg'))
    assert ours['mIoU'] == pytest.approx(100 * float(macro(guess, truth)), rel=1e-6)


@pytest.mark.parametrize('classes', [4, 150, 256, 300])
@pytest.mark.parametrize('ignore', [255, 0, -1, 1000])
def test_areas_are_mmsegs(classes, ignore):
    """For classes that a byte tells apart, for more, and for each kind of id to ignore."""
    rng = torch.Generator().manual_seed(classes)
    truth = torch.randint(0, classes, (61, 47), generator=rng)
    guess = torch.where(torch.rand(truth.shape, generator=rng) < 0.5, truth, truth.flip(0))
    truth[:7], guess[3:5] = ignore, min(ignore % 256, classes - 1)
    hits, _, predicted, there = MMSegIoU.intersect_and_union(guess, truth, classes, ignore)
    for kind in (torch.int64, torch.uint8) if max(classes - 1, ignore) < 256 and ignore >= 0 else (torch.int64,):
        found = metrics.areas(guess.to(kind), truth.to(kind), classes, ignore)
        assert found.dtype == torch.int64
        assert found.tolist() == torch.stack([hits, there, predicted]).long().tolist()
    assert found[1].sum() < truth.numel()


def test_what_is_predicted_at_ignored_pixels_is_not_looked_at():
    truth = torch.tensor([[0, 1, 255, 255]])
    for guess in (200, 4, -7, 3000):
        found = metrics.areas(torch.tensor([[0, 0, guess, 1]]), truth, 4)
        assert found.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [2, 0, 0, 0]]


def test_counts_are_exact_where_float32_is_not():
    """2**24 + 1 pixels of a class: mmseg adds up in float32, which has no such number."""
    side = 2**12
    truth = torch.zeros(1, side, side, dtype=torch.int64)
    guess = truth.clone()
    extra = dict(pred_sem_seg=dict(data=torch.tensor([[[1]]])), gt_sem_seg=dict(data=torch.tensor([[[0]]])))
    ours = evaluated(IoUMetric(), [dict(pred_sem_seg=dict(data=guess), gt_sem_seg=dict(data=truth)), extra])
    assert ours['IoU.a'] == 100 * side**2 / (side**2 + 1)
    assert ours['aAcc'] < 100


def test_a_class_that_is_only_predicted_counts_as_zero():
    made = [dict(pred_sem_seg=dict(data=torch.tensor([[[0, 3]]])), gt_sem_seg=dict(data=torch.tensor([[[0, 0]]])))]
    ours = evaluated(IoUMetric(), made)
    assert ours['IoU.d'] == 0
    assert math.isnan(ours['IoU.b'])
    assert ours['mIoU'] == 25
    assert math.isnan(ours['Acc.d'])
    assert ours['mAcc'] == 50


def test_nothing_but_ignored_pixels():
    made = [dict(pred_sem_seg=dict(data=torch.tensor([[[0]]])), gt_sem_seg=dict(data=torch.tensor([[[255]]])))]
    ours = evaluated(IoUMetric(), made)
    assert all(math.isnan(ours[name]) for name in ('mIoU', 'mAcc', 'aAcc'))


def test_the_table_of_classes(monkeypatch):
    said = []
    monkeypatch.setattr(metrics, 'print_log', lambda text, **_: said.append(text))
    ours = evaluated(IoUMetric())
    (table,) = said
    rows = [line.split() for line in table.splitlines()]
    assert rows[1] == ['class', 'IoU', 'Acc', 'pixels']
    assert [row[:3] for row in rows[2:]] == [[c, f'{ours[f"IoU.{c}"]:.2f}', f'{ours[f"Acc.{c}"]:.2f}'] for c in CLASSES]
    assert sum(float(row[3]) for row in rows[2:]) == pytest.approx(100, abs=0.02)


@pytest.mark.parametrize('reduced', [False, True])
def test_predictions_are_written_as_ade20ks_server_wants_them(tmp_path, reduced):
    made = [dict(s, img_path=f'images/{i}.jpg', reduce_zero_label=reduced) for i, s in enumerate(samples(2))]
    bare = [{key: value for key, value in s.items() if key != 'gt_sem_seg'} for s in made]
    assert evaluated(IoUMetric(output_dir=str(tmp_path), format_only=True), bare) == {}
    for i, sample in enumerate(made):
        written = np.asarray(Image.open(tmp_path / f'{i}.png'))
        np.testing.assert_array_equal(written, sample['pred_sem_seg']['data'][0].numpy() + reduced)
    with pytest.raises(ValueError, match=r'images/0\.jpg: has no mask to judge by; .*format_only=True'):
        evaluated(IoUMetric(), bare)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda s: s['gt_sem_seg']['data'].fill_(4), r'x\.png: holds class 4, and there are 4 classes \(0\.\.3'),
        (lambda s: s['gt_sem_seg']['data'].fill_(-1), r'x\.png: holds class -1'),
        (lambda s: s['gt_sem_seg']['data'].fill_(700), r'x\.png: holds class 700'),
        (lambda s: s['pred_sem_seg']['data'].fill_(9), r'x\.png: was predicted as class 9'),
        (lambda s: s['pred_sem_seg']['data'].fill_(256), r'x\.png: was predicted as class 256'),
        (lambda s: s['pred_sem_seg'].update(data=torch.zeros(1, 9, 8)), r'x\.png: its mask is \(9, 7\) .*\(9, 8\)'),
    ],
)
def test_what_cannot_be_judged_is_named(change, said):
    (sample,) = samples(1)
    change(sample)
    with pytest.raises(ValueError, match=said):
        evaluated(IoUMetric(), [dict(sample, seg_map_path='masks/x.png')])


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(iou_metrics=['mIoU', 'IoU']), "iou_metrics='IoU' is none of mIoU, mDice, mFscore"),
        (dict(format_only=True), 'give output_dir'),
    ],
)
def test_wrong_arguments_of_iou(options, said):
    with pytest.raises(ValueError, match=said):
        IoUMetric(**options)


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
