"""data/transforms.py and data/preprocess.py: two views of one box, antialiased as the official code's, and masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from beit_mm.data import embedded
from beit_mm.data.preprocess import MIMDataPreprocessor
from beit_mm.data.transforms import MaskPatches, PackMIM, TwoViewCrop, random_resized_box, resize

PHOTO = np.ascontiguousarray(embedded.load_photograph(5)[:150, :200])


def test_both_views_are_the_same_box_resized_by_pillow():
    crop = TwoViewCrop(64, 32)
    np.random.seed(3)
    results = crop.transform(dict(img=PHOTO))
    np.random.seed(3)
    rng = np.random.default_rng(np.random.randint(0, 2**31, size=4))
    top, left, h, w = random_resized_box(rng, 150, 200, (0.08, 1.0), (3 / 4, 4 / 3))
    box = Image.fromarray(PHOTO[top : top + h, left : left + w])
    np.testing.assert_array_equal(results['patches'], np.asarray(box.resize((64, 64), Image.Resampling.BICUBIC)))
    np.testing.assert_array_equal(results['tokens_view'], np.asarray(box.resize((32, 32), Image.Resampling.LANCZOS)))


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


def test_pack_and_preprocess():
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    packed = PackMIM().transform(dict(patches=image, tokens_view=image, mask=np.eye(2, dtype=bool), img=image))
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
