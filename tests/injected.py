"""Faults at a step: hooks that the configs of tests/faults.py name. Steps count from 1, as in `iter_1.pth`."""

import os
import signal as signals

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module(force=True)
class SignalAt(Hook):
    """Sends a signal to this process when a step has been computed, before hooks of later priority see it."""

    priority = 'VERY_HIGH'

    def __init__(self, step: int, signal: str, group: bool = False) -> None:
        self.step, self.signal, self.group = step, getattr(signals, signal), group

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.step:
            (os.killpg if self.group else os.kill)(os.getpid(), self.signal)
