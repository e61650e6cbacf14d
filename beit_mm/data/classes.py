"""Do labels, the names of classes and a head agree: a look at a whole list of labels, without decoding an image."""

from collections.abc import Iterable, Iterator

import numpy as np

from .check import parts_of, spread
from .verify import Report, few

MOST_LABELS = 300_000  # that are looked at, evenly spread; 2 s
MEANT = "if it is meant: custom_hooks=[dict(type='beit_mm.PreflightHook', classes=False)]"


def check_labels(dataset, num_classes: int, what: str, report: Report, complete: bool = True) -> None:
    """Put into the report labels that are outside 0..num_classes - 1, or no integers, and classes without an image.

    complete: a class of the training set without an image is a problem, not a fact.
    """
    found: set[int] = set()
    looked, whole = 0, True
    for part in parts_of(dataset):
        if hasattr(part, 'make'):  # of generated images: right, and costly to ask for
            return
        count = len(part)
        whole = whole and count <= MOST_LABELS and getattr(part, '_indices', None) is None
        whole = whole and not getattr(part, 'allow_empty', False)
        bad: list[str] = []
        for index in spread(count, MOST_LABELS):
            info = part.get_data_info(index)
            if info.get('gt_label') is None:
                return  # no labels, or in another place
            looked += 1
            for label in _each(info['gt_label']):
                if isinstance(label, (int, np.integer)) and 0 <= label < num_classes:
                    found.add(int(label))
                else:
                    bad.append(f'{info.get("img_path", f"image {index}")}: label {label!r}')
        if bad:
            _report_bad(part, bad, num_classes, what, report, shifted=0 not in found)
            return
    missing = sorted(set(range(num_classes)) - found)
    if not looked or not missing:
        return
    names = next((part.metainfo.get('classes') for part in parts_of(dataset)), None)
    named = names is not None and len(names) == num_classes
    absent = few(names[i] for i in missing) if named else f'label {few(missing)}'
    if what == 'train' and whole and complete:
        report.problem(
            f'{what}: images of {len(found)} classes, and the head tells {num_classes} apart: no image of {absent}',
            f'add images of it, or set num_classes={len(found)} of the head; {MEANT}',
        )
    else:
        report.fact(f'{what}: no image of {absent} among {looked} labels')


def _each(label) -> Iterable:
    return label if isinstance(label, (list, tuple, np.ndarray)) else (label,)


def _report_bad(part, bad: list[str], num_classes: int, what: str, report: Report, shifted: bool) -> None:
    listed = f' in {part.ann_file}' if getattr(part, 'ann_file', '') else ''
    shifted = shifted and all(one.endswith(f' label {num_classes}') for one in bad)
    report.problem(
        f'{what}: {few(bad)}{listed}; the classes of the head are 0 to {num_classes - 1} ({len(bad)} label'
        f'{"s" if len(bad) > 1 else ""} outside)',
        'labels that start at 1: write them from 0'
        if shifted
        else f'correct the labels, or num_classes={num_classes} of the head',
    )


def check_names(dataset, num_classes: int, what: str, report: Report, where: str = 'the head') -> None:
    """Put into the report a data set that names another number of classes than the head tells apart."""
    for part in parts_of(dataset):
        names = part.metainfo.get('classes')
        if names is not None and len(names) != num_classes:
            report.problem(
                f'{what}: the data set names {len(names)} classes ({few(names)}), the head tells {num_classes} apart',
                f"set num_classes={len(names)} of {where}, or the data set's classes; {MEANT}",
            )
        folders = getattr(part, 'folder_to_idx', None)
        if folders and names is not None and set(names) == set(folders):
            wrong = next((name for name in folders if names[folders[name]] != name), None)
            if wrong is not None:
                report.problem(
                    f'{what}: classes={few(names)} are in another order than the labels: the images of folder {wrong} '
                    f'have label {folders[wrong]}, which the names call {names[folders[wrong]]}',
                    'type beit_mm.ImageList, which takes the order of `classes`, or leave `classes` out',
                )


def check_same_classes(train, val, report: Report) -> None:
    """Put into the report classes of one label that differ between parts of the training set, and to validation."""
    first, *rest = [*_labels_of('train', train), *_labels_of('val', val)] or [None]
    if first is None:
        return
    for what, names in rest:
        if names == first[1]:
            continue
        place = next(
            (i for i, pair in enumerate(zip(first[1], names)) if pair[0] != pair[1]), min(len(names), len(first[1]))
        )
        said = [repr(side[place]) if place < len(side) else 'none' for side in (first[1], names)]
        report.problem(
            f'{what}: names {len(names)} classes ({few(names)}), {first[0]} {len(first[1])} ({few(first[1])}): label '
            f'{place} is {said[0]} in {first[0]}, {said[1]} in {what}',
            f'give both the same classes; folders get their labels by their sorted names, so that a folder that is '
            f'missing, or one more, shifts those behind it: beit_mm.ImageList with classes=[...] keeps them; {MEANT}',
        )
        return


def _labels_of(what: str, dataset) -> Iterator[tuple[str, list[str]]]:
    """(train or val, names by label) of each part that has names; of folders where the labels come from them."""
    for part in parts_of(dataset) if dataset is not None else ():
        folders = getattr(part, 'folder_to_idx', None)
        names = sorted(folders, key=folders.get) if folders else part.metainfo.get('classes')
        if names is not None:
            yield what, list(names)
