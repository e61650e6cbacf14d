"""What a skipped step means for the run: nothing advances, it is said and counted, and too many in a row end it."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, barrier, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook, ParamSchedulerHook, RuntimeInfoHook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from ..checkpoints.load import read
from ..checkpoints.store import newest_verified
from ..registry import HOOKS
from .checkpointing import model_of
from .errors import ConfigError, DivergenceError
from .finite import FiniteSteps, Skipped, not_finite, over_ranks
from .hooks import DeadCodesHook
from .work_dir import checkpoint_folder

SHOWN = 3  # images in a line of the log; the file has all
FIRST = 3  # overflows in a row that are said one by one
LISTED = 'skipped_steps.txt'
LEAST_SCALE = 1.0  # of losses in fp16: below it, the gradients would overflow without a scale
ADVANCE = (ParamSchedulerHook, EMAHook, DeadCodesHook)  # with the optimizer, or not at all
COUNTS = dict(skipped=0, overflows=0, in_a_row=0, overflows_in_a_row=0, first=0, owed=0)  # first: of the row


@HOOKS.register_module()
class FiniteStepsHook(Hook):
    """Says which optimizer steps were skipped, keeps schedule, EMA and log from them, and stops what only skips.

    A step is skipped where its loss or the norm of its gradients is not finite, on any rank (engine/finite.py). The
    log says which, with the terms of the loss and images of the batch; work_dir/skipped_steps.txt names all of them.

    max_in_a_row: so many skipped steps in a row end the run with an error. max_overflows_in_a_row: the same for fp16,
        where gradients overflow until the loss scale has come down, as it does at the start of any run; it ends too
        when the scale falls below 1. Both count optimizer steps. Weights that are not finite end it at once.
    An optimizer wrapper that is not ours takes its steps as it likes; a loss that is not finite counts as a skipped
    step, and weights that are not end the run.
    """

    priority = 'HIGHEST'

    def __init__(self, max_in_a_row: int = 10, max_overflows_in_a_row: int = 32) -> None:
        if max_in_a_row < 1 or max_overflows_in_a_row < 1:
            raise ConfigError(
                f'FiniteStepsHook: max_in_a_row={max_in_a_row} and max_overflows_in_a_row={max_overflows_in_a_row} '
                f'must be 1 or more'
            )
        self.max_in_a_row, self.max_overflows_in_a_row = max_in_a_row, max_overflows_in_a_row
        self.counts = dict(COUNTS)
        self.advances = self.recorded = True  # of this iteration: what hooks of ADVANCE do; what the log sees
        self.bad_parts: list[dict] = []  # of this step

    def before_train(self, runner: Runner) -> None:
        self.counts = {**COUNTS, **(runner.message_hub.get_info('finite_steps') or {})}
        for hook in runner.hooks:
            if isinstance(hook, ADVANCE):
                self.guard(hook, lambda: self.advances)
            elif isinstance(hook, RuntimeInfoHook):
                self.guard(hook, lambda: self.recorded)

    @staticmethod
    def guard(hook: Hook, allowed: Callable[[], bool]) -> None:
        """From now on a hook's `after_train_iter` is called where it is `allowed`."""
        original = type(hook).after_train_iter

        @functools.wraps(original)
        def after_train_iter(*args, **kwargs) -> None:
            if allowed():
                original(hook, *args, **kwargs)

        hook.after_train_iter = after_train_iter

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        skipped, pending = outcome(runner.optim_wrapper, outputs)
        bad = (pending or skipped is not None) and not loss_is_finite(outputs)
        self.recorded = skipped is None and not bad
        if bad or (skipped is not None and not self.bad_parts):
            self.bad_parts.append(dict(terms=terms_of(outputs), images=images_of(data_batch), bad=bad))
        if skipped is not None:
            parts_of_iteration = getattr(runner.optim_wrapper, 'micro_batches', 1)
            self.counts['owed'] += math.ceil(skipped.parts / parts_of_iteration)
        self.advances = self.counts['owed'] == 0
        if not self.advances:
            self.counts['owed'] -= 1
        if skipped is not None:
            self.count(runner, skipped)
        elif not pending and (self.counts['in_a_row'] or self.counts['overflows_in_a_row']):
            self.counts.update(in_a_row=0, overflows_in_a_row=0, first=0)
        elif self.advances:
            return
        runner.message_hub.update_info('finite_steps', dict(self.counts))

    def after_train(self, runner: Runner) -> None:
        if said := self.total():
            runner.logger.warning(f'{said}; {Path(runner.work_dir) / LISTED} lists them')

    def total(self) -> str:
        """How many steps were skipped so far, also before a resume; '' if none was."""
        skipped, overflows = self.counts['skipped'], self.counts['overflows']
        said = [f'{few_steps(skipped)} skipped for a loss or gradients that were not finite'] if skipped else []
        said += [f'{few_steps(overflows)} skipped while the loss scale came down'] if overflows else []
        return ', '.join(said)

    def count(self, runner: Runner, skipped: Skipped) -> None:
        """Say that a step was skipped; raise DivergenceError where that was one too many."""
        everywhere = all_gather_object(self.bad_parts)
        self.bad_parts = []
        parts = [dict(part, rank=rank) for rank, own in enumerate(everywhere) for part in own]
        parts = [part for part in parts if part['bad']] or parts
        step = runner.iter + 1
        self.counts['first'] = self.counts['first'] or step
        overflow = skipped.scale is not None
        for key in ('overflows', 'overflows_in_a_row') if overflow else ('skipped', 'in_a_row'):
            self.counts[key] += 1
        row = self.counts['overflows_in_a_row' if overflow else 'in_a_row']
        why = f'gradients overflow, the loss scale is now {skipped.scale:g}' if overflow else reason(skipped, parts)
        images = [name for part in parts for name in part['images']]
        if is_main_process():
            with (Path(runner.work_dir) / LISTED).open('a') as file:
                file.write(f'{step}\t{why}\t{" ".join(images)}\n')
        if not overflow or row <= FIRST or row % 10 == 0:
            some = shown(images) if row <= FIRST and not overflow else ''
            runner.logger.warning(f'step {step} skipped ({row} in a row): {why}{some}')
        self.stop(runner, skipped, row, f'step {step}: {why}')

    def stop(self, runner: Runner, skipped: Skipped, row: int, last: str) -> None:
        """Raise DivergenceError if training cannot go on from here."""
        broken = not_finite(dict(model_of(runner).named_parameters()))
        if over_ranks(torch.tensor([float(bool(broken))])).item():
            more = f' and {len(broken) - 1} more parameters' if len(broken) > 1 else ''
            what = f'weights are not finite any more: {broken[0] if broken else "on another rank"}{more}'
        elif skipped.scale is None and row >= self.max_in_a_row:
            what = f'{row} steps in a row, from step {self.counts["first"]} on, were skipped'
        elif skipped.scale is not None and (skipped.scale < LEAST_SCALE or row >= self.max_overflows_in_a_row):
            what = f'{row} steps in a row, from step {self.counts["first"]} on, were skipped, whatever the loss scale'
        else:
            return
        message = self.farewell(runner, what, last, skipped.scale is not None) if is_main_process() else BY_RANK_0
        barrier()  # a launcher ends all ranks as soon as one has ended: not before rank 0 knows what to say
        error = DivergenceError(message)
        error.of_another_rank = not is_main_process()  # door.py
        raise error

    def farewell(self, runner: Runner, what: str, last: str, scaled: bool) -> str:
        """What the user should know at the end: what and when, the newest checkpoint, reasons, ways out."""
        found = newest_verified(checkpoint_folder(runner.cfg), quiet=True)
        where = f'newest checkpoint, of finite weights: {found}' if found else 'no checkpoint was written'
        if (
            found
            and (read(found, map_location='cpu', lazy=True).get('meta') or {}).get('iter', 0) >= self.counts['first']
        ):
            where += ', written while steps were skipped'
        lines = [f'training has diverged: {what}', last, f'{self.total()}; {where}']
        return '\n  '.join([*lines, *([OF_SCALE] if scaled else []), *WAYS_OUT])


BY_RANK_0 = 'training has diverged, as rank 0 says'
OF_SCALE = "loss scale: optim_wrapper.loss_scale='dynamic', which comes down by itself, or a smaller one"
WAYS_OUT = (
    'usual reasons: too high a learning rate, gradients that are not clipped, fp16 where bf16 is needed, broken images',
    'ways out: a lower optim_wrapper.optimizer.lr or a longer warm-up, clip_grad=dict(max_norm=1.0), --amp bf16,',
    '  a look at the images that the log names, a checkpoint from before the first skipped step',
)


def few_steps(number: int) -> str:
    return f'{number} step{"s" * (number != 1)}'


def outcome(optim_wrapper, outputs: dict | None) -> tuple[Skipped | None, bool]:
    """(what was skipped in this iteration if anything was, whether a step is still being accumulated)."""
    several = isinstance(optim_wrapper, OptimWrapperDict)
    wrappers = list(optim_wrapper.values()) if several else [optim_wrapper]
    ours = [wrapper for wrapper in wrappers if isinstance(wrapper, FiniteSteps)]
    skipped = [each for wrapper in ours if (each := wrapper.pop_skipped()) is not None]
    if len(ours) < len(wrappers):
        flags = over_ranks(torch.tensor([float(not loss_is_finite(outputs))]))
        skipped += [Skipped(loss=True, norm=math.nan, parts=1)] if flags.item() else []
    return skipped[0] if skipped else None, any(wrapper.parts for wrapper in ours)


def terms_of(outputs: dict | None) -> dict[str, float]:
    """The terms of a loss, from what `train_step` returned."""
    found = ((key, value) for key, value in (outputs or {}).items() if 'loss' in key)
    return {key: float(value.detach() if isinstance(value, torch.Tensor) else value) for key, value in found}


def loss_is_finite(outputs: dict | None) -> bool:
    return all(map(math.isfinite, terms_of(outputs).values()))


def reason(skipped: Skipped, parts: list[dict]) -> str:
    """Why a step was skipped, as `loss nan (loss_cls nan) on rank 1`."""
    if not skipped.loss:
        return f'the norm of its gradients is {skipped.norm:g} ({spelled(parts[0]["terms"])})'
    ranks = f' on rank {parts[0]["rank"]}' if get_world_size() > 1 else ''
    return f'its loss is not finite{ranks} ({spelled(parts[0]["terms"])})'


def spelled(terms: dict[str, float]) -> str:
    return ', '.join(f'{key} {value:g}' for key, value in terms.items())


def images_of(batch) -> list[str]:
    """The files that a batch was read from, where it knows them."""
    if not isinstance(batch, dict):
        return []
    samples = batch.get('data_samples') or []
    names = batch.get('img_path') or [getattr(sample, 'metainfo', {}).get('img_path') for sample in samples]
    return [str(name) for name in names if name]


def shown(names: list[str]) -> str:
    if not names:
        return ''
    more = f' and {len(names) - SHOWN} more, listed in {LISTED}' if len(names) > SHOWN else ''
    return f'; images {", ".join(names[:SHOWN])}{more}'
