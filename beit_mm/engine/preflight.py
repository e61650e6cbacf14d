"""Before the first step, in seconds: are data, labels, classes, disk and folders what a run needs."""

import contextlib
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import Runner
from mmpretrain.evaluation import Accuracy
from torch import nn

from ..data.check import SAMPLE, check_dataset, check_images, check_pipeline
from ..data.classes import check_labels, check_names, check_same_classes
from ..data.failures import DataError
from ..data.loading import skipped
from ..data.masks import IGNORED
from ..data.verify import Report
from ..registry import HOOKS
from .checkpointing import model_of
from .data_check import check_batch

COPIES = 2  # checkpoints that there must be room for: one that is written while another is kept
MOMENTS = {'SGD': 1, 'Lion': 1, 'RMSprop': 1, 'Adagrad': 1}  # numbers that an optimizer keeps per weight; others: 2
BYTE = 255  # the largest id that a byte holds
UNLABELLED = -100  # a label that torch's losses pass over


class NoRoom(ValueError):
    """A disk without room for what a run writes; the message names the folder, what is needed and what there is."""


@HOOKS.register_module()
class PreflightHook(Hook):
    """Looks at what a run needs before its first step, and refuses what would end it later, or train in vain.

    Data: a sample of the training and validation images is decoded; masks of another size than their image, coloured
    ones, ids beyond the classes, nothing but ignored pixels, missing files; labels outside the head's classes, classes
    without an image, names and numbers of classes that differ between head, training and validation. Disk: room for two
    checkpoints. What was looked at goes into the log. One rank looks, all end with the same words. At each step, labels
    and ids are compared with the head once more, as a loss on a GPU would end in a device assert.

    sample: images to read of each set, None for all; 0 leaves out the look at the data.
    classes: False takes numbers and names of classes as they are: a head that is meant to tell more classes apart.
    room: False leaves out the disk.
    """

    priority = 'VERY_HIGH'

    def __init__(self, sample: int | None = SAMPLE, classes: bool = True, room: bool = True) -> None:
        if sample is not None and sample < 0:
            raise ValueError(f'PreflightHook: sample={sample} must be 0 or more, or None for all')
        self.sample, self.classes, self.room = sample, classes, room
        self.head: nn.Module | None = None

    def before_train(self, runner: Runner) -> None:
        self.head = head_of(model_of(runner))
        if hasattr(model_of(runner), 'decode_head'):
            parts = getattr(runner.optim_wrapper, 'micro_batches', 1)
            check_batch(model_of(runner).decode_head, max(1, runner.train_dataloader.batch_size // parts))
        found = [None]
        if is_main_process():
            found = [self._problems(runner)]
        broadcast_object_list(found)  # every rank ends, with the same words
        if found[0]:
            kind, message = found[0]
            raise kind(message)

    def _problems(self, runner: Runner) -> tuple[type[Exception], str] | None:
        started, report = time.perf_counter(), Report()
        if self.sample != 0:
            with randomness_kept(), skipped().as_it_was():
                self._look(runner, report)
        for fact in report.facts:
            runner.logger.info(f'data: {fact}')
        if report.problems:
            return DataError, '\n'.join(f'{what}\n    do:  {remedy}' for what, remedy in report.problems)
        said = ''
        if self.room:
            try:
                said = self._check_room(runner)
            except NoRoom as error:
                return NoRoom, str(error)
        runner.logger.info(f'preflight: nothing is in the way{said}; {time.perf_counter() - started:.1f} s')
        return None

    def _look(self, runner: Runner, report: Report) -> None:
        sets = dict(train=runner.train_dataloader.dataset)
        if runner.val_loop is not None:
            sets['val'] = runner.val_loop.dataloader.dataset
        number = getattr(self.head, 'num_classes', None)
        segments = hasattr(model_of(runner), 'decode_head')
        if number is not None and self.classes:
            check_names(
                sets['train'], number, 'train', report, 'decode_head and auxiliary_head' if segments else 'the head'
            )
            check_same_classes(sets['train'], sets.get('val'), report)
            if 'val' in sets:
                check_top(runner.val_loop.evaluator.metrics, number, report)
        agreed = not report.problems  # else labels are wrong, too
        for what, dataset in sets.items():
            if segments:
                check_dataset(dataset, number, what, report, self.sample, self.head.ignore_index)
                continue
            if number is not None and agreed:
                check_labels(dataset, number, what, report, self.classes)
            check_images(dataset, what, report, self.sample)
        if 'val' in sets:
            check_pipeline(sets['val'], runner.val_loop.dataloader.batch_size, 'val', report)

    def _check_room(self, runner: Runner) -> str:
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        if hook is None:
            return ''
        size = checkpoint_bytes(
            model_of(runner), runner.optim_wrapper, any(isinstance(h, EMAHook) for h in runner.hooks)
        )
        copies = 1 if runner._resume else COPIES
        folder = Path(getattr(hook, 'out_dir', None) or runner.work_dir)
        free = room_for(folder, copies * size)
        return f', {amount(free)} free for checkpoints of about {amount(size)}'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        number = getattr(self.head, 'num_classes', None)
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        if number is not None and isinstance(samples, Sequence):
            check_truth(samples, number, getattr(self.head, 'ignore_index', IGNORED))


@contextlib.contextmanager
def randomness_kept() -> Iterator[None]:
    """Draws inside take nothing from the run's own: it is the same with and without a preflight."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def check_top(metrics: Sequence, num_classes: int, report: Report) -> None:
    """mmpretrain's Accuracy ends the first validation where it is asked for more classes than there are."""
    for metric in metrics:
        most = max(getattr(metric, 'topk', ()), default=0)
        if isinstance(metric, Accuracy) and most > num_classes:
            fitting = tuple(k for k in metric.topk if k <= num_classes)
            report.problem(
                f'val_evaluator: top-{most} accuracy, and the head tells {num_classes} classes apart',
                f'val_evaluator=dict(topk={fitting}), and test_evaluator alike',
            )


def head_of(model: nn.Module) -> nn.Module | None:
    """What tells classes apart: a segmentor's decode head (a cascade's last), a classifier's head, a probe; or None."""
    for part in (getattr(model, 'decode_head', None), getattr(model, 'head', None), model):
        part = part[-1] if isinstance(part, nn.ModuleList) and len(part) else part
        if isinstance(getattr(part, 'num_classes', None), int):
            return part
    return None


def check_truth(samples: Sequence, num_classes: int, ignore: int = IGNORED) -> None:
    """Raise DataError, with the file and the value, for a label or a mask's id that is none of the classes."""
    labels = [(sample, getattr(sample, 'gt_label', None)) for sample in samples]
    labels = [(one, ids) for one, ids in labels if isinstance(ids, torch.Tensor) and not ids.is_floating_point()]
    together = torch.cat([ids.flatten() for _, ids in labels]) if labels else torch.zeros(0)
    if together.numel() and not 0 <= int(together.min()) <= int(together.max()) < num_classes:
        for sample, ids in labels:
            _check_ids(sample, ids, num_classes, UNLABELLED, 'img_path', 'label')
    for sample in samples:
        mask = getattr(getattr(sample, 'gt_sem_seg', None), 'data', None)
        if isinstance(mask, torch.Tensor) and not mask.is_floating_point():
            _check_ids(sample, mask, num_classes, ignore, 'seg_map_path', 'id')


def _check_ids(sample, ids: torch.Tensor, num_classes: int, ignore: int, key: str, word: str) -> None:
    if not ids.numel():
        return
    least, most = map(int, ids.aminmax())
    if least >= 0 and most < num_classes:
        return
    if least >= 0 and most <= BYTE:  # a third of the time of comparisons
        there = torch.bincount(ids.flatten().to(torch.uint8), minlength=BYTE + 1).nonzero().flatten()
    else:
        there = ids.unique()
    wrong = there[((there < 0) | (there >= num_classes)) & (there != ignore)]
    if wrong.numel():
        metainfo = sample.metainfo
        name = metainfo.get(key) or metainfo.get('img_path') or 'an image'
        raise DataError(
            f'{name}: has the {word} {int(wrong[0])}, and the {num_classes} classes of the head are 0 to '
            f'{num_classes - 1}{f", {ignore} being ignored" if word == "id" else ""}: correct it, or num_classes'
        )


def checkpoint_bytes(model: nn.Module, optim_wrapper, averages: bool = False) -> int:
    """About how many bytes a checkpoint takes: weights, their averages, and the optimizer's moments."""
    weights = sum(value.nbytes for value in model.state_dict().values() if isinstance(value, torch.Tensor))
    optimizers = [getattr(optim_wrapper, 'optimizer', None)]
    if isinstance(optim_wrapper, dict) or hasattr(optim_wrapper, 'optim_wrappers'):
        optimizers = [one.optimizer for one in getattr(optim_wrapper, 'optim_wrappers', optim_wrapper).values()]
    moments = 0
    for optimizer in filter(None, optimizers):
        trained = sum(p.nbytes for group in optimizer.param_groups for p in group['params'])
        moments += MOMENTS.get(type(optimizer).__name__, 2) * trained
    return weights * (2 if averages else 1) + moments


def room_for(folder: str | os.PathLike, size: int) -> int:
    """The free bytes of the disk that a folder is, or will be, on. Raises NoRoom where they are fewer than `size`."""
    at = Path(folder).absolute()
    while not at.exists():
        at = at.parent
    disk = os.statvfs(at)
    free = disk.f_bavail * disk.f_frsize
    if free < size:
        raise NoRoom(
            f'{folder}: {amount(free)} are free on its disk, and the checkpoints of this run need {amount(size)}. Make '
            f'room, write elsewhere (--work-dir, default_hooks.checkpoint.out_dir), keep fewer (max_keep_ckpts), or '
            f"leave this check out: custom_hooks=[dict(type='beit_mm.PreflightHook', room=False)]"
        )
    return free


def amount(size: float) -> str:
    """Bytes in words: 1.5 GB."""
    power = min(int(math.log(max(size, 1), 1000)), 4)
    return f'{size / 1000**power:.{0 if power == 0 else 1}f} {("bytes", "kB", "MB", "GB", "TB")[power]}'
