"""Can a model be trained on this: a look at files of images and masks, and at classes, before the first step."""

import os
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from mmengine.dataset import BaseDataset, ConcatDataset

from .failures import in_words, mask_misfit
from .masks import IGNORED
from .verify import Report, Scope, check_each, few

SAMPLE = 200  # images that are looked at before training
MOST = 2**16  # ids that a histogram has room for
MOST_FILES = 50_000  # that are asked for, evenly spread


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, in even steps, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist() if count else []


def parts_of(dataset) -> Iterator[BaseDataset]:
    """The data sets below wrappers (repeated, concatenated, mixed, subsets) that list their images."""
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from parts_of(part)
        return
    inner = getattr(dataset, 'dataset', None)
    below = list(parts_of(inner)) if hasattr(inner, '__getitem__') and not isinstance(inner, (str, dict, list)) else []
    if below:
        yield from below
    elif hasattr(dataset, 'get_data_info'):
        yield dataset


class _Look:
    """At one image after the other of a data set, through the loading steps of its own pipeline."""

    def __init__(self, dataset: BaseDataset, masks: bool = True) -> None:
        self.dataset = dataset
        steps = dataset.pipeline.transforms
        loads = [step for step in steps if type(step).__name__.startswith('Load')]
        self.loaders = loads if masks else loads[:1]
        self.histograms: dict[int, np.ndarray] = {}  # pixels per id, of the masks that are fit
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, index: int) -> str:
        """Why an image or its mask is unfit, '' if it is not; the histogram of a fit one is kept."""
        info = self.dataset.get_data_info(index)
        try:
            for step in self.loaders:
                info = step(info)
                if info is None:  # a loader that skips what it cannot read
                    return ''
        except Exception as error:  # of any project's loader
            return in_words(error, self.dataset, index)[0]
        if hasattr(info.get('img'), 'shape'):
            self.shapes.add(tuple(info['img'].shape[:2]))
        if 'gt_seg_map' not in info:
            return ''
        mask, name = np.asarray(info['gt_seg_map']), info.get('seg_map_path') or info.get('img_path')
        if why := mask_misfit(mask, info.get('ori_shape'), str(name)):
            return why
        if mask.min() < 0 or mask.max() >= MOST:
            return f'{name}: holds the ids {mask.min()} to {mask.max()}'
        self.histograms[index] = np.bincount(mask.ravel(), minlength=IGNORED + 1)
        return ''


def check_images(dataset, what: str, report: Report, sample: int | None = SAMPLE) -> None:
    """Put into the report which of a sample of images cannot be read, and of which sizes they are."""
    for part in parts_of(dataset):
        if hasattr(part, 'make') or not hasattr(getattr(part, 'pipeline', None), 'transforms'):
            continue
        if not len(part):
            report.problem(f'{what}: the data set is empty', 'look at data_root, data_prefix and ann_file')
            continue
        look = _Look(part, masks=False)
        if not look.loaders:
            continue  # they are in memory
        reasons = check_each(report, look, range(len(part)), Scope(sample), f'{what}: images')
        _report_unfit(reasons, what, report, "; to train without them: dict(type='beit_mm.LoadImage', on_error='skip')")
        if look.shapes:
            least, most = min(look.shapes), max(look.shapes)
            sizes = f'{least[0]} x {least[1]}' + (f' to {most[0]} x {most[1]}' if least != most else '')
            report.fact(f'{what}: images of {sizes} pixels (height x width)')


def _report_unfit(reasons: list[str], what: str, report: Report, otherwise: str = '') -> None:
    if reasons:
        shown = '\n          '.join(reasons[:3]) + (f'\n          {len(reasons) - 3} more' if len(reasons) > 3 else '')
        report.problem(f'{what}: {len(reasons)} unfit:\n          {shown}', f'mend or remove them{otherwise}')


def check_dataset(
    dataset, num_classes: int, what: str, report: Report, sample: int | None = SAMPLE, ignore: int = IGNORED
) -> None:
    """Put into the report what is wrong with a data set of images and masks, and what it holds.

    num_classes: of the heads. sample: how many masks to read, None for all; whether files are there is asked of
    MOST_FILES.
    """
    for part in parts_of(dataset):
        _check_part(part, num_classes, what, report, sample, ignore)


def _check_part(dataset, num_classes: int, what: str, report: Report, sample: int | None, ignore: int) -> None:
    count = len(dataset)
    if not count:
        report.problem(f'{what}: the data set is empty', 'look at data_root and data_prefix')
        return
    files = defaultdict(list)
    made = hasattr(dataset, 'make')  # EmbeddedScenes: there are no files
    for index in () if made else spread(count, MOST_FILES):
        info = dataset.get_data_info(index)
        for key, kind in (('img_path', 'images'), ('seg_map_path', 'masks')):
            path = info.get(key)
            if isinstance(path, str) and '://' not in path and not os.path.isfile(path):
                files[kind].append(path)
    for kind, paths in files.items():
        report.problem(
            f'{what}: {len(paths)} of {count} {kind} are not there: {few(paths)}',
            'images and masks have one name: look at data_prefix, img_suffix and seg_map_suffix',
        )
    if files:
        return
    look = _Look(dataset)
    reasons = check_each(report, look, range(count), Scope(sample), f'{what}: images with masks')
    _report_unfit(reasons, what, report)
    if not look.histograms and not reasons:
        report.fact(f'{what}: no step of the pipeline named Load... gives masks: they are not looked at')
    if look.histograms:
        _check_histogram(look.histograms, dataset, num_classes, what, report, ignore)


def _check_histogram(
    histograms: dict[int, np.ndarray],
    dataset: BaseDataset,
    num_classes: int,
    what: str,
    report: Report,
    ignore: int,
) -> None:
    classes, count = dataset.metainfo.get('classes'), len(dataset)
    width = max(len(one) for one in histograms.values())
    total = np.zeros(max(width, num_classes, ignore + 1), np.int64)
    for one in histograms.values():
        total[: len(one)] += one
    ignored, total[ignore] = int(total[ignore]), 0
    counted = int(total.sum())
    beyond = np.flatnonzero(total[num_classes:]) + num_classes
    if len(beyond):
        first = next(i for i, one in histograms.items() if len(one) > beyond[0] and one[beyond[0]])
        report.problem(
            f'{what}: masks hold the ids {few(beyond.tolist())}, and {num_classes} classes are 0 to {num_classes - 1}, '
            f'{ignore} being ignored; {dataset.get_data_info(first).get("seg_map_path") or f"image {first}"} for one',
            'correct num_classes; if ids start at 1, or 0 is to be ignored: reduce_zero_label=True of the data set; if '
            "the files number their classes otherwise: beit_mm.MaskFolder's mask_values",
        )
    if not counted:
        report.problem(
            f'{what}: every pixel of the {len(histograms)} masks is {ignore}, which is ignored: the loss would be 0',
            'for black and white masks (0 and 255): beit_mm.MaskFolder with mask_values=(0, 255); for masks of 0 only: '
            'leave reduce_zero_label=True out',
        )
        return
    share = total[:num_classes] / counted
    named = classes is not None and len(classes) == num_classes
    names = list(classes) if named else [str(i) for i in range(num_classes)]
    order = np.argsort(-share, kind='stable')
    most = ', '.join(f'{names[i]} {100 * share[i]:.1f} %' for i in order[:5] if share[i])
    report.fact(
        f'{what}: of {len(histograms)} masks {100 * ignored / (ignored + counted):.1f} % of the pixels are ignored; '
        f'of the rest: {most}'
    )
    absent = [names[i] for i in range(num_classes) if not share[i]]
    whole = len(histograms) == count
    if absent:
        report.fact(
            f'{what}: no pixel of {few(absent)} ({len(absent)} of {num_classes} classes) in '
            + ('any mask: their IoU will be nan or 0' if whole else f'these {len(histograms)} of {count} masks')
        )
    if np.count_nonzero(share) == 1 and num_classes > 1 and whole:
        report.problem(
            f'{what}: every pixel that counts is {names[int(order[0])]}: there is nothing to tell apart',
            'for black and white masks, whose 255 is taken for "ignored": beit_mm.MaskFolder with mask_values=(0, 255)',
        )


TRIED = 8  # samples that go through a whole test pipeline


def check_pipeline(dataset, batch_size: int, what: str, report: Report) -> None:
    """Put into the report what the first evaluation would stumble over, after hours of training.

    Masks that were resized with their images, and images of different sizes in one batch.
    """
    sizes = set()
    for index in range(min(TRIED, len(dataset))):
        try:
            sample = dataset[index]
        except Exception as error:  # of any project's pipeline
            reason, remedy = in_words(error, dataset, index)
            report.problem(
                f'{what}: image {index} does not go through the pipeline: {reason}', remedy or 'mend one of them'
            )
            return
        if not isinstance(sample, dict) or not hasattr(sample.get('data_samples'), 'metainfo'):
            return  # packed by another project's means, or several views
        sizes.add(tuple(sample['inputs'].shape[1:]))
        truth, shape = sample['data_samples'].get('gt_sem_seg'), sample['data_samples'].metainfo.get('ori_shape')
        if truth is not None and shape is not None and tuple(truth.shape) != tuple(shape[:2]):
            report.problem(
                f'{what}: a mask comes out as {tuple(truth.shape)} (height, width), its image was {tuple(shape[:2])}: '
                f'a prediction is judged at the size of the image',
                'load masks after the resizing, as the last step before PackSegInputs',
            )
            return
    if batch_size > 1 and len(sizes) > 1:
        report.problem(
            f'{what}: batch_size={batch_size}, and images come out in different sizes: {few(sorted(sizes))}',
            f'{what}_dataloader.batch_size=1',
        )
