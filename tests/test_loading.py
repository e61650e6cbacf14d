"""data/loading.py: what every kind of image file becomes, in numbers, and what happens to damaged ones."""

import importlib.util
import io
from pathlib import Path

import mmcv.transforms
import numpy as np
import pytest
import tifffile
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from beit_mm.data.loading import LoadImage, SkipList, UnreadableImage, read_image
from beit_mm.data.transforms import TwoViewCrop

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
BANDS = RNG.integers(0, 60_000, (9, 7, 12), dtype=np.uint16)


@pytest.fixture
def save(tmp_path):
    def put(name, array, **options):
        path = tmp_path / name
        if name.endswith('.npy'):
            np.save(path, array)
        elif isinstance(array, Image.Image):
            array.save(path, **options)
        else:
            tifffile.imwrite(path, array, **options)
        return str(path)

    return put


@pytest.mark.parametrize('kind', [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_bands_of_a_tiff_in_every_layout(save, kind):
    truth = (BANDS // 250).astype(kind)
    files = [
        save('contiguous.tif', truth, photometric='minisblack', planarconfig='contig'),
        save('planar.tif', truth.transpose(2, 0, 1), photometric='minisblack', planarconfig='separate'),
        save('pages.tiff', truth.transpose(2, 0, 1), photometric='minisblack'),
        save('deflated.tif', truth, photometric='minisblack', planarconfig='contig', compression='deflate'),
    ]
    for path in files:
        image = read_image(path)
        assert image.dtype == (np.uint8 if kind == np.uint8 else np.float32)
        np.testing.assert_array_equal(image, truth)


def test_one_band_and_big_endian(save):
    path = save('one.tif', BANDS[..., 0], byteorder='>')
    np.testing.assert_array_equal(read_image(path), BANDS[..., :1])
    path = save('one.npy', BANDS[..., 0].astype('>u2'))
    np.testing.assert_array_equal(read_image(path), BANDS[..., :1])


def test_lzw_is_read_by_pillow_or_says_what_is_missing(save, monkeypatch):
    path = save('lzw.tif', Image.fromarray(RGB), compression='tiff_lzw')
    np.testing.assert_array_equal(read_image(path), RGB)

    def without_imagecodecs(self):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    path = save('bands.tif', BANDS, photometric='minisblack', planarconfig='contig')
    monkeypatch.setattr(tifffile.TiffPageSeries, 'asarray', without_imagecodecs)
    with pytest.raises(UnreadableImage, match=r'bands\.tif: .*pip install imagecodecs'):
        read_image(path)


def test_npy(save, tmp_path):
    np.testing.assert_array_equal(read_image(save('a.npy', BANDS)), BANDS)
    path = save('b.npy', BANDS.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image(path, npy_axes='CHW'), BANDS)
    np.save(tmp_path / 'code.npy', np.array([{'a': 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableImage, match=r'code\.npy: .*allow_pickle=False'):
        read_image(str(tmp_path / 'code.npy'))
    for wrong in (np.zeros(5), np.zeros((2, 2, 2, 2)), np.zeros((3, 3), complex), np.array([['a']])):
        with pytest.raises(UnreadableImage, match=r'wrong\.npy'):
            read_image(save('wrong.npy', wrong))


def test_pictures_become_rgb(save):
    grey, alpha = RGB[..., 0], RNG.integers(0, 256, (9, 7, 1), dtype=np.uint8)
    cmyk = Image.fromarray(RGB).convert('CMYK')
    palette = Image.fromarray(RGB).quantize(256)
    deep = (RGB[..., 0].astype(np.uint16)) * 257
    for path, truth in {
        save('rgb.png', Image.fromarray(RGB)): RGB,
        save('grey.png', Image.fromarray(grey)): grey[..., None].repeat(3, 2),
        save('rgba.png', Image.fromarray(np.concatenate([RGB, alpha], axis=2))): RGB,
        save('palette.png', palette): np.asarray(palette.convert('RGB')),
        save('deep.png', Image.fromarray(deep)): grey[..., None].repeat(3, 2),
        save('bilevel.png', Image.fromarray(grey > 127)): (255 * (grey > 127))[..., None].repeat(3, 2),
    }.items():
        image = read_image(path)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, truth, err_msg=path)
    assert (
        np.abs(read_image(save('cmyk.jpg', cmyk, quality=100)).astype(int) - RGB).mean() < 40
    )  # chroma of noise is lost
    np.testing.assert_array_equal(read_image(save('g.png', Image.fromarray(grey)), 'grayscale'), grey[..., None])


def test_unchanged_keeps_bands_and_bits(save):
    import cv2

    rgba = np.concatenate([RGB, RGB[..., :1]], axis=2)
    np.testing.assert_array_equal(read_image(save('rgba.png', Image.fromarray(rgba)), 'unchanged'), rgba)
    np.testing.assert_array_equal(
        read_image(save('16.png', Image.fromarray(BANDS[..., 0])), 'unchanged'), BANDS[..., :1]
    )
    path = save('rgb16.png', Image.fromarray(RGB))
    cv2.imwrite(path, BANDS[..., [2, 1, 0]])  # OpenCV writes what it takes for BGR
    np.testing.assert_array_equal(read_image(path, 'unchanged'), BANDS[..., :3])


def test_bgr_is_mmcvs(save):
    path = save('rgb.png', Image.fromarray(RGB))
    theirs = mmcv.transforms.LoadImageFromFile()(dict(img_path=path))
    ours = LoadImage(channel_order='bgr')(dict(img_path=path))
    np.testing.assert_array_equal(ours['img'], theirs['img'])
    assert {key: ours[key] for key in ('img_shape', 'ori_shape')} == {
        key: theirs[key] for key in ('img_shape', 'ori_shape')
    }
    np.testing.assert_array_equal(LoadImage()(dict(img_path=path))['img'], RGB)


def test_bands_are_chosen_and_checked(save):
    path = save('bands.tif', BANDS, photometric='minisblack', planarconfig='contig')
    np.testing.assert_array_equal(LoadImage(bands=[3, 1, 1])(dict(img_path=path))['img'], BANDS[..., [3, 1, 1]])
    with pytest.raises(
        ValueError, match=r'bands\.tif: bands=\[2, 12\] were asked for, and the image has 12 \(0\.\.11\)'
    ):
        LoadImage(bands=[2, 12], on_error='skip')(dict(img_path=path))  # a mistake, not a damaged file
    for wrong in (
        dict(color_type='colour'), dict(bands=[]), dict(bands=[-1]), dict(on_error='ignore'), dict(npy_axes='HW'),
        dict(channel_order='RGB'),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f'LoadImage: {next(iter(wrong))}'):
            LoadImage(**wrong)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg'])
def test_twelve_bands_through_stock_pipelines(save, scope):
    import mmpretrain.datasets  # noqa: F401
    import mmseg.datasets  # noqa: F401

    path = save('bands.tif', BANDS, photometric='minisblack', planarconfig='contig')
    pack = dict(mmpretrain='PackInputs', mmseg='PackSegInputs')[scope]
    with DefaultScope.overwrite_default_scope(scope):
        steps = [
            dict(type='beit_mm.LoadImage'),
            dict(type='Resize', scale=(14, 18)),
            dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            dict(type=pack),
        ]
        packed = Compose(steps)(dict(img_path=path))
    assert packed['inputs'].shape == (12, 18, 14)
    assert packed['data_samples'].ori_shape == (9, 7)
    # doubling by bilinear interpolation keeps the mean of the inner pixels' neighbourhoods: corners are exact
    np.testing.assert_allclose(packed['inputs'][:, 0, -1].numpy(), BANDS[0, 0], rtol=1e-6)


def test_twelve_bands_through_two_views(save):
    path = save('bands.tif', BANDS, photometric='minisblack', planarconfig='contig')
    sample = LoadImage()(dict(img_path=path))
    views = TwoViewCrop(patches_size=7, tokens_size=None, scale=(1, 1), ratio=(1, 1), interpolation='nearest')(sample)
    np.testing.assert_array_equal(views['patches'], BANDS[1:8])


def test_damaged_files_are_named(save, tmp_path):
    whole = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, 'JPEG')
    for name, content in {
        'cut.jpg': whole.getvalue()[:-300],
        'text.jpg': b'not an image',
        'empty.jpg': b'',
        'text.tif': b'not an image',
        'text.npy': b'not an image',
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImage, match=rf'{name}: not a readable image'):
            LoadImage()(dict(img_path=str(tmp_path / name)))
    with pytest.raises(FileNotFoundError, match=r'none\.jpg'):
        LoadImage()(dict(img_path=str(tmp_path / 'none.jpg')))


def test_skips_are_listed(tmp_path):
    (tmp_path / 'bad.jpg').write_bytes(b'nothing')
    load = LoadImage(on_error='skip')
    load.skips = SkipList()
    for name in ('bad.jpg', 'none.jpg', 'bad.jpg'):
        assert load(dict(img_path=str(tmp_path / name))) is None
    listed = load.skips.entries()
    assert [path for path, _ in listed] == [str(tmp_path / name) for name in ('bad.jpg', 'none.jpg', 'bad.jpg')]
    assert 'not a readable image' in listed[0][1]
    assert 'No such file' in listed[1][1]


@pytest.mark.parametrize('decoder', ['opencv', 'simplejpeg', 'auto'])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_other_decoders_give_the_same_pixels(save, decoder, mode):
    """Grey, colour and CMYK, whole chroma and shared, baseline and progressive, and turned by EXIF: not one differs."""
    if decoder == 'simplejpeg':
        pytest.importorskip('simplejpeg')
    picture = Image.fromarray(RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8)).convert(mode)
    turned = picture.getexif()
    turned[0x0112] = 6  # orientation: 90 degrees
    for number, options in enumerate(
        [dict(quality=92), dict(quality=100, subsampling=0), dict(quality=50, progressive=True), dict(exif=turned)]
    ):
        path = save(f'{number}.jpg', picture, **options)
        expected = LoadImage().read(path)
        for order, step in (('rgb', 1), ('bgr', -1)):
            image = LoadImage(decoder=decoder, channel_order=order).read(path)
            assert image.flags.c_contiguous
            np.testing.assert_array_equal(image[..., ::step], expected, err_msg=str(options))
    grey = [LoadImage(color_type='grayscale', decoder=name).read(path) for name in (decoder, 'pillow')]
    np.testing.assert_array_equal(*grey)  # Pillow's: what the file holds as luminance is another grey


@pytest.mark.parametrize('decoder', ['opencv', 'simplejpeg'])
def test_other_decoders_refuse_a_jpeg_that_was_cut_off(save, decoder):
    if decoder == 'simplejpeg':
        pytest.importorskip('simplejpeg')
    path = save('cut.jpg', Image.fromarray(RGB))
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[:-40])
    with pytest.raises(UnreadableImage, match=r'cut\.jpg: not a readable image \(.*truncated'):
        LoadImage(decoder=decoder).read(path)
    Path(path).write_bytes(content + b'\0\0')  # more than the image: Pillow's business
    np.testing.assert_array_equal(LoadImage(decoder=decoder).read(path), LoadImage().read(path))


def test_decoders_that_are_not_there(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert LoadImage(decoder='auto').decoder == 'opencv'
    with pytest.raises(ValueError, match="decoder='simplejpeg' needs a package that is not installed: pip install"):
        LoadImage(decoder='simplejpeg')
    with pytest.raises(ValueError, match="decoder='turbo' is none of pillow, opencv, simplejpeg, auto"):
        LoadImage(decoder='turbo')
    assert LoadImage().decoder == 'pillow'
