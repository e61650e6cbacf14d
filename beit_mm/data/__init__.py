"""Data sets, samplers, transforms and batch preprocessing. Importing registers them under the scope `beit_mm`."""

from . import (
    cifar, datasets, images, loading, masks, preprocess, sampling, shard_sampler, shards, subsets, tokens, transforms,
)  # fmt: skip
from .stock import check_masks_of_mmseg

__all__ = [
    'cifar', 'datasets', 'images', 'loading', 'masks', 'preprocess', 'sampling', 'shard_sampler', 'shards',
    'subsets', 'tokens', 'transforms',
]  # fmt: skip

check_masks_of_mmseg()
