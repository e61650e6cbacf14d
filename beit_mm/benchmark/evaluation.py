"""What an evaluation that just ran leaves: its numbers for a reader, and a result record."""

import hashlib
import json
import logging
import resource
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..checkpoints.load import of_beit_mm, read, sha256
from ..engine.checkpointing import model_of
from ..engine.recipe import recipe_of
from ..models import MaskedImageModel
from ..models.architectures import ARCHITECTURES, variant_of
from ..models.dvae import Tokenizer
from .cost import cost_of
from .curves import read_scalars
from .records import CONVERTED, TRAINED, Record, RecordError, make, write

TASK_OF_METRIC = {  # the metric that the leaderboard ranks by: its task
    'accuracy/top1': 'classification',
    'mIoU': 'segmentation',
    'masked_accuracy': 'pretrain',
    'masked_pixel_error': 'pretrain',
    'reconstruction_error': 'tokenizer',
}


def main_metric(metrics: dict[str, float]) -> str:
    """Which of the metrics the leaderboard ranks by. Raises RecordError when none."""
    for name in TASK_OF_METRIC:
        if name in metrics:
            return name
    raise RecordError(f'no task has the metrics {", ".join(metrics)}; known: {", ".join(TASK_OF_METRIC)}')


def preset_of(backbone: dict | None) -> str:
    """`beit base`, `beit_plus base` or `beit D96 L4`: which architecture a row stands for."""
    if not backbone:
        return 'tokenizer'
    kind = backbone.get('type', '').split('.')[-1]
    arch = backbone.get('arch', 'base')
    size = arch if isinstance(arch, str) and arch in ARCHITECTURES else ''
    if not size:
        size = f'D{arch["embed_dims"]} L{arch["num_layers"]}' if isinstance(arch, dict) else str(arch)
    if kind != 'BEiTViT':
        return f'{kind} {size}'
    return f'{variant_of(backbone)} {size}'


def input_shape(config: Config, sample: dict) -> tuple[int, int, int]:
    """(channels, height, width) that a model is counted at: a segmentor's crop, else the first test image's."""
    image = next(sample[key] for key in ('patches', 'tokens_view', 'inputs') if key in sample)
    image = image[0] if isinstance(image, list) else image  # views of one image
    crop = (config.model.get('test_cfg') or {}).get('crop_size')
    height, width = crop if crop else image.shape[-2:]
    return image.shape[-3], int(height), int(width)


def forward_cost(model: torch.nn.Module, shape: tuple[int, int, int]) -> tuple[int, int | None]:
    """Parameters, and multiply-accumulates of one image; None, and a warning, for a model that cannot be counted."""
    images = torch.zeros(1, *shape, device=next(model.parameters()).device)
    if isinstance(model, MaskedImageModel):
        grid = [side // model.backbone.patch_size for side in shape[1:]]
        batch = dict(patches=images, mask=images.new_zeros(1, *grid, dtype=torch.bool))
    elif isinstance(model, Tokenizer):
        batch = dict(tokens_view=images)
    else:
        batch = dict(inputs=images)
    try:
        return cost_of(model, forward=lambda: model(mode='tensor', **batch))
    except Exception as error:  # a count must not cost the record
        print_log(f'FLOPs not counted: {type(error).__name__}: {error}', logger='current', level=logging.WARNING)
        return sum(parameter.numel() for parameter in model.parameters()), None


def peak_memory() -> tuple[float, str]:
    """MB, and whose: the GPU's since the process began, without one the process' own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20, 'GPU'
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 'process'


MOST_POINTS = 100  # of a curve in a record


def curves_of(checkpoint: str, last: int | None) -> dict[str, list[list[float]]]:
    """The training's scalars up to step `last`, from the logs beside a checkpoint, each thinned to MOST_POINTS."""
    found = {}
    for name, points in read_scalars(Path(checkpoint).parent).items():
        if name.startswith(('lr', 'base_lr')) or '.' in name:
            continue
        points = [(step, value) for step, value in zip(*points) if (last is None or step <= last) and value == value]
        thinned = [*points[: -1 : -(-len(points) // MOST_POINTS)], *points[-1:]]
        found[name] = [list(axis) for axis in zip(*thinned)]
    return {name: axes for name, axes in found.items() if axes}


def record_of(runner: Runner, config: Config, checkpoint: str, metrics: dict[str, float], seconds: float) -> Record:
    """The record of testing `checkpoint` with `config`; seed and stages are those that the checkpoint carries."""
    metric = main_metric(metrics)
    dataset = runner.test_dataloader.dataset
    kind = config.test_dataloader.dataset.type.split('.')[-1]
    content = read(checkpoint, map_location='cpu')
    meta, ours = content.get('meta') or {}, of_beit_mm(content)
    trained = bool(ours.get('revision')) and meta.get('seed') is not None
    shape = input_shape(config, dataset[0])
    parameters, macs = forward_cost(model_of(runner), shape)
    memory, whose = peak_memory()
    return make(
        task=TASK_OF_METRIC[metric],
        dataset=config.get('dataset_name') or kind,
        embedded=bool(config.get('embedded', kind.startswith('Embedded'))),
        split=config.test_dataloader.dataset.get('split', 'val'),
        num_images=len(dataset),
        metric=metric,
        value=metrics[metric],
        metrics={k: v for k, v in metrics.items() if k not in ('data_time', 'time') and v == v},  # nan: not there
        protocol=config.get('protocol', TASK_OF_METRIC[metric]),
        preset=preset_of(config.model.get('backbone')),
        origin=TRAINED if trained else CONVERTED,
        seed=int(meta['seed']) if trained else None,
        config=Path(config.filename).stem,
        config_sha256=hashlib.sha256(config.pretty_text.encode()).hexdigest(),
        recipe_sha256=recipe_of(config),
        checkpoint=Path(checkpoint).name,
        checkpoint_sha256=sha256(checkpoint),
        stages=ours.get('stages', []),
        cost=dict(
            input=list(shape),
            parameters=parameters,
            macs=macs,
            images_per_second=round(len(dataset) / seconds, 2),
            memory_mb=round(memory, 1),
            memory_of=whose,
            train_seconds=ours.get('train_seconds'),
        ),
        curves=curves_of(checkpoint, meta.get('iter')),
        seconds=round(seconds, 2),
    )


def conclusion(
    runner: Runner,
    config: Config,
    checkpoint: str,
    metrics: dict[str, float],
    seconds: float,
    out: str | None = None,
    records: str | None = None,
) -> list[str]:
    """Lines to print about a test; writes its metrics to `out` as JSON and its record below `records`, on one rank."""
    if not is_main_process():
        return []
    # those of single classes are in the table of the log
    shown = {name: v for name, v in metrics.items() if '.' not in name and not name.startswith(('data_time', 'time'))}
    lines = [f'{name:>24}  {value:.4f}' for name, value in shown.items()]
    if out:
        there = {name: None if value != value else value for name, value in metrics.items()}  # JSON has no nan
        Path(out).write_text(json.dumps(there, indent=1) + '\n')
    if records:
        lines.append(f'record: {write(record_of(runner, config, checkpoint, metrics, seconds), records)}')
    return lines
