"""Training and evaluation around MMEngine's Runner. Importing registers hooks, metrics and optimizers."""

from . import (  # noqa: F401
    accumulation,
    amp,
    changes,
    checkpointing,
    device,
    hooks,
    logs,
    loops,
    metrics,
    optim,
    preflight,
    probing,
    randomness,
    runner,
    saving,
    sharding,
    showing,
    signals,
    skipping,
    tokens,
    unreadable,
)
from .pretrained import refuse_what_does_not_fit

refuse_what_does_not_fit()
