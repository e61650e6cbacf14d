"""The look of every picture: tiles under titles, legend and caption on white, one font, and no stretched image."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw

mpl.use('Agg')
from matplotlib import pyplot as plt

from ...engine.overlay import Entry, legend, letters

TILE = 192  # screen pixels of a picture's longer side: small images are enlarged by a whole factor
PAGE = 1000  # pixels across, where pictures are large enough to fill them
GAP, FONT, LEADING = 6, 13, 17  # pixels: between tiles, of letters, of lines
MOST_COLUMNS = 8  # beside each other
INK, DIM = (31, 41, 55), (90, 99, 112)
DPI = 100  # of charts
FINEST = 1.3  # an image is shrunk when it is that many times larger than its tile


class PictureError(ValueError):
    """A picture that cannot be made of what was asked for; the message says why and what can be done."""


class Panel(NamedTuple):
    """A finished picture. numbers: {name: value} of what it shows; caption: how to read it, which the PNG says too."""

    kind: str
    png: bytes
    numbers: dict[str, float]
    caption: str


def fitted(picture: np.ndarray, tile: int = TILE) -> np.ndarray:
    """An image (H, W) or (H, W, 3) uint8 enlarged by a whole factor, without smoothing, so that its longer side is
    about `tile`; a much larger one shrunk to it, in its own aspect ratio."""
    longer = max(picture.shape[:2])
    if longer >= FINEST * tile:
        height, width = (max(1, round(side * tile / longer)) for side in picture.shape[:2])
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    factor = max(1, round(tile / longer))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def roomy(pictures: Sequence[np.ndarray], columns: int) -> int:
    """The tile for pictures that are larger than TILE, so that all columns of them together have PAGE pixels."""
    longest = max(max(picture.shape[:2]) for picture in pictures)
    return max(TILE, min(longest, PAGE // columns))


def heat(values: np.ndarray, colours: str = 'inferno') -> np.ndarray:
    """(H, W) in [0, 1] -> (H, W, 3) uint8 of a matplotlib colour map."""
    return (mpl.colormaps[colours](np.clip(values, 0, 1))[..., :3] * 255).round().astype(np.uint8)


def wrapped(text: str, width: int, font) -> list[str]:
    """Lines of `text` that are at most `width` pixels wide; a single longer word stays whole."""
    lines = []
    for paragraph in text.split('\n'):
        line = ''
        for word in paragraph.split(' '):
            longer = f'{line} {word}' if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


Column = tuple[str, Sequence[np.ndarray]]  # a title, and its pictures from top to bottom


def sheet(
    columns: Sequence[Column],
    tile: int = TILE,
    rows: Sequence[str] = (),
    entries: Sequence[Entry] = (),
    caption: str = '',
    below: Sequence[Image.Image] = (),
    most: int = MOST_COLUMNS,
) -> bytes:
    """A PNG: under each title a column of pictures (H, W) or (H, W, 3) uint8; then charts, a legend and a caption.

    rows: a name for each row, at its left. below: pictures to put under the tiles as they are. most: columns beside
    each other; more are broken into bands, each beginning with the first column.
    """
    bands = [_band(band, tile, rows) for band in _banded(columns, most)]
    width = max([band.width for band in bands] + [picture.width for picture in below])
    parts = [*bands, *below]
    if entries:
        parts.append(legend(entries, width))
    if caption:
        parts.append(_text(wrapped(caption, width - 2 * GAP, letters(FONT)), width))
    page = Image.new('RGB', (width, sum(part.height for part in parts)), 'white')
    top = 0
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    out = io.BytesIO()
    page.save(out, 'PNG', optimize=True)
    return out.getvalue()


def _banded(columns: Sequence[Column], most: int) -> list[list[Column]]:
    """Columns in bands of at most `most`, evenly, each beginning with the first column."""
    if len(columns) <= most:
        return [list(columns)]
    first, *rest = columns
    count = -(-len(rest) // (most - 1))
    size = -(-len(rest) // count)
    return [[first, *rest[i : i + size]] for i in range(0, len(rest), size)]


def _band(columns: Sequence[Column], tile: int, rows: Sequence[str]) -> Image.Image:
    """Tiles in rows and columns, each as wide as its widest and as high as its highest, top left in its cell."""
    font, bold = letters(FONT), letters(FONT, bold=True)
    tiles = [[fitted(picture, tile) for picture in pictures] for _, pictures in columns]
    widths = [max(t.shape[1] for t in column) for column in tiles]
    heights = [max(t.shape[0] for t in row) for row in zip(*tiles, strict=True)]
    titles = [wrapped(title, width, bold) for (title, _), width in zip(columns, widths, strict=True)]
    # A title that is wider than its column, being one word, widens it
    needed = [max(int(bold.getlength(line)) + 1 for line in lines) for lines in titles]
    widths = [max(pair) for pair in zip(widths, needed, strict=True)]
    head = LEADING * max(len(lines) for lines in titles) + GAP if any(title for title, _ in columns) else GAP
    side = max((int(font.getlength(name)) for name in rows), default=-GAP) + GAP
    size = (side + GAP + sum(width + GAP for width in widths), head + sum(height + GAP for height in heights))
    page = Image.new('RGB', size, 'white')
    draw = ImageDraw.Draw(page)
    left = side + GAP
    for lines, column, width in zip(titles, tiles, widths, strict=True):
        for i, line in enumerate(lines):
            draw.text((left, 3 + LEADING * i), line, fill=INK, font=bold if i == 0 else font)
        top = head
        for picture, height in zip(column, heights, strict=True):
            page.paste(Image.fromarray(picture).convert('RGB'), (left, top))
            top += height + GAP
        left += width + GAP
    top = head
    for name, height in zip(rows, heights, strict=bool(rows)):
        draw.text((GAP, top + height // 2), name, fill=INK, font=font, anchor='lm')
        top += height + GAP
    return page


def _text(lines: Sequence[str], width: int) -> Image.Image:
    page = Image.new('RGB', (width, LEADING * len(lines) + 2 * GAP), 'white')
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        draw.text((GAP, GAP // 2 + LEADING * i), line, fill=DIM, font=letters(FONT))
    return page


STYLE = {
    'font.family': 'DejaVu Sans',
    'font.size': 9.5,
    'axes.titlesize': 9.5,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'legend.frameon': False,
    'figure.dpi': DPI,
}


@contextlib.contextmanager
def chart(width: int, height: int, columns: int = 1, **grid) -> Iterator[tuple[list, list[Image.Image]]]:
    """Axes to draw on, in the look of the sheets, and a list that holds the picture of them afterwards.

    width, height: pixels of all of it. grid: matplotlib's gridspec_kw.
    """
    made: list[Image.Image] = []
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            columns,
            figsize=(width / DPI, height / DPI),
            squeeze=False,
            layout='constrained',
            gridspec_kw=grid or None,
        )
        try:
            yield list(axes[0]), made
            out = io.BytesIO()
            figure.savefig(out, format='png', facecolor='white')
            made.append(Image.open(out).convert('RGB'))
        finally:
            plt.close(figure)
