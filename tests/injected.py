"""Faults at a step: hooks that the configs of tests/faults.py name. Steps count from 1, as in `iter_1.pth`."""

import copy
import errno
import hashlib
import json
import math
import multiprocessing
import os
import random
import signal as signals
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.runner import Runner
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor

from beit_mm.checkpoints.files import _Counted
from beit_mm.data.failures import DataError


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


@HOOKS.register_module(force=True)
class BadBatch(Hook):
    """The images of some steps are NaN, on one rank or on all."""

    def __init__(self, steps: list[int], rank: int | None = None) -> None:
        self.steps, self.rank = steps, rank

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter + 1 not in self.steps or self.rank not in (None, runner.rank):
            return
        key = next(key for key in ('inputs', 'patches', 'tokens_view') if key in data_batch)
        images = [torch.full(image.shape, math.nan) for image in data_batch[key]]
        data_batch[key] = images if key == 'inputs' else torch.stack(images)


@HOOKS.register_module(force=True)
class Undone(Hook):
    """What the steps from `first` to `last` have changed is put back, by loading what was there before: the reference
    for steps that were skipped."""

    priority = 95  # the last but those that come after a checkpoint is saved

    def __init__(self, first: int, last: int | None = None) -> None:
        self.first, self.last = first, last or first

    def parts(self, runner: Runner) -> list:
        averages = [hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model')]
        return [runner.model, *averages, runner.optim_wrapper, *runner.param_schedulers]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter + 1 == self.first:
            self.kept = [copy.deepcopy(part.state_dict()) for part in self.parts(runner)]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.last:
            for part, state in zip(self.parts(runner), self.kept, strict=True):
                part.load_state_dict(state)


@HOOKS.register_module(force=True)
class BadGradients(Hook):
    """From a step on, the gradients of the last parameter are infinite; losses are as they are."""

    def __init__(self, first: int) -> None:
        self.first = first

    def before_train(self, runner: Runner) -> None:
        parameter = [p for p in runner.model.parameters() if p.requires_grad][-1]
        parameter.register_hook(lambda gradient: gradient * math.inf if runner.iter + 1 >= self.first else gradient)


@HOOKS.register_module(force=True)
class Digest(Hook):
    """Appends what a rank's weights sum up to, to the bit, to work_dir/digest_RANK.txt after every step."""

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        digest = hashlib.sha256()
        for parameter in runner.model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        with (Path(runner.work_dir) / f'digest_{runner.rank}.txt').open('a') as file:
            file.write(digest.hexdigest() + '\n')


@OPTIM_WRAPPERS.register_module(force=True)
class Foreign(OptimWrapper):
    """An optimizer wrapper that knows nothing of ours."""


@HOOKS.register_module(force=True)
class SignalRankAt(Hook):
    """Sends a signal from one rank to itself, or to the process that started it, torchrun; once, whatever restarts."""

    priority = 'VERY_HIGH'

    def __init__(self, step: int, signal: str, once: str, rank: int = 0, parent: bool = False) -> None:
        self.step, self.signal, self.rank, self.parent = step, getattr(signals, signal), rank, parent
        self.once = Path(once)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.step and runner.rank == self.rank and not self.once.exists():
            self.once.touch()
            parent = os.getppid()
            os.kill(parent if self.parent else os.getpid(), self.signal)
            while self.parent and self.signal == signals.SIGKILL and os.getppid() == parent:
                time.sleep(0.01)


@HOOKS.register_module(force=True)
class SignalWorkersAt(Hook):
    """Sends a signal to the data workers, SIGSTOP to all of them, else to one, before a step's batch is asked for."""

    def __init__(self, step: int, signal: str) -> None:
        self.step, self.signal = step, getattr(signals, signal)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 2 == self.step:
            children = [child for child in multiprocessing.active_children() if child.daemon]
            for child in children if self.signal == signals.SIGSTOP else children[:1]:
                os.kill(child.pid, self.signal)


@HOOKS.register_module(force=True)
class NormEval(Hook):
    """Keeps BatchNorm as it is while training: ranks that see other images of a batch normalise them alike."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        for module in runner.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


@HOOKS.register_module(force=True)
class SignalBeforeTraining(Hook):
    """Sends a signal to this process when all is built and no step has been taken."""

    def __init__(self, signal: str) -> None:
        self.signal = getattr(signals, signal)

    def before_train(self, runner: Runner) -> None:
        os.kill(os.getpid(), self.signal)


@HOOKS.register_module(force=True)
class SignalInValidation(Hook):
    """Sends a signal to this process after a batch of the validation after a step."""

    def __init__(self, step: int, batch: int, signal: str) -> None:
        self.step, self.batch, self.signal = step, batch, getattr(signals, signal)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if (runner.iter, batch_idx + 1) == (self.step, self.batch):
            os.kill(os.getpid(), self.signal)


@HOOKS.register_module(force=True)
class SignalWhileSaving(Hook):
    """Sends a signal to this process so many times while its first checkpoint is put together."""

    def __init__(self, signal: str, times: int) -> None:
        self.signal, self.times = getattr(signals, signal), times

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), self.signal)
        self.times = 0


@HOOKS.register_module(force=True)
class WeightsOfRank(Hook):
    """Writes the weights that each rank has, before and after training: folder/start.pt, folder/rank0.pt, ..."""

    priority = 'LOWEST'

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def before_train(self, runner: Runner) -> None:
        self._write(runner, 'start' if runner.rank == 0 else '')

    def after_train(self, runner: Runner) -> None:
        self._write(runner, f'rank{runner.rank}')

    def _write(self, runner: Runner, name: str) -> None:
        model = runner.model.module if hasattr(runner.model, 'module') else runner.model
        weights = {
            key: value.full_tensor() if isinstance(value, DTensor) else value
            for key, value in model.state_dict().items()
        }
        if name:
            torch.save(weights, self.folder / f'{name}.pt')


@HOOKS.register_module(force=True)
class DiskOf(Hook):
    """A disk with so many free bytes, as far as os.statvfs knows, before the run looks."""

    priority = 'HIGHEST'

    def __init__(self, free: int) -> None:
        self.free = free

    def before_run(self, runner: Runner) -> None:
        os.statvfs = lambda path: SimpleNamespace(f_bavail=self.free, f_frsize=1)


class Killed:
    """Kills the process (SIGKILL) before the `number`-th thing that it does to the disk for a checkpoint, of all or of
    those called `name` (write, fsync, replace, unlink); a write is half done. calls: what was done. A context manager.
    """

    things = ((os, 'fsync'), (os, 'replace'), (os, 'unlink'), (_Counted, 'write'))

    def __init__(self, number: int | None = None, name: str | None = None) -> None:
        self.number, self.name, self.calls = number, name, []
        self.patched = []

    def __enter__(self) -> 'Killed':
        for owner, name in self.things:
            self.patched.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._counted(name, getattr(owner, name)))
        return self

    def __exit__(self, *_) -> None:
        for owner, name, original in self.patched:
            setattr(owner, name, original)

    def _counted(self, name: str, original):
        def counted(*args, **kwargs):
            if self.name in (None, name) and self.number == (self.calls.count(name) if self.name else len(self.calls)):
                if name == 'write':
                    file, data = args
                    original(file, memoryview(data)[: memoryview(data).nbytes // 2])
                    file.file.flush()
                os.kill(os.getpid(), signals.SIGKILL)
            self.calls.append(name)
            return original(*args, **kwargs)

        return counted


@HOOKS.register_module(force=True)
class KillWhileSaving(Hook):
    """SIGKILL before the `number`-th call of a `name` that is done to the disk, from the end of a step on."""

    priority = 'VERY_HIGH'

    def __init__(self, step: int, name: str, number: int) -> None:
        self.step, self.name, self.number = step, name, number

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.step:
            Killed(self.number, self.name).__enter__()


@HOOKS.register_module(force=True)
class FullDisk(Hook):
    """From the end of a step on, a disk on which `room` more bytes fit."""

    priority = 'VERY_HIGH'

    def __init__(self, step: int, room: int) -> None:
        self.step, self.room = step, room

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 != self.step:
            return
        original = _Counted.write

        def write(file, data) -> int:
            self.room -= memoryview(data).nbytes
            if self.room < 0:
                file.failed = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise file.failed
            return original(file, data)

        _Counted.write = write


@HOOKS.register_module(force=True)
class SpoilWeight(Hook):
    """Puts a NaN into a weight before a step ends."""

    priority = 'VERY_HIGH'

    def __init__(self, step: int) -> None:
        self.step = step

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.step:
            next(runner.model.parameters()).data.view(-1)[0] = float('nan')


@HOOKS.register_module(force=True)
class PutsTextBack(Hook):
    """Puts a `meta.config` of others into a checkpoint that was loaded, before every other hook."""

    priority = 'HIGHEST'

    def __init__(self, text: str) -> None:
        self.text = text

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['meta']['config'] = self.text


@HOOKS.register_module(force=True)
class SpoilShard(Hook):
    """After a step, one number that a rank holds of a sharded parameter is NaN."""

    def __init__(self, step: int, rank: int) -> None:
        self.step, self.rank = step, rank

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.step and runner.rank == self.rank:
            shards = (parameter.detach().to_local() for parameter in runner.model.parameters())
            next(shard for shard in shards if shard.numel()).view(-1)[0] = math.nan


@HOOKS.register_module(force=True)
class RunAt(Hook):
    """The first rank runs a shell command when a step has been computed; once, whatever restarts."""

    priority = 'VERY_HIGH'

    def __init__(self, step: int, command: str, once: str) -> None:
        self.step, self.command, self.once = step, command, Path(once)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.step and runner.rank == 0 and not self.once.exists():
            self.once.touch()
            subprocess.run(self.command, shell=True, check=True)


@HOOKS.register_module(force=True)
class RemoveAt(Hook):
    """Renames a file, or cuts it off behind so many bytes, before a step: a shard that is lost. On the first rank."""

    def __init__(self, step: int, file: str, keep: int | None = None) -> None:
        self.step, self.file, self.keep = step, Path(file), keep

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter + 1 == self.step and runner.rank == 0 and self.file.exists():
            if self.keep is None:
                self.file.rename(self.file.with_suffix('.lost'))
            else:
                os.truncate(self.file, self.keep)


@HOOKS.register_module(force=True)
class OnRank(Hook):
    """Another fault of this file, on one rank alone; with `once`, a file that it makes, not when ranks start again."""

    def __init__(self, rank: int, fault: dict, once: str | None = None) -> None:
        self.rank, self.fault, self.once = rank, fault, once and Path(once)

    def before_run(self, runner: Runner) -> None:
        if runner.rank == self.rank and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            self.rank = None  # the list of hooks that this is called from grows: it is called again
            runner.register_hook(HOOKS.build(self.fault))


@HOOKS.register_module(force=True)
class RaiseAt(Hook):
    """An unreadable image, before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter + 1 == self.step:
            raise DataError('images/7.png: cannot be read as an image')


@HOOKS.register_module(force=True)
class ImagesSeen(Hook):
    """A line of JSON for each step of a rank in folder/seen_RANKS_RANK: the number of the step, and what its images sum
    up to."""

    priority = 'HIGHEST'

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        seen = [digest(image) for image in data_batch['inputs']]
        with (self.folder / f'seen_{runner.world_size}_{runner.rank}').open('a') as file:
            file.write(json.dumps([runner.iter + 1, seen]) + '\n')


@HOOKS.register_module(force=True)
class SignalInTest(Hook):
    """Sends a signal to the process that started this one, torchrun, and goes on only when that has ended this one."""

    def __init__(self, signal: str) -> None:
        self.signal = getattr(signals, signal)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if runner.rank == 0:
            os.kill(os.getppid(), self.signal)
        time.sleep(60)


@HOOKS.register_module(force=True)
class CountReductions(Hook):
    """Counts how often DDP's gradients are reduced, bucket by bucket: folder/reductions_RANK.txt has a line a step, of
    (buckets, gradients in them)."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def before_train(self, runner: Runner) -> None:
        self.buckets = []
        runner.model.register_comm_hook(None, self._counted)

    def _counted(self, state, bucket):
        self.buckets.append(len(bucket.gradients()))
        return allreduce_hook(None, bucket)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        with (self.folder / f'reductions_{runner.rank}.txt').open('a') as file:
            file.write(f'{len(self.buckets)} {sum(self.buckets)}\n')
        self.buckets.clear()
