"""Damaged images and masks, decompression bombs, odd modes: an array, or an error by name. See fuzzing.py."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from fuzzing import clean_errors, damaged, examples, limited_memory  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from beit_mm.data.loading import LoadImage, UnreadableImage, read_image
from beit_mm.data.masks import LoadMask, read_mask

PIXELS = (np.arange(12 * 10 * 4).reshape(12, 10, 4) * 37 % 256).astype(np.uint8)
MODES = ('1', 'L', 'P', 'LA', 'RGB', 'RGBA', 'I;16', 'I', 'CMYK', 'F')


def encoded(mode: str, kind: str, **options) -> bytes | None:
    if mode == 'I;16':
        image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(PIXELS[..., :3]).convert(mode)
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except (OSError, ValueError, KeyError):  # the format has no such mode
        return None
    return file.getvalue()


def turned() -> bytes:
    """A JPEG whose EXIF says that it lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded('RGB', 'JPEG', exif=exif)


def tiff(array, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png_of(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG that says it is so large, and holds 100 zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')
    )


def made(kind: str, **options) -> list[bytes]:
    return [content for mode in MODES if (content := encoded(mode, kind, **options))]


FILES = {
    '.png': [*made('PNG'), png_of(8, 8)],
    '.jpg': [*made('JPEG'), *made('JPEG', progressive=True), turned()],
    '.bmp': made('BMP'),
    '.gif': made('GIF'),
    '.webp': [*made('WEBP'), *made('WEBP', lossless=True)],
    '.ppm': made('PPM'),
    '.tif': [
        *made('TIFF'),
        *made('TIFF', compression='tiff_lzw'),
        tiff(PIXELS),
        tiff(PIXELS.transpose(2, 0, 1), planarconfig='separate', photometric='minisblack'),
        tiff(PIXELS[..., 0].astype(np.float32), compression='zlib'),
        tiff(np.stack([PIXELS[..., 0].astype(np.uint16)] * 3), tile=(16, 16)),
    ],
    '.npy': [npy(PIXELS), npy(PIXELS[..., 0].astype(np.float64)), npy(PIXELS[..., 0] > 9), npy(PIXELS.astype('>u2'))],
}


def read_by_all(path, data) -> None:
    """As an image and as a mask, in one of the ways that a config can ask for."""
    options = dict(
        color_type=data.draw(st.sampled_from(('color', 'grayscale', 'unchanged'))),
        decoder=data.draw(st.sampled_from(('pillow', 'opencv', 'auto'))),
        channel_order=data.draw(st.sampled_from(('rgb', 'bgr'))),
    )
    with clean_errors(path):
        image = read_image(str(path), **options)
        assert image.ndim == 3
        assert image.dtype in (np.uint8, np.float32)
    with clean_errors(path):
        mask = read_mask(str(path))
        assert mask.dtype == np.int64
    with clean_errors(path):
        LoadMask().transform(dict(img_path='x', seg_map_path=str(path), mask_values=(0, 1, 2)))
    skipped = LoadImage(on_error='skip').transform(dict(img_path=str(path)))
    assert skipped is None or skipped['img'].ndim == 3


@examples(250)
@given(data=st.data())
def test_damaged_files(tmp_path_factory, data):
    suffix = data.draw(st.sampled_from(sorted(FILES)))
    path = tmp_path_factory.getbasetemp() / f'damaged{data.draw(st.sampled_from((suffix, suffix, *FILES)))}'
    path.write_bytes(data.draw(damaged(FILES[suffix])))
    read_by_all(path, data)


@examples(30)
@given(data=st.data())
def test_sound_files_of_every_kind(tmp_path_factory, data):
    suffix = data.draw(st.sampled_from(sorted(FILES)))
    path = tmp_path_factory.getbasetemp() / f'sound{suffix}'
    path.write_bytes(data.draw(st.sampled_from(FILES[suffix])))
    read_by_all(path, data)


@pytest.mark.parametrize('colour', [0, 2, 3, 6])
@pytest.mark.parametrize('side', [30_000, 60_000, 2**31 - 1])
def test_pictures_that_say_they_are_huge(tmp_path, side, colour):
    """0.9 to 4,600,000,000 thousand million pixels in 200 bytes."""
    path = tmp_path / 'huge.png'
    path.write_bytes(png_of(side, side, colour=colour))
    for reader in (read_image, read_mask):
        with pytest.raises(UnreadableImage, match=str(path)):
            reader(str(path))
