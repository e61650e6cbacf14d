"""What a tokenizer sees: an image as its tokens, painted back from them, and how many of its codes are used."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageDraw
from torch import nn

from ...data.embedded import LUMA
from ...engine.overlay import as_rgb, letters
from ...ops.pixels import unmap_pixels
from .canvas import GAP, TILE, Panel, PictureError, chart, fitted, sheet
from .models import device_of

# Of hue, brightness and saturation from a code to the next: powers of the root of x^4 = x + 1, whose multiples fill a
# cube evenly however many there are (Roberts 2018, the R3 sequence)
STEPS = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)
SMALLEST_CELL = 28  # pixels of a cell that has room for its number
LARGEST_MAP = 480  # pixels
NO_DECODER = 'This tokenizer has no decoder (for DALL-E there is --decoder)'
CHART_HEIGHT = 230
LUMINANCE_OF_BLACK_TEXT = 120


def colours_of(tokens: np.ndarray) -> np.ndarray:
    """Tokens (...) -> (..., 3) uint8: a code has the same colour always, near codes have others."""
    hue, light, strength = ((tokens * step) % 1.0 for step in STEPS)
    light, strength = 0.5 + 0.5 * light, 0.3 + 0.65 * strength
    sectors = (hue[..., None] * 6 + np.array([0.0, 4.0, 2.0])) % 6
    pure = np.clip(np.abs(sectors - 3) - 1, 0, 1)
    return (255 * light[..., None] * (1 - strength[..., None] * (1 - pure))).round().astype(np.uint8)


def token_map(tokens: np.ndarray, side: int, numbers: bool = True) -> np.ndarray:
    """Tokens (h, w) -> about (side, side, 3) uint8: cells in their codes' colours, with the codes if there is room."""
    cell = max(1, round(side / max(tokens.shape)))
    picture = colours_of(tokens).repeat(cell, axis=0).repeat(cell, axis=1)
    if not numbers or cell < SMALLEST_CELL:
        return picture
    page = Pillow.fromarray(picture)
    draw, font = ImageDraw.Draw(page), letters(cell * 10 // SMALLEST_CELL)
    for (row, column), token in np.ndenumerate(tokens):
        bright = picture[row * cell, column * cell] @ LUMA > LUMINANCE_OF_BLACK_TEXT
        place = ((column + 0.5) * cell, (row + 0.5) * cell)
        draw.text(place, str(token), fill='black' if bright else 'white', font=font, anchor='mm')
    return np.asarray(page)


def to_picture(pixels: torch.Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3) uint8."""
    array = (pixels.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return as_rgb(array)


def usage_of(tokens: np.ndarray, vocab_size: int) -> dict[str, float]:
    """How many of its codes a tokenizer uses: perplexity is how many equally frequent ones would be as uncertain."""
    counts = np.bincount(tokens.ravel(), minlength=vocab_size)
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log(share)).sum())
    return {
        'codes': float(vocab_size),
        'codes used': float((counts > 0).sum()),
        'codebook usage': float((counts > 0).mean()),
        'entropy, nats': entropy,
        'perplexity': float(np.exp(entropy)),
        'share of the most frequent code': float(share.max()),
    }


@torch.no_grad()
def tokens_panel(
    tokenizer: nn.Module,
    preprocessor: nn.Module,
    samples: Sequence[dict],
    counted: Sequence[dict] = (),
    painter: Callable | None = None,
) -> Panel:
    """image | its tokens | painted from them; below how often the codes occur.

    samples: of the test pipeline, with a `tokens_view`; counted: more of them, over which usage is counted.
    painter: turns tokens into images; without one the third column is missing and the caption says so.
    """
    lacking = next((sample for sample in (*samples, *counted) if 'tokens_view' not in sample), None)
    if not samples or lacking is not None:
        raise PictureError(f'the test pipeline gives no tokens_view, but {", ".join(lacking or {}) or "no image"}')
    views = [preprocessor(dict(tokens_view=s['tokens_view'][None]), False)['tokens_view'] for s in (*samples, *counted)]
    device = device_of(tokenizer)
    tokens = [tokenizer.tokens(view.to(device))[0].cpu().numpy() for view in views]
    images = [unmap_pixels(view)[0] for view in views]
    pictures = [to_picture(image) for image in images[: len(samples)]]
    legible = min(LARGEST_MAP, max(TILE * 3 // 2, SMALLEST_CELL * max(tokens[0].shape)))
    maps = [token_map(t, legible) for t in tokens[: len(samples)]]
    tile = max(maps[0].shape[:2])
    columns = [('image', pictures), ('tokens', maps)]
    numbers = usage_of(np.concatenate([t.ravel() for t in tokens]), tokenizer.vocab_size)
    if painter is not None:
        painted = [painter(torch.from_numpy(t)[None].to(device))[0].cpu() for t in tokens]
        columns.append(('painted from the tokens', [to_picture(image) for image in painted[: len(samples)]]))
        errors = [float((a - b.cpu()).abs().mean()) for a, b in zip(painted, images, strict=True)]
        numbers['reconstruction error'] = float(np.mean(errors))
    columns = [(title, [_widened(p, tile) for p in column]) for title, column in columns]
    counts = np.sort(np.bincount(np.concatenate([t.ravel() for t in tokens]), minlength=tokenizer.vocab_size))[::-1]
    with chart(len(columns) * (tile + GAP) + GAP, CHART_HEIGHT) as ((axis,), made):
        axis.stairs(100 * counts / counts.sum(), np.arange(len(counts) + 1) + 0.5, fill=True, color='#0f766e')
        even = 100 / tokenizer.vocab_size
        axis.axhline(even, color='#64748b', linewidth=1, linestyle='--')
        axis.text(0.99, even, 'all codes equally often', ha='right', va='bottom', color='#475569',
                  transform=axis.get_yaxis_transform())  # fmt: skip
        axis.set_title(f'{numbers["codes used"]:,.0f} of {tokenizer.vocab_size:,} codes used, perplexity '
                       f'{numbers["perplexity"]:,.0f}')  # fmt: skip
        drawn = min(int(1.1 * numbers['codes used']) + 1, len(counts))  # what is never used is not worth a chart
        axis.set_xlabel(f'codes, the most frequent first: {drawn:,} of {len(counts):,}')
        axis.set_ylabel('% of cells')
        axis.set_xlim(0.5, drawn + 0.5)
        axis.set_ylim(0)
    caption = (
        f'Each cell of {tokens[0].shape[0]} x {tokens[0].shape[1]} is one of {tokenizer.vocab_size:,} codes; a code '
        f'keeps its colour in all pictures. Usage is counted over {len(tokens):,} images.'
    )
    if painter is None:
        caption += f' {NO_DECODER}: nothing is painted.'
    return Panel('tokens', sheet(columns, tile=tile, caption=caption, below=made), numbers, caption)


def _widened(picture: np.ndarray, tile: int) -> np.ndarray:
    """A small picture in the size of a token map, which need not be a whole multiple of it."""
    picture = fitted(picture, tile)
    height, width = (max(1, round(side * tile / max(picture.shape[:2]))) for side in picture.shape[:2])
    return np.asarray(Pillow.fromarray(picture).resize((width, height), Pillow.Resampling.NEAREST))
