"""Pictures of segmentations: classes as colours over the image, with a legend."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.5
SWATCH, GAP, FONT = 14, 6, 13  # pixels
LEAST_WIDTH = 256  # of a picture on the page: smaller ones are enlarged by a whole factor
WHITE = 255


def distinct_colours(number: int) -> np.ndarray:
    """(number, 3) uint8: colours that are told apart, the same every time, for classes that come without."""
    rng = np.random.default_rng(0)
    return rng.integers(40, 256, (number, 3)).astype(np.uint8)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, C) of any number of bands and kind -> (H, W, 3) uint8: the first three bands, or one as grey.

    What is not uint8 is stretched from its minimum to its maximum, band by band.
    """
    bands = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if bands.dtype == np.uint8:
        return bands
    low, high = (f(bands.astype(np.float64), axis=(0, 1)) for f in (np.min, np.max))
    return np.round((bands - low) / np.maximum(high - low, 1e-12) * WHITE).astype(np.uint8)


def overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
    """(H, W, 3) uint8: the colour of each pixel's class over the image; indices beyond the palette leave it as it is.

    image: (H, W, 3) uint8. mask: (H, W) class indices. palette: (classes, 3) uint8.
    """
    coloured = palette[np.minimum(mask, len(palette) - 1)]
    mixed = np.round((1 - opacity) * image + opacity * coloured).astype(np.uint8)
    return np.where((mask < len(palette))[..., None], mixed, image)


@functools.cache
def letters(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of every picture, that of matplotlib's charts, which carries it."""
    import matplotlib as mpl

    name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / 'fonts' / 'ttf' / name), size)


Entry = tuple[str, Sequence[int]]  # of a legend: a name and its RGB


def legend(entries: Sequence[Entry], width: int) -> Image.Image:
    """Swatches with their names on white, in as many lines as `width` pixels ask for."""
    font, row = letters(FONT), FONT + GAP
    places, x, y = [], GAP, 0
    for name, _ in entries:
        needed = SWATCH + GAP // 2 + int(font.getlength(name)) + 2 * GAP
        if x + needed > width and x > GAP:
            x, y = GAP, y + row
        places.append((x, y))
        x += needed
    page = Image.new('RGB', (width, y + row + GAP), 'white')
    draw = ImageDraw.Draw(page)
    for (name, colour), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=tuple(int(c) for c in colour), outline=(120, 120, 120))
        draw.text((x + SWATCH + GAP // 2, y), name, fill='black', font=font)
    return page


def present(masks: Sequence[np.ndarray], classes: Sequence[str], palette: np.ndarray) -> list[Entry]:
    """A legend's entries for the classes that masks hold, the largest first."""
    counts = np.zeros(len(classes), np.int64)
    for mask in masks:
        counts += np.bincount(mask[mask < len(classes)].ravel(), minlength=len(classes))
    return [(classes[i], palette[i].tolist()) for i in np.argsort(-counts, kind='stable') if counts[i]]


def side_by_side(panels: list[tuple[str, np.ndarray]], entries: Sequence[Entry]) -> Image.Image:
    """Pictures of one size (H, W, 3) with a title each, in a row, over a legend."""
    height, width = panels[0][1].shape[:2]
    page_width = len(panels) * (width + GAP) + GAP
    top = FONT + 2 * GAP + height + GAP
    below = legend(entries, page_width) if entries else None
    page = Image.new('RGB', (page_width, top + (below.height if below else 0)), 'white')
    draw = ImageDraw.Draw(page)
    for i, (title, picture) in enumerate(panels):
        left = GAP + i * (width + GAP)
        draw.text((left, GAP // 2), title, fill='black', font=letters(FONT))
        page.paste(Image.fromarray(picture), (left, FONT + 2 * GAP))
    if below:
        page.paste(below, (0, top))
    return page


def picture(
    image: np.ndarray, masks: dict[str, np.ndarray], classes: list[str], palette: np.ndarray | None = None
) -> Image.Image:
    """The image beside itself under each of the masks, with a legend of the classes that they hold, largest first."""
    palette = distinct_colours(len(classes)) if palette is None else np.asarray(palette, np.uint8)
    image = as_rgb(image)
    panels = [('image', image), *((title, overlay(image, mask, palette)) for title, mask in masks.items())]
    factor = max(1, LEAST_WIDTH // image.shape[1])
    entries = present(list(masks.values()), classes, palette)
    return side_by_side([(title, p.repeat(factor, axis=0).repeat(factor, axis=1)) for title, p in panels], entries)
