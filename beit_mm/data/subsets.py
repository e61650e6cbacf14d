"""A share of a labelled data set, or what is left of it: for few-shot training and for held-out images."""

from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS as ANY_DATASETS

from ..registry import DATASETS
from .sampling import Draw


def balanced_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """labels (N,) -> (N,) indices, each once: one image of every class, then a second one of every class, ...

    Every start of it has as many images of one class as of another, give or take one, until a class has no more;
    a shorter start is part of a longer one. Within a class, and within a round, the order is the seed's.
    """
    rng = np.random.default_rng(seed)
    tie = rng.permutation(len(labels))
    by_class = np.lexsort((tie, labels))
    counts = np.unique(labels, return_counts=True)[1]
    rounds = np.concatenate([np.arange(count) for count in counts])  # which of its class's images each of them is
    place = np.repeat(rng.permutation(len(counts)), counts)
    return by_class[np.lexsort((place, rounds))]


def _listed(names: list[str], paths: list[str], file: Path) -> np.ndarray:
    """Indices of the images whose paths end with the names, be they `image.JPEG` or `class/image.JPEG`."""
    found: dict[str, int] = {}
    several = set()
    for index, path in enumerate(paths):
        parts = path.replace('\\', '/').rsplit('/', 2)
        for key in {parts[-1], '/'.join(parts[-2:])}:
            if found.setdefault(key, index) != index:
                several.add(key)
    indices = []
    for number, name in enumerate(names, start=1):
        if name not in found:
            raise ValueError(f'{file}, line {number}: the data set has no image {name!r}')
        if name in several:
            raise ValueError(f'{file}, line {number}: {name!r} names several images; write class/image')
        indices.append(found[name])
    if len(set(indices)) < len(indices):
        raise ValueError(f'{file}: it names {len(indices) - len(set(indices))} images twice')
    return np.array(indices)


@DATASETS.register_module()
class LabelledShare:
    """A share of any data set whose samples have an `img_path` and one `gt_label`.

    percent: in (0, 100), of the images; as many of every class, as far as it has them. The shares of one seed are
        nested: 1 % is inside 5 %. Raises ValueError if that is not one image per class.
    file: instead of percent, a text file with an image's name per line, such as SimCLR's 1percent.txt.
    rest: the images outside the share instead of those inside.
    """

    def __init__(
        self, dataset: dict, percent: float | None = None, file: str | None = None, seed: int = 0, rest: bool = False
    ) -> None:
        if (percent is None) == (file is None):
            raise ValueError(f'LabelledShare: percent={percent}, file={file}: give one of the two')
        if percent is not None and not 0 < percent < 100:
            raise ValueError(f'LabelledShare: percent={percent} must be between 0 and 100; all is the data set itself')
        self.dataset = ANY_DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.dataset.full_init()
        self.percent, self.file, self.seed, self.rest = percent, file, seed, rest
        share = self._listed() if file else self._balanced()
        inside = np.zeros(len(self.dataset), dtype=bool)
        inside[share] = True
        self.indices = np.flatnonzero(inside != rest)
        if not len(self.indices):
            raise ValueError(f'LabelledShare: outside of {len(share)} of {len(inside)} images there is none')

    def _listed(self) -> np.ndarray:
        file = Path(self.file)
        names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        return _listed(names, [self.get_path(i) for i in range(len(self.dataset))], file)

    def _balanced(self) -> np.ndarray:
        labels = np.array([int(self.dataset.get_data_info(i)['gt_label']) for i in range(len(self.dataset))])
        number, classes = round(len(labels) * self.percent / 100), len(np.unique(labels))
        if number < classes:
            raise ValueError(
                f'LabelledShare: percent={self.percent} of {len(labels)} images are {number}, fewer than their '
                f'{classes} classes; take at least percent={100 * classes / len(labels):.4g}'
            )
        return balanced_order(labels, self.seed)[:number]

    def get_path(self, index: int) -> str:
        """Where the image `index` of the whole data set comes from."""
        return str(self.dataset.get_data_info(index)['img_path'])

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def full_init(self) -> None:
        """mmengine asks every data set for it; the one inside is complete."""

    def __len__(self) -> int:
        return len(self.indices)

    def _inner(self, index: int) -> int:
        inner = int(self.indices[index])
        return Draw(inner, index.key) if isinstance(index, Draw) else inner

    def get_data_info(self, index: int) -> dict:
        return self.dataset.get_data_info(self._inner(index))

    def __getitem__(self, index: int) -> dict:
        return self.dataset[self._inner(index)]
