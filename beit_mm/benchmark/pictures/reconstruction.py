"""What is behind the mask: what a pre-trained model predicts there, painted by the tokenizer's decoder."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from mmengine.model import BaseModel

from ...engine.overlay import as_rgb, overlay
from ...engine.showing import as_loaded
from ...models.pretrain import MaskedImageModel
from ...models.targets import PATCH_VARIANCE_EPS
from ...ops.pixels import patchify, unpatchify
from .canvas import TILE, Panel, PictureError, fitted, sheet
from .masks import hidden
from .models import device_of, painter_of
from .tokens import NO_DECODER, to_picture, token_map

RIGHT, WRONG = (34, 150, 84), (200, 60, 50)
BATCH = 50


def _checked(model: BaseModel, samples: Sequence[dict]) -> None:
    if not isinstance(model, MaskedImageModel):
        raise PictureError(f'{type(model).__name__} predicts no masked patches; give the config of a pre-training')
    for sample in samples:
        lacking = {'patches', 'mask'} - set(sample)
        if lacking:
            raise PictureError(f'the test pipeline gives no {" and no ".join(sorted(lacking))}')
    if not samples:
        raise PictureError('no image to reconstruct')


def batched(samples: Sequence[dict]) -> dict[str, torch.Tensor]:
    keys = [key for key, value in samples[0].items() if isinstance(value, torch.Tensor)]
    return {key: torch.stack([s[key] for s in samples]) for key in keys}


@torch.no_grad()
def guesses(model: MaskedImageModel, samples: Sequence[dict]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(prediction, truth, mask) of packed samples, on the CPU: (B, N) tokens or (B, N, D) pixels, and (B, N) bool."""
    found = [
        part for i in range(0, len(samples), BATCH)
        for part in model(mode='predict', **model.data_preprocessor(batched(samples[i : i + BATCH]), False))
    ]  # fmt: skip
    return tuple(torch.stack([part[key] for part in found]) for key in ('prediction', 'target', 'mask'))


def reconstruction_panel(
    model: MaskedImageModel, samples: Sequence[dict], judged: Sequence[dict] = (), decoder: str | None = None
) -> Panel:
    """image | what the backbone saw | the masked patches as predicted | what the target says they hold.

    samples: of the test pipeline; judged: more of them, for the number alone. Tokens are painted by the tokenizer's
    decoder: predicted ones fill the masked patches alone, the others keep their true token, as in a completion task.
    Without a decoder the tokens' own colours stand for them. Pixel targets (Table 4's ablation) are put in as they are.
    """
    _checked(model, [*samples, *judged])
    guess, truth, mask = guesses(model, [*samples, *judged])
    count = len(samples)
    reversed_bands = getattr(model.data_preprocessor, 'bgr_to_rgb', False)
    images = [as_rgb(as_loaded(s['patches'], s['patches'].shape[1:], reversed_bands)) for s in samples]
    seen = [hidden(image, sample['mask'].numpy()) for image, sample in zip(images, samples, strict=True)]
    grid = tuple(samples[0]['mask'].shape)
    columns = [('image', images), ('masked', seen)]
    if truth.ndim == 2:
        right = guess == truth
        often = truth[mask].bincount().max() / mask.sum()
        numbers = {
            'masked accuracy': float(right[mask].float().mean()),
            'always the most frequent token': float(often),
        }
        mixed = torch.where(mask, guess, truth).unflatten(1, grid)[:count]
        painter = painter_of(model.target.tokenizer, decoder)
        share = f'{100 * float(right[:count][mask[:count]].float().mean()):.0f} % of masked right'
        if painter is not None:
            columns += _painted(model, painter, mixed, truth.unflatten(1, grid)[:count], images, share)
            how = "painted by the tokenizer's decoder; predicted tokens fill the masked patches, the others are true"
        else:
            agreement = _agreement(images, mask.unflatten(1, grid), right.unflatten(1, grid))
            columns += _coloured(mixed, truth.unflatten(1, grid)[:count], images, share)
            columns.append(('agreement', agreement))
            how = (
                f'by the colours of their codes. {NO_DECODER}: nothing is painted. Predicted tokens fill the masked '
                f'patches; these are green where the token is right, and red where it is wrong'
            )
        caption = f'Visual tokens, {how}. Of the masked patches of {len(guess):,} images '
        caption += f'{100 * numbers["masked accuracy"]:.1f} % have their very token; always the most frequent '
        caption += f'one would be right for {100 * float(often):.1f} %.'
    else:
        guess, truth = _in_pixels(model, guess, truth, [*samples, *judged])
        error = float((guess - truth).abs()[mask].mean()) / 255
        numbers = {'masked pixel error': error}
        patch = samples[0]['patches'].shape[-1] // grid[1]
        mixed = unpatchify(torch.where(mask[..., None], guess, truth)[:count], patch, grid)
        mixed = [as_loaded(m.clamp(0, 255).round().byte(), m.shape[1:], False) for m in mixed]
        columns += [('predicted pixels', [as_rgb(m) for m in mixed]), ('true pixels', images)]
        caption = (
            f'Predicted pixels fill the masked patches. Their mean absolute error over {len(guess):,} images is '
            f'{error:.3f} of the range from black to white.'
        )
    return Panel('reconstruction', sheet(columns, caption=caption), numbers, caption)


def _in_pixels(model, guess: torch.Tensor, truth: torch.Tensor, samples: Sequence[dict]) -> tuple:
    """Normalised pixels of patches -> pixels on 0..255, RGB."""
    pre = model.data_preprocessor
    mean, std = pre.mean.cpu(), pre.std.cpu()
    if getattr(model.target, 'per_patch', False):
        patches = torch.stack([s['patches'] for s in samples]).float()
        patches = patches.flip(1) if pre.bgr_to_rgb else patches
        true = patchify((patches - mean) / std, model.target.patch_size)
        variance, middle = torch.var_mean(true, dim=-1, keepdim=True)
        guess = guess * (variance + PATCH_VARIANCE_EPS).sqrt() + middle
        truth = true
    bands = len(pre.mean)
    mean, std = (value.flatten().repeat(guess.shape[-1] // bands) for value in (mean, std))
    return guess * std + mean, truth * std + mean


@torch.no_grad()
def _painted(model, painter: Callable, mixed, truth, images: list, share: str) -> list:
    device = device_of(model)
    painted = [[to_picture(p) for p in painter(tokens.to(device))] for tokens in (mixed, truth)]
    # The decoder paints the token view, which may be smaller than the image: brought to the image's size, unsmoothed
    painted = [[_as_large(p, i) for p, i in zip(column, images, strict=True)] for column in painted]
    return list(zip((f'predicted tokens\n{share}', 'true tokens'), painted, strict=True))


def _as_large(picture: np.ndarray, image: np.ndarray) -> np.ndarray:
    factor = image.shape[0] / picture.shape[0]
    rows, columns = ((np.arange(side) / factor).astype(int) for side in image.shape[:2])
    return picture[rows][:, columns]


def _coloured(mixed, truth, images: list, share: str) -> list:
    side = fitted(images[0], TILE).shape[0]
    maps = [[token_map(t.numpy(), side) for t in tokens] for tokens in (mixed, truth)]
    return list(zip((f'predicted tokens\n{share}', 'true tokens'), maps, strict=True))


def _agreement(images: list, mask: torch.Tensor, right: torch.Tensor) -> list[np.ndarray]:
    """Images whose masked patches are green where the token is right, and red where it is wrong."""
    palette, pictures = np.array([RIGHT, WRONG], np.uint8), []
    for image, hid, good in zip(images, mask.numpy(), right.numpy()):
        patch = image.shape[0] // hid.shape[0], image.shape[1] // hid.shape[1]
        classes = np.where(hid, np.where(good, 0, 1), len(palette))
        pictures.append(overlay(image, classes.repeat(patch[0], 0).repeat(patch[1], 1), palette))
    return pictures
