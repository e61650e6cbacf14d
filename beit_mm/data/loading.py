"""Reading images: pictures by Pillow, TIFF by tifffile, .npy by NumPy; and what happens to files that cannot be read.

Pillow refuses a JPEG that was cut off; OpenCV fills the missing part with grey and says nothing, so it is given whole
files only.
"""

import atexit
import contextlib
import functools
import importlib.util
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile
from mmcv.transforms import BaseTransform
from mmengine import fileio
from PIL import Image

from ..registry import TRANSFORMS

TIFF, NPY = ('.tif', '.tiff'), ('.npy',)
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.webp', '.gif', *TIFF, *NPY)
COLOR_TYPES = ('color', 'grayscale', 'unchanged')
DECODERS = ('pillow', 'opencv', 'simplejpeg', 'auto')
JPEG_START, JPEG_END = b'\xff\xd8', b'\xff\xd9'
PNG_DEPTH = 24  # the byte of a PNG that says how many bits a band has
PLAIN_MODES = ('L', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'I;16', 'F')  # Pillow's, of which an array is what the file holds


MOST_TIMES, SLACK = 1032, 1 << 28  # deflate's best; what a few bytes of another compression may stand for


def check_pixels(width: int, height: int) -> None:
    """Raise ValueError, as Pillow does, for a picture of so many pixels that it is there to fill the memory."""
    most = 2 * (Image.MAX_IMAGE_PIXELS or float('inf'))
    if width * height > most:
        raise ValueError(f'{width} x {height} pixels are more than {most}, the most that Pillow reads')


class UnreadableImage(ValueError):
    """A file that is no image, is cut off, or is of a kind that cannot be decoded here; the message names it."""


def read_image(
    path: str,
    color_type: str = 'color',
    npy_axes: str = 'HWC',
    backend_args: dict | None = None,
    decoder: str = 'pillow',
    channel_order: str = 'rgb',
) -> np.ndarray:
    """The file as (H, W, C): uint8 where it holds 8 bits, else float32, in which 16-bit integers are exact.

    .tif, .tiff and .npy come as they are stored, every band; npy_axes says what the axes of a 3-D .npy are. Any other
    file is a picture: `color` makes it RGB with 8 bits (grey repeated, palette resolved, alpha dropped, CMYK converted,
    16 bits scaled), `grayscale` one band of 8 bits, and `unchanged` keeps bands and bits. No EXIF rotation, as in the
    official code. decoder, of JPEG in `color`: `pillow`, `opencv` or `simplejpeg`. Three bands by `color` come in
    channel_order, `rgb` or `bgr`. Raises UnreadableImage, and OSError where there is no such file.
    """
    return decode_image(fileio.get(path, backend_args=backend_args), path, color_type, npy_axes, decoder, channel_order)


def decode_image(
    content: bytes,
    path: str,
    color_type: str = 'color',
    npy_axes: str = 'HWC',
    decoder: str = 'pillow',
    channel_order: str = 'rgb',
) -> np.ndarray:
    """`read_image` of the content of a file. path: says what kind it is, and names it in errors."""
    suffix = Path(path).suffix.lower()
    try:
        if suffix in NPY:
            image = _uniform(_bands_last(np.load(io.BytesIO(content), allow_pickle=False), npy_axes))
        elif suffix in TIFF:
            image = _uniform(_read_tiff(content))
        else:
            fast = decoder != 'pillow' and color_type == 'color' and content.startswith(JPEG_START)
            image = _read_jpeg(content, decoder, channel_order) if fast else None
            if image is not None:
                return image
            image = _read_picture(content, color_type)
    except Exception as error:  # damaged bytes make decoders raise struct.error, EOFError, SyntaxError, ...
        reason = str(error).replace('\n', ' ') or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):  # its text names a buffer in memory
            reason = 'of no known format' if content else 'the file is empty'
        raise UnreadableImage(f'{path}: not a readable image ({reason})') from error
    turned = channel_order == 'bgr' and color_type == 'color' and image.shape[2] == 3
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if turned else image


def _bands_last(array: np.ndarray, axes: str) -> np.ndarray:
    """(H, W), or three axes of which `axes` names each by one of H, W, C -> (H, W, C)."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3:
        raise ValueError(f'an array of shape {array.shape}; an image has 2 or 3 axes')
    return array.transpose([axes.index(axis) for axis in 'HWC'])


def _uniform(array: np.ndarray) -> np.ndarray:
    """uint8 or float32, in the machine's byte order, of (H, W, C); what OpenCV, Pillow and torch all take."""
    if array.dtype.kind not in 'buif' or not array.size:
        raise ValueError(f'holds {array.dtype} of shape {array.shape}; images hold numbers')
    kind = np.uint8 if array.dtype.kind == 'b' or array.dtype == np.uint8 else np.float32
    return np.ascontiguousarray(array, dtype=kind)


def _read_tiff(content: bytes) -> np.ndarray:
    """The first image of a TIFF; its bands are samples (interleaved or planar) or pages."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        if series.nbytes > MOST_TIMES * len(content) + SLACK:
            raise ValueError(f'{len(content)} bytes that say they are {series.nbytes} of shape {series.shape}')
        try:
            array = series.asarray()
        except ValueError as error:
            if 'imagecodecs' not in str(error):
                raise
            return _tiff_by_pillow(content, file.pages[0].compression.name, len(file.pages))
        axes = series.axes
    others = [axis for axis in axes if axis not in 'YX']
    if len(others) > 1:
        raise ValueError(f'a TIFF with the axes {axes} of shape {array.shape}; an image has one besides Y and X')
    return _bands_last(array, axes.replace('Y', 'H').replace('X', 'W').replace(''.join(others) or ' ', 'C'))


def _tiff_by_pillow(content: bytes, compression: str, pages: int) -> np.ndarray:
    """Compressions that tifffile leaves to imagecodecs: Pillow has them, for images of its own kinds."""
    try:
        image = Image.open(io.BytesIO(content))
    except Image.UnidentifiedImageError:
        image = None
    if image is None or image.mode not in PLAIN_MODES or pages > 1:
        raise ValueError(
            f'{compression} compression of such bands needs another package: pip install imagecodecs, or write the '
            f'file anew with deflate'
        )
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _read_picture(content: bytes, color_type: str) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    image.load()
    if color_type == 'unchanged' and image.format == 'PNG' and image.mode != 'P' and content[PNG_DEPTH] == 16:
        array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)  # Pillow has 8 bits of RGB only
        array = array[..., None] if array.ndim == 2 else array
        return _uniform(array[..., [2, 1, 0, 3][: array.shape[2]]] if array.shape[2] > 1 else array)
    if image.mode.startswith('I'):  # 16 bits in one band; Pillow would clip them to 255
        array = np.asarray(image)[..., None]
        if color_type == 'unchanged':
            return _uniform(array)
        array = np.round(np.clip(array, 0, 65535) / 257).astype(np.uint8)
        return array.repeat(3, axis=2) if color_type == 'color' else array
    if color_type == 'unchanged' and image.mode in PLAIN_MODES:
        array = np.asarray(image)
        return _uniform(array if array.ndim == 3 else array[..., None])
    grey = color_type == 'grayscale' or (color_type == 'unchanged' and image.mode in ('1', 'LA'))
    if grey:
        return np.asarray(image.convert('L'))[..., None].copy()
    return np.asarray(image.convert('RGB')).copy()  # Pillow's arrays are read-only


def _read_jpeg(content: bytes, decoder: str, channel_order: str) -> np.ndarray | None:
    """(H, W, 3) of a whole JPEG, grey or in colour; None for what is left to Pillow: CMYK, and files without an end."""
    if not content.endswith(JPEG_END):
        return None
    if decoder == 'simplejpeg':
        import simplejpeg

        try:
            height, width, colours = simplejpeg.decode_jpeg_header(content)[:3]
            check_pixels(width, height)
            if colours in ('Gray', 'YCbCr', 'RGB'):
                return simplejpeg.decode_jpeg(content, channel_order.upper())
            return None
        except ValueError:  # it knows fewer kinds of CMYK than Pillow, whose word on damaged files it is, too
            return None
    if Image.open(io.BytesIO(content)).mode not in ('L', 'RGB'):  # reads the header only
        return None
    order = cv2.IMREAD_COLOR_RGB if channel_order == 'rgb' else cv2.IMREAD_COLOR_BGR
    return cv2.imdecode(np.frombuffer(content, np.uint8), order | cv2.IMREAD_IGNORE_ORIENTATION)


class SkipList:
    """Files that were passed over, with the reason: a text file that all data workers append to.

    Data workers are other processes; what they append in one write of less than a page is not torn apart.
    """

    def __init__(self) -> None:
        handle, self.name = tempfile.mkstemp(prefix='beit_mm-skipped-', suffix='.txt')
        os.close(handle)
        atexit.register(functools.partial(Path(self.name).unlink, missing_ok=True))

    def add(self, path: str, reason: str) -> None:
        line = f'{path}\t{reason}'.replace('\n', ' ')[:2000] + '\n'
        handle = os.open(self.name, os.O_WRONLY | os.O_APPEND)
        os.write(handle, line.encode(errors='replace'))
        os.close(handle)

    @contextlib.contextmanager
    def as_it_was(self) -> Iterator[None]:
        """What is added inside is forgotten; before there are data workers."""
        size = os.path.getsize(self.name)
        yield
        os.truncate(self.name, size)

    def entries(self) -> list[tuple[str, str]]:
        """(path, reason) in the order of their reading; a file that was read again is there again."""
        lines = Path(self.name).read_text(errors='replace').splitlines()
        return [tuple((line + '\t').split('\t')[:2]) for line in lines]


@functools.cache
def skipped() -> SkipList:
    """This run's list. Made by the first `LoadImage` that skips, before the data workers are started."""
    return SkipList()


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Read `img_path` into `img` (H, W, C), uint8 or float32: pictures, TIFF with any number of bands, .npy.

    What each kind of file becomes: `read_image`. Sets img_shape and ori_shape as mmcv's LoadImageFromFile does, which
    this can replace in any pipeline; but that one gives BGR.

    bands: which ones, and in which order, to keep; numbers may be repeated.
    channel_order: of `img` where it has three bands by `color`: `rgb`, or `bgr` for pipelines whose preprocessor
        turns them around (to_rgb, bgr_to_rgb).
    on_error: `stop` raises UnreadableImage with the file's name; `skip` returns None, whereupon `ImageList` takes the
        next image of its list (and mmengine's other data sets a random one), and the run's log says how many. Where
        test_mode is set nothing is skipped: a score over other images would be another score.
    decoder: of JPEG in `color`: `pillow`, `opencv`, or `simplejpeg`, which is to be installed (pip install simplejpeg);
        `auto` is simplejpeg where it is installed, else OpenCV. CMYK, files that were cut off, and what simplejpeg
        refuses are Pillow's in any case; of files damaged inside, OpenCV reads a few that Pillow refuses. The wheels of
        all three hold libjpeg-turbo and give the same pixels; other builds may round otherwise.
    """

    def __init__(
        self,
        color_type: str = 'color',
        bands: Sequence[int] | None = None,
        channel_order: str = 'rgb',
        npy_axes: str = 'HWC',
        on_error: str = 'stop',
        to_float32: bool = False,
        backend_args: dict | None = None,
        decoder: str = 'pillow',
    ) -> None:
        if color_type not in COLOR_TYPES:
            raise ValueError(f'LoadImage: color_type={color_type!r} is none of {", ".join(COLOR_TYPES)}')
        if channel_order not in ('rgb', 'bgr'):
            raise ValueError(f'LoadImage: channel_order={channel_order!r} is neither rgb nor bgr')
        if sorted(npy_axes) != list('CHW'):
            raise ValueError(f'LoadImage: npy_axes={npy_axes!r} must name each of H, W and C once, as in CHW')
        if on_error not in ('stop', 'skip'):
            raise ValueError(f'LoadImage: on_error={on_error!r} is neither stop nor skip')
        if bands is not None and (not bands or min(bands) < 0):
            raise ValueError(f'LoadImage: bands={bands!r} must be numbers from 0, at least one')
        if decoder not in DECODERS:
            raise ValueError(f'LoadImage: decoder={decoder!r} is none of {", ".join(DECODERS)}')
        there = importlib.util.find_spec('simplejpeg') is not None
        if decoder == 'simplejpeg' and not there:
            raise ValueError(
                "LoadImage: decoder='simplejpeg' needs a package that is not installed: pip install simplejpeg, or "
                "decoder='auto', which does without"
            )
        self.decoder = ('simplejpeg' if there else 'opencv') if decoder == 'auto' else decoder
        self.color_type, self.channel_order, self.npy_axes = color_type, channel_order, npy_axes
        self.bands = list(bands) if bands is not None else None
        self.to_float32, self.backend_args = to_float32, backend_args
        self.skips = skipped() if on_error == 'skip' else None

    def transform(self, results: dict) -> dict | None:
        path = results['img_path']
        try:
            image = self.read(path)
        except (UnreadableImage, OSError) as error:
            if self.skips is None:
                raise
            self.skips.add(path, str(error).removeprefix(f'{path}: '))
            return None
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def read(self, path: str) -> np.ndarray:
        image = read_image(path, self.color_type, self.npy_axes, self.backend_args, self.decoder, self.channel_order)
        if self.bands is not None:
            if max(self.bands) >= image.shape[2]:
                raise ValueError(
                    f'{path}: bands={self.bands} were asked for, and the image has {image.shape[2]} '
                    f'(0..{image.shape[2] - 1})'
                )
            image = image[..., self.bands]
        return np.ascontiguousarray(image, dtype=np.float32 if self.to_float32 else None)

    def __repr__(self) -> str:
        return (
            f'LoadImage({self.color_type}, bands={self.bands}, {self.channel_order}, {self.decoder}, '
            f'on_error={"skip" if self.skips else "stop"})'
        )
