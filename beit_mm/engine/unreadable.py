"""Images that were skipped because they cannot be read: how many, which, and where all of them are listed."""

import logging
from pathlib import Path

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..data.loading import skipped
from ..registry import HOOKS

SHOWN = 5  # names in the log; the file has all


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Says what `LoadImage(on_error='skip')` skipped on all ranks: after an epoch, a validation and a run.

    Every `interval` steps it looks too, and speaks if there is more than it last said. The names, with reasons, are in
    work_dir/unreadable_images.txt.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 1000) -> None:
        if interval < 1:
            raise ValueError(f'UnreadableImagesHook: interval={interval} must be 1 or more')
        self.interval = interval
        self.said = 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self.report(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        self.report(runner)

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        self.report(runner)

    def after_run(self, runner: Runner) -> None:
        self.report(runner)

    def report(self, runner: Runner) -> None:
        own = skipped().entries() if skipped.cache_info().currsize else []
        entries = [entry for part in all_gather_object(own) for entry in part]
        if not is_main_process() or len(entries) == self.said:
            return
        self.said = len(entries)
        reasons = dict(entries)
        listed = Path(runner.work_dir) / 'unreadable_images.txt'
        listed.write_text(''.join(f'{path}\t{reason}\n' for path, reason in sorted(reasons.items())))
        names = ''.join(f'\n    {path}: {reason}' for path, reason in list(reasons.items())[:SHOWN])
        more = f'\n    {len(reasons) - SHOWN} more' if len(reasons) > SHOWN else ''
        runner.logger.log(
            logging.WARNING,
            f'{len(reasons)} images cannot be read and were skipped, {len(entries)} times in all; others of the data '
            f'set took their places. All of them: {listed}{names}{more}',
        )
