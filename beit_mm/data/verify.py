"""Is a data set what it should be: layout, counts, decodable images, order of labels; and if not, what to do."""

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from . import ilsvrc
from .cifar import CIFAR10, CIFAR100
from .ilsvrc import SYNSET, imagenet_synsets
from .images import Entry, read_list
from .layouts import VERIFIED
from .loading import EXTENSIONS, read_image
from .shard_verify import verify_shards

SHOWN = 5  # names in a message
ADE_COUNTS = dict(training=20_210, validation=2_000)
ADE_IDS = 150  # 0 is "other"
ADE_FOLDER = 'ADEChallengeData2016'
CIFAR_COUNTS = dict(train=50_000, test=10_000)
CHUNK = 64  # images that a process is given at a time


@dataclass
class Report:
    """What was found: facts, and problems with their remedies."""

    facts: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def fact(self, text: str) -> None:
        self.facts.append(text)

    def problem(self, what: str, remedy: str) -> None:
        self.problems.append((what, remedy))

    def __str__(self) -> str:
        lines = [f'  {text}' for text in self.facts]
        for what, remedy in self.problems:
            lines += [f'PROBLEM  {what}', f'    do:  {remedy}']
        return '\n'.join([*lines, f'{len(self.problems)} to mend' if self.problems else 'no problem found'])


@dataclass
class Scope:
    """What to look at. sample: how many images to decode, None for all; partial: counts are reported, not required."""

    sample: int | None = None
    jobs: int = 1
    partial: bool = False
    unlabelled: bool = False
    num_classes: int | None = None
    list_file: str | None = None


def few(names: Iterable) -> str:
    """The first of the names, and how many more there are."""
    names = list(names)
    return ', '.join(map(str, names[:SHOWN])) + (f' and {len(names) - SHOWN} more' if len(names) > SHOWN else '')


def why_unreadable(path: str) -> str | None:
    """Why an image cannot be read, None if it can."""
    try:
        read_image(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def check_each(report: Report, check: Callable, items: Sequence, scope: Scope, what: str) -> list[str]:
    """Call `check` (item -> reason or None) on all items or on a sample of them, in `scope.jobs` processes."""
    chosen = items
    if scope.sample is not None and scope.sample < len(items):
        chosen = sorted(random.Random(0).sample(items, scope.sample))
    options = dict(description=what, total=len(chosen), console=Console(file=sys.stderr), transient=True)
    options['disable'] = not sys.stderr.isatty()
    if scope.jobs > 1 and len(chosen) > CHUNK:
        with ProcessPoolExecutor(scope.jobs) as pool:
            found = list(track(pool.map(check, chosen, chunksize=CHUNK), **options))
    else:
        found = [check(item) for item in track(chosen, **options)]
    reasons = [reason for reason in found if reason]
    report.fact(f'{what}: {len(chosen) - len(reasons)} of {len(chosen)} good ({len(items)} there)')
    return reasons


def check_images(report: Report, paths: Sequence[str], scope: Scope, what: str) -> None:
    reasons = check_each(report, why_unreadable, paths, scope, f'{what}: images decoded')
    if reasons:
        report.problem(
            f'{what}: {len(reasons)} images cannot be read: {few(reasons)}',
            "replace them, or train on without them: dict(type='beit_mm.LoadImage', on_error='skip')",
        )


def images_below(folder: Path) -> list[str]:
    """Paths of all images below a folder, sorted, through links too; hidden files and folders are left out."""
    found, visited = [], set()
    for at, folders, files in os.walk(folder, followlinks=True):
        here = os.path.realpath(at)
        if here in visited:  # two ways to one folder, or a link to where it is
            folders.clear()
            continue
        visited.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        found += [
            os.path.join(at, name) for name in files if not name.startswith('.') and name.lower().endswith(EXTENSIONS)
        ]
    return sorted(found)


def class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))


def check_folders(report: Report, folder: Path, scope: Scope, what: str) -> dict[str, int]:
    """{class folder: number of images}; looks for empty ones and for images outside of them, decodes."""
    below = {name: images_below(folder / name) for name in class_folders(folder)}
    counts = {name: len(paths) for name, paths in below.items()}
    total = sum(counts.values())
    size = f', {min(counts.values())} to {max(counts.values())} a class' if counts else ''
    report.fact(f'{what}: {total} images in {len(counts)} classes{size}')
    if empty := [name for name, count in counts.items() if not count]:
        report.problem(
            f'{what}: no image in the classes {few(empty)}',
            'fill or remove these folders; a folder of its own keeps a label: allow_empty=True of beit_mm.ImageList',
        )
    stray = [e.name for e in os.scandir(folder) if e.is_file() and e.name.lower().endswith(EXTENSIONS)]
    if stray:
        report.problem(
            f'{what}: {len(stray)} images are in no class folder: {few(sorted(stray))}',
            'they will not be read: move them',
        )
    check_images(report, [path for paths in below.values() for path in paths], scope, what)
    return counts


def check_entries(report: Report, file: Path, prefix: Path, scope: Scope, num_classes: int | None) -> list[Entry]:
    """A list file: labels there, in range and in the known order; files there, once, decodable."""
    entries = list(read_list(file, with_label=False))
    paths = [os.path.join(prefix, entry.path) for entry in entries]
    labelled = [entry for entry in entries if entry.label is not None]
    if not scope.unlabelled:
        labels = [entry.label for entry in labelled]
        spread = f'labels {min(labels)}..{max(labels)}, {len(set(labels))} of them' if labels else 'no labels'
        report.fact(f'{file}: {len(entries)} images, {spread}')
        if bare := [entry.line for entry in entries if entry.label is None]:
            report.problem(
                f'{file}: no label in line {few(bare)}', 'write `path label`, or use it with with_label=False'
            )
        order = ilsvrc.label_order((entry.path, entry.label) for entry in labelled)
        if order is not None:
            report.fact(f'{file}: order of labels: {ilsvrc.ORDERS[order]}')
        if order not in (None, 'sorted'):
            report.problem(f'{file}: labels are in the order: {ilsvrc.ORDERS[order]}', ilsvrc.REMEDIES[order])
        outside = [e for e in labelled if e.label < 0 or (num_classes is not None and e.label >= num_classes)]
        if outside:
            where = few(f'line {entry.line}: {entry.label}' for entry in outside)
            limit = '' if num_classes is None else num_classes - 1
            report.problem(f'{file}: labels outside 0..{limit}: {where}', 'labels start at 0 and end at classes - 1')
        _check_one_label_a_synset(report, file, labelled)
    else:
        report.fact(f'{file}: {len(entries)} images, labels not looked at')
    if twice := [path for path, count in Counter(entry.path for entry in entries).items() if count > 1]:
        report.problem(f'{file}: listed more than once: {few(twice)}', 'remove the repeated lines')
    there = [path for path in paths if os.path.isfile(path)]
    if len(there) < len(paths):
        lines = few(f'line {e.line}: {p}' for e, p in zip(entries, paths) if not os.path.isfile(p))
        report.problem(
            f'{file}: {len(paths) - len(there)} files are not there: {lines}',
            f'paths are below {prefix}; correct them, or the folder',
        )
    check_images(report, there, scope, str(file))
    return entries


def _check_one_label_a_synset(report: Report, file: Path, entries: list[Entry]) -> None:
    seen: dict[str, Entry] = {}
    for entry in entries:
        synset = ilsvrc.synset_of(entry.path)
        if synset and seen.setdefault(synset, entry).label != entry.label:
            report.problem(
                f'{file}, line {entry.line}: {synset} has label {entry.label}, in line {seen[synset].line} it has '
                f'{seen[synset].label}',
                'labels and folders disagree: write the list anew from the folders',
            )
            return


def compare_folders(report: Report, train: Iterable[str], val: Iterable[str]) -> None:
    """Labels are places in the sorted names: train and val must have the same names."""
    train, val = set(train), set(val)
    if train == val:
        report.fact(f'train and val have the same {len(train)} class folders: the same labels')
        return
    numbers = all(name.isdigit() for name in val) and not all(name.isdigit() for name in train)
    report.problem(
        f'val and train have other class folders: only in train {few(sorted(train - val)) or "none"}; only in val '
        f'{few(sorted(val - train)) or "none"}',
        "numbers are the ILSVRC devkit's ids, most likely: rename each folder to its synset (meta.mat of the devkit)"
        if numbers
        else "labels would differ: complete the folders, or give both train's names as beit_mm.ImageList's classes",
    )


def verify_imagenet(root: Path, scope: Scope, report: Report) -> None:
    """ImageNet-1K: {train,val}/<synset>/*.JPEG, or images with meta/{train,val}.txt."""
    folders: dict[str, dict[str, int]] = {}
    for split, expected in (('train', ilsvrc.NUM_TRAIN), ('val', ilsvrc.NUM_VAL)):
        meta = root / 'meta' / f'{split}.txt'
        if not (root / split).is_dir():
            report.problem(f'{root / split}: there is no such folder', f'unpack ILSVRC2012_img_{split}.tar into it')
            continue
        listed = meta.is_file()
        if listed:
            entries = check_entries(report, meta, root / split, scope, scope.num_classes or ilsvrc.NUM_CLASSES)
            per_class = Counter(entry.label for entry in entries)
            total = len(entries)
        elif class_folders(root / split):
            per_class = folders[split] = check_folders(report, root / split, scope, split)
            total = sum(per_class.values())
            check_synsets(report, list(per_class), split, scope.partial)
        else:
            report.problem(
                f'{root / split}: has images but no class folders, and {meta} is not there',
                f'sort the images into folders named by synset, or write {meta} with lines `image.JPEG label`, where '
                f"label is the synset's place in sorted order (not the devkit's id)",
            )
            continue
        if not scope.partial and total != expected:
            report.problem(
                f'{split}: {total} images, and ImageNet-1K has {expected}',
                f'unpack ILSVRC2012_img_{split}.tar again; for a part of the data set: --partial',
            )
        elif not scope.partial and split == 'val' and set(per_class.values()) != {expected // len(per_class)}:
            report.problem('val: has not 50 images of every class', 'sort the images again: labels are wrong')
    if len(folders) == 2:
        compare_folders(report, folders['train'], folders['val'])


def check_synsets(report: Report, names: list[str], what: str, partial: bool) -> None:
    """Class folders of ImageNet-1K must be its 1,000 synsets: then sorted order is the order of labels."""
    known = set(imagenet_synsets())
    if strange := [name for name in names if name not in known]:
        kind = 'no synset ids' if not any(SYNSET.fullmatch(name) for name in strange) else 'not of ImageNet-1K'
        report.problem(
            f'{what}: class folders are {kind}: {few(strange)}', 'name each folder by its synset, as in n01440764'
        )
    if not partial and (lacking := sorted(known - set(names))):
        report.problem(f'{what}: {len(lacking)} class folders are missing: {few(lacking)}', 'unpack the archive again')


def verify_imagefolder(root: Path, scope: Scope, report: Report) -> None:
    """<class>/* or {train,val,test}/<class>/*; with `unlabelled` any images below."""
    if scope.unlabelled:
        paths = images_below(root)
        report.fact(f'{root}: {len(paths)} images')
        check_images(report, paths, scope, str(root))
        if not paths:
            report.problem(f'{root}: no image in it', f'images end in {", ".join(EXTENSIONS)}')
        return
    splits = [name for name in ('train', 'val', 'validation', 'test') if (root / name).is_dir()]
    folders = {}
    for split in splits or ['']:
        folders[split] = check_folders(report, root / split, scope, split or str(root))
        if not folders[split]:
            report.problem(f'{root / split}: has no class folders', 'for images without labels: --unlabelled')
    for split in splits[1:]:
        if 'train' in folders:
            compare_folders(report, folders['train'], folders[split])


def verify_list(root: Path, scope: Scope, report: Report) -> None:
    """A list file whose paths are below `root`."""
    if scope.list_file is None:
        raise ValueError('--format list needs --list FILE')
    if not Path(scope.list_file).is_file():
        raise FileNotFoundError(f'{scope.list_file}: there is no such list file')
    check_entries(report, Path(scope.list_file), root, scope, scope.num_classes)


def verify_cifar(root: Path, scope: Scope, report: Report) -> None:
    """CIFAR-10 and CIFAR-100 below `root`, whichever is there: md5 sums and counts."""
    present = [kind for kind in (CIFAR10, CIFAR100) if (root / kind.FOLDER).is_dir()]
    if not present:
        report.problem(
            f'{root}: has neither {CIFAR10.FOLDER} nor {CIFAR100.FOLDER}',
            f"unpack {CIFAR10.URL} there, or dict(type='beit_mm.CIFAR10', data_root='{root}', download=True)",
        )
    for kind in present:
        sums = root / kind.FOLDER / 'md5s.json'
        if sums.is_file():
            report.fact(f'{root / kind.FOLDER}: a stand-in of tools/prepare_data.py export, not the published CIFAR')
        for split, expected in CIFAR_COUNTS.items():
            try:
                md5s = json.loads(sums.read_text()) if sums.is_file() else None
                data = kind(str(root), pipeline=[], split=split, md5s=md5s)
            except (ValueError, OSError) as error:
                report.problem(str(error), 'unpack the archive again')
                continue
            report.fact(
                f'{kind.__name__} {split}: {len(data)} images, {len(data.metainfo["classes"])} classes, md5s good'
            )
            if len(data) != expected and not (scope.partial or sums.is_file()):
                report.problem(f'{kind.__name__} {split}: {len(data)} images, {expected} expected', 'unpack it again')


def why_unfit(pair: tuple[str, str]) -> str | None:
    """Why an ADE20K image and its mask cannot be trained on, None if they can."""
    image, mask = pair
    if reason := why_unreadable(image) or why_unreadable(mask):
        return reason
    with Image.open(image) as opened, Image.open(mask) as opened_mask:
        if opened.size != opened_mask.size:
            return f'{mask}: {opened_mask.size} pixels (width, height), its image has {opened.size}'
        ids = np.asarray(opened_mask)
    if ids.ndim != 2:
        return f'{mask}: has {ids.shape[2]} bands, and a mask has one (the full ADE20K? SceneParsing is needed)'
    highest = int(ids.max())
    if highest > ADE_IDS:
        reduced = ': 255 for "other" means that 1 was subtracted already' if highest == 255 else ''
        return f'{mask}: holds id {highest}, ids are 0..{ADE_IDS}{reduced}'
    return None


def _full_ade20k(root: Path) -> str:
    """What shows that a folder holds ADE20K_2016_07_26 or ADE20K_2021_17_01, not the scene parsing release."""
    for name in ('index_ade20k.pkl', 'index_ade20k.mat', 'images/ADE'):
        if (root / name).exists():
            return f'it has {name}'
    for split in ADE_COUNTS:
        parts = next((p for p in (root / 'images' / split).glob('*/**/*_seg.png')), None)
        if parts is not None:
            return f'it has {parts.relative_to(root)}'
    return ''


def verify_ade20k(root: Path, scope: Scope, report: Report) -> None:
    """images/ and annotations/, each with {training,validation}/: pairs, sizes, ids 0..150, counts."""
    if full := _full_ade20k(root):
        report.problem(
            f'{root}: is the full ADE20K ({full}), whose masks are other files of over 3,000 classes',
            'take the scene parsing release instead: ADEChallengeData2016.zip, 150 classes',
        )
        return
    if (root / ADE_FOLDER).is_dir():
        report.problem(f'{root}: the data set is the folder {ADE_FOLDER} in it', f'data_root={root / ADE_FOLDER}')
        return
    for split, expected in ADE_COUNTS.items():
        images, masks = root / 'images' / split, root / 'annotations' / split
        lacking = [folder for folder in (images, masks) if not folder.is_dir()]
        if lacking:
            report.problem(f'{few(lacking)}: not there', 'unpack ADEChallengeData2016.zip and name its folder')
            continue
        of_image = {Path(path).stem: path for path in images_below(images)}
        of_mask = {Path(path).stem: path for path in images_below(masks)}
        report.fact(f'{split}: {len(of_image)} images, {len(of_mask)} masks')
        for what, names in (('mask', of_image.keys() - of_mask.keys()), ('image', of_mask.keys() - of_image.keys())):
            if names:
                report.problem(f'{split}: no {what} for {few(sorted(names))}', 'unpack the archive again')
        if not scope.partial and len(of_image) != expected:
            report.problem(
                f'{split}: {len(of_image)} images, and ADE20K has {expected}', 'unpack it again; for a part: --partial'
            )
        pairs = [(of_image[name], of_mask[name]) for name in sorted(of_image.keys() & of_mask.keys())]
        if reasons := check_each(report, why_unfit, pairs, scope, f'{split}: pairs'):
            report.problem(
                f'{split}: {len(reasons)} pairs are unfit: {few(reasons)}',
                'use the SceneParsing release (ADEChallengeData2016) as it is, with reduce_zero_label=True',
            )


def verify_tar_shards(root: Path, scope: Scope, report: Report) -> None:
    """Tar shards with their index: shard_verify.py; then images of it, decoded."""
    if images := verify_shards(root, scope, report):
        check_images(report, images, scope, str(root))


WAYS = (verify_imagenet, verify_imagefolder, verify_list, verify_cifar, verify_ade20k, verify_tar_shards)
CHECKS = dict(zip(VERIFIED, WAYS, strict=True))


def verify(root: str | Path, form: str, scope: Scope | None = None) -> Report:
    """Check a data set of one of VERIFIED. Raises FileNotFoundError where there is no such folder."""
    root = Path(root)
    if form not in VERIFIED:
        raise ValueError(f'format {form!r} is none of {", ".join(VERIFIED)}')
    if not root.is_dir():
        raise FileNotFoundError(f'{root}: there is no such folder')
    report = Report()
    CHECKS[form](root, scope or Scope(), report)
    return report
