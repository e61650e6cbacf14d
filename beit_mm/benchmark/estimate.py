"""What a suite will cost before it runs: images, floating-point operations, disk, and time where it can be known.

Nothing is read but configs: models are built on the meta device, sizes of ImageNet, ADE20K and CIFAR are known. A
backward pass costs two forward passes; frozen parts (a tokenizer, a probed backbone) have none. Not counted: tests
during training, windows and scales in testing, auxiliary heads, augmentation. FLOPs are two per multiply-accumulate.
"""

import json
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn

from ..engine.launch import parts_of
from .cost import BACKWARD, build_on_meta, cost_of
from .state import State, finished
from .suite import Stage, merged, weights_of

IMAGES = {  # by the folder's or the type's name: of train, of val
    'imagenet': (1_281_167, 50_000),
    'imagenet22k': (14_197_122, 0),
    'ADEChallengeData2016': (20_210, 2_000),
    'CIFAR10': (50_000, 10_000),
    'CIFAR100': (50_000, 10_000),
}
BYTES_KEPT, BYTES_TRAINED = 4, 12  # of a parameter in a checkpoint: float32, and two moments of Adam if it learns
UNITS = ((1e21, 'ZFLOPs'), (1e18, 'EFLOPs'), (1e15, 'PFLOPs'), (1e12, 'TFLOPs'), (1e9, 'GFLOPs'))


class Estimate(NamedTuple):
    """length: in words. images: seen in all. flops: of the whole stage. disk: bytes of its checkpoints. seconds: of
    wall time. None is what cannot be known."""

    length: str
    images: int | None
    flops: float | None
    disk: int
    seconds: float | None


class Sizes(NamedTuple):
    """Multiply-accumulates of one image's forward pass, in parts that learn and in parts that do not; bytes of a
    checkpoint."""

    learned: int
    frozen: int
    bytes: int


_sizes: dict[str, Sizes] = {}  # models of a table differ less than its rows


def estimate(stage: Stage, tflops: float | None = None, others: tuple[Stage, ...] = ()) -> Estimate:
    """tflops: 10^12 operations a second that a device is known to sustain. others: the stage's other seeds, whose
    measured seconds are better than that."""
    config = merged(stage)
    images = _test_images(config) if stage.checkpoint else images_seen(config, stage.gpus)
    sizes = sizes_of(config)
    per_image = sizes.learned + sizes.frozen + (0 if stage.checkpoint else BACKWARD * sizes.learned)
    flops = None if images is None else 2.0 * per_image * images
    measured = [done['seconds'] for done in map(finished, others) if done]
    seconds = statistics.mean(measured) if measured else None
    if seconds is None and tflops and flops is not None:
        seconds = flops / (tflops * 1e12 * stage.gpus)
    disk = 0 if stage.checkpoint else sizes.bytes * _kept(config)
    return Estimate('test only' if stage.checkpoint else _length(config), images, flops, disk, seconds)


def _length(config: Config) -> str:
    train = config.train_cfg
    return f'{train.max_epochs} epochs' if train.get('max_epochs') else f'{train.max_iters:,} steps'


def _kept(config: Config) -> int:
    """Checkpoints that are there at the end: mmengine keeps the last ones, or all."""
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    length = config.train_cfg.get('max_epochs') or config.train_cfg.get('max_iters')
    written = max(1, -(-length // hook.get('interval', 1)))
    keep = hook.get('max_keep_ckpts', -1)
    return min(written, keep) if keep > 0 else written


def images_seen(config: Config, gpus: int = 1) -> int | None:
    """By a training on so many devices."""
    loader, train = config.train_dataloader, config.train_cfg
    step = loader.batch_size * gpus
    if not train.get('max_epochs'):
        return train.max_iters * step
    count = _count(loader.dataset, 0)
    if count is None:
        return None
    steps = count // step if loader.get('drop_last') else -(-count // step)
    return train.max_epochs * (steps * step if loader.get('drop_last') else count)


def _test_images(config: Config) -> int | None:
    return _count(config.test_dataloader.dataset, 1)


def _count(dataset: dict, split: int) -> int | None:
    """Images of a data set without looking at it; split 0 train, 1 val."""
    if dataset.get('length'):
        return dataset['length']
    if 'percent' in dataset:
        whole = _count(dataset['dataset'], split)
        share = 1 - dataset['percent'] / 100 if dataset.get('rest') else dataset['percent'] / 100
        return whole and round(whole * share)
    (part, *_) = parts_of(dataset)
    if isinstance(part.get('indices'), int) and part['indices'] > 0:
        return part['indices']
    names = (Path(part.get('data_root') or '').name, part.get('type', '').rsplit('.', 1)[-1])
    return next((IMAGES[name][split] for name in reversed(names) if name in IMAGES), None)


def sizes_of(config: Config) -> Sizes:
    """Cost of one training image, counted on the meta device."""
    model = _without_files(config.model.to_dict())
    pipeline = _pipeline(config)
    key = json.dumps([model, pipeline], sort_keys=True, default=repr)
    if key not in _sizes:
        logging.disable(logging.INFO)  # models say how they were built
        try:
            model = build_on_meta(config)
            with torch.device('meta'):
                _sizes[key] = _measured(model, config.model.to_dict(), pipeline)
        finally:
            logging.disable(logging.NOTSET)
    return _sizes[key]


def _without_files(model: dict) -> dict:
    """The same model without the weights that it would read."""
    kept = {key: value for key, value in model.items() if key not in ('pretrained', 'init_cfg')}
    if (kept.get('target') or {}).get('checkpoint'):
        kept['target'] = dict(kept['target'], checkpoint=None)
    if kept.get('backbone'):
        kept['backbone'] = {key: value for key, value in kept['backbone'].items() if key != 'init_cfg'}
    return kept


def _pipeline(config: Config) -> dict[str, int | None]:
    """Sizes of the views, and the number of masked patches, of what is trained on (or tested, if nothing is)."""
    loader = config.get('train_dataloader') or config.get('test_dataloader') or {}
    steps = parts_of(loader['dataset'])[0].get('pipeline') or [] if loader.get('dataset') else []
    found = {}
    for step in steps:
        found.update(
            {key: step.get(key) for key in ('patches_size', 'tokens_size', 'num_masked', 'grid') if key in step}
        )
    return found


def _measured(model: nn.Module, config: dict, pipeline: dict) -> Sizes:
    def macs(*inputs: torch.Tensor, forward: Callable | None = None) -> int:
        return cost_of(model, *inputs, forward=forward).macs

    def image(size, channels: int = 3) -> torch.Tensor:
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return torch.zeros(1, channels, height, width)

    saved = sum(p.numel() * (BYTES_TRAINED if p.requires_grad else BYTES_KEPT) for p in model.parameters())
    backbone = config.get('backbone') or {}
    channels = backbone.get('in_channels', config.get('in_channels', 3))
    if hasattr(model, 'target'):
        grid = pipeline['grid'] if isinstance(pipeline['grid'], (list, tuple)) else (pipeline['grid'],) * 2
        batch = dict(patches=image(pipeline['patches_size'], channels), mask=torch.zeros(1, *grid, dtype=torch.bool))
        seen = grid[0] * grid[1] if config.get('predict') == 'all' else pipeline['num_masked']
        learned = macs(forward=lambda: model.features(batch))
        learned += macs(torch.zeros(seen, model.backbone.embed_dims), forward=model.head)
        if not hasattr(model.target, 'tokenizer'):  # pixels
            return Sizes(learned, 0, saved)
        view = image(pipeline['tokens_size'], config['target']['tokenizer'].get('in_channels', channels))
        return Sizes(learned, macs(view, forward=model.target.tokenizer.tokens), saved)
    if hasattr(model, 'tokens'):
        view = image(pipeline['tokens_size'], channels)
        if not hasattr(model, 'stats'):  # k-means: nothing to speak of
            return Sizes(macs(view, forward=model.tokens), 0, saved)
        with torch.no_grad():
            codes = torch.zeros_like(model.logits(view))
        return Sizes(macs(view, forward=model.logits) + macs(codes, forward=model.stats), 0, saved)
    inputs = image(backbone.get('img_size', 224), channels)
    if hasattr(model, 'extract'):
        return Sizes(0, macs(inputs, forward=model.extract), saved)
    return Sizes(macs(inputs, forward=lambda x: model(x, mode='tensor')), 0, saved)


def batch_note(stage: Stage) -> str:
    """What to say of a stage that sees another number of images a step than its recipe is for; else nothing."""
    config = merged(stage)
    wanted = (config.get('auto_scale_lr') or {}).get('base_batch_size')
    if stage.checkpoint or not wanted:
        return ''
    each, times = config.train_dataloader.batch_size, config.optim_wrapper.get('accumulative_counts', 1)
    if stage.gpus * each * times == wanted:
        return ''
    return (
        f'{stage.name}: {stage.gpus} x {each} x {times} images a step (devices, batch, accumulated), and the recipe is '
        f'for {wanted}: gpus=, or train_dataloader.batch_size in optim_wrapper.micro_batches parts, in the suite'
    )


# In words


def amount(flops: float | None) -> str:
    if flops is None:
        return '?'
    for size, unit in UNITS:
        if flops >= size:
            return f'{flops / size:.3g} {unit}'
    return f'{flops / UNITS[-1][0]:.2g} {UNITS[-1][1]}'


def duration(seconds: float | None) -> str:
    if seconds is None:
        return '-'
    hours = seconds / 3600
    return f'{seconds:.0f} s' if seconds < 600 else f'{hours:.1f} h' if hours < 72 else f'{hours / 24:.1f} d'


def listing(found: dict[Stage, State], tflops: float | None = None) -> str:
    """A line per run, and what those that are not finished will cost together."""
    columns = [
        'state',
        'seed',
        'stage',
        'config',
        'starts from',
        'devices',
        'length',
        'images',
        'FLOPs',
        'disk',
        'time',
    ]
    rows, left = [], []
    for stage, state in found.items():
        others = tuple(o for o in found if o.name == stage.name and o is not stage)
        guess = estimate(stage, tflops, others)
        if state.name != 'finished':
            left.append(guess)
        start = ', '.join([*(parent.name for parent in stage.parents), *weights_of(stage)]) or '-'
        images = '?' if guess.images is None else f'{guess.images:,}'
        disk = f'{guess.disk / 1e9:.1f} GB'
        facts = [guess.length, images, amount(guess.flops), disk, duration(guess.seconds)]
        rows.append([state.name, str(stage.seed), stage.name, Path(stage.config).stem, start, str(stage.gpus), *facts])
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [columns, *rows]
    ]
    return '\n'.join([*lines, _total(len(rows), left)])


def _total(count: int, left: list[Estimate]) -> str:
    known = sum(guess.flops for guess in left if guess.flops is not None)
    unknown = sum(guess.flops is None for guess in left)
    seconds = [guess.seconds for guess in left]
    time = f', {duration(sum(seconds))} one after the other' if seconds and None not in seconds else ''
    more = f' and {unknown} of unknown length' if unknown else ''
    disk = sum(guess.disk for guess in left)
    return f'{count} runs, {len(left)} to do: {amount(known)}{more}, {disk / 1e9:.1f} GB of checkpoints{time}'
