"""engine/overlay.py: colours where they belong, any bands, a legend of what is there."""

import numpy as np
from PIL import Image

from beit_mm.engine.overlay import GAP, as_rgb, distinct_colours, overlay, picture


def test_each_pixel_has_the_colour_of_its_class():
    image = np.full((2, 3, 3), 100, np.uint8)
    palette = np.array([[0, 0, 0], [200, 100, 50]], np.uint8)
    mask = np.array([[0, 1, 255], [1, 1, 0]])
    mixed = overlay(image, mask, palette, opacity=0.25)
    np.testing.assert_array_equal(mixed[0], [[75, 75, 75], [125, 100, 88], [100, 100, 100]])  # 255: as it is
    np.testing.assert_array_equal(mixed[1, 2], [75, 75, 75])


def test_any_bands_are_shown():
    grey = np.array([[[7]]], np.uint8)
    np.testing.assert_array_equal(as_rgb(grey), [[[7, 7, 7]]])
    bands = np.stack([np.linspace(a, b, 6).reshape(2, 3) for a, b in ((0, 4000), (-1, 1), (5, 5), (9, 0))], axis=-1)
    shown = as_rgb(bands.astype(np.float32))
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[..., 0].ravel(), [0, 51, 102, 153, 204, 255])
    np.testing.assert_array_equal(shown[..., 2], 0)  # flat


def test_colours_are_told_apart_and_stay():
    colours = distinct_colours(150)
    assert len({tuple(c) for c in colours.tolist()}) == 150
    np.testing.assert_array_equal(colours[:12], distinct_colours(12))


def test_a_page_has_a_panel_for_each_mask_and_a_legend_of_its_classes():
    image = np.zeros((300, 300, 3), np.uint8)
    mask = np.zeros((300, 300), np.uint8)
    mask[:, :100] = 2
    palette = [[250, 0, 0], [0, 250, 0], [0, 0, 250]]
    page = picture(image, dict(prediction=mask), ['sky', 'never', 'sea'], palette)
    assert isinstance(page, Image.Image)
    assert page.width == 2 * (300 + GAP) + GAP
    pixels = np.asarray(page)
    colours = {tuple(c) for c in pixels.reshape(-1, 3).tolist()}
    assert {(250, 0, 0), (0, 0, 250), (125, 0, 0), (0, 0, 125)} <= colours  # legend and overlay
    assert (0, 250, 0) not in colours  # no pixel of it
    legend = pixels[-20:]
    red, blue = (np.argwhere((legend == c).all(axis=-1))[:, 1].min() for c in ([250, 0, 0], [0, 0, 250]))
    assert red < blue  # the larger first
    assert picture(image, dict(a=mask, b=mask), ['sky', 'never', 'sea'], palette).width > page.width


def test_small_images_are_enlarged_by_a_whole_factor():
    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    page = np.asarray(picture(image, dict(prediction=np.zeros((64, 64), np.uint8)), ['a']))
    assert page.shape[1] == 2 * (4 * 64 + GAP) + GAP
