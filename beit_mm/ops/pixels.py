"""Pixels as the models see them: patches and back, other numbers of bands, and DALL-E's range of values."""

import torch

LOGIT_LAPLACE_EPS = 0.1  # OpenAI dall_e/utils.py


def patchify(images: torch.Tensor, patch: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, N, patch * patch * C), patches row by row, the channel fastest (as MAE orders them)."""
    b, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f'image size {h} x {w} is not divisible by the patch size {patch}')
    x = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches: torch.Tensor, patch: int, grid: tuple[int, int]) -> torch.Tensor:
    """The inverse of `patchify` for a grid of (rows, columns): (B, N, patch * patch * C) -> (B, C, H, W)."""
    b, _, d = patches.shape
    c = d // (patch * patch)
    x = patches.reshape(b, grid[0], grid[1], patch, patch, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, grid[0] * patch, grid[1] * patch)


def map_pixels(images: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> [0.1, 0.9], where the logit-Laplace likelihood of DALL-E's dVAE is finite."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * images + LOGIT_LAPLACE_EPS


def unmap_pixels(images: torch.Tensor) -> torch.Tensor:
    """The inverse of `map_pixels`, clamped to [0, 1]."""
    return torch.clamp((images - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS), 0, 1)


def inflate_bands(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A patch embedding (D, C, p, p) for another number of image bands, (D, channels, p, p).

    To one band the bands are summed: a grey image then gives what its three equal bands gave. To more, they
    are repeated in turn (R, G, B, R, ...) and scaled by C / channels, which keeps the size of the sum; as
    timm's `adapt_input_conv`. Raises ValueError for fewer bands, of which some would have to be thrown away.
    """
    own = weight.shape[1]
    if channels == own:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    if channels < own:
        raise ValueError(f'a patch embedding of {own} bands cannot be cut down to {channels}')
    return weight.repeat(1, -(-channels // own), 1, 1)[:, :channels] * (own / channels)
