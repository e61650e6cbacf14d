"""Data sets, samplers, transforms and batch preprocessing. Importing registers them under the scope `beit_mm`."""

from . import datasets, preprocess, sampling, transforms

__all__ = ['datasets', 'preprocess', 'sampling', 'transforms']
