"""data/transforms.py and data/preprocess.py: two views of one box, antialiased as the official code's, and masks."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional as F

from beit_mm.data import embedded, transforms
from beit_mm.data.preprocess import MIMDataPreprocessor
from beit_mm.data.sampling import Draw, generator_of
from beit_mm.data.transforms import ColorJitter, MaskPatches, PackMIM, TwoViewCrop, random_resized_box, resize

PHOTO = np.ascontiguousarray(embedded.load_photograph(5)[:150, :200])


def test_both_views_are_the_same_box_resized_by_pillow():
    crop = TwoViewCrop(64, 32, exact=True)
    np.random.seed(3)
    results = crop.transform(dict(img=PHOTO))
    np.random.seed(3)
    rng = np.random.default_rng(np.random.randint(0, 2**31, size=4))
    rng.random()  # the flip
    top, left, h, w = random_resized_box(rng, 150, 200, (0.08, 1.0), (3 / 4, 4 / 3))
    box = Image.fromarray(PHOTO[top : top + h, left : left + w])
    np.testing.assert_array_equal(results['patches'], np.asarray(box.resize((64, 64), Image.Resampling.BICUBIC)))
    np.testing.assert_array_equal(results['tokens_view'], np.asarray(box.resize((32, 32), Image.Resampling.LANCZOS)))


def official_views(image, factors, box, flip, sizes):
    """The official loader by torchvision and Pillow: jitter, flip, crop, and the same box resized twice."""
    picture = Image.fromarray(image)
    functions = dict(brightness=F.adjust_brightness, contrast=F.adjust_contrast, saturation=F.adjust_saturation)
    for name, factor in factors.items():
        picture = functions[name](picture, factor)
    picture = F.hflip(picture) if flip else picture
    top, left, h, w = box
    kernels = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    return [
        np.asarray(F.resized_crop(picture, top, left, h, w, (size, size), kernel))
        for size, kernel in zip(sizes, kernels, strict=True)
    ]


@pytest.mark.parametrize('index', range(6))
def test_the_whole_loader_equals_the_official_one(index, monkeypatch):
    """Given the same factors, flip and box: 224 bicubic and 112 Lanczos, pixel for pixel where `exact`."""
    draw = Draw(index, (0, 0, index))
    boxes, factors = [], []
    monkeypatch.setattr(
        transforms, 'random_resized_box', lambda *a, real=random_resized_box: boxes.append(real(*a)) or boxes[-1]
    )
    apply = ColorJitter.apply
    monkeypatch.setattr(
        ColorJitter, 'apply', lambda self, image, chosen: factors.append(chosen) or apply(self, image, chosen)
    )
    results = dict(img=PHOTO, sample_idx=draw)
    for transform in (ColorJitter(0.4, 0.4, 0.4, exact=True), TwoViewCrop(224, 112, flip=0.5, exact=True)):
        results = transform.transform(results)
    flip = generator_of(dict(sample_idx=draw), 'TwoViewCrop').random() < 0.5
    top, left, h, w = boxes[0]
    box = (top, PHOTO.shape[1] - left - w, h, w) if flip else boxes[0]  # where it stands in the mirrored image
    expected = official_views(PHOTO, factors[0], box, flip, (224, 112))
    np.testing.assert_array_equal(results['patches'], expected[0])
    np.testing.assert_array_equal(results['tokens_view'], expected[1])


def gaps(ours, theirs):
    """(mean, 99.9th percentile, maximum) of the difference in grey levels."""
    gap = np.abs(ours.astype(int) - theirs)
    return gap.mean(), np.quantile(gap, 0.999), gap.max()


def photographs():
    """Photographs, one brightened until much of it is white, and noise."""
    bright = np.clip(PHOTO.astype(int) * 2, 0, 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, PHOTO.shape, dtype=np.uint8)
    others = [np.ascontiguousarray(embedded.load_photograph(i)[:150, :200]) for i in (0, 2, 3)]
    return [PHOTO, *(image for image in others if image.shape[2] == 3), bright, noise]


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
def test_jitter_is_pillows_up_to_rounding(order):
    """The stated tolerance, over 120 draws: a tenth of a grey level in the mean, 3 of 255 at most; greys stay grey."""
    found = []
    for number, image in enumerate(photographs() * 20):
        sample = dict(img=image, sample_idx=Draw(number, (0, 0, number)))
        before = image.copy()
        fast, exact = (ColorJitter(channel_order=order, exact=e).transform(dict(sample))['img'] for e in (False, True))
        assert fast.dtype == np.uint8
        np.testing.assert_array_equal(image, before)  # what the data set may keep is not written to
        found.append(gaps(fast, exact))
    mean, percentile, maximum = np.array(found).T
    assert mean.mean() < 0.1
    assert percentile.max() <= 3
    assert maximum.max() <= 3
    grey = PHOTO[..., :1].repeat(3, 2)
    changed = ColorJitter().apply(
        grey,
        dict(
            saturation=1.37,
            contrast=0.62,
            brightness=1.1,
        ),
    )
    assert (changed == changed[..., :1]).all()
    for factor in (0.0, 1.0):
        for name in ('brightness', 'contrast', 'saturation'):
            assert (
                gaps(ColorJitter().apply(PHOTO, {name: factor}), ColorJitter(exact=True).apply(PHOTO, {name: factor}))[
                    2
                ]
                <= 1
            )


def test_contrast_is_about_the_grey_of_the_whole_image_after_what_came_before():
    half = np.zeros((40, 40, 3), np.uint8)
    half[:, 20:] = (200, 100, 40)
    for factors in (dict(brightness=1.4, contrast=0.5), dict(saturation=0.2, contrast=0.5), dict(contrast=0.5)):
        exact = ColorJitter(exact=True).apply(half, factors)
        assert gaps(ColorJitter().apply(half, factors), exact)[2] <= 1
        assert exact[0, 0, 0] > 10  # black moves towards the mean


@pytest.mark.parametrize('kernel', ['bilinear', 'bicubic', 'lanczos'])
@pytest.mark.parametrize('size', [(150, 200), (200, 90), (31, 47), (400, 300), (112, 112), (1, 5)])
def test_resizing_by_torch_is_pillows_up_to_rounding(kernel, size):
    """Two grey levels at most, noise included, of Pillow resizing across first and then down.

    Pillow 13 begins with the height of tall boxes; what is cut to 0..255 in between is then something else.
    """
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for image in (resize(PHOTO, size, 'bilinear'), noise):
        for side in (224, 112, 64):
            ours = transforms.resize_by_torch(image, (side, side), kernel)
            across = resize(resize(image, (size[0], side), kernel), (side, side), kernel)
            mean, _, maximum = gaps(ours, across)
            assert mean < 0.05
            assert maximum <= 2
            if size[0] <= size[1]:
                assert gaps(ours, resize(image, (side, side), kernel))[2] <= 2


def test_the_default_loader_is_the_official_one_up_to_rounding():
    """Both views of 60 draws with flip, jitter and crop, against `exact`."""
    found = []
    for number, image in enumerate(photographs()[:-1] * 12):
        views = []
        for exact in (False, True):
            results = dict(img=image, sample_idx=Draw(number, (0, 0, number)))
            for transform in (ColorJitter(exact=exact), TwoViewCrop(224, 112, flip=0.5, exact=exact), PackMIM()):
                results = transform.transform(results)
            views.append(results)
        ours, theirs = views
        for view in ('patches', 'tokens_view'):
            assert ours[view].dtype == theirs[view].dtype == torch.uint8
            assert ours[view].is_contiguous()
            found.append(gaps(ours[view].numpy(), theirs[view].numpy()))
    mean, percentile, _ = np.array(found).T
    assert mean.mean() < 0.15
    assert np.median(percentile) <= 2


def test_jitter_and_flip_have_the_official_law():
    jitter, crop = ColorJitter(0.4, 0.2, 0.0), TwoViewCrop(8, None, flip=0.5)
    drawn, flips = [], 0
    jitter.apply = lambda image, factors: drawn.append(factors) or image
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (150, 1, 3))
    for i in range(800):
        results = jitter.transform(dict(img=ramp, sample_idx=Draw(i, (0, 0, i))))
        row = crop.transform(results)['patches'][4, :, 0].astype(int)
        flips += row[0] > row[-1]
    assert 0.45 < flips / 800 < 0.55
    brightness = np.array([f['brightness'] for f in drawn])
    contrast = np.array([f['contrast'] for f in drawn])
    assert all('saturation' not in f for f in drawn)
    for values, x in ((brightness, 0.4), (contrast, 0.2)):
        assert 1 - x <= values.min() < 1 - 0.97 * x
        assert 1 + 0.97 * x < values.max() <= 1 + x
        assert values.std() == pytest.approx(2 * x / 12**0.5, rel=0.06)
    first = np.mean([next(iter(f)) == 'brightness' for f in drawn])
    assert 0.45 < first < 0.55


def test_jitter_of_grey_bgr_and_other_data():
    grey = PHOTO[..., :1]
    changed = ColorJitter().apply(grey, dict(brightness=0.5, saturation=0.1))
    np.testing.assert_array_equal(changed, (grey * 0.5).astype(np.uint8))
    assert changed.shape == grey.shape
    np.testing.assert_array_equal(changed, ColorJitter(exact=True).apply(grey, dict(brightness=0.5, saturation=0.1)))
    flat = ColorJitter().apply(PHOTO[..., 0], dict(contrast=0.5))
    np.testing.assert_array_equal(flat, ColorJitter(exact=True).apply(PHOTO[..., 0], dict(contrast=0.5)))
    for exact in (False, True):
        bgr = ColorJitter(channel_order='bgr', exact=exact).apply(PHOTO[..., ::-1], dict(saturation=0.3, contrast=1.2))
        rgb = ColorJitter(exact=exact).apply(PHOTO, dict(saturation=0.3, contrast=1.2))
        np.testing.assert_array_equal(bgr[..., ::-1], rgb)
    with pytest.raises(ValueError, match=r'uint8 images of 1 or 3 bands, this one is float32'):
        ColorJitter().transform(dict(img=PHOTO.astype(np.float32)))
    with pytest.raises(ValueError, match='contrast=-1 must be 0 or more'):
        ColorJitter(contrast=-1)
    with pytest.raises(ValueError, match='flip=2 must be a probability'):
        TwoViewCrop(flip=2)


@pytest.mark.parametrize('size', [(300, 400), (40, 400), (400, 30), (64, 64)])
def test_boxes_follow_the_official_law(size):
    """timm's port of the official crop, 4,000 boxes each: same distribution of every side and offset."""
    random.seed(0)
    rng, picture = np.random.default_rng(0), Image.new('L', size[::-1])
    theirs = np.array(
        [RandomResizedCropAndInterpolation.get_params(picture, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    ours = np.array([random_resized_box(rng, *size, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


@pytest.mark.parametrize('size', [(10, 40), (40, 10), (20, 25)])
def test_the_last_resort_is_the_official_centre_crop(size):
    """No box of 4 to 5 times the area fits, so both take the centre of an allowed ratio."""
    arguments = ((4.0, 5.0), (3 / 4, 4 / 3))
    theirs = RandomResizedCropAndInterpolation.get_params(Image.new('L', size[::-1]), *arguments)
    assert random_resized_box(np.random.default_rng(0), *size, *arguments) == tuple(theirs)


def test_boxes_keep_scale_and_ratio():
    rng = np.random.default_rng(0)
    boxes = [random_resized_box(rng, 300, 400, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(2000)]
    area = np.array([h * w for _, _, h, w in boxes]) / 120_000
    ratio = np.array([w / h for _, _, h, w in boxes])
    assert 0.075 < area.min() < 0.12
    assert 0.9 < area.max() <= 1.0
    assert 0.74 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.35
    assert all(t >= 0 and left >= 0 and t + h <= 300 and left + w <= 400 for t, left, h, w in boxes)
    assert max(t + h for t, _, h, _ in boxes) == 300  # the last offset can be drawn; mmpretrain's never is
    assert random_resized_box(rng, 10, 40, (1, 1), (1, 1)) == (0, 15, 10, 10)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_any_number_of_bands(dtype):
    bands = np.random.default_rng(0).integers(0, 255, (20, 30, 5)).astype(dtype)
    out = resize(bands, (8, 9), 'lanczos')
    assert out.dtype == dtype
    for c in range(5):
        expected = np.asarray(Image.fromarray(bands[..., c]).resize((9, 8), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(out[..., c], expected)


def test_masks_follow_the_sample_when_seeded():
    seeded = MaskPatches((8, 8), 26, min_block=4, seed=0)
    one, again, other = (seeded.transform(dict(sample_idx=i))['mask'] for i in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()
    assert MaskPatches((4, 4), 5, kind='random').transform({})['mask'].sum() == 5
    with pytest.raises(ValueError, match="kind='block' is neither"):
        MaskPatches(kind='block')
    with pytest.raises(ValueError, match='seed=0 makes a mask from `sample_idx`, and the sample has none'):
        seeded.transform({})


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_masked=0.4), r'num_masked=0.4 must be a count in 1..196; 40 % of a 14 x 14 grid are 78'),
        (dict(num_masked=197), 'must be a count in 1..196'),
        (dict(num_masked=12), r'min_block=16 must be in 1..12: num_masked=12'),
        (dict(max_block=15), r'min_block=16 must be in 1..15: num_masked=75, max_block=15'),
        (dict(grid=(1, 100)), 'no block of min_block=16 patches is shorter and narrower than a grid of 1 x 100'),
        (dict(grid=(14,)), 'must be two positive integers'),
        (dict(grid=14), 'must be two positive integers'),
        (dict(min_aspect=0), r'min_aspect=0 must be in \(0, 1\]'),
    ],
)
def test_masks_that_would_be_empty_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskPatches(**arguments)


def test_boxes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r'scale=\(0, 1\.0\) must rise from above 0'):
        TwoViewCrop(scale=(0, 1.0))
    with pytest.raises(ValueError, match=r'scale=\(0\.2, 2\) .* a scale to at most 1'):
        TwoViewCrop(scale=(0.2, 2))
    with pytest.raises(ValueError, match=r'ratio=\(2, 1\) must rise'):
        TwoViewCrop(ratio=(2, 1))


def test_pack_and_preprocess():
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    packed = PackMIM().transform(dict(patches=image, tokens_view=image, mask=np.eye(2, dtype=bool), img=image))
    assert packed.pop('img_path') == ''
    assert set(packed) == {'patches', 'tokens_view', 'mask'}
    batch = {k: v[None] for k, v in packed.items()}
    out = MIMDataPreprocessor(mean=[1, 2, 3], std=[2, 2, 2])(batch)
    assert out['patches'][0, :, 0, 0].tolist() == [-0.5, -0.5, -0.5]
    torch.testing.assert_close(out['tokens_view'][0, :, 0, 1], 0.8 * torch.tensor([3.0, 4.0, 5.0]) / 255 + 0.1)
    flipped = MIMDataPreprocessor(mean=[0, 0, 0], std=[1, 1, 1], bgr_to_rgb=True, token_bands=[2])(batch)
    assert flipped['patches'][0, :, 0, 0].tolist() == [2, 1, 0]
    assert flipped['tokens_view'].shape[1] == 1
    torch.testing.assert_close(flipped['tokens_view'][0, 0, 1, 1].item(), 0.8 * 9 / 255 + 0.1, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match='3 bands, mean and std have 1'):
        MIMDataPreprocessor(mean=[0], std=[1])(batch)
