"""Fitting weights to a model: what is matched, resized, expanded, missing or dropped, and what is refused."""

import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..ops.pixels import inflate_bands
from ..ops.relative_position import (
    Grid,
    num_offsets,
    resize_positions,
    resize_table,
    square_of_patches,
    square_of_table,
)
from .convert import check_shapes, convert_state_dict, few, grid_of_index, mixed_in, stripped
from .errors import CheckpointError
from .formats import INDEX, TABLE
from .load import of_beit_mm


class Ours(NamedTuple):
    """Weights under our names, `backbone.` in front of the backbone's; what was done about them, for a log; and the
    grid (h, w) of patches that its tables and positions are for, where that is known."""

    weights: dict[str, torch.Tensor]
    done: str
    grid: Grid | None


def as_ours(weights: dict[str, torch.Tensor], prefix: str = '', grid: Grid | None = None) -> Ours:
    """Weights of any format of formats.py; what has our names for a backbone's blocks stays as it is, whatever it holds
    besides.

    prefix: only the keys that start with it, without it; one part of a name that all keys share is found without.
    grid: of the tables and positions, if known; index buffers know better. Raises CheckpointError for a prefix that no
    key has, an unknown format, and keys of two formats.
    """
    weights, done = stripped(weights), ''
    if prefix:
        starts = sorted({key.split('.')[0] for key in weights})
        dotted = prefix if prefix.endswith('.') or any(key == prefix for key in weights) else f'{prefix}.'
        weights = {key[len(dotted) :]: value for key, value in weights.items() if key.startswith(dotted)}
        if not weights:
            raise CheckpointError(f'no key starts with the prefix {prefix!r}; they start with {few(starts, 8)}')
    while not _has_our_blocks(weights):
        first = {key.partition('.')[0] for key in weights}
        if len(first) != 1 or first <= {'backbone', 'beit'} or not all('.' in key for key in weights):
            break
        (shared,) = first
        inside = {key.partition('.')[2]: value for key, value in weights.items()}
        weights, done = inside, f'{done}without {shared!r}, with which all names start; '
    if 'layers.0.ln1.weight' in weights:
        weights = {f'backbone.{key}': value for key, value in weights.items()}
    grid = grid_of_index(weights) or grid
    if 'backbone.layers.0.ln1.weight' in weights:
        # beit2mmseg.py leaves the patch embedding under its official name too
        weights = {key: value for key, value in weights.items() if '.patch_embed.proj.' not in key}
        other, names = mixed_in(weights)
        if names:
            raise CheckpointError(f'keys of two formats are mixed: most are ours, but {other} has {few(names, 4)}')
        check_shapes(weights)
        return Ours(weights, done, grid)
    weights, report = convert_state_dict(weights)
    return Ours(weights, f'{done}{report}; ', grid)


def _has_our_blocks(weights: dict[str, torch.Tensor]) -> bool:
    return any(f'{start}layers.0.ln1.weight' in weights for start in ('', 'backbone.'))


@dataclass
class LoadReport:
    """What became of the keys of a checkpoint: names by fate."""

    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    expanded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)  # of a head, in both, of another shape or on request
    refused: list[str] = field(default_factory=list)  # of the backbone, and passed over because the user said so

    @property
    def level(self) -> int:
        """How loud a log should be about it."""
        return logging.WARNING if self.refused or self.reinitialised else logging.INFO

    def __str__(self) -> str:
        parts = [f'{len(names)} {fate}' for fate, names in vars(self).items() if names]
        for fate in ('resized', 'expanded', 'missing', 'dropped', 'reinitialised', 'refused'):
            names = getattr(self, fate)
            if names:
                parts[[p.split()[1] for p in parts].index(fate)] += f' ({few(names)})'
        return ', '.join(parts)


PATCH_EMBEDDING = 'patch_embed.projection.weight'
SHARED_TABLE = f'rel_pos_bias.{TABLE}'
# Of the backbone: what a pre-training checkpoint has and a fine-tuned model may lack, and the other way round.
# Official fine-tuning with mean pooling drops the pre-trained `norm` and starts `fc_norm` (ln2) at one and zero;
# a segmentor that starts from a classifier has neither.
MAY_BE_DROPPED = ('mask_token', 'ln1.weight', 'ln1.bias', 'ln2.weight', 'ln2.bias')
MAY_BE_MISSING = ('ln1.weight', 'ln1.bias', 'ln2.weight', 'ln2.bias', 'mask_token')


def fit(
    weights: dict[str, torch.Tensor],
    own: dict[str, torch.Tensor],
    grid: Grid,
    prefix: str = 'backbone.',
    interpolation: str = 'bicubic',
    partial: bool = False,
    source_grid: Grid | None = None,
) -> tuple[dict[str, torch.Tensor], LoadReport]:
    """Fit weights to a model whose state dict is `own` and whose backbone (under `prefix`) has `grid` patches.

    A shared relative position table is expanded to all blocks, tables and positions are resized, the patch
    embedding is inflated to more bands, heads of another shape or name keep their initial values. Raises
    CheckpointError when any other part of the backbone is missing, left over or of another shape; with `partial`
    such a part keeps its initial value, as long as there is a part that fits. source_grid: of the weights' tables and
    positions; without it the square that fits.
    """
    report = LoadReport()
    given = weights
    weights = {k: v for k, v in weights.items() if not k.endswith(INDEX)}
    per_block = [k for k in own if k.startswith(prefix + 'layers.') and k.endswith(TABLE)]
    shared = prefix + SHARED_TABLE
    if shared in weights and shared not in own and per_block:
        table = weights.pop(shared)
        # timm's BEiT may have both, and adds them
        weights.update({key: weights[key] + table if key in weights else table.clone() for key in per_block})
        report.expanded = list(per_block)
    fitted = {}
    refused = []
    for key, value in weights.items():
        in_backbone = key.startswith(prefix)
        if key not in own:
            if in_backbone and key[len(prefix) :] not in MAY_BE_DROPPED:
                refused.append(f'{key} is not in the model')
            else:
                report.dropped.append(key)
            continue
        other_grid = source_grid not in (None, grid) and key.endswith((TABLE, 'pos_embed'))
        if in_backbone and (value.shape != own[key].shape or other_grid):
            value = _resized(key, value, own[key].shape, grid, interpolation, source_grid)
            if value.shape == own[key].shape:
                fate = report.expanded if key.endswith(PATCH_EMBEDDING) else report.resized
                fate.append(key)
        if value.shape == own[key].shape:
            fitted[key] = value
            if key not in report.resized and key not in report.expanded:
                report.matched.append(key)
        elif in_backbone:
            refused.append(f'{key} is {tuple(weights[key].shape)}, the model has {tuple(own[key].shape)}')
        else:
            report.reinitialised.append(key)
    for key in own:
        if key not in fitted:
            if key not in report.reinitialised:
                report.missing.append(key)
            if key.startswith(prefix) and key[len(prefix) :] not in MAY_BE_MISSING and key not in weights:
                refused.append(f'{key} is not in the checkpoint')
    if partial and any(key.startswith(prefix) for key in fitted):
        report.refused = refused
    elif refused:
        shown = '\n  '.join(refused[:4]) + (f'\n  ... {len(refused) - 4} more' if len(refused) > 4 else '')
        raise CheckpointError(
            f'the backbone does not fit: {_difference(given, own, prefix)}\n  {shown}\n'
            f'(what fits can be loaded alone: --partial-load, or init_cfg=dict(..., partial=True))'
        )
    return fitted, report


def outline(weights: dict[str, torch.Tensor], prefix: str = 'backbone.') -> dict[str, int | str]:
    """What the shapes of a backbone's weights say about it, under the names of BEiTViT's arguments."""
    of = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    layers = {key.split('.')[1] for key in of if key.startswith('layers.')}
    outline: dict[str, int | str] = dict(num_layers=len(layers))
    if 'cls_token' in of:
        outline['embed_dims'] = of['cls_token'].shape[-1]
    if 'layers.0.ffn.layers.0.0.weight' in of:
        outline['feedforward_channels'] = of['layers.0.ffn.layers.0.0.weight'].shape[0]
    if PATCH_EMBEDDING in of:
        outline['patch_size'] = of[PATCH_EMBEDDING].shape[-1]
    tables = [value for key, value in of.items() if key.endswith(TABLE)]
    if tables:
        outline['num_heads'] = tables[0].shape[-1]
    outline['relative positions'] = 'yes' if tables else 'no'
    outline['absolute positions'] = 'yes' if 'pos_embed' in of else 'no'
    outline['LayerScale'] = 'yes' if 'layers.0.gamma_1' in of else 'no'
    return outline


def _difference(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor], prefix: str) -> str:
    """In which of the outline's points a checkpoint differs from a model, in words."""
    theirs, ours = outline(weights, prefix), outline(own, prefix)
    if not theirs['num_layers']:
        return f'no key of the checkpoint starts with {prefix}layers.; is the prefix right?'
    points = [f'{name} is {theirs[name]} in the checkpoint and {ours[name]} here'
              for name in ours if name in theirs and theirs[name] != ours[name]]  # fmt: skip
    return '; '.join(points) or "some of its keys are another model's"


def _resized(
    key: str,
    value: torch.Tensor,
    wanted: torch.Size,
    grid: Grid,
    interpolation: str,
    source_grid: Grid | None,
) -> torch.Tensor:
    """Tables and positions of another grid resized to `grid`, bands inflated; all else as it is."""
    if key.endswith(PATCH_EMBEDDING) and value.ndim == 4 and (wanted[1] == 1 or wanted[1] > value.shape[1]):
        return inflate_bands(value, wanted[1])
    if key.endswith(TABLE) and value.ndim == 2:
        known = source_grid if source_grid and num_offsets(source_grid) == len(value) else None
        if source := known or square_of_table(len(value)):
            return resize_table(value.float(), source, grid).to(value.dtype)
    if key.endswith('pos_embed') and value.ndim == 3:
        patches = value.shape[1] - 1
        known = source_grid if source_grid and source_grid[0] * source_grid[1] == patches else None
        if source := known or square_of_patches(patches):
            return resize_positions(value.float(), source, grid, interpolation).to(value.dtype)
    return value


def grid_of_ours(checkpoint: dict) -> Grid | None:
    """The grid of patches that a checkpoint of beit_mm says it was trained at; None for others."""
    backbone = of_beit_mm(checkpoint).get('backbone')
    size = backbone.get('img_size', 224) if isinstance(backbone, dict) else None
    patch = backbone.get('patch_size', 16) if isinstance(backbone, dict) else None
    sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
    if len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in (*sides, patch)):
        return None
    return sides[0] // patch, sides[1] // patch
