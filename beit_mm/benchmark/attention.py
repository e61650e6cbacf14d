"""Self-attention of the last block as in the paper's Figure 2, with a number beside the picture.

Source of the 60 %: official beit2/visualize_attention.py.
"""

import numpy as np
import torch

from ..models.backbone import BEiTViT

KEPT_MASS = 0.6


@torch.no_grad()
def self_attention(backbone: BEiTViT, images: torch.Tensor, queries: torch.Tensor, layer: int = -1) -> torch.Tensor:
    """Attention of one query patch per image over all patches: (B, heads, Gh, Gw), each map summing to 1.

    images (B, C, H, W) normalised; queries (B, 2) row and column of a patch. The class token's share is left out.
    """
    backbone.eval()
    maps = backbone.attention_maps(images, layer)
    rows, columns = images.shape[2] // backbone.patch_size, images.shape[3] // backbone.patch_size
    index = 1 + queries[:, 0] * columns + queries[:, 1]
    chosen = maps[torch.arange(len(images)), :, index, 1:]
    return (chosen / chosen.sum(dim=-1, keepdim=True)).unflatten(-1, (rows, columns))


def mass_mask(attention: np.ndarray, keep: float = KEPT_MASS) -> np.ndarray:
    """The fewest patches that together hold `keep` of the attention: bool, the shape of `attention`."""
    flat = attention.ravel()
    order = np.argsort(-flat, kind='stable')
    count = int(np.searchsorted(np.cumsum(flat[order]), keep * flat.sum()) + 1)
    mask = np.zeros(flat.shape, dtype=bool)
    mask[order[:count]] = True
    return mask.reshape(attention.shape)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 0 when both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def patch_classes(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The most frequent class of each patch: (H, W) -> (Gh, Gw)."""
    ph, pw = mask.shape[0] // grid[0], mask.shape[1] // grid[1]
    cells = mask.reshape(grid[0], ph, grid[1], pw).transpose(0, 2, 1, 3).reshape(*grid, ph * pw)
    return np.apply_along_axis(lambda values: np.bincount(values).argmax(), -1, cells)


def attention_jaccard(attention: torch.Tensor, masks: np.ndarray, queries: torch.Tensor) -> dict[str, float]:
    """How well the attended patches are those of the query's own region: Jaccard indices, averaged over images.

    attention (B, heads, Gh, Gw), masks (B, H, W) of class indices, queries (B, 2). `attended`: the mean over
    heads, thresholded by `mass_mask`; `shuffled`: the same patches at random places, which is chance;
    `everywhere`: what attending to all patches would score.
    """
    rng = np.random.default_rng(0)
    scores: dict[str, list[float]] = dict(attended=[], shuffled=[], everywhere=[])
    for maps, mask, (row, column) in zip(attention.numpy(), masks, queries.tolist(), strict=True):
        classes = patch_classes(mask, maps.shape[-2:])
        region = classes == classes[row, column]
        attended = mass_mask(maps.mean(axis=0))
        scores['attended'].append(jaccard(attended, region))
        scores['shuffled'].append(jaccard(rng.permutation(attended.ravel()).reshape(region.shape), region))
        scores['everywhere'].append(float(region.mean()))
    return {name: float(np.mean(values)) for name, values in scores.items()}
