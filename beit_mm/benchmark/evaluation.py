"""What an evaluation that just ran leaves: its numbers for a reader, and a result record."""

import hashlib
import json
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from ..checkpoints.load import read, sha256
from ..models.architectures import ARCHITECTURES, variant_of
from .records import Record, RecordError, make, write

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


def record_of(runner: Runner, config: Config, checkpoint: str, metrics: dict[str, float], seconds: float) -> Record:
    """The record of testing `checkpoint` with `config`; seed and stages are those that the checkpoint carries."""
    metric = main_metric(metrics)
    dataset = runner.test_dataloader.dataset
    kind = config.test_dataloader.dataset.type.split('.')[-1]
    meta = read(checkpoint, map_location='cpu').get('meta', {})
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
        seed=int(meta.get('seed') or 0),
        config=Path(config.filename).stem,
        config_sha256=hashlib.sha256(config.pretty_text.encode()).hexdigest(),
        checkpoint=Path(checkpoint).name,
        checkpoint_sha256=sha256(checkpoint),
        stages=meta.get('beit_mm', {}).get('stages', []),
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
