"""Metrics over whole data sets, as plain Python floats."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from ..registry import METRICS


def confusion_matrix(
    prediction: torch.Tensor, truth: torch.Tensor, num_classes: int, ignore: int = 255
) -> torch.Tensor:
    """(num_classes, num_classes) int64: rows truth, columns prediction; `ignore` in the truth does not count."""
    counted = truth != ignore
    truth, prediction = truth[counted].long(), prediction[counted].long()
    if len(truth) and (int(truth.max()) >= num_classes or int(truth.min()) < 0):
        raise ValueError(
            f'a mask holds class {int(truth.max())}, but there are {num_classes} classes (0..{num_classes - 1}, '
            f'and {ignore} to ignore): check reduce_zero_label and the data set'
        )
    return torch.bincount(truth * num_classes + prediction, minlength=num_classes**2).view(num_classes, num_classes)


def iou_from(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Per-class IoU and recall in [0, 1] (nan where a class is absent), and pixel accuracy."""
    hits = matrix.diagonal().astype(float)
    truth, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(divide='ignore', invalid='ignore'):
        return dict(iou=hits / (truth + predicted - hits), acc=hits / truth, all=hits.sum() / matrix.sum())


@METRICS.register_module()
class IoUMetric(BaseMetric):
    """mIoU, mAcc, aAcc in percent over the whole data set, and every class's IoU; the numbers of mmseg's IoUMetric.

    mmseg's returns NumPy scalars and prints the classes without returning them.
    """

    def __init__(self, ignore_index: int = 255, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            prediction = sample['pred_sem_seg']['data'].squeeze().cpu()
            truth = sample['gt_sem_seg']['data'].squeeze().cpu()
            matrix = confusion_matrix(prediction, truth, len(self.dataset_meta['classes']), self.ignore_index)
            self.results.append(matrix)

    def compute_metrics(self, results: list) -> dict:
        scores = iou_from(torch.stack(results).sum(dim=0).numpy())
        metrics = dict(
            mIoU=100 * float(np.nanmean(scores['iou'])),
            mAcc=100 * float(np.nanmean(scores['acc'])),
            aAcc=100 * float(scores['all']),
        )
        for name, value in zip(self.dataset_meta['classes'], scores['iou'], strict=True):
            metrics[f'IoU.{name}'] = 100 * float(value)
        return metrics


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
