"""Data sets, samplers, transforms and batch preprocessing. Importing registers them under the scope `beit_mm`."""

from . import cifar, datasets, images, loading, masks, preprocess, sampling, subsets, tokens, transforms

__all__ = [
    'cifar', 'datasets', 'images', 'loading', 'masks', 'preprocess', 'sampling', 'subsets', 'tokens', 'transforms',
]  # fmt: skip
