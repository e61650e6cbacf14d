"""How many images a step has and how many its recipe is for: what is said of it, and the learning rate scaled by it.

A recipe's learning rate is for `auto_scale_lr.base_batch_size` images a step. With `auto_scale_lr.enable`
(`--auto-scale-lr`) every step's rate is the recipe's times (images of a step) / (those), in proportion as in mmengine
(Goyal et al., arXiv:1706.02677): the rates of all groups, and what a schedule gives as a rate, such as `eta_min`; its
ratios stay. Unlike in mmengine, batches that are accumulated count.
"""

import logging
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmengine.runner.loops import EpochBasedTrainLoop

from .errors import ConfigError
from .loops import Resuming

RATES = ('eta_min', 'eta_max', 'min_value')  # arguments of schedulers that are learning rates themselves


class Step(NamedTuple):
    """What an optimizer step is made of.

    batch: images of a rank in an iteration, which pass the model in so many `micro_batches`. counts: iterations of a
    step. reference: images of a step that the recipe is for, None where it does not say. scaled: by auto_scale_lr.
    """

    ranks: int
    batch: int
    micro_batches: int = 1
    counts: int = 1
    reference: int | None = None
    scaled: bool = False

    @property
    def images(self) -> int:
        return self.ranks * self.batch * self.counts

    @property
    def ratio(self) -> float:
        """Of its images to the recipe's."""
        return self.images / (self.reference or self.images)

    @property
    def factor(self) -> float:
        """By which the learning rate is multiplied."""
        return self.ratio if self.scaled else 1.0

    def __str__(self) -> str:
        """As `batch 512 (1 GPU x 64 x 8 accumulated)`."""
        parts = self.micro_batches * self.counts
        accumulated = f' x {parts} accumulated' if parts > 1 else ''
        return f'batch {self.images:,} ({devices(self.ranks)} x {self.batch / self.micro_batches:g}{accumulated})'


def devices(ranks: int) -> str:
    one, more = ('GPU', 'GPUs') if torch.cuda.is_available() else ('process', 'processes')
    return f'{ranks} {one if ranks == 1 else more}'


def step_of(settings: dict, ranks: int) -> Step | None:
    """Of a config, or of the settings that a checkpoint has; None without a batch size."""
    batch = (settings.get('train_dataloader') or {}).get('batch_size')
    wrapper, scaling = settings.get('optim_wrapper') or {}, settings.get('auto_scale_lr') or {}
    return batch and Step(
        ranks,
        batch,
        wrapper.get('micro_batches') or 1,
        wrapper.get('accumulative_counts') or 1,
        scaling.get('base_batch_size'),
        bool(scaling.get('enable')),
    )


def accumulate(config: Config, times: int) -> None:
    """Have every step of a config take `times` batches instead of one, as on so many times more ranks.

    An iteration gets all of them at once and stays a step: epochs, schedules and intervals are as they were.
    Raises ConfigError where that cannot be.
    """
    name, loader, wrapper = config.filename, config.get('train_dataloader') or {}, config.get('optim_wrapper') or {}
    if times < 1:
        raise ConfigError(f'--accumulate {times}: must be 1 or more')
    if not loader.get('batch_size') or 'optimizer' not in wrapper:
        raise ConfigError(f'{name}: --accumulate needs a train_dataloader.batch_size, and an optim_wrapper.optimizer')
    if not str(wrapper.get('type')).startswith('beit_mm.'):
        raise ConfigError(f'{name}: optim_wrapper.type={wrapper.get("type")!r} takes no step in parts: --accumulate '
                          f'needs beit_mm.OptimWrapper')  # fmt: skip
    loader['batch_size'] *= times
    wrapper['micro_batches'] = wrapper.get('micro_batches', 1) * times


def scale_lr(runner: Runner, wrapper: OptimWrapper, auto_scale_lr: dict | None) -> None:
    """Say how many images a step of this run has and how many its recipe is for; scale the learning rate if told to.

    Raises ConfigError for auto_scale_lr without base_batch_size, and for a loop that would not take a step in parts.
    """
    wrappers = list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    micro_batches, loop = getattr(wrappers[0], 'micro_batches', 1), runner.train_loop
    if micro_batches > 1 and not isinstance(loop, Resuming):
        raise ConfigError(
            f'optim_wrapper.micro_batches={micro_batches}: {type(loop).__name__} takes no step in parts; '
            f'EpochBasedTrainLoop and IterBasedTrainLoop do'
        )
    scaling = auto_scale_lr or {}
    if scaling.get('enable') and not scaling.get('base_batch_size'):
        raise ConfigError(
            'auto_scale_lr.enable=True without base_batch_size, the images of a step that the learning rate is for'
        )
    loader = runner.train_dataloader
    batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    counts = wrappers[0]._accumulative_counts // micro_batches
    step = Step(
        runner.world_size, batch, micro_batches, counts, scaling.get('base_batch_size'), bool(scaling.get('enable'))
    )
    if step.reference is None and step.images == step.batch / micro_batches:  # nothing was asked for
        return
    level = logging.WARNING if step.ratio != step.factor else logging.INFO
    runner.logger.log(level, said(step, None if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters))
    if step.factor != 1:
        for group in (
            group for one in wrappers for group in one.param_groups
        ):  # and mmengine's base_lr, which is logged
            group['lr'] *= step.factor
        runner.param_schedulers = rates_scaled(runner.param_schedulers, step.factor)


def rates_scaled(schedulers, factor: float):
    """Configs of schedulers, one or a list or a dict of lists, with the learning rates in them multiplied."""
    if isinstance(schedulers, (list, tuple)):
        return [rates_scaled(one, factor) for one in schedulers]
    if not isinstance(schedulers, dict):
        return schedulers
    if 'type' not in schedulers:
        return {key: rates_scaled(one, factor) for key, one in schedulers.items()}
    kind = schedulers['type']
    if not (kind if isinstance(kind, str) else kind.__name__).endswith('LR'):  # of momentum, weight decay
        return schedulers
    return {key: value * factor if key in RATES and value else value for key, value in schedulers.items()}


def said(step: Step, iterations: int | None = None) -> str:
    """In a line: what a step is made of, what it should be, the factor, or ways out. iterations: of a run that counts
    them."""
    run = ''
    if step.reference is None:
        return f'{step}; the config does not say which batch its learning rate is for (auto_scale_lr.base_batch_size)'
    if iterations and step.counts > 1:
        run = f'. {iterations:,} iterations are {-(-iterations // step.counts):,} steps (accumulative_counts)'
    if step.ratio == 1:
        return f"{step}, which the recipe's learning rate is for{': scaled by 1' if step.scaled else ''}{run}"
    if iterations and step.counts == 1:
        of = 'of' if step.ratio < 1 else 'times'
        run = f'. {iterations:,} iterations will see {step.ratio:.4g} {of} the images that the recipe sees'
    if step.scaled:
        return f"{step}; the recipe's learning rate is for {step.reference:,}: scaled by {step.factor:g}{run}"
    return (
        f"{step}, but the recipe's learning rate is for {step.reference:,} (auto_scale_lr.base_batch_size): results "
        f'will differ. Ways out: {", or ".join(ways_out(step))}{run}'
    )


def ways_out(step: Step) -> list[str]:
    """What makes the learning rate right, the exact ones first."""
    ways = []
    times, ranks, batch = (step.reference * one for one in (step.micro_batches, step.ranks, step.batch))
    if times % step.images == 0 and times > step.images:
        instead = f' instead of {step.micro_batches}' if step.micro_batches > 1 else ''
        ways.append(f'--accumulate {times // step.images}{instead} (the same steps and schedule, in the same memory)')
    if ranks % step.images == 0:
        ways.append(devices(ranks // step.images))
    if not ways and batch % step.images == 0:
        ways.append(f'train_dataloader.batch_size={batch // step.images}')
    return [*ways, f'--auto-scale-lr (the learning rate times {step.ratio:.4g})']
