"""Metrics over whole data sets, as plain Python floats."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from PIL import Image

from ..registry import METRICS

BYTE = 256  # ids that one tells apart


def areas(
    prediction: torch.Tensor, truth: torch.Tensor, num_classes: int, ignore: int = 255, name: str = 'a mask'
) -> torch.Tensor:
    """(3, num_classes) int64: pixels that are right, true pixels, and predicted pixels, per class; exact.

    prediction, truth: (H, W) class indices; where the truth is `ignore` nothing counts. Raises ValueError, with `name`,
    for maps of different sizes and for classes that there are not.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f'{name}: its mask is {tuple(truth.shape)} pixels (height, width), what was predicted for its image '
            f'{tuple(prediction.shape)}: in a test pipeline masks are loaded after the resizing'
        )
    if num_classes > BYTE or not (_within(truth, BYTE) and _within(prediction, num_classes)):
        return _areas_of_any_ids(prediction, truth, num_classes, ignore, name)
    pairs = torch.add(prediction.long(), truth.long(), alpha=num_classes)  # both classes of a pixel in one number
    table = torch.bincount(pairs.flatten(), minlength=BYTE * num_classes).view(BYTE, num_classes)
    if 0 <= ignore < BYTE:
        table[ignore] = 0
    of_truth = table.sum(dim=1)
    if of_truth[num_classes:].any():
        raise _no_such_class(name, 'holds', int(of_truth.nonzero().max()), num_classes, ignore)
    return torch.stack([table.diagonal(), of_truth[:num_classes], table.sum(dim=0)])


def _within(ids: torch.Tensor, number: int) -> bool:
    """Whether there are ids, and all of them are in 0..number - 1."""
    if not ids.numel():
        return False
    least, most = ids.aminmax()
    return int(least) >= 0 and int(most) < number


def _areas_of_any_ids(
    prediction: torch.Tensor, truth: torch.Tensor, num_classes: int, ignore: int, name: str
) -> torch.Tensor:
    """As `areas`, for ids that a byte does not hold, and for what is none."""
    counted = truth != ignore
    truth, prediction = truth[counted].long(), prediction[counted].long()
    for what, found in (('holds', truth), ('was predicted as', prediction)):
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < num_classes:
            worst = int(found.min()) if int(found.min()) < 0 else int(found.max())
            raise _no_such_class(name, what, worst, num_classes, ignore)
    return torch.stack([
        torch.bincount(part, minlength=num_classes) for part in (truth[truth == prediction], truth, prediction)
    ])  # fmt: skip


def _no_such_class(name: str, what: str, worst: int, num_classes: int, ignore: int) -> ValueError:
    return ValueError(
        f'{name}: {what} class {worst}, and there are {num_classes} classes (0..{num_classes - 1}, and {ignore} to '
        f'ignore): check num_classes, reduce_zero_label and the data set'
    )


SCORES = {'mIoU': ('IoU', 'Acc'), 'mDice': ('Dice', 'Acc'), 'mFscore': ('Fscore', 'Precision', 'Recall')}


def scores(counts: np.ndarray, kinds: Sequence[str], beta: float = 1.0) -> dict[str, np.ndarray]:
    """What SCORES names, each (classes,) in [0, 1]; nan where a class is absent. counts: (3, classes), of `areas`."""
    hits, truth, predicted = counts.astype(float)
    with np.errstate(divide='ignore', invalid='ignore'):
        precision, recall = hits / predicted, hits / truth
        known = dict(
            IoU=hits / (truth + predicted - hits),
            Acc=recall,
            Dice=2 * hits / (truth + predicted),
            Fscore=(1 + beta**2) * precision * recall / (beta**2 * precision + recall),
            Precision=precision,
            Recall=recall,
        )
    return {name: known[name] for kind in kinds for name in SCORES[kind]}


def class_mean(values: np.ndarray) -> float:
    """Mean over the classes that are there; nan without any."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float('nan')


@METRICS.register_module()
class IoUMetric(BaseMetric):
    """mIoU, mAcc and aAcc in percent over the whole data set, and IoU and accuracy of every class.

    The numbers of mmseg's IoUMetric before it rounds them, from exact counts (mmseg adds up in float32 and gives NumPy
    scalars, and no class). A class that neither prediction nor truth holds is nan, and left out of the means.

    iou_metrics: `mIoU`, `mDice` (with mAcc) and `mFscore` (with mPrecision, mRecall), as in mmseg. beta: of the
        F-score.
    output_dir: also write every prediction there as a PNG of class indices, raised by one where the data set has
        reduce_zero_label, so that 0 is "other" again, as ADE20K's server wants it. format_only: write and do not judge,
        for images without masks.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        iou_metrics: str | Sequence[str] = ('mIoU',),
        beta: float = 1.0,
        output_dir: str | None = None,
        format_only: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index, self.beta = ignore_index, beta
        self.iou_metrics = [iou_metrics] if isinstance(iou_metrics, str) else list(iou_metrics)
        if unknown := [name for name in self.iou_metrics if name not in SCORES]:
            raise ValueError(f'IoUMetric: iou_metrics={unknown[0]!r} is none of {", ".join(SCORES)}')
        if format_only and not output_dir:
            raise ValueError('IoUMetric: format_only=True writes predictions and nothing else: give output_dir')
        self.output_dir, self.format_only = output_dir and Path(output_dir), format_only
        self.written: dict[Path, str] = {}

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            prediction = sample['pred_sem_seg']['data'].squeeze(0)
            if self.output_dir:
                self._write(prediction, sample)
            if self.format_only:
                self.results.append(None)
                continue
            name = sample.get('seg_map_path') or sample.get('img_path') or 'an image'
            if 'gt_sem_seg' not in sample:
                raise ValueError(f'{name}: has no mask to judge by; for images without masks: format_only=True')
            truth = sample['gt_sem_seg']['data'].squeeze(0).to(prediction.device)
            classes = len(self.dataset_meta['classes'])
            self.results.append(areas(prediction, truth, classes, self.ignore_index, str(name)).cpu())

    def _write(self, prediction: torch.Tensor, sample: dict) -> None:
        mask = prediction.cpu().numpy() + int(bool(sample.get('reduce_zero_label')))
        path = self.output_dir / f'{Path(sample["img_path"]).stem}.png'
        if self.written.setdefault(path, sample['img_path']) != sample['img_path']:
            raise ValueError(f'{sample["img_path"]} and {self.written[path]}: both would be written to {path}')
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8 if mask.max() < 256 else np.uint16)).save(path)

    def compute_metrics(self, results: list) -> dict:
        if self.format_only:
            print_log(f'{len(results)} predictions below {self.output_dir}, not judged', logger='current')
            return {}
        counts = torch.stack(results).sum(dim=0).numpy()
        of_classes = scores(counts, self.iou_metrics, self.beta)
        metrics = {f'm{name}': 100 * class_mean(values) for name, values in of_classes.items()}
        hits, truth, _ = counts.sum(axis=1)
        metrics['aAcc'] = 100 * float(hits / truth) if truth else float('nan')
        classes = self.dataset_meta['classes']
        for name, values in of_classes.items():
            metrics.update({f'{name}.{c}': 100 * float(v) for c, v in zip(classes, values, strict=True)})
        print_log(self._table(of_classes, counts[1]), logger='current')
        return metrics

    def _table(self, of_classes: dict[str, np.ndarray], truth: np.ndarray) -> str:
        """One line per class: its scores and its share of the pixels, in percent."""
        columns = {**of_classes, 'pixels': truth / max(truth.sum(), 1)}
        classes = self.dataset_meta['classes']
        width = max(len('class'), *map(len, classes))
        lines = [' '.join([f'{"class":<{width}}', *(f'{name:>9}' for name in columns)])]
        for i, name in enumerate(classes):
            lines.append(' '.join([f'{name:<{width}}', *(f'{100 * column[i]:9.2f}' for column in columns.values())]))
        return 'per class, in percent:\n' + '\n'.join(lines)


@METRICS.register_module()
class ReassessedAccuracy(BaseMetric):
    """Top-1 accuracy in percent on "ReaL" labels (arXiv 2006.07159): a guess is right that is among an image's labels.

    label_file: JSON, a list with a list of classes (0-based, in the order of the sorted synsets) per image, in the
    order of ILSVRC2012_val_00000001 to ..50000. Images are found by the number at the end of their file names; those
    without a label do not count.
    """

    default_prefix = 'real'

    def __init__(self, label_file: str, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        try:
            labels = json.loads(Path(label_file).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f'ReassessedAccuracy: label_file={label_file}: not a readable JSON file ({error})'
            ) from error
        if not isinstance(labels, list) or not all(isinstance(entry, list) for entry in labels):
            raise ValueError(f'ReassessedAccuracy: label_file={label_file}: must be a list of lists of classes')
        self.labels = [set(entry) for entry in labels]

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            number = re.search(r'(\d+)$', Path(sample['img_path']).stem)
            if number is None or not 1 <= int(number[1]) <= len(self.labels):
                raise ValueError(
                    f'ReassessedAccuracy: {sample["img_path"]}: its name does not end in a number of '
                    f'1..{len(self.labels)}, the images that the label file is about'
                )
            labels = self.labels[int(number[1]) - 1]
            if labels:
                self.results.append(int(sample['pred_score'].argmax()) in labels)

    def compute_metrics(self, results: list) -> dict:
        return dict(top1=100 * float(np.mean(results)), images=len(results))


@METRICS.register_module()
class TokenizerMetric(BaseMetric):
    """Reconstruction error (mean absolute error on [0, 1], as in Table 8), perplexity and usage of the codes.

    `cell_mean_error` and `image_mean_error` are what painting every cell, or image, with its mean would give.
    """

    ERRORS = ('reconstruction_error', 'cell_mean_error', 'image_mean_error')

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        self.results += data_samples

    def compute_metrics(self, results: list) -> dict:
        size = results[0]['vocab_size']
        counts = torch.bincount(torch.cat([r['tokens'].flatten() for r in results]), minlength=size).float()
        share = counts / counts.sum()
        metrics = {name: float(np.mean([r[name] for r in results])) for name in self.ERRORS}
        metrics['perplexity'] = float(torch.exp(-torch.xlogy(share, share).sum()))
        metrics['codes_used'] = int((counts > 0).sum())
        return metrics


@METRICS.register_module()
class MaskedAccuracy(BaseMetric):
    """Percent of masked patches whose token is guessed right; `most_frequent` is what one constant guess gets.

    Where pixels are predicted: `masked_pixel_error`, the mean squared error of the masked patches.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            mask = sample['mask']
            self.results.append((sample['prediction'][mask], sample['target'][mask]))

    def compute_metrics(self, results: list) -> dict:
        guess, target = (torch.cat(part) for part in zip(*results, strict=True))
        if target.is_floating_point():
            return dict(masked_pixel_error=float((guess - target).square().mean()))
        most_frequent = torch.bincount(target).max() / len(target)
        return dict(
            masked_accuracy=100 * float((guess == target).float().mean()), most_frequent=100 * float(most_frequent)
        )
