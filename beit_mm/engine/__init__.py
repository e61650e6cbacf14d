"""Training and evaluation around MMEngine's Runner. Importing registers hooks, metrics and optimizers."""

from . import accumulation, amp, hooks, metrics, optim, probing

__all__ = ['accumulation', 'amp', 'hooks', 'metrics', 'optim', 'probing']
