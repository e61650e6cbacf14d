"""Signals while a model is trained: the step ends, its checkpoint is saved, and the exit code says why it ended.

SIGTERM (Slurm, Kubernetes, `kill`) ends with 143, SIGINT (Ctrl-C) with 130, SIGUSR1 with 75: "submit me again"
(EX_TEMPFAIL of sysexits.h). Before the first step there is nothing to save, and the process ends at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from ..door import EXIT_CODES
from ..registry import HOOKS
from .accumulation import has_updated
from .finite import over_ranks
from .hooks import ProgressHook
from .saving import save_now

IMPATIENT = 3  # SIGINTs and SIGTERMs after which a process ends at once: one Ctrl-C under torchrun may come as two


class Stopped(KeyboardInterrupt):
    """A signal ended a training. A door ends the process with `exit_code`; nothing is lost."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f'stopped by {name_of(exit_code)}')


def name_of(exit_code: int) -> str:
    """Of the signal behind an exit code: 143 -> 'SIGTERM'."""
    return next(number.name for number, code in EXIT_CODES.items() if code == exit_code)


class Watch:
    """Handler of the signals. exit_code: of the first that came, 0 before. training: whether a step has begun."""

    def __init__(self) -> None:
        self.exit_code, self.count, self.training, self.process = 0, 0, False, os.getpid()
        self.by_slurm = 'SLURM_STEP_ID' in os.environ  # it sends several, and SIGKILL when its own patience ends

    def __call__(self, number: int, frame) -> None:
        if os.getpid() != self.process:  # a data worker that has just been forked
            return
        name = signal.Signals(number).name
        self.exit_code = self.exit_code or EXIT_CODES[number]
        self.count += number != signal.SIGUSR1 and not self.by_slurm
        if not self.training:
            _say(f'{name} before the first step: there is nothing to save')
            raise Stopped(self.exit_code)
        if self.count >= IMPATIENT:
            _say(f'{name} again: ending at once, without what is not yet saved')
            os._exit(self.exit_code)
        _say(f'{name}: this step will be the last; then its checkpoint is saved')


def _say(text: str) -> None:
    """On stderr, past the log and its locks, in the middle of which a signal may come."""
    if get_rank() == 0:
        with contextlib.suppress(OSError):
            os.write(2, f'{text}\n'.encode())


_watch: Watch | None = None  # of this process, while `ending_between_steps`


@contextlib.contextmanager
def ending_between_steps() -> Iterator[None]:
    """Around a training: the signals of EXIT_CODES end it between two steps, by `Stopped`. Then all is as it was.

    A signal that is ignored, as SIGINT is in a script's background jobs, stays so. In a thread nothing happens.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread() or _watch is not None:
        yield
        return
    _watch = Watch()
    before = {number: handler for number in EXIT_CODES if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, _watch)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's
        _watch = None


def largest(*numbers: int) -> list[int]:
    """Of each number the largest on any rank, in one collective. Where there is one rank, nothing is sent."""
    return list(numbers) if get_world_size() == 1 else over_ranks(torch.tensor(numbers)).tolist()


@HOOKS.register_module()
class StopHook(Hook):
    """Ends a training after the step in which a rank got a signal: all ranks at the same step, with one checkpoint.

    A step is what the optimizer takes: with gradients accumulated over several batches it is after the last of them.
    In a validation it is after the batch; a run that is resumed validates again.
    """

    priority = 'LOWEST'  # after the CheckpointHook and whatever else has to do with the step

    def __init__(self) -> None:
        self.shared_batches = 0  # of a validation: as many as every rank has

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if _watch is not None:
            _watch.training = True

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if has_updated(runner.optim_wrapper) and (code := asked_to_stop()):
            stop(runner, runner.iter + 1, code)

    def before_val_epoch(self, runner: Runner) -> None:
        self.shared_batches = -largest(-len(runner.val_dataloader))[0]

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        code = asked_to_stop() if batch_idx < self.shared_batches else 0
        if batch_idx + 1 == len(runner.val_dataloader):
            self.shared_batches = 0  # mmpretrain's EMAHook may validate the model's own weights after it
        if not code:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook) and getattr(hook, 'evaluate_on_ema', True):
                hook._swap_ema_parameters()  # the model has the averages while it is validated
        stop(runner, runner.iter, code)


def asked_to_stop() -> int:
    """The exit code that goes with the signal that any rank got; 0 where none did. All ranks ask together."""
    return largest(_watch.exit_code if _watch is not None else 0)[0]


def stop(runner: Runner, step: int, exit_code: int) -> None:
    """Save the checkpoint of a step, say so, close what writes files, and raise Stopped."""
    path = save_now(runner, step)
    for hook in runner.hooks:
        if isinstance(hook, ProgressHook):
            hook.close()
    said = f'{name_of(exit_code)}: stopped after step {step} of {runner.max_iters}, saved as {path}'
    runner.logger.warning(f'{said}. The same command with --resume goes on from there (exit code {exit_code})')
    runner.visualizer.close()
    raise Stopped(exit_code)
