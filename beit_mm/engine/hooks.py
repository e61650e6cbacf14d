"""Hooks: progress on a terminal; the start of a tokenizer's codes, and a new start for those that died."""

import logging
import os
import sys

import torch
from mmengine.dist import all_reduce, broadcast, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..registry import HOOKS
from .checkpointing import FitWeightsHook, PlainCheckpointHook, model_of
from .saving import CheckpointHook
from .unreadable import UnreadableImagesHook

SHOWN = ('loss', 'masked_accuracy', 'perplexity', 'reconstruction_error')


@HOOKS.register_module()
class CodebookInitHook(Hook):
    """Gives a tokenizer with `start_codes` its codes from the first `num_images` training images, at step 0."""

    def __init__(self, num_images: int = 512) -> None:
        self.num_images = num_images

    def before_train(self, runner: Runner) -> None:
        if runner.iter > 0:
            return
        model = model_of(runner)
        dataset = runner.train_dataloader.dataset
        views = [dataset[i]['tokens_view'] for i in range(min(self.num_images, len(dataset)))]
        batch = model.data_preprocessor(dict(tokens_view=torch.stack(views)), True)
        model.start_codes(batch['tokens_view'])
        runner.logger.info(f'{model.vocab_size} codes start from {len(views)} images')


@HOOKS.register_module()
class DeadCodesHook(Hook):
    """Every `interval` steps: says how many codes of a DiscreteVAE are in use, and revives those that are not.

    threshold: a code is dead that was chosen for less than this share of an average code's cells, on all ranks.
    revive: False only reports. end: step after which none is revived, so that the last ones can settle.
    """

    def __init__(
        self, interval: int = 1000, threshold: float = 0.01, revive: bool = True, end: int | None = None
    ) -> None:
        if interval < 1 or not 0 <= threshold < 1:
            raise ValueError(
                f'DeadCodesHook: interval={interval} must be 1 or more, threshold={threshold} a share in [0, 1)'
            )
        self.interval, self.threshold, self.revive, self.end = interval, threshold, revive, end

    def before_train(self, runner: Runner) -> None:
        if not hasattr(model_of(runner), 'revive'):
            raise ValueError(f'DeadCodesHook: {type(model_of(runner)).__name__} counts no codes; a DiscreteVAE does')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        model = model_of(runner)
        counts = model.code_counts.clone()
        model.code_counts.zero_()
        all_reduce(counts)
        dead = counts < self.threshold * counts.mean()
        step = runner.iter + 1
        said = f'{int((counts > 0).sum())} of {len(counts)} codes were used in {self.interval} steps'
        if dead.any() and self.revive and (self.end is None or step <= self.end):
            view = model.data_preprocessor(data_batch, True)['tokens_view']
            parameters, rows = model.revive(dead, view, torch.Generator().manual_seed(step))
            for parameter in parameters:
                broadcast(parameter.data)  # every rank has looked at images of its own
                _forget(runner.optim_wrapper.optimizer, parameter, rows)
            runner.logger.info(f'{said}; {len(rows)} of {int(dead.sum())} dead ones revived')
        else:
            runner.logger.info(f'{said}; {int(dead.sum())} are dead')


def _forget(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, rows: torch.Tensor) -> None:
    """Set the moments of some rows to zero: they belong to what stood there before."""
    for moment in optimizer.state.get(parameter, {}).values():
        if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
            moment[rows] = 0


@HOOKS.register_module()
class ProgressHook(Hook):
    """A progress bar with the remaining time on a terminal; elsewhere nothing, for the log has plain lines."""

    priority = 'LOW'

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.task = None
        self.silenced: list[tuple[logging.Handler, int]] = []

    def before_train(self, runner: Runner) -> None:
        by_open_mpi = 'OMPI_COMM_WORLD_RANK' in os.environ  # it gives rank 0 a terminal, wherever its own output goes
        if not (is_main_process() and sys.stdout.isatty()) or by_open_mpi:
            return
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self.silenced.append((handler, handler.level))
                handler.setLevel(logging.WARNING)
        self.bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(),
            TextColumn('{task.fields[scalars]}'),
            console=Console(file=sys.stdout),
        )
        self.task = self.bar.add_task(runner.experiment_name, total=runner.max_iters, completed=runner.iter, scalars='')
        self.bar.start()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.bar is not None:
            shown = {key: torch.as_tensor(outputs[key]).item() for key in SHOWN if key in (outputs or {})}
            scalars = '  '.join(f'{key} {value:.3f}' for key, value in shown.items())
            self.bar.update(self.task, completed=runner.iter + 1, scalars=scalars)

    def after_train(self, runner: Runner) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away and let the log speak again."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        for handler, level in self.silenced:
            handler.setLevel(level)
        self.silenced.clear()


__all__ = [
    'CheckpointHook',
    'CodebookInitHook',
    'DeadCodesHook',
    'FitWeightsHook',
    'PlainCheckpointHook',
    'ProgressHook',
    'UnreadableImagesHook',
]
