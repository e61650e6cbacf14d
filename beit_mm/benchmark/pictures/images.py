"""Where the images of the pictures come from: a config's test data, files, or a folder in PASCAL VOC's layout.

Letters in shapes: H x W pixels, C bands.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from ...apis import ImageSamples, find_images
from ...data.embedded import LUMA
from ...data.loading import read_image
from ...data.masks import IGNORED, read_mask
from ...data.transforms import resize
from ...engine.showing import as_loaded
from .canvas import PictureError
from .models import preprocessing

VOC_LIST = 'ImageSets/Segmentation/val.txt'
NO_OBJECT = 0  # in a mask of objects


class Image(NamedTuple):
    """pixels (H, W, C) as stored, RGB if C is 3; mask (H, W) class indices, objects (H, W) numbers of objects from 1,
    both with 255 where the truth does not count; label: the image's class. What is not known is None."""

    name: str
    pixels: np.ndarray
    mask: np.ndarray | None = None
    objects: np.ndarray | None = None
    label: int | None = None


class Images(NamedTuple):
    """Images to choose from: `load(i)` gives number i; `where` they are, for messages; names of their classes."""

    where: str
    count: int
    load: Callable[[int], Image | dict]
    classes: Sequence[str] | None = None

    def chosen(self, indices: Sequence[int]) -> list:
        """Some of them, by their numbers. Raises PictureError for a number that there is none of."""
        if not self.count:
            raise PictureError(f'{self.where}: there is no image')
        beyond = [index for index in indices if not 0 <= index < self.count]
        if beyond:
            raise PictureError(f'{self.where}: there is no image {beyond[0]}; they are numbered 0 to {self.count - 1}')
        return [self.load(index) for index in indices]


def test_dataset(config: Config):
    """The data set of the config's `test_dataloader`. Raises PictureError for a config without one."""
    if config.get('test_dataloader') is None:
        raise PictureError(f'{config.filename}: has no test_dataloader whose images could be shown; give --images')
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        return DATASETS.build(config.test_dataloader.dataset)


def packed(config: Config, files: Sequence[str] = ()) -> Images:
    """What the test pipeline makes of the test data, or of files, whose labels are not looked for: dicts."""
    if files:
        samples = ImageSamples(files_of(files), config, skip=False)
        return Images(' '.join(map(str, files)), len(samples), lambda i: samples[i][1])
    dataset = test_dataset(config)
    return Images(f'{config.filename}: test_dataloader', len(dataset), dataset.__getitem__)


def files_of(paths: Sequence[str]) -> list:
    """The files that folders, files and lists of files stand for. Raises FileNotFoundError where there are none."""
    return [file for path in paths for file in find_images(path)]


def from_config(config: Config) -> Images:
    """The images that a config is tested on, as its pipeline leaves them before they are normalised."""
    dataset = test_dataset(config)
    reversed_bands = preprocessing(config)['reversed']

    def load(index: int) -> Image:
        sample, record = dataset[index], dataset.get_data_info(index)
        label = mask = None
        if 'data_samples' in sample:
            truth = sample['data_samples']
            label = int(truth.gt_label[0]) if 'gt_label' in truth else None
            mask = truth.gt_sem_seg.data[0].numpy() if 'gt_sem_seg' in truth else None
        pixels = _pixels_of(sample, reversed_bands, config)
        if mask is None and record.get('gt_seg_map') is not None and _same(record['img'], pixels):
            mask = record['gt_seg_map']  # of data that are made, not loaded, and whose masks the pipeline drops
        label = int(record['gt_label']) if label is None and record.get('gt_label') is not None else label
        mask = None if mask is None else _resized_mask(np.asarray(mask), pixels.shape[:2])
        return Image(str(record.get('img_path', index)), pixels, mask, None, label)

    classes = dataset.metainfo.get('classes')
    return Images(f'{config.filename}: test_dataloader', len(dataset), load, classes)


def _same(image: np.ndarray, pixels: np.ndarray) -> bool:
    """Is this the image, uncropped, in another size at most?"""
    return image.shape[2] == pixels.shape[2] and np.array_equal(resize(image, pixels.shape[:2], 'bicubic'), pixels)


def _pixels_of(sample: dict, reversed_bands: bool, config: Config) -> np.ndarray:
    packed = sample.get('patches', sample.get('inputs', sample.get('tokens_view')))
    if not isinstance(packed, torch.Tensor) or packed.ndim != 3:
        raise PictureError(f'{config.filename}: its test pipeline gives no image (C, H, W); give --images')
    return as_loaded(packed, packed.shape[1:], reversed_bands)


def from_files(config: Config, paths: Sequence[str], whole: bool) -> Images:
    """Files, through the config's test pipeline; whole: as they are, without its crops and sizes."""
    samples = ImageSamples(files_of(paths), config, skip=False)
    reversed_bands = preprocessing(config)['reversed']

    def load(index: int) -> Image:
        if whole:
            pixels = samples.loaded(index)['img']
            pixels = pixels if pixels.ndim == 3 else pixels[..., None]
            pixels = pixels[..., ::-1] if samples.bgr and pixels.shape[2] == 3 else pixels
        else:
            pixels = _pixels_of(samples[index][1], reversed_bands, config)
        return Image(Path(samples.images[index]).name, np.ascontiguousarray(pixels))

    return Images(' '.join(map(str, paths)), len(samples), load)


def from_voc(root: str) -> Images:
    """PASCAL VOC's layout: JPEGImages, SegmentationObject and SegmentationClass (PNG with a palette, 255 void), and the
    names in ImageSets/Segmentation/val.txt. Raises PictureError naming what is missing."""
    folder, listed = Path(root), Path(root) / VOC_LIST
    if not listed.is_file():
        raise PictureError(f'{listed}: not there; --voc takes the folder that holds ImageSets and JPEGImages (VOC2012)')
    names = listed.read_text().split()

    def load(index: int) -> Image:
        name = names[index]
        picture = folder / 'JPEGImages' / f'{name}.jpg'
        masks = {}
        for kind in ('SegmentationObject', 'SegmentationClass'):
            file = folder / kind / f'{name}.png'
            masks[kind] = read_mask(str(file)).astype(np.uint8) if file.is_file() else None
        if not picture.is_file() or all(mask is None for mask in masks.values()):
            lacking = picture if not picture.is_file() else folder / 'SegmentationObject' / f'{name}.png'
            raise PictureError(f'{lacking}: not there, and {listed} names it')
        pixels = read_image(str(picture))
        for kind, mask in masks.items():
            if mask is not None and mask.shape != pixels.shape[:2]:
                raise PictureError(
                    f'{folder / kind / f"{name}.png"}: the mask is {_sides(mask.shape)}, its image '
                    f'{_sides(pixels.shape)} pixels; masks are numbers in one band'
                )
        found = masks['SegmentationObject']
        return Image(name, pixels, masks['SegmentationClass'], masks['SegmentationClass'] if found is None else found)

    return Images(str(listed), len(names), load)


def _sides(shape: Sequence[int]) -> str:
    return ' x '.join(map(str, shape[:2] if len(shape) == 3 and shape[2] == 3 else shape))


def _resized_mask(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    if mask.shape == tuple(size):
        return mask
    return resize(mask.astype(np.uint8)[..., None], tuple(size), 'nearest')[..., 0]


def to_patches(image: Image, patch: int, shorter: int | None = None) -> tuple[Image, str]:
    """The image in a size that the patches divide, nearest to its own or to a shorter side of `shorter` pixels in its
    aspect ratio; and what was done to it, in words, or an empty text."""
    height, width = image.pixels.shape[:2]
    factor = shorter / min(height, width) if shorter else 1.0
    size = tuple(max(1, round(side * factor / patch)) * patch for side in (height, width))
    if size == (height, width):
        return image, ''
    masks = {
        name: None if mask is None else _resized_mask(mask, size)
        for name, mask in (('mask', image.mask), ('objects', image.objects))
    }
    done = f'{image.name}: resized from {height} x {width} to {size[0]} x {size[1]} pixels, for patches of {patch}'
    return image._replace(pixels=resize(image.pixels, size, 'bicubic'), **masks), done


def told(resized: Sequence[str]) -> str:
    """The first of what was done to images, and how many there are more, for a caption."""
    more = f' And {len(resized) - 1} more.' if resized[1:] else ''
    return f'\n{resized[0]}.{more}' if resized else ''


def normalised(pixels: np.ndarray, config: Config) -> torch.Tensor:
    """(H, W, C) as stored -> (C, H, W) float32 as the config's model gets it; grey is made of colours, or colours of
    grey, where the model takes the other. Raises PictureError for other numbers of bands."""
    known = preprocessing(config)
    bands = len(known['mean'])
    if pixels.shape[2] == 3 and bands == 1:
        pixels = (pixels @ LUMA)[..., None].round()
    elif pixels.shape[2] == 1 and bands == 3:
        pixels = pixels.repeat(3, axis=2)
    elif pixels.shape[2] != bands:
        raise PictureError(f'{config.filename}: takes images of {bands} bands, and this one has {pixels.shape[2]}')
    values = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float()
    mean, std = (torch.tensor(known[key], dtype=torch.float32).view(-1, 1, 1) for key in ('mean', 'std'))
    return (values - mean) / std


class Region(NamedTuple):
    """One object of an image: inside, valid (H, W) bool; query: the patch (row, column) nearest to its middle."""

    inside: np.ndarray
    valid: np.ndarray
    query: tuple[int, int]


def regions_of(image: Image, patch: int) -> list[Region]:
    """The objects of an image; of one with a mask of classes only, the region of its label, or its largest."""
    if image.objects is not None:
        truth = image.objects
        wanted = [int(value) for value in np.unique(truth) if value not in (NO_OBJECT, IGNORED)]
    elif image.mask is not None:
        truth = image.mask
        there, counts = np.unique(truth[truth != IGNORED], return_counts=True)
        wanted = [image.label] if image.label in there else there[counts == counts.max(initial=0)][:1].tolist()
    else:
        return []
    valid = truth != IGNORED
    return [Region(truth == value, valid, middle_patch(truth == value, patch)) for value in wanted]


def middle_patch(inside: np.ndarray, patch: int) -> tuple[int, int]:
    """The patch nearest to the middle of a region (H, W) bool, of those of which it has most, at least half if any."""
    rows, columns = inside.shape[0] // patch, inside.shape[1] // patch
    cover = inside[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch).mean(axis=(1, 3))
    where = np.argwhere(cover >= min(0.5, cover.max()))
    centre = np.argwhere(cover > 0).mean(axis=0)
    return tuple(int(v) for v in where[np.square(where - centre).sum(axis=1).argmin()])
