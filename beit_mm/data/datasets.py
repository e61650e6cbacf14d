"""The data sets that configs can name and that need no folder of images: the embedded ones here, CIFAR in cifar.py."""

from mmengine.dataset import BaseDataset

from ..registry import DATASETS
from . import embedded
from .cifar import CIFAR10, CIFAR100

__all__ = ['CIFAR10', 'CIFAR100', 'EmbeddedDigits', 'EmbeddedScenes']


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
