"""The look of pictures, pixel by pixel: where tiles lie, how they are enlarged, that nothing is stretched or cut."""

import io

import numpy as np
import pytest
from PIL import Image

from beit_mm.benchmark.pictures.canvas import FONT, GAP, MOST_COLUMNS, chart, fitted, heat, sheet, wrapped
from beit_mm.engine.overlay import letters


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))


def find(page: np.ndarray, colour: tuple) -> tuple[int, int, int, int]:
    """(top, left, height, width) of all pixels of a colour."""
    where = np.argwhere((page == colour).all(axis=-1))
    (top, left), (bottom, right) = where.min(axis=0), where.max(axis=0)
    return int(top), int(left), int(bottom - top + 1), int(right - left + 1)


def test_tiles_are_enlarged_by_whole_factors_and_shrunk_in_their_own_ratio():
    picture = np.arange(64 * 48, dtype=np.uint32).astype(np.uint8).reshape(64, 48)
    np.testing.assert_array_equal(fitted(picture, 192), picture.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(fitted(picture, 60), picture)
    assert fitted(np.zeros((400, 200, 3), np.uint8), 100).shape == (100, 50, 3)
    assert fitted(np.zeros((7, 1000), np.uint8), 100).shape == (1, 100)


def test_a_sheet_has_its_tiles_in_rows_and_columns():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    red, green, blue, yellow = (np.full((20, 30, 3), c, np.uint8) for c in colours)
    page = opened(sheet([('one', [red, green]), ('two', [blue, yellow])], tile=60))
    found = [find(page, c) for c in colours]
    assert [f[2:] for f in found] == [(40, 60)] * 4
    (top, left, *_), below, beside, across = found
    assert below[:2] == (top + 40 + GAP, left)
    assert beside[:2] == (top, left + 60 + GAP)
    assert across[:2] == (top + 40 + GAP, left + 60 + GAP)
    assert (left, page.shape[1]) == (GAP, 2 * (60 + GAP) + GAP)
    assert page.shape[0] == across[0] + 40 + GAP
    assert (page[: top - 2] < 100).any()  # the titles


def test_pictures_of_different_shapes_keep_them():
    tall, wide = np.full((40, 20, 3), (200, 0, 0), np.uint8), np.full((20, 40, 3), (0, 0, 200), np.uint8)
    page = opened(sheet([('', [tall, wide])], tile=80))
    assert find(page, (200, 0, 0))[2:] == (80, 40)
    assert find(page, (0, 0, 200))[2:] == (40, 80)


def test_many_columns_are_broken_into_bands_that_begin_with_the_first():
    first, rest = np.full((10, 10, 3), (200, 0, 0), np.uint8), np.full((10, 10, 3), (0, 0, 200), np.uint8)
    page = opened(sheet([('image', [first]), *((f'head {i}', [rest]) for i in range(12))], tile=60))
    red = (page == (200, 0, 0)).all(axis=-1)
    assert red.sum() == 2 * 60 * 60
    assert (page == (0, 0, 200)).all(axis=-1).sum() == 12 * 60 * 60
    assert page.shape[1] <= MOST_COLUMNS * (60 + GAP) + GAP


def test_no_text_is_cut():
    """Captions are broken into lines that fit; a title that is wider than its column widens it."""
    text = 'a caption of many words ' * 20
    lines = wrapped(text.strip(), 200, letters(FONT))
    assert ' '.join(lines) == text.strip()
    assert max(letters(FONT).getlength(line) for line in lines) <= 200
    assert wrapped('one\ntwo', 200, letters(FONT)) == ['one', 'two']
    page = opened(sheet([('incomprehensibilities', [np.zeros((10, 10, 3), np.uint8)])], tile=20, caption=text))
    assert page.shape[1] >= letters(FONT, bold=True).getlength('incomprehensibilities')
    assert (page[:, -2:] == 255).all()


def test_heat_rises():
    brightness = heat(np.linspace(-1, 2, 31)[None]).astype(int).sum(axis=-1)[0]
    assert (np.diff(brightness) >= 0).all()
    assert brightness[0] < 30
    assert brightness[-1] > 500


def test_a_chart_has_the_size_that_it_is_given():
    with chart(300, 120, 2) as (axes, made):
        axes[0].plot([0, 1])
    assert made[0].size == (300, 120)
    with pytest.raises(ZeroDivisionError), chart(300, 120):
        raise ZeroDivisionError
