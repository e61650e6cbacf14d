"""Hooks: progress on a terminal, and the start of a tokenizer's codes."""

import logging
import sys

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..registry import HOOKS
from .checkpointing import FitWeightsHook, PlainCheckpointHook

SHOWN = ('loss', 'masked_accuracy', 'perplexity', 'reconstruction_error')


@HOOKS.register_module()
class CodebookInitHook(Hook):
    """Gives a tokenizer with `start_codes` its codes from the first `num_images` training images, at step 0."""

    def __init__(self, num_images: int = 512) -> None:
        self.num_images = num_images

    def before_train(self, runner: Runner) -> None:
        if runner.iter > 0:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        dataset = runner.train_dataloader.dataset
        views = [dataset[i]['tokens_view'] for i in range(min(self.num_images, len(dataset)))]
        batch = model.data_preprocessor(dict(tokens_view=torch.stack(views)), True)
        model.start_codes(batch['tokens_view'])
        runner.logger.info(f'{model.vocab_size} codes start from {len(views)} images')


@HOOKS.register_module()
class ProgressHook(Hook):
    """A progress bar with the remaining time on a terminal; elsewhere nothing, for the log has plain lines."""

    priority = 'LOW'

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.task = None
        self.silenced: list[tuple[logging.Handler, int]] = []

    def before_train(self, runner: Runner) -> None:
        if not (is_main_process() and sys.stdout.isatty()):
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
            scalars = '  '.join(f'{key} {float(outputs[key]):.3f}' for key in SHOWN if key in (outputs or {}))
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


__all__ = ['CodebookInitHook', 'FitWeightsHook', 'PlainCheckpointHook', 'ProgressHook']
