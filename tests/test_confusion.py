"""Confusion matrices against scikit-learn, tables of classes against the metrics that the leaderboard has."""

import csv
import json

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from sklearn import metrics as sklearn_metrics
from tiny import CLASSIFY, PRETRAIN, SEGMENT, saved, tiny

from beit_mm.apis import init_model
from beit_mm.benchmark.analysis import AnalysisError, confusion
from beit_mm.engine.launch import evaluate


def answers(config, checkpoint):
    """(truth, predicted) of every image or pixel, by the model alone."""
    model = init_model(config, checkpoint)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        dataset = DATASETS.build(config.test_dataloader.dataset)
        found = model.test_step(pseudo_collate([dataset[i] for i in range(len(dataset))]))
    if 'pred_sem_seg' in found[0]:
        pairs = [(s.gt_sem_seg.data.flatten(), s.pred_sem_seg.data.flatten()) for s in found]
    else:
        pairs = [(s.gt_label, s.pred_label) for s in found]
    return [torch.cat(part).numpy() for part in zip(*pairs, strict=True)]


@pytest.mark.parametrize('path', [CLASSIFY, SEGMENT])
def test_equals_scikit_learn(tmp_path, no_pretty_printing, path):
    checkpoint = saved(tiny(path), tmp_path / 'a.pth')
    truth, predicted = answers(tiny(path), checkpoint)
    wanted = sklearn_metrics.confusion_matrix(truth, predicted, labels=range(12))
    assert np.count_nonzero(wanted.sum(axis=0)) > 2  # not one answer for all
    matrix, names, pixels = confusion.confusion_matrix(tiny(path), checkpoint, str(tmp_path / 'w'))
    assert np.array_equal(matrix, wanted)
    assert pixels == (path == SEGMENT)
    assert matrix.sum() == (30 * 64 * 64 if pixels else 30)
    assert names[0] == 'brick'
    for by in ('true', 'pred', 'all'):
        shares = sklearn_metrics.confusion_matrix(truth, predicted, labels=range(12), normalize=by)
        assert np.nan_to_num(confusion.normalised(matrix, by)) == pytest.approx(shares)


def test_classes_are_those_of_the_iou_metric(tmp_path, no_pretty_printing):
    checkpoint = saved(tiny(SEGMENT), tmp_path / 'a.pth')
    _, metrics, _ = evaluate(tiny(SEGMENT), checkpoint, work_dir=str(tmp_path / 'w'))
    matrix, names, pixels = confusion.confusion_matrix(tiny(SEGMENT), checkpoint, str(tmp_path / 'w'))
    columns = confusion.of_classes(matrix, pixels)
    for kind in ('IoU', 'Acc'):
        wanted = [metrics[f'{kind}.{name}'] for name in names]
        assert columns[kind] == pytest.approx(wanted, nan_ok=True)
    assert 100 * matrix.trace() / matrix.sum() == pytest.approx(metrics['aAcc'])
    record = tmp_path / 'record.json'
    kept = {k: v for k, v in metrics.items() if v == v}
    record.write_text(json.dumps(dict(metrics=kept)))
    of_record, known = confusion.of_record(record)
    assert of_record['IoU'] == pytest.approx([kept[f'IoU.{name}'] for name in known])
    text = confusion.per_class(record, out=str(tmp_path / 'a.csv'))
    with open(tmp_path / 'a.csv') as file:
        ious = [float(row['IoU']) for row in csv.DictReader(file)]
    assert ious == sorted(ious, reverse=True)
    assert text.splitlines()[len(ious) + 1].split()[:2] == ['mean', f'{metrics["mIoU"]:.2f}']


def test_ignored_pixels_do_not_count():
    metric = confusion.ConfusionMatrix()
    metric.dataset_meta = dict(classes=('a', 'b', 'c'))
    truth = torch.tensor([[0, 0, 255], [1, 2, 2]])
    predicted = torch.tensor([[0, 1, 1], [1, 2, 0]])
    sample = dict(pred_sem_seg=dict(data=predicted[None]), gt_sem_seg=dict(data=truth[None]))
    metric.process(None, [sample, sample])
    metric.compute_metrics(metric.results)
    assert metric.matrix.tolist() == [[2, 2, 0], [0, 2, 0], [2, 0, 2]]
    assert confusion.most_confused(metric.matrix, 5) == [(0, 1), (2, 0)]


def test_classification_by_hand():
    matrix = np.array([[3, 1], [2, 4]])
    columns = confusion.of_classes(matrix, pixels=False)
    assert columns['accuracy'] == pytest.approx([75, 200 / 3])
    assert columns['precision'] == pytest.approx([60, 80])
    assert columns['F1'] == pytest.approx([200 / 3, 800 / 11])
    assert columns['images'].tolist() == [4, 6]


def test_mistakes_are_named(tmp_path, no_pretty_printing):
    (tmp_path / 'r.json').write_text(json.dumps(dict(metrics={'accuracy/top1': 3.0})))
    with pytest.raises(AnalysisError, match='no numbers of single classes'):
        confusion.per_class(tmp_path / 'r.json')
    with pytest.raises(AnalysisError, match='name both'):
        confusion.per_class(tiny(CLASSIFY))
    checkpoint = saved(tiny(PRETRAIN), tmp_path / 'a.pth')
    with pytest.raises(AnalysisError, match='masked image modeling'):
        confusion.confusion_matrix(tiny(PRETRAIN), checkpoint, str(tmp_path / 'w'))
    with pytest.raises(AnalysisError, match=r'\.png or \.csv'):
        confusion.show(tiny(CLASSIFY), checkpoint, out='a.pdf')
