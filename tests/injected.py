"""Faults at a step: hooks that the configs of tests/faults.py name. Steps count from 1, as in `iter_1.pth`."""

import hashlib
import json
import os
import random
import signal as signals

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS
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


def digest(value) -> str:
    """Of every tensor and number in a nest of dicts, lists and data elements."""
    sha = hashlib.sha256()

    def walk(one) -> None:
        if isinstance(one, torch.Tensor):
            sha.update(one.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(one, dict):
            for key in sorted(one, key=str):
                walk(one[key])
        elif isinstance(one, (list, tuple)):
            for part in one:
                walk(part)
        elif hasattr(one, 'all_items'):  # mmengine's data elements
            walk(dict(one.all_items()))
        else:
            sha.update(repr(one).encode())

    walk(value)
    return sha.hexdigest()


@HOOKS.register_module(force=True)
class Recorder(Hook):
    """A line of JSON for each step: its number, the digest of its batch, its loss in all bits, the learning rate."""

    priority = 'VERY_LOW'

    def __init__(self, file: str) -> None:
        self.file = file

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        line = dict(
            step=runner.iter + 1,
            epoch=runner.epoch,
            batch=digest(data_batch),
            loss=float(outputs['loss']).hex(),
            lr=runner.optim_wrapper.param_groups[0]['lr'],
        )
        with open(self.file, 'a') as file:
            file.write(json.dumps(line) + '\n')


@TRANSFORMS.register_module(force=True)
class Noise(BaseTransform):
    """Draws from all global generators: Python's, NumPy's and torch's."""

    def transform(self, results: dict) -> dict:
        drawn = random.random() + np.random.rand() + torch.rand(1).item()
        results['img'] = np.clip(results['img'] + 20 * drawn, 0, 255).astype(np.uint8)
        return results
