"""Self-attention as in the paper's Figure 2, attention rollout, and numbers beside the pictures.

Letters in shapes: B images, h heads, Gh x Gw patches, T = 1 + Gh * Gw tokens (the class token first), H x W pixels.
Sources: official beit2/visualize_attention.py (the 60 %); Abnar & Zuidema 2020, section 3 (rollout).
"""

from collections.abc import Iterable

import numpy as np
import torch

from ..models.backbone import BEiTViT

KEPT_MASS = 0.6
RESIDUAL = 0.5  # share of the skip connection in a block's output


@torch.no_grad()
def self_attention(backbone: BEiTViT, images: torch.Tensor, queries: torch.Tensor, layer: int = -1) -> torch.Tensor:
    """Attention of query patches over all patches: (Q, h, Gh, Gw), each map summing to 1.

    images (Q, C, H, W) normalised, or one for all queries; queries (Q, 2) row and column of a patch. The class
    token's share is left out.
    Raises ValueError for a patch or a layer that there is not.
    """
    backbone.eval()
    grid = images.shape[2] // backbone.patch_size, images.shape[3] // backbone.patch_size
    for row, column in queries.tolist():
        if not (0 <= row < grid[0] and 0 <= column < grid[1]):
            raise ValueError(
                f'there is no patch in row {row}, column {column}: {grid[0]} x {grid[1]} patches are counted from 0'
            )
    (maps,) = backbone.attention_maps(images, [layer])
    index = 1 + queries[:, 0] * grid[1] + queries[:, 1]
    return over_patches(maps[torch.arange(len(queries)) % len(images), :, index], grid)


def over_patches(attention: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Attention (..., T) -> (..., Gh, Gw) without the class token, scaled to sum to 1."""
    patches = attention[..., 1:]
    return (patches / patches.sum(dim=-1, keepdim=True)).unflatten(-1, grid)


def rollout(maps: Iterable[torch.Tensor]) -> torch.Tensor:
    """Attention (B, h, T, T) of all blocks, the first first -> (B, T, T): which inputs each output is a mixture of.

    Heads are averaged, the skip connection is half of every block, and the rows sum to 1.
    """
    mixed = None
    for attention in maps:
        mean = attention.mean(dim=1)
        step = (1 - RESIDUAL) * mean + RESIDUAL * torch.eye(mean.shape[-1], device=mean.device)
        step = step / step.sum(dim=-1, keepdim=True)
        mixed = step if mixed is None else step @ mixed
    return mixed


def effective_patches(attention: np.ndarray) -> float:
    """exp of the entropy of a map that sums to 1: 1 when all is on one patch, their number when it is even."""
    held = attention[attention > 0]
    return float(np.exp(-(held * np.log(held)).sum()))


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


def over_pixels(patches: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(Gh, Gw) -> (H, W): each patch's value at all of its pixels."""
    return patches.repeat(size[0] // patches.shape[0], axis=0).repeat(size[1] // patches.shape[1], axis=1)


def attention_jaccard(objects: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, float]:
    """How well the attended patches are those of an object: Jaccard indices over pixels, averaged over objects.

    objects: of each (attention (h, Gh, Gw), its pixels (H, W) bool, the pixels that count (H, W) bool). Patches are
    thresholded by `mass_mask`. Nothing is found of no object.

    attended: of the mean over heads. head 0, head 1, ...: of each; best_head: of that one which is best on average;
    best_head_each: of the head that is best for each object, which looks at the truth (as DINO's Figure 4 does).
    shuffled: as many patches as `attended` at random places, which is chance; everywhere: all patches.
    """
    rng = np.random.default_rng(0)
    scores: dict[str, list] = dict(attended=[], shuffled=[], everywhere=[], heads=[])
    for maps, inside, counts in objects:

        def score(patches: np.ndarray, inside: np.ndarray = inside, counts: np.ndarray = counts) -> float:
            return jaccard(over_pixels(patches, inside.shape)[counts], inside[counts])

        attended = mass_mask(maps.mean(axis=0))
        scores['attended'].append(score(attended))
        scores['heads'].append([score(mass_mask(one)) for one in maps])
        scores['shuffled'].append(score(rng.permutation(attended.ravel()).reshape(attended.shape)))
        scores['everywhere'].append(score(np.ones_like(attended)))
    if not scores['heads']:
        return {}
    heads = np.array(scores.pop('heads'))
    found = {name: float(np.mean(values)) for name, values in scores.items()}
    found |= {f'head {i}': float(value) for i, value in enumerate(heads.mean(axis=0))}
    best = dict(best_head=float(heads.mean(axis=0).max()), best_head_each=float(heads.max(axis=1).mean()))
    return found | best | dict(objects=float(len(heads)))
