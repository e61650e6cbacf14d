"""Training and evaluation around MMEngine's Runner. Importing registers hooks, metrics and optimizers."""

from . import amp, hooks, metrics, optim

__all__ = ['amp', 'hooks', 'metrics', 'optim']
