"""Images with masks as files: ADE20K, and any two folders of images and masks.

A mask holds one class index per pixel, 0 to classes - 1, and 255 where the truth is unknown or does not count: losses
and metrics pass over 255. ADE20K's files are shifted by one, 0 being "other": `reduce_zero_label=True` of the data set,
and nowhere else, turns 0 into 255 and 1 into 0.
"""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from PIL import Image

from ..registry import DATASETS, TRANSFORMS
from .loading import EXTENSIONS, NPY, TIFF, UnreadableImage, check_pixels, read_image
from .verify import few, images_below

IGNORED = 255  # in a mask: does not count
MEANING = ('mask_values', 'ignored_values', 'reduce_zero_label', 'label_map', 'num_classes')  # of a file's numbers
PNG_WIDTH, PNG_HEIGHT = slice(16, 20), slice(20, 24)  # bytes of a PNG
PNG_KIND, GREY_OF_8_BITS = slice(24, 26), b'\x08\x00'  # bytes of a PNG
SHOWN_VALUES = 8  # of a mask, in a message


class MaskError(ValueError):
    """A mask that cannot be trained on, or a folder whose images and masks are no pairs; the message names it."""


def read_mask(path: str, backend_args: dict | None = None) -> np.ndarray:
    """The file's numbers: (H, W), or (H, W, bands) of a coloured one; int64. Palettes are left as indices.

    Raises MaskError for fractions and JPEG, and UnreadableImage for what is no image.
    """
    return _as_stored(path, backend_args).astype(np.int64)


def _as_stored(path: str, backend_args: dict | None) -> np.ndarray:
    """`read_mask` in the file's own type: uint8, of nearly every mask, is an eighth of the memory."""
    suffix = Path(path).suffix.lower()
    if suffix in ('.jpg', '.jpeg'):
        raise MaskError(f'{path}: a JPEG does not keep the ids of a mask; write masks as PNG')
    if suffix in (*TIFF, *NPY):
        array = _whole(read_image(path, backend_args=backend_args), path)
        return array[..., 0] if array.shape[2] == 1 else array
    content = fileio.get(path, backend_args=backend_args)
    try:
        if content.startswith(b'\x89PNG') and content[PNG_KIND] == GREY_OF_8_BITS:
            check_pixels(int.from_bytes(content[PNG_WIDTH]), int.from_bytes(content[PNG_HEIGHT]))
            array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if array is not None and array.ndim == 2:  # else damaged, which is for Pillow to say
                return array
        with Image.open(io.BytesIO(content)) as image:
            array = np.asarray(image.getchannel('L') if image.mode == 'LA' else image)
    except Exception as error:  # damaged bytes make decoders raise anything
        reason = str(error) if content and not isinstance(error, Image.UnidentifiedImageError) else 'of no known format'
        raise UnreadableImage(f'{path}: not a readable mask ({reason})') from error
    return _whole(array, path)


def _whole(array: np.ndarray, path: str) -> np.ndarray:
    """The array. Raises MaskError for fractions, and for what is no number."""
    if array.dtype.kind == 'f' and not (np.isfinite(array) & (array == np.round(array))).all():
        raise MaskError(f'{path}: holds fractions, and a mask holds class indices')
    return array


def _values(array: np.ndarray) -> str:
    """The different numbers, or colours, of a mask, in words."""
    found = np.unique(array.reshape(-1, array.shape[-1]) if array.ndim == 3 else array.ravel(), axis=0).tolist()
    shown = ', '.join(str(tuple(v) if isinstance(v, list) else v) for v in found[:SHOWN_VALUES])
    return shown + (f' and {len(found) - SHOWN_VALUES} more' if len(found) > SHOWN_VALUES else '')


def to_classes(array: np.ndarray, mask_values: Sequence, path: str, ignored: Sequence = ()) -> np.ndarray:
    """Numbers (H, W) or colours (H, W, 3) -> the places that they have in `mask_values`; 255 for the `ignored`, and for
    255 itself where nothing else is said of it.

    Raises MaskError for any other number or colour.
    """
    coloured = not np.isscalar(mask_values[0])
    if coloured != (array.ndim == 3):
        kinds = 'colours', f'numbers ({_values(array)})'
        named, held = kinds if coloured else ('numbers', f'colours ({_values(array)})')
        raise MaskError(f'{path}: holds {held}, and mask_values={list(mask_values)} are {named}')
    wanted, unwanted = np.asarray(mask_values), np.asarray(ignored)
    if coloured:
        array, wanted = _joined(array), _joined(wanted)
        unwanted = _joined(unwanted) if len(ignored) else unwanted
    classes = np.full(array.shape, -1)
    if not coloured and IGNORED not in mask_values:
        classes[array == IGNORED] = IGNORED
    for index, value in enumerate(wanted):
        classes[array == value] = index
    classes[np.isin(array, unwanted)] = IGNORED
    if (classes < 0).any():
        strange = array[classes < 0]
        strange = np.stack([strange >> 16, strange >> 8 & 255, strange & 255], axis=-1)[None] if coloured else strange
        raise MaskError(
            f'{path}: holds {_values(strange)}, which mask_values={list(mask_values)} do not name; what '
            f'is not to count: ignored_values=(...)'
        )
    return classes


def _joined(colours: np.ndarray) -> np.ndarray:
    """(..., 3) of 0..255 -> (...) one number each."""
    return (colours[..., 0].astype(np.int64) << 16) + (colours[..., 1].astype(np.int64) << 8) + colours[..., 2]


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Read `seg_map_path` into `gt_seg_map` (H, W): class indices and 255, after the image is loaded.

    What becomes of the file's numbers the data set says (`mask_values`, `reduce_zero_label`, its choice of classes),
    not this transform: mmseg's LoadAnnotations has a `reduce_zero_label` of its own, and cuts 16-bit masks to 8 bits.
    Raises MaskError, with the file's name, for a mask of another size than its image, for colours, and for ids beyond
    the classes.
    """

    def __init__(self, backend_args: dict | None = None) -> None:
        self.backend_args = backend_args
        self.tables: dict[str, tuple[np.ndarray, int | None]] = {}

    def transform(self, results: dict) -> dict:
        path = results.get('seg_map_path')
        if path is None:
            if results.get('without_masks'):
                return results  # a test set to predict for
            raise MaskError(
                f'{results.get("img_path")}: the data set names no mask for it: '
                f"data_prefix=dict(img_path='...', seg_map_path='...')"
            )
        mask = _as_stored(path, self.backend_args)
        shape = results.get('ori_shape')
        if shape is not None and mask.shape[:2] != tuple(shape[:2]):
            raise MaskError(
                f'{path}: the mask is {mask.shape[0]} x {mask.shape[1]} pixels (height x width), its image '
                f'{results.get("img_path")} {shape[0]} x {shape[1]}: they must be of one size'
            )
        classes = self._by_table(mask, results) if mask.dtype == np.uint8 and mask.ndim == 2 else None
        if classes is None:
            classes = self._classes(mask.astype(np.int64), results, path).astype(np.uint8)
        results['gt_seg_map'] = classes
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def _by_table(self, mask: np.ndarray, results: dict) -> np.ndarray | None:
        """`_classes` of (H, W) uint8 as (H, W) uint8; None where a value must not be there."""
        key = repr([results.get(name) for name in MEANING])
        if key not in self.tables:
            self.tables[key] = self._table(results)
        table, wrong = self.tables[key]
        classes = cv2.LUT(mask, table)
        return None if wrong is not None and (classes == wrong).any() else classes

    def _table(self, results: dict) -> tuple[np.ndarray, int | None]:
        """(256,) uint8, `_classes` of each value, and what stands in it for those that are refused, if any are."""
        found = {}
        for value in range(256):
            with contextlib.suppress(MaskError):
                found[value] = int(self._classes(np.array([[value]]), results, '')[0, 0].astype(np.uint8))
        wrong = next(iter(set(range(256)) - set(found.values()))) if len(found) < 256 else None
        return np.array([found.get(value, wrong) for value in range(256)], np.uint8), wrong

    def _classes(self, mask: np.ndarray, results: dict, path: str) -> np.ndarray:
        """The file's numbers (H, W), or colours (H, W, bands) -> class indices and 255."""
        values = results.get('mask_values')
        if values is not None:
            mask = to_classes(mask, values, path, results.get('ignored_values') or ())
        elif mask.ndim == 3:
            raise MaskError(
                f'{path}: is a picture of {mask.shape[2]} bands, and a mask has one number per pixel. Colours '
                f"{_values(mask)}: name those of the classes, in their order, as the data set's "
                f'mask_values=[(r, g, b), ...], or convert the masks'
            )
        if results.get('reduce_zero_label'):
            mask = np.where((mask == 0) | (mask == IGNORED), IGNORED, mask - 1)
        self._check(mask, results, path)
        if values is None and results.get('label_map') is not None:  # mask_values are of the chosen classes
            table = np.full(IGNORED + 1, IGNORED)
            table[list(results['label_map'])] = list(results['label_map'].values())
            mask = table[mask]
        return mask

    @staticmethod
    def _check(mask: np.ndarray, results: dict, path: str) -> None:
        """Ids beyond the classes of the files: those that `label_map` chooses from, else the data set's."""
        chosen = results.get('mask_values') is None and results.get('label_map')
        number = len(results['label_map']) if chosen else results.get('num_classes')
        number = IGNORED if number is None else number
        outside = (mask != IGNORED) & ((mask >= number) | (mask < 0))
        if not outside.any():
            return
        shifted = results.get('reduce_zero_label')
        found = _values(mask[outside] + (1 if shifted else 0))
        first, last = (1, number) if shifted else (0, number - 1)
        hint = ''
        if not shifted and mask[outside].max() == number and not (mask == 0).any():
            hint = ' If ids start at 1: reduce_zero_label=True of the data set.'
        raise MaskError(
            f'{path}: holds {found}; {number} classes have ids {first} to {last}, 255'
            f'{" and 0" if shifted else ""} being ignored.{hint} If the files number their classes otherwise: '
            f"mask_values=(...) of the data set, the files' numbers in the order of the classes"
        )

    def __repr__(self) -> str:
        return 'LoadMask()'


@DATASETS.register_module()
class MaskFolder(BaseSegDataset):
    """Images and masks in two folders, paired by their path below them without its ending.

    data_prefix: `img_path` and `seg_map_path`, below data_root. Without `seg_map_path`: images to predict for.
    metainfo: `classes`, and optionally `palette`, RGB of each.
    img_suffix, seg_map_suffix: ends of the file names, such as `_mask.png`; default any kind of picture, also TIFF and
        .npy with more bands (`beit_mm.LoadImage(color_type='unchanged')` reads them).
    ann_file: a list of the names to take, one per line, with or without their ending; default all.
    mask_values: what the mask files hold for the classes, in the order of the classes: numbers, as (0, 255) of black
        and white masks, or colours [(r, g, b), ...]. Default: the index of the class.
    ignored_values: numbers or colours beside them that do not count, such as the border of VOC's objects.
    reduce_zero_label: the files have 0 for what does not count and 1 for the first class.

    `beit_mm.LoadMask` reads the masks. Raises MaskError for images without masks, masks without images, and none.
    """

    def __init__(
        self,
        *args,
        img_suffix: str = '',
        seg_map_suffix: str = '',
        mask_values: Sequence | None = None,
        ignored_values: Sequence = (),
        reduce_zero_label: bool = False,
        **kwargs,
    ) -> None:
        if mask_values is not None and reduce_zero_label:
            raise ValueError(
                'MaskFolder: mask_values say what each class is in the files, so there is nothing to reduce: leave '
                'reduce_zero_label=True out'
            )
        if mask_values is not None:
            _check_values(mask_values, ignored_values)
        elif ignored_values:
            raise ValueError('MaskFolder: ignored_values go with mask_values, the numbers or colours of the classes')
        self.mask_values, self.ignored_values = mask_values, ignored_values
        options = dict(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, reduce_zero_label=reduce_zero_label)
        super().__init__(*args, **options, **kwargs)

    def load_data_list(self) -> list[dict]:
        classes = self._metainfo.get('classes')
        if isinstance(classes, str):
            raise ValueError(f'MaskFolder: metainfo.classes={classes!r} must be a list of names')
        if classes is not None and len(classes) > IGNORED:
            raise ValueError(f'MaskFolder: {len(classes)} classes; at most {IGNORED}, as {IGNORED} is what is ignored')
        if self.mask_values is not None and len(self.mask_values) != len(classes or ()):
            raise ValueError(
                f'MaskFolder: {len(self.mask_values)} mask_values for {len(classes or ())} classes; each class has one'
            )
        image_folder, mask_folder = (self.data_prefix.get(key) for key in ('img_path', 'seg_map_path'))
        images = _by_name(image_folder, self.img_suffix)
        if not images:
            kinds = self.img_suffix or ', '.join(EXTENSIONS)
            there = 'no image in it' if os.path.isdir(image_folder) else 'there is no such folder'
            raise MaskError(f'{image_folder}: {there}; images end in {kinds}')
        masks = _by_name(mask_folder, self.seg_map_suffix) if mask_folder else None
        names = self._listed(images) if self.ann_file else sorted(images)
        if masks is not None:
            _check_pairs(names, masks, image_folder, mask_folder, whole=not self.ann_file)
        shared = dict(
            label_map=self.label_map,
            reduce_zero_label=self.reduce_zero_label,
            mask_values=self.mask_values,
            ignored_values=self.ignored_values,
            without_masks=masks is None and self.test_mode,
            num_classes=len(classes) if classes is not None else None,
        )
        found = [dict(img_path=images[name], seg_fields=[], **shared) for name in names]
        if masks is not None:
            for name, info in zip(names, found, strict=True):
                info['seg_map_path'] = masks[name]
        return found

    def _listed(self, images: dict[str, str]) -> list[str]:
        names = []
        for number, line in enumerate(fileio.get_text(self.ann_file).splitlines(), start=1):
            name = line.strip()
            if not name:
                continue
            if name not in images:
                name = _without_ending(name, self.img_suffix)
            if name not in images:
                raise MaskError(
                    f'{self.ann_file}, line {number}: {line.strip()!r} is no image below {self.data_prefix["img_path"]}'
                )
            names.append(name)
        if not names:
            raise MaskError(f'{self.ann_file}: lists no image')
        return names


def _without_ending(name: str, suffix: str) -> str:
    """Without `suffix`, in capitals or not, where it ends so; without any ending where suffix is ''."""
    if not suffix:
        return os.path.splitext(name)[0]
    return name[: -len(suffix)] if name.lower().endswith(suffix.lower()) else name


def _by_name(folder: str, suffix: str) -> dict[str, str]:
    """{path below the folder, without its ending: path} of its pictures. Raises MaskError for two of one name."""
    found: dict[str, str] = {}
    for path in images_below(Path(folder)):
        if not path.lower().endswith(suffix.lower()):
            continue
        below = os.path.relpath(path, folder)
        name = _without_ending(below, suffix)
        if name in found:
            raise MaskError(f'{path} and {found[name]}: two files of one name; say which by img_suffix, seg_map_suffix')
        found[name] = path
    return found


def _check_values(mask_values: Sequence, ignored: Sequence) -> None:
    """Raise ValueError unless these are different numbers, or different colours (r, g, b)."""
    every = [*mask_values, *ignored] if isinstance(mask_values, (list, tuple)) else [None]
    plain = [tuple(v) if isinstance(v, (list, tuple)) else v for v in every]
    numbers = all(isinstance(v, int) for v in plain)
    colours = all(isinstance(v, tuple) and len(v) == 3 and all(isinstance(c, int) for c in v) for v in plain)
    if not (numbers or colours) or len(set(plain)) < len(plain):
        raise ValueError(
            f'MaskFolder: mask_values={mask_values!r}, ignored_values={ignored!r} must be numbers only, or colours '
            f'(r, g, b) only, each once'
        )


def _check_pairs(names: Sequence[str], masks: dict[str, str], images: str, folder: str, whole: bool) -> None:
    """Raise MaskError where an image has no mask or, of a whole folder, a mask no image."""
    bare = [name for name in names if name not in masks]
    left = sorted(masks.keys() - set(names)) if whole else []
    if bare:
        empty = 'which has none' if os.path.isdir(folder) else 'which is not there'
        hint = f'; masks there are named {few(sorted(masks))}' if masks else f', {empty}'
        raise MaskError(
            f'{images}: {len(bare)} of {len(names)} images have no mask below {folder}: {few(bare)}{hint}. Masks have '
            f"their image's name; if theirs ends otherwise: seg_map_suffix, such as '_mask.png'"
        )
    if left:
        raise MaskError(
            f'{folder}: {len(left)} of {len(masks)} masks have no image below {images}: {few(left)}. Remove them, or '
            f'name the images to take in ann_file'
        )


@DATASETS.register_module()
class ADE20K(MaskFolder):
    """ADE20K's scene parsing benchmark (ADEChallengeData2016): 150 classes, ids 1 to 150, 0 for "other".

    data_root with images/ and annotations/, in each training/ and validation/. Embedded scenes that were exported in
    this layout take their own `metainfo` and need MaskFolder.
    """

    METAINFO = ADE20KDataset.METAINFO

    def __init__(self, *args, reduce_zero_label: bool = True, **kwargs) -> None:
        super().__init__(*args, reduce_zero_label=reduce_zero_label, **kwargs)
