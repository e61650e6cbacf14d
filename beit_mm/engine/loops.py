"""Training loops that go on where a run stopped: at the next batch, without reading what came before.

mmengine's epoch loop begins an epoch anew when it goes on in the middle of one; its iteration loop reads all that was
trained on. Here the sampler leaves it out (data/sampling.py).
"""

import itertools
import logging
from collections.abc import Iterator

from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochLoop
from mmengine.runner import IterBasedTrainLoop as MMEngineIterLoop
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch.utils.data import DataLoader

from ..data.sampling import ResumableBatchSampler
from ..registry import LOOPS
from .accumulation import train_step
from .errors import ConfigError

VALIDATED = 'validated'  # the iteration of a validation that a checkpoint has seen, in the message hub


def batch_of(loader: DataLoader) -> int:
    """Images of a batch, on all ranks."""
    return (loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)) * get_world_size()


def begin_at(loader: DataLoader, batches: int) -> None:
    """Have the next passes of a loader begin after so many batches."""
    if isinstance(loader.batch_sampler, ResumableBatchSampler):
        loader.batch_sampler.start = batches
    elif hasattr(loader.sampler, 'start'):
        loader.sampler.start = batches * loader.batch_size
    elif batches:  # a DataLoader that somebody built without our Runner
        print_log(
            f'{type(loader.sampler).__name__} cannot begin in the middle: this pass over the data begins anew',
            logger='current',
            level=logging.WARNING,
        )


class Resuming:
    """Mixin of a training loop.

    images: what all ranks had drawn of the data, of the epoch if there are epochs, when the checkpoint was written from
    which a run goes on. With another batch size, or on other ranks, it goes on at the same image. None: as many as the
    iterations say.
    """

    images: int | None = None
    resumed_at = 0  # iteration

    def run_iter(self, *place_and_batch) -> None:
        """An iteration: its batch, after its place in the epoch where there are epochs."""
        batch, place = place_and_batch[-1], place_and_batch[0] if len(place_and_batch) > 1 else self._iter
        self.runner.call_hook('before_train_iter', batch_idx=place, data_batch=batch)
        outputs = train_step(self.runner, batch)
        self.runner.call_hook('after_train_iter', batch_idx=place, data_batch=batch, outputs=outputs)
        self._iter += 1

    def _say_if_finished(self, count: int, end: int, unit: str) -> None:
        """A run that goes on from its last checkpoint trains nothing."""
        if self.runner._resume and count >= end:
            self.runner.logger.info(f'nothing is left to train: all {end} {unit} are done, which train_cfg asks for')

    def _validate_if_due(self, count: int, end: int) -> None:
        """The validation after so many epochs or iterations, if there is one."""
        due = count >= self.val_begin and (count % self.val_interval == 0 or count == end)
        if self.runner.val_loop is not None and due:
            self.runner.val_loop.run()

    def _make_up_for_validation(self, count: int, end: int) -> None:
        """A run that was cut off between its checkpoint and the validation after it makes up for it; one that was
        finished cannot be told from one that was cut off in the last."""
        validated = self.runner.message_hub.runtime_info.get(VALIDATED) == self._iter
        if self.runner._resume and count > 0 and not validated:
            self._validate_if_due(count, end)


@LOOPS.register_module()
class EpochBasedTrainLoop(Resuming, MMEngineEpochLoop):
    """mmengine's, which goes on in the middle of an epoch."""

    def run(self):
        self.runner.call_hook('before_train')
        length = len(self.dataloader)
        done = counted = self._iter - self._epoch * length  # batches of this epoch
        if self.images is not None:
            done = min(self.images // batch_of(self.dataloader), length)
        elif not 0 <= done <= length:  # mmengine's checkpoint, of batches of another size
            done = 0
        if done != counted:
            self._iter = self._epoch * length + done
            self.runner.optim_wrapper.initialize_count_status(self.runner.model, self._iter, self._max_iters)
        self._say_if_finished(self._epoch, self._max_epochs, 'epochs')
        if done == 0:
            self._make_up_for_validation(self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch(done)
            done = 0
            self._decide_current_val_interval()
            self._validate_if_due(self._epoch, self._max_epochs)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self, done: int = 0) -> None:
        """The batches of an epoch after the first `done`."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        begin_at(self.dataloader, done)
        for place, batch in enumerate(self.dataloader, start=done):
            self.run_iter(place, batch)
        begin_at(self.dataloader, 0)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def images_at(self, epoch: int, iteration: int) -> int:
        """What of an epoch all ranks have drawn, for a checkpoint."""
        return (iteration - epoch * len(self.dataloader)) * batch_of(self.dataloader)


@LOOPS.register_module()
class IterBasedTrainLoop(Resuming, MMEngineIterLoop):
    """mmengine's, which begins at the iteration that its checkpoint is of, and starts the data workers there."""

    def __init__(
        self,
        runner,
        dataloader: DataLoader | dict,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        BaseLoop.__init__(self, runner, dataloader)  # mmengine's own starts the workers at the first image
        if int(max_iters) != max_iters:
            raise ConfigError(f'train_cfg.max_iters={max_iters!r} is no whole number')
        self._max_iters, self._max_epochs, self._epoch, self._iter = int(max_iters), 1, 0, 0
        self.val_begin, self.val_interval, self.stop_training = val_begin, val_interval, False
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(val_interval, dynamic_intervals)
        self.runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, 'metainfo', None)

    def run(self):
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.resumed_at = self._iter
        self._say_if_finished(self._iter, self._max_iters, 'iterations')
        self._make_up_for_validation(self._iter, self._max_iters)
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            self._validate_if_due(self._iter, self._max_iters)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _batches(self) -> Iterator:
        """Batches without an end, from where the run is."""
        loader = self.dataloader
        done = self._iter if self.images is None else self.images // batch_of(loader)
        if getattr(loader.sampler, 'endless', False):
            begin_at(loader, done)
            yield from loader
        passes, done = divmod(done, len(loader))
        for number in itertools.count(passes):
            for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
                if hasattr(sampler, 'set_epoch'):
                    sampler.set_epoch(number)
            begin_at(loader, done)
            yield from loader
            done = 0

    def images_at(self, epoch: int, iteration: int) -> int:
        """What all ranks have drawn in all, for a checkpoint."""
        batch = batch_of(self.dataloader)
        before = self.resumed_at * batch if self.images is None else self.images
        return before + (iteration - self.resumed_at) * batch
