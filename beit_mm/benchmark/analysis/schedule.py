"""`analyze.py schedule`: learning rate, weight decay and momentum of every step, for each layer, without training.

The config's own optimizer (on a model without weights) and its own schedulers are stepped as mmengine's Runner does.
"""

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, PARAM_SCHEDULERS, DefaultScope
from torch import nn

from ...engine.amp import with_finite_steps
from ...engine.device import suit_device
from ...engine.optim import layer_decay_table
from ...engine.scaling import accumulate as in_parts
from ...engine.scaling import rates_scaled, said, step_of
from ...engine.schedules import LAYER_DECAY
from ..cost import build_on_meta
from . import AnalysisError
from .tables import aligned, target, write_csv

MOST_POINTS = 2000  # of a curve
LOWEST = 1e-4  # that a logarithmic axis shows, of the smallest peak: a warmup may start near zero
QUANTITIES = ('learning rate', 'weight decay', 'momentum')


class Group(NamedTuple):
    """Parameters, by name, that are treated alike. layer: as `get_layer_depth` counts; None without layer decay."""

    layer: int | None
    names: tuple[str, ...]
    parameters: int

    def __str__(self) -> str:
        return 'all' if self.layer is None else f'layer {self.layer}'


class Schedule(NamedTuple):
    """steps (n,): iterations, from 0, that `values` {quantity: (n, groups)} were used in; peak (groups,): the largest
    learning rate of all `total` iterations. epoch_length: iterations, None where nothing depends on it."""

    groups: list[Group]
    steps: np.ndarray
    values: dict[str, np.ndarray]
    peak: np.ndarray
    total: int
    epoch_length: int | None


def ranks_of(config: Config) -> int:
    """How many processes the recipe is meant for: auto_scale_lr's batch over that of one process; 1 if it is silent."""
    alone = step_of(config, 1)
    return max(1, round(1 / alone.ratio))


def epoch_length(config: Config, images: int | None, ranks: int) -> int:
    """Iterations of an epoch. images: of the data set; None asks the data set, which must be there then.

    Raises AnalysisError where it is not.
    """
    loader = config.train_dataloader
    if images is None:
        try:
            with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
                images = len(DATASETS.build(loader.dataset))
        except Exception as error:  # of any project's data set
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise AnalysisError(
                f'{config.filename}: an epoch is as long as the training data, and they are not here ({first}). '
                f'Say how many images they are, as in --images 1281167 for ImageNet-1K'
            ) from error
    own = math.ceil(images / ranks)
    return own // loader.batch_size if loader.get('drop_last') else math.ceil(own / loader.batch_size)


def _groups(config: Config, model: nn.Module, optimizer) -> list[Group]:
    """Of the optimizer's groups, those that start with the same rates made one, in place; the lowest layer first."""
    wrapper = config.optim_wrapper
    names, layers = {id(parameter): name for name, parameter in model.named_parameters()}, {}
    if wrapper.get('constructor') == LAYER_DECAY:
        chosen = wrapper.get('paramwise_cfg') or {}
        decay = chosen.get('layer_decay_rate', 1.0)
        if decay < 1:
            table = layer_decay_table(model, decay, 1.0, chosen.get('decay_class_token', False))
            layers = {key: table[name].layer for key, name in names.items() if name in table}
    merged: dict[tuple, dict] = {}
    for group in optimizer.param_groups:
        key = (layers.get(id(group['params'][0])), group['lr'], group['weight_decay'])
        if key in merged:
            merged[key]['params'] += group['params']
        else:
            merged[key] = group
    keys = sorted(merged, key=lambda key: (-1 if key[0] is None else key[0], key[1], key[2]))
    optimizer.param_groups[:] = [merged[key] for key in keys]
    return [
        Group(key[0], tuple(names[id(p)] for p in merged[key]['params']), sum(p.numel() for p in merged[key]['params']))
        for key in keys
    ]


def _momentum(group: dict) -> float:
    return group['betas'][0] if 'betas' in group else group.get('momentum', 0.0)


def follow(config: Config, images: int | None = None, ranks: int | None = None) -> Schedule:
    """Step the schedulers of a config through its whole run.

    Raises AnalysisError for a config that trains nothing, for a scheduler that depends on results, and where the
    length of an epoch matters and is not known.
    """
    config = copy.deepcopy(config)
    train = config.get('train_cfg') or {}
    if not config.get('optim_wrapper') or not train:
        raise AnalysisError(f'{config.filename}: it has no optim_wrapper or train_cfg: nothing is trained')
    suit_device(config)
    schedulers = config.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, dict) else list(schedulers)
    ranks = ranks or ranks_of(config)
    factor = step_of(config, ranks).factor
    config.optim_wrapper.pop('micro_batches', None)  # ours, and of the step alone
    schedulers = rates_scaled(schedulers, factor)
    by_epoch = 'max_epochs' in train or any(scheduler.get('by_epoch', True) for scheduler in schedulers)
    length = epoch_length(config, images, ranks) if by_epoch else None
    total = train['max_iters'] if 'max_iters' in train else train['max_epochs'] * length
    model = build_on_meta(config)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
        for group in wrapper.param_groups:
            group['lr'] *= factor
        groups = _groups(config, model, wrapper.optimizer)
        built = list(_build(schedulers, wrapper, length, train.get('max_epochs'), total, config.filename))
    wrapper.step()  # there is no gradient; schedulers want to be second
    wanted = set(np.unique(np.linspace(0, total - 1, min(total, MOST_POINTS)).astype(int)).tolist())
    own = wrapper.optimizer.param_groups
    steps, rows, peak = [], {name: [] for name in QUANTITIES}, np.zeros(len(groups))
    for step in range(total):
        rates = [group['lr'] for group in own]
        peak = np.maximum(peak, rates)
        if step in wanted:
            steps.append(step)
            rows['learning rate'].append(rates)
            rows['weight decay'].append([group['weight_decay'] for group in own])
            rows['momentum'].append([_momentum(group) for group in own])
        for scheduler in built:
            if not scheduler.by_epoch or (step + 1) % length == 0:
                scheduler.step()
    return Schedule(groups, np.array(steps), {k: np.array(v) for k, v in rows.items()}, peak, total, length)


def _build(schedulers: list, wrapper, length: int | None, max_epochs: int | None, total: int, where) -> Iterator:
    """As Runner.build_param_scheduler does: `end` is the end of the run unless it is given."""
    for scheduler in schedulers:
        options = dict(scheduler)
        options.setdefault('end', (max_epochs or total) if options.get('by_epoch', True) else total)
        built = PARAM_SCHEDULERS.build(options, default_args=dict(optimizer=wrapper, epoch_length=length))
        if getattr(built, 'need_val_args', False):
            raise AnalysisError(f'{where}: {options["type"]} follows the results of evaluations; it cannot be foreseen')
        yield built


def show(
    config: Config,
    images: int | None = None,
    ranks: int | None = None,
    accumulate: int | None = None,
    out: str | None = None,
) -> str:
    """A table of the layers; how long the run is, and how large a step on so many ranks; the curves as .png or .csv."""
    path = target(out, ('.png', '.csv')) if out else None
    if accumulate is not None:
        config.optim_wrapper = with_finite_steps(config.optim_wrapper)
        in_parts(config, accumulate)
    found = follow(config, images, ranks)
    step = step_of(config, ranks or ranks_of(config))
    length = f'{found.total:,} iterations'
    if found.epoch_length:
        length += f', {config.train_cfg.get("max_epochs") or found.total / found.epoch_length:g} epochs of '
        length += f'{found.epoch_length:,}'
    elif images:
        length += f', {found.total * step.ranks * step.batch / images:.4g} epochs of {images:,} images'
    size = said(step, None if found.epoch_length else found.total) if step.reference else str(step)
    if path and path.suffix == '.csv':
        columns = [
            f'{quantity} {group}{"" if found.values["weight decay"][0, i] else " (not decayed)"}'
            for quantity in QUANTITIES
            for i, group in enumerate(found.groups)
        ]
        values = np.concatenate([found.values[quantity] for quantity in QUANTITIES], axis=1)
        write_csv(path, ('iteration', *columns), [(int(s), *row) for s, row in zip(found.steps, values.tolist())])
    elif path:
        _draw(found, path)
    return '\n\n'.join([_table(found), f'{length}\n{size}', *([str(path)] if path else [])])


def _table(found: Schedule) -> str:
    """A line per layer: its parameters, its learning rate, and the weight decay of those that decay."""
    rate, decay = found.values['learning rate'], found.values['weight decay']
    lines: dict[tuple, list[int]] = {}  # of one layer, and without layers of one learning rate
    for i, group in enumerate(found.groups):
        lines.setdefault((str(group), rate[0, i], found.peak[i], rate[-1, i]), []).append(i)
    rows = []
    for (name, first, peak, last), own in lines.items():
        decayed = [i for i in own if decay[:, i].any()]
        counts = [sum(found.groups[i].parameters for i in part) for part in (decayed, set(own) - set(decayed))]
        ends = (f'{decay[0, decayed[0]]:g}', f'{decay[-1, decayed[0]]:g}') if decayed else ('0', '0')
        rows.append([name, f'{first:.3e}', f'{peak:.3e}', f'{last:.3e}', *(f'{n:,}' for n in counts), *ends,
                     f'{found.values["momentum"][-1, own[0]]:g}'])  # fmt: skip
    header = ('', 'first lr', 'peak lr', 'last lr', 'decayed', 'not decayed', 'first wd', 'last wd', 'momentum')
    return aligned(header, rows)


def _draw(found: Schedule, path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), layout='constrained', sharex=True)
    several = len({group.layer for group in found.groups}) > 1
    panels = [('learning rate', ''), ('learning rate', 'log'), ('weight decay', ''), ('momentum', '')]
    colours = plt.get_cmap('viridis')
    last = max((group.layer or 0) for group in found.groups) or 1
    for axis, (quantity, scale) in zip(axes.flat, panels, strict=True):
        drawn = set()
        for i, group in enumerate(found.groups):
            values = found.values[quantity][:, i]
            if (key := (group.layer, *values[:: max(1, len(values) // 7)])) in drawn:
                continue  # decayed and not decayed parameters have one learning rate
            drawn.add(key)
            colour = colours((group.layer or 0) / last * 0.92)
            values = np.where(values > 0, values, np.nan) if scale else values
            axis.plot(found.steps, values, color=colour, linewidth=1.4)
        axis.set_title(f'{quantity}{", logarithmic" if scale else ""}', fontsize=10)
        if scale:
            axis.set_yscale('log')
            axis.set_ylim(bottom=found.peak.min() * LOWEST)
        else:
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.2)
        axis.spines[['top', 'right']].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel('iteration')
        axis.locator_params(axis='x', nbins=5)
    if several:
        scale = plt.cm.ScalarMappable(plt.Normalize(0, last / 0.92), colours)
        figure.colorbar(scale, ax=axes, label='layer', boundaries=np.arange(-0.5, last + 1), ticks=range(last + 1))
    figure.savefig(path, dpi=150, facecolor='white')
    plt.close(figure)
