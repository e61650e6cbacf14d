"""Images for the pictures: VOC folders with masks of known overlap, files of any size, queries, and bad input."""

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from beit_mm.benchmark.pictures import images
from beit_mm.benchmark.pictures.attention import jaccard_numbers, query_patch
from beit_mm.benchmark.pictures.canvas import PictureError
from beit_mm.data import embedded
from beit_mm.engine.configs import load_config
from beit_mm.models.backbone import BEiTViT

CLASSIFY = 'configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'
SEGMENT = 'configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py'
MIM = 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py'
ARCH = dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)
PATCH = 8


def write_voc(root, name: str, objects: np.ndarray, classes: np.ndarray | None = None) -> None:
    """One image of PASCAL VOC's layout, its masks with a palette."""
    for folder in ('JPEGImages', 'SegmentationObject', 'SegmentationClass', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(name))
    Pillow.fromarray(rng.integers(0, 256, (*objects.shape, 3), np.uint8)).save(root / 'JPEGImages' / f'{name}.jpg')
    for folder, mask in (
        ('SegmentationObject', objects),
        ('SegmentationClass', objects if classes is None else classes),
    ):
        picture = Pillow.fromarray(mask.astype(np.uint8), 'P')
        picture.putpalette([(i * 67 + c * 31) % 256 for i in range(256) for c in range(3)])
        picture.save(root / folder / f'{name}.png')
    with open(root / images.VOC_LIST, 'a') as file:
        file.write(f'{name}\n')


def to_the_right() -> BEiTViT:
    """Head 0 of the last block looks at the right neighbour of the query alone, head 1 at all patches alike."""
    backbone = BEiTViT(ARCH, img_size=(32, 48), patch_size=PATCH, out_type='raw').eval()
    torch.nn.init.zeros_(backbone.layers[-1].attn.qkv.weight)
    rows, columns = backbone.own_grid
    with torch.no_grad():
        table = backbone.layers[-1].attn.relative_position_bias_table
        table[(rows - 1) * (2 * columns - 1) + (columns - 1) - 1, 0] = 50.0
    return backbone


def test_jaccard_on_a_voc_folder(tmp_path):
    """Object 1 is 3 patches in a row, whose right neighbour of the middle is one; object 2 a single patch, which its
    own right neighbour is not. Void pixels lie on half of object 1's attended patch, and count nowhere."""
    objects = np.zeros((32, 48), np.uint8)
    objects[8:16, 0:24] = 1
    objects[24:32, 32:40] = 2
    objects[8:16, 16:20] = 255
    write_voc(tmp_path, 'made', objects)
    config = load_config(CLASSIFY)
    source = images.from_voc(str(tmp_path))
    image = source.load(0)
    np.testing.assert_array_equal(image.objects, objects)
    regions = images.regions_of(image, PATCH)
    assert [r.query for r in regions] == [(1, 1), (3, 4)]
    backbone = to_the_right()
    backbone.patch_embed = type(backbone.patch_embed)(1, 8, PATCH)  # the config's images are grey
    found = jaccard_numbers(backbone, config, [image])
    first = 4 * 8 / (16 * 8 + 4 * 8)  # 32 valid attended pixels, all object 1's, of its 160 valid ones
    assert found['head 0'] == pytest.approx((first + 0) / 2, abs=1e-12)
    valid = 32 * 48 - 4 * 8
    assert found['everywhere'] == pytest.approx((160 / valid + 64 / valid) / 2, abs=1e-12)
    assert found['objects'] == 2
    assert found['best_head_each'] >= found['best_head'] == max(found['head 0'], found['head 1'])


def test_a_voc_folder_without_its_parts_is_refused(tmp_path):
    with pytest.raises(PictureError, match=r'val\.txt: not there; --voc takes the folder that holds ImageSets'):
        images.from_voc(str(tmp_path))
    write_voc(tmp_path, 'a', np.ones((16, 16), np.uint8))
    source = images.from_voc(str(tmp_path))
    with pytest.raises(PictureError, match='there is no image 1; they are numbered 0 to 0'):
        source.chosen([1])
    Pillow.fromarray(np.ones((8, 16), np.uint8)).save(tmp_path / 'SegmentationObject' / 'a.png')
    with pytest.raises(PictureError, match=r'a\.png: the mask is 8 x 16, its image 16 x 16 pixels'):
        source.load(0)
    (tmp_path / 'JPEGImages' / 'a.jpg').unlink()
    with pytest.raises(PictureError, match=r'a\.jpg: not there, and .*val\.txt names it'):
        source.load(0)


@pytest.mark.parametrize('config', [CLASSIFY, SEGMENT, MIM])
def test_test_images_come_with_what_is_known_of_them(config):
    """The same scene from a classifier's, a segmentor's and a pre-training's config: its mask too."""
    image = images.from_config(load_config(config)).load(5)
    scene = embedded.scene(0, 'val', 5, 64, grey=True)
    np.testing.assert_array_equal(image.pixels, scene.image)
    np.testing.assert_array_equal(image.mask, scene.mask)
    (region,) = images.regions_of(image, PATCH)
    np.testing.assert_array_equal(region.inside, scene.mask == scene.label)
    row, column = region.query
    assert (scene.mask == scene.label)[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].mean() >= 0.5


def test_a_mask_that_the_pipeline_would_have_to_crop_is_not_taken():
    config = load_config(MIM, {'test_dataloader.dataset.pipeline.0.scale': (0.2, 0.3)})
    assert images.from_config(config).load(5).mask is None


def test_files_go_through_the_pipeline_or_whole(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 75, 3), np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / 'a.png')
    grey = (pixels @ embedded.LUMA).round()
    cropped = images.from_files(load_config(MIM), [str(tmp_path)], whole=False).load(0)
    assert cropped.pixels.shape == (64, 64, 1)  # its two-view crop
    whole = images.from_files(load_config(MIM), [str(tmp_path / 'a.png')], whole=True).load(0)
    assert np.abs(whole.pixels[..., 0] - grey).max() <= 1
    fit, done = images.to_patches(whole, PATCH)
    assert fit.pixels.shape == (48, 72, 1)
    assert done == 'a.png: resized from 50 x 75 to 48 x 72 pixels, for patches of 8'
    assert images.to_patches(fit, PATCH) == (fit, '')
    assert images.to_patches(fit, PATCH, 32)[0].pixels.shape == (32, 48, 1)
    with pytest.raises(FileNotFoundError, match='no image there'):
        images.from_files(load_config(MIM), [str(tmp_path / 'none')], whole=False)


def test_bands_are_made_for_the_model():
    config = load_config(CLASSIFY)
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    mean, std = images.preprocessing(config)['mean'], images.preprocessing(config)['std']
    values = images.normalised(colour, config)
    torch.testing.assert_close(
        values[0].numpy(), ((colour @ embedded.LUMA).round() - mean[0]).astype(np.float32) / std[0]
    )
    with pytest.raises(PictureError, match='takes images of 1 bands, and this one has 4'):
        images.normalised(np.zeros((8, 8, 4), np.uint8), config)


def test_masks_follow_their_image():
    mask = np.zeros((16, 32), np.uint8)
    mask[:, 16:] = 7
    image = images.Image('x', np.zeros((16, 32, 1), np.uint8), mask)
    fit, _ = images.to_patches(image, 8, shorter=32)
    np.testing.assert_array_equal(fit.mask, mask.repeat(2, 0).repeat(2, 1))


def test_queries():
    assert query_patch(None, False, (64, 32), 8) == (4, 2)
    assert query_patch((7, 3), False, (64, 32), 8) == (7, 3)
    assert query_patch((63, 8), True, (64, 32), 8) == (7, 1)
    with pytest.raises(PictureError, match='row 8, column 0 lies outside of an image of 8 x 4 patches, counted from 0'):
        query_patch((8, 0), False, (64, 32), 8)
    with pytest.raises(PictureError, match='pixel 0,32 lies outside of an image of 64 x 32 pixels'):
        query_patch((0, 32), True, (64, 32), 8)


def test_the_middle_patch_is_in_the_region():
    """A ring's middle is a hole; a sliver has no patch to itself."""
    ring = np.ones((24, 24), bool)
    ring[8:16, 8:16] = False
    row, column = images.middle_patch(ring, 8)
    assert (row, column) != (1, 1)
    sliver = np.zeros((24, 24), bool)
    sliver[:, 17] = True
    assert images.middle_patch(sliver, 8) == (1, 2)
