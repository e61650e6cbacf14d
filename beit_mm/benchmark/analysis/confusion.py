"""`analyze.py confusion` and `per-class`: which classes a classifier or a segmentor takes for which, and how well it
knows each. A matrix counts images, of segmentors pixels: rows are the truth, columns what was predicted."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.evaluator import BaseMetric

from ...engine.launch import evaluate
from ...engine.metrics import SCORES, areas, scores
from ...registry import METRICS
from . import AnalysisError
from .tables import aligned, markdown, target, write_csv

NAMED, NUMBERED = 40, 20  # classes up to which a picture has their names, and a number in each cell
NORMALISATIONS = {'true': 1, 'pred': 0, 'all': None}  # the axis that sums up to one


@METRICS.register_module()
class ConfusionMatrix(BaseMetric):
    """Counts pairs (true class, predicted class) of images or pixels; `matrix` (classes, classes) int64 after a test.

    Pixels whose truth is `ignore_index` do not count. It has no metrics for a log.
    """

    def __init__(self, ignore_index: int = 255, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index
        self.matrix: np.ndarray | None = None
        self.pixels = False
        self.num_classes = 0

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            truth, predicted = self._pair(sample)
            # only the pairs that are there: 2,000 images of 150 classes would else be 360 MB
            self.results.append((torch.stack([truth, predicted]).unique(dim=1, return_counts=True), self.num_classes))

    def _pair(self, sample: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """True and predicted classes, (n,) each: of an image, or of its pixels."""
        if 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
            self.pixels, self.num_classes = True, len(self.dataset_meta['classes'])
            predicted = sample['pred_sem_seg']['data'].squeeze(0).cpu()
            truth = sample['gt_sem_seg']['data'].squeeze(0).cpu()
            areas(predicted, truth, self.num_classes, self.ignore_index, str(sample.get('img_path')))  # its checks
            counted = truth != self.ignore_index
            return truth[counted].long(), predicted[counted].long()
        if 'top' in sample:  # a probe's, of the candidate that was chosen on held-out images
            best = sample['top'][sample['choice'].index if sample['choice'] else 0]
            self.num_classes = max(self.num_classes, len(self.dataset_meta.get('classes') or ()), int(best.max()) + 1)
            return torch.tensor([sample['label']]), best[:1].cpu()
        if 'pred_score' not in sample or 'gt_label' not in sample:
            raise AnalysisError(
                f'a confusion matrix needs a class, and the truth, of each image or pixel; what this model gives has '
                f'{", ".join(sample)}. For masked image modeling and tokenizers: tools/test.py'
            )
        self.num_classes = len(sample['pred_score'])
        truth = sample['gt_label'].cpu().flatten()
        if len(truth) != 1:
            raise AnalysisError(f'an image has {len(truth)} labels; a confusion matrix is for one label per image')
        return truth.long(), sample['pred_score'].argmax().cpu()[None].long()

    def compute_metrics(self, results: list) -> dict:
        size = max(classes for _, classes in results)
        matrix = np.zeros((size, size), np.int64)
        for (pairs, counts), _ in results:
            matrix[pairs[0].numpy(), pairs[1].numpy()] += counts.numpy()
        self.matrix = matrix
        return {}


def confusion_matrix(
    config: Config, checkpoint: str, work_dir: str | None = None
) -> tuple[np.ndarray, list[str], bool]:
    """(matrix (K, K) int64, names of the classes, whether pixels were counted), of the config's test data."""
    before = config.get('test_evaluator') or {}
    first = before[0] if isinstance(before, (list, tuple)) else before
    config.test_evaluator = dict(type='beit_mm.ConfusionMatrix', ignore_index=first.get('ignore_index', 255))
    runner, _, _ = evaluate(config, checkpoint, work_dir=work_dir)
    (metric,) = runner.test_loop.evaluator.metrics
    names = runner.test_loop.dataloader.dataset.metainfo.get('classes') or ()
    return metric.matrix, [str(n) for n in names] or [str(i) for i in range(len(metric.matrix))], metric.pixels


def normalised(matrix: np.ndarray, by: str = 'true') -> np.ndarray:
    """Shares of the counts: of each true class, of each predicted class, or of all; nan for a class that is absent."""
    with np.errstate(invalid='ignore'):
        return matrix / matrix.sum(axis=NORMALISATIONS[by], keepdims=True)


def show(
    config: Config,
    checkpoint: str,
    normalize: str | None = None,
    top: int = 10,
    out: str | None = None,
    work_dir: str | None = None,
) -> str:
    """The accuracy and the `top` most confused pairs; the matrix as .csv (counts, or shares) or .png (shares)."""
    path = target(out, ('.png', '.csv')) if out else None
    matrix, names, pixels = confusion_matrix(config, checkpoint, work_dir)
    what = 'pixels' if pixels else 'images'
    total = int(matrix.sum())
    lines = [f'{int(matrix.trace()):,} of {total:,} {what} right: {100 * matrix.trace() / total:.2f} %']
    rows = [
        (f'{names[t]} -> {names[p]}', f'{matrix[t, p]:,}', f'{100 * matrix[t, p] / matrix[t].sum():.1f}')
        for t, p in most_confused(matrix, top)
    ]
    lines.append(aligned(('truth -> predicted', what, '% of the truth'), rows))
    if path and path.suffix == '.csv':
        cells = normalised(matrix, normalize) if normalize else matrix
        write_csv(path, ('truth \\ predicted', *names), [(name, *row) for name, row in zip(names, cells.tolist())])
    elif path:
        _draw(normalised(matrix, normalize or 'true'), names, normalize or 'true', f'{total:,} {what}', path)
    return '\n\n'.join([*lines, *([str(path)] if path else [])])


def most_confused(matrix: np.ndarray, top: int) -> list[tuple[int, int]]:
    """(truth, predicted) of the largest shares of a true class that went to another one; largest first."""
    wrong = np.nan_to_num(normalised(matrix))
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind='stable')[:top]
    return [(int(i // len(matrix)), int(i % len(matrix))) for i in order if wrong.flat[i] > 0]


def _draw(shares: np.ndarray, names: list[str], by: str, counted: str, path: Path) -> None:
    size = min(4 + 0.42 * len(names), 16)
    figure, axis = plt.subplots(figsize=(size + 1, size), layout='constrained')
    image = axis.imshow(100 * shares, cmap='Blues', vmin=0)
    if len(names) <= NAMED:
        axis.set_xticks(range(len(names)), names, rotation=60, ha='right', rotation_mode='anchor')
        axis.set_yticks(range(len(names)), names)
    if len(names) <= NUMBERED:
        middle = 50 * np.nanmax(shares)
        for (row, column), share in np.ndenumerate(100 * shares):
            if share == share and share >= 0.5:
                colour = 'white' if share > middle else 'black'
                axis.text(column, row, f'{share:.0f}', ha='center', va='center', color=colour, fontsize=8)
    axis.set(xlabel='predicted', ylabel='truth', title=counted)
    label = {'true': '% of the true class', 'pred': '% of the predicted class', 'all': '% of all'}[by]
    figure.colorbar(image, label=label, fraction=0.046)
    figure.savefig(path, dpi=150, facecolor='white', bbox_inches='tight')
    plt.close(figure)


def of_classes(matrix: np.ndarray, pixels: bool) -> dict[str, np.ndarray]:
    """Columns of a per-class table, (K,) each: percent, nan where there is nothing to judge, and how many there are."""
    counts = np.stack([matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)])
    if pixels:
        found = scores(counts, ['mIoU'])
        return {**{k: 100 * v for k, v in found.items()}, 'pixels %': 100 * counts[1] / max(counts[1].sum(), 1)}
    found = scores(counts, ['mFscore'])
    columns = {'accuracy': found['Recall'], 'precision': found['Precision'], 'F1': found['Fscore']}
    return {**{k: 100 * v for k, v in columns.items()}, 'images': counts[1].astype(float)}


def of_record(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns and names of classes, from a record's metrics `IoU.<class>`, or from what tools/test.py --out wrote."""
    try:
        content = json.loads(path.read_text())
        metrics = content.get('metrics', content)
        split = [(*name.split('.', 1), value) for name, value in metrics.items() if '.' in name]
    except (OSError, ValueError, AttributeError) as error:
        raise AnalysisError(f'{path}: not a result record ({error})') from error
    kinds = [kind for kinds in SCORES.values() for kind in kinds]
    columns: dict[str, dict[str, float]] = {}
    for kind, name, value in split:
        if kind in kinds:
            columns.setdefault(kind, {})[name] = float('nan') if value is None else value
    if not columns:
        raise AnalysisError(f'{path}: holds no numbers of single classes; name the config and the checkpoint instead')
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    return {k: np.array([c.get(n, float('nan')) for n in names]) for k, c in columns.items()}, names


def per_class(
    source: Config | Path, checkpoint: str | None = None, out: str | None = None, work_dir: str | None = None
) -> str:
    """A table of the classes, best first; also as .csv or .md. source: a config to test, or the file of a record."""
    path = target(out, ('.csv', '.md')) if out else None
    if isinstance(source, Path):
        columns, names = of_record(source)
    elif checkpoint is None:
        raise AnalysisError(
            f'{source.filename}: a config is tested with a checkpoint: name both, or one record (.json)'
        )
    else:
        matrix, names, pixels = confusion_matrix(source, checkpoint, work_dir)
        columns = of_classes(matrix, pixels)
    first = next(iter(columns.values()))
    order = np.argsort(-np.nan_to_num(first, nan=-1.0), kind='stable')
    header = ('class', *columns)
    rows = [(names[i], *(_cell(key, column[i]) for key, column in columns.items())) for i in order]
    means = {k: v for k, v in columns.items() if k not in ('images', 'pixels %')}
    rows.append(('mean', *(_cell(k, float(np.nanmean(v))) if k in means else '' for k, v in columns.items())))
    if path and path.suffix == '.csv':
        write_csv(path, header, [(names[i], *(float(column[i]) for column in columns.values())) for i in order])
    elif path:
        path.write_text(markdown(header, rows))
    return aligned(header, rows) + (f'\n\n{path}' if path else '')


def _cell(key: str, value: float) -> str:
    if value != value:
        return '-'
    return f'{value:.0f}' if key == 'images' else f'{value:.2f}'
