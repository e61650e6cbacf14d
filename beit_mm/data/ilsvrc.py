"""In which order the labels of an ImageNet list are: the sorted one that weights mean, or the devkit's own.

The ILSVRC 2012 devkit numbers its classes 1..1000 in an order of its own (meta.mat), and its ground truth of the
validation set is in these numbers. Everybody else's labels are 0..999, places in the sorted synset ids. Both fit
1,000 classes, so a mix-up raises no error and costs all accuracy.
"""

import re
from collections.abc import Iterable

SYNSET = re.compile(r'n\d{8}')
NUM_CLASSES, NUM_TRAIN, NUM_VAL = 1000, 1_281_167, 50_000
VAL_NAME = re.compile(r'ILSVRC2012_val_(\d{8})\.JPEG', re.IGNORECASE)
SORTED_VAL = {1: 65, 2: 970, 3: 230, 4: 809, 5: 516}  # number of a validation image: its label, from 0
DEVKIT_VAL = {1: 490, 2: 361, 3: 171, 4: 822, 5: 297}  # its id in ILSVRC2012_validation_ground_truth.txt
DEVKIT_IDS = {'n02119789': 1, 'n02100735': 2, 'n03255030': 1000}  # of meta.mat: kit fox, English setter, dumbbell
ORDERS = {
    'sorted': 'sorted synsets, from 0',
    'sorted from 1': 'sorted synsets, but counted from 1',
    'devkit': "the ILSVRC devkit's own ids, 1..1000",
    'devkit from 0': "the ILSVRC devkit's own order, counted from 0",
    'other': 'neither of sorted synsets nor of the ILSVRC devkit',
}
REMEDIES = {
    'sorted from 1': 'subtract 1 from each label',
    **dict.fromkeys(
        ('devkit', 'devkit from 0', 'other'),
        'translate each label: id -> synset (meta.mat of the devkit) -> place of the synset in sorted order, from 0; '
        'or sort the images into folders named by synset and use no list',
    ),
}


def imagenet_synsets() -> list[str]:
    """The 1,000 synset ids of ILSVRC 2012 in the order that weights and leaderboards mean: sorted."""
    from timm.data import ImageNetInfo  # seconds to import

    return ImageNetInfo('imagenet-1k').label_names()


def synset_of(path: str) -> str | None:
    """The synset id among the folders of a path, or in front of its file name (`n01440764_10026.JPEG`)."""
    for part in reversed(path.replace('\\', '/').split('/')):
        if SYNSET.fullmatch(part.split('_')[0]):
            return part.split('_')[0]
    return None


def label_order(labels: Iterable[tuple[str, int]]) -> str | None:
    """Which of ORDERS the labels of a list, (path, label), follow; None where its paths do not say.

    Told by synset ids in the paths (places among the 1,000, or among those that occur: a part of ImageNet-1K may have
    labels of its own, and ImageNet-22K has), else by the first images of the validation set.
    """
    of_synset: dict[str, int] = {}
    of_number: dict[int, int] = {}
    for path, label in labels:
        if synset := synset_of(path):
            of_synset.setdefault(synset, label)
        elif found := VAL_NAME.search(path):
            of_number[int(found[1])] = label
    if not of_synset:
        return _matching(of_number, SORTED_VAL, DEVKIT_VAL)
    among_all = {name: rank for rank, name in enumerate(imagenet_synsets())}
    among_these = {name: rank for rank, name in enumerate(sorted(of_synset))}
    order = _matching(of_synset, among_all, DEVKIT_IDS) if of_synset.keys() <= among_all.keys() else 'other'
    return order if order != 'other' else _matching(of_synset, among_these, DEVKIT_IDS)


def _matching(labels: dict, in_sorted: dict, in_devkit: dict) -> str | None:
    """labels, in_sorted (from 0), in_devkit (from 1): {what: number}; compared where both sides have the key."""

    def equal(known: dict, shift: int) -> bool:
        common = labels.keys() & known.keys()
        return bool(common) and all(labels[key] == known[key] + shift for key in common)

    if not labels.keys() & in_sorted.keys():
        return None
    for name, known, shift in (
        ('sorted', in_sorted, 0),
        ('sorted from 1', in_sorted, 1),
        ('devkit', in_devkit, 0),
        ('devkit from 0', in_devkit, -1),
    ):
        if equal(known, shift):
            return name
    return 'other'
