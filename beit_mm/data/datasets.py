"""Data sets that configs can name: the embedded ones, and CIFAR read without running what is in its pickles."""

import hashlib
import io
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

from ..checkpoints.load import ArraysOnly
from ..registry import DATASETS
from . import embedded


class _Generated(BaseDataset):
    """A data set whose samples are made (and then kept) on first use instead of listed in a file."""

    def __init__(self, length: int, pipeline: list, test_mode: bool = False, **kwargs) -> None:
        if length < 1:
            raise ValueError(f'{type(self).__name__}: length={length}; a data set needs at least one image')
        self.length = length
        self._made: dict[int, dict] = {}
        super().__init__(pipeline=pipeline, test_mode=test_mode, serialize_data=False, **kwargs)

    def load_data_list(self) -> list[dict]:
        return [dict(index=i) for i in range(self.length)]

    def get_data_info(self, idx: int) -> dict:
        info = super().get_data_info(idx)
        index = info['index']
        if index not in self._made:
            self._made[index] = self.make(index)
        return dict(self._made[index], sample_idx=info['sample_idx'])

    def make(self, index: int) -> dict:
        raise NotImplementedError


@DATASETS.register_module()
class EmbeddedScenes(_Generated):
    """Mosaics of photographs with masks (`train`, `val`), or unlabelled crops of them (`pool`).

    mosaic: the pool's pictures are mosaics of 1 to 4 crops, as the labelled scenes are, instead of one crop.

    size: side in pixels. grey: the contrast-normalised variant with one channel, else RGB. The same (seed,
    split, index) is always the same picture. A sample holds img (H, W, C) uint8 RGB and, unless from the
    pool, gt_seg_map (H, W) uint8 and gt_label.
    """

    METAINFO = dict(
        dataset_type='EmbeddedScenes', classes=embedded.CLASSES, palette=[list(c) for c in embedded.PALETTE]
    )

    def __init__(
        self,
        pipeline: list,
        split: str = 'train',
        length: int = 1000,
        size: int = 48,
        grey: bool = False,
        seed: int = 0,
        mosaic: bool = False,
        **kwargs,
    ) -> None:
        if split not in embedded.SPLITS:
            raise ValueError(f'EmbeddedScenes: split={split!r} is none of {", ".join(embedded.SPLITS)}')
        self.split, self.size, self.grey, self.seed, self.mosaic = split, size, grey, seed, mosaic
        super().__init__(length, pipeline, **kwargs)

    def make(self, index: int) -> dict:
        name = f'embedded://scenes/{self.split}/{index}'
        shape = dict(img_path=name, img_shape=(self.size, self.size), ori_shape=(self.size, self.size))
        if self.split == 'pool':
            if self.mosaic:
                image = embedded.scene(self.seed, 'pool', index, self.size, self.grey, fewest=1).image
            else:
                image = embedded.pool_crop(self.seed, index, self.size, self.grey)
            return dict(img=image, **shape)
        scene = embedded.scene(self.seed, self.split, index, self.size, self.grey)
        return dict(
            img=scene.image,
            gt_label=scene.label,
            gt_seg_map=scene.mask,
            seg_map_path=name,
            seg_fields=['gt_seg_map'],
            reduce_zero_label=False,
            **shape,
        )


@DATASETS.register_module()
class EmbeddedDigits(_Generated):
    """scikit-learn's hand-written digits, 8 x 8 pixels, grey: 1,257 to train and 540 to validate."""

    METAINFO = dict(dataset_type='EmbeddedDigits', classes=embedded.DIGIT_CLASSES)

    def __init__(self, pipeline: list, split: str = 'train', **kwargs) -> None:
        if split not in ('train', 'val'):
            raise ValueError(f'EmbeddedDigits: split={split!r} is neither train nor val')
        self.split = split
        self.images, self.labels = embedded.digits_split(split)
        super().__init__(len(self.labels), pipeline, **kwargs)

    def make(self, index: int) -> dict:
        return dict(
            img=self.images[index],
            gt_label=int(self.labels[index]),
            img_path=f'embedded://digits/{self.split}/{index}',
            img_shape=(8, 8),
            ori_shape=(8, 8),
        )


def read_cifar_pickle(path: Path, md5: str | None, key: str) -> dict:
    """One of CIFAR's pickles, which must hold `key`. Raises an error naming the file when it is not as published."""
    if not path.is_file():
        raise FileNotFoundError(
            f'{path}: not found. Unpack cifar-10-python.tar.gz or cifar-100-python.tar.gz into data_root, '
            f'or write the embedded stand-in: python tools/prepare_data.py export DIR --format cifar'
        )
    content = path.read_bytes()
    if md5 is not None and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise ValueError(f'{path}: md5 is {found}, expected {md5}; the file is damaged or another one')
    try:
        batch = ArraysOnly(io.BytesIO(content), encoding='latin1').load()
    except Exception as error:  # damaged bytes make pickle raise IndexError, struct.error, KeyError, ...
        raise ValueError(f'{path}: not a CIFAR file ({error})') from error
    if not isinstance(batch, dict) or key not in batch:
        raise ValueError(f'{path}: not a CIFAR file (no key {key!r})')
    return batch


class _CIFAR(BaseDataset):
    """CIFAR from its Python pickles: img (32, 32, 3) uint8 RGB and gt_label.

    md5s: {file name: md5}; the published ones by default. A mapping of your own serves files of the same
    format with other pixels; None there skips the check of that file.
    """

    FOLDER: str
    FILES: dict[str, list[str]]
    MD5S: dict[str, str]
    LABELS: str
    META: tuple[str, str]  # file, key

    def __init__(
        self, data_root: str, pipeline: list, split: str = 'train', md5s: dict | None = None, **kwargs
    ) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f'{type(self).__name__}: split={split!r} is neither train nor test')
        self.split = split
        self.md5s = self.MD5S if md5s is None else md5s
        folder = Path(data_root) / self.FOLDER
        meta_file, key = self.META
        classes = read_cifar_pickle(folder / meta_file, self.md5s.get(meta_file), key)[key]
        super().__init__(
            data_root=data_root,
            pipeline=pipeline,
            metainfo=dict(classes=tuple(classes)),
            serialize_data=False,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        samples = []
        for name in self.FILES[self.split]:
            path = Path(self.data_root) / self.FOLDER / name
            batch = read_cifar_pickle(path, self.md5s.get(name), 'data')
            images = np.asarray(batch['data'], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for i, (image, label) in enumerate(zip(images, batch[self.LABELS], strict=True)):
                samples.append(dict(img=image, gt_label=int(label), img_path=f'{path}#{i}'))
        return samples

    def get_data_info(self, idx: int) -> dict:
        info = super().get_data_info(idx)
        return dict(info, img=info['img'].copy(), img_shape=(32, 32), ori_shape=(32, 32))


@DATASETS.register_module()
class CIFAR10(_CIFAR):
    """CIFAR-10: data_root/cifar-10-batches-py/."""

    FOLDER = 'cifar-10-batches-py'
    FILES = dict(train=[f'data_batch_{i}' for i in range(1, 6)], test=['test_batch'])
    MD5S = {
        'data_batch_1': 'c99cafc152244af753f735de768cd75f',
        'data_batch_2': 'd4bba439e000b95fd0a9bffe97cbabec',
        'data_batch_3': '54ebc095f3ab1f0389bbae665268c751',
        'data_batch_4': '634d18415352ddfa80567beed471001a',
        'data_batch_5': '482c414d41f54cd18b22e5b47cb7c3cb',
        'test_batch': '40351d587109b95175f43aff81a1287e',
        'batches.meta': '5ff9c542aee3614f3951f8cda6e48888',
    }
    LABELS = 'labels'
    META = ('batches.meta', 'label_names')


@DATASETS.register_module()
class CIFAR100(_CIFAR):
    """CIFAR-100 with its 100 fine labels: data_root/cifar-100-python/."""

    FOLDER = 'cifar-100-python'
    FILES = dict(train=['train'], test=['test'])
    MD5S = {
        'train': '16019d7e3df5f24257cddd939b257f8d',
        'test': 'f0ef6b0ae62326f3e7ffdfab6717acfc',
        'meta': '7973b15100ade9c7d40fb424638fde48',
    }
    LABELS = 'fine_labels'
    META = ('meta', 'fine_label_names')
