"""Refusing, before the first step, schedules that do something else than they seem to."""

from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from .errors import ConfigError

LAYER_DECAY = 'beit_mm.LayerDecayOptimWrapperConstructor'
ENDS_AT_ZERO = ('PolyLR', 'CosineAnnealingLR')  # unless they are given a floor
SLACK = 0.01  # of the run: a schedule may end an iteration or an epoch early


def check_schedules(config: Config, path: str | Path) -> None:
    """Raise ConfigError for a floor that layer decay would turn upside down, for a run whose rate reaches 0 long
    before its end, and for masked image modeling whose accumulation would weigh masks wrongly."""
    schedulers = config.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, dict) else list(schedulers)
    for where, scheduler in _named(schedulers):
        _check_floor(config, where, scheduler, path)
        _check_end(config, where, scheduler, schedulers, path)
    _check_accumulation(config, path)


def _named(schedulers: list) -> Iterator[tuple[str, dict]]:
    for i, scheduler in enumerate(schedulers):
        if isinstance(scheduler, dict):
            yield f'param_scheduler[{i}]', scheduler


def _check_floor(config: Config, where: str, scheduler: dict, path: str | Path) -> None:
    """mmengine's `eta_min` is one rate for all groups: below it, the lowest layers' rates *rise* to it."""
    wrapper = config.get('optim_wrapper') or {}
    decay = (wrapper.get('paramwise_cfg') or {}).get('layer_decay_rate', 1.0)
    floor = scheduler.get('eta_min')
    rate = (wrapper.get('optimizer') or {}).get('lr')
    if wrapper.get('constructor') != LAYER_DECAY or decay >= 1 or not floor or not rate:
        return
    raise ConfigError(
        f'{path}: {where}.eta_min={floor}: with layer_decay_rate={decay} the lowest layers learn at less than that '
        f'and would be raised to it. Write eta_min_ratio={floor / rate:g}, which every layer scales by its own rate'
    )


def _check_end(config: Config, where: str, scheduler: dict, schedulers: list, path: str | Path) -> None:
    """mmseg's BEiT-L: PolyLR ends at 160,000 of 320,000 iterations, and half the run learns nothing."""
    kind = str(scheduler.get('type')).rsplit('.', 1)[-1]
    if kind not in ENDS_AT_ZERO or scheduler.get('eta_min') or scheduler.get('eta_min_ratio'):
        return
    train = config.get('train_cfg') or {}
    length = 'max_epochs' if scheduler.get('by_epoch', True) else 'max_iters'
    total, end = train.get(length), scheduler.get('end')
    if not total or not end or end >= total * (1 - SLACK):
        return
    if any(isinstance(other, dict) and other.get('begin', 0) >= end for other in schedulers):
        return  # another one takes over
    raise ConfigError(
        f'{path}: {where}.end={end}: {kind} is at a learning rate of 0 there, and train_cfg.{length}={total}: '
        f'{total - end} of them would learn nothing. Set end={total}'
    )


def _check_accumulation(config: Config, path: str | Path) -> None:
    wrapper, model = config.get('optim_wrapper') or {}, config.get('model') or {}
    kind = str(wrapper.get('type', 'OptimWrapper'))
    if str(model.get('type')) != 'beit_mm.MaskedImageModel' or kind.startswith('beit_mm.'):
        return
    parts = wrapper.get('accumulative_counts', 1)
    if parts > 1:
        raise ConfigError(
            f'{path}: optim_wrapper.type={kind!r} with accumulative_counts={parts} gives every part of a step the '
            f'same weight, however many patches it masks. Use beit_mm.OptimWrapper'
        )
