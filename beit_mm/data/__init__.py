"""Data sets, transforms and batch preprocessing. Importing registers them under the scope `beit_mm`."""

from . import datasets, preprocess, transforms

__all__ = ['datasets', 'preprocess', 'transforms']
