"""Training and evaluation around MMEngine's Runner. Importing registers hooks, metrics and optimizers."""

from . import (
    accumulation,
    amp,
    data_check,
    device,
    hooks,
    logs,
    loops,
    metrics,
    optim,
    probing,
    randomness,
    showing,
    tokens,
)

__all__ = [
    'accumulation', 'amp', 'data_check', 'device', 'hooks', 'logs', 'loops', 'metrics', 'optim', 'probing',
    'randomness', 'showing', 'tokens',
]  # fmt: skip
