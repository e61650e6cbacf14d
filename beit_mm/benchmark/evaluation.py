"""A result record from an evaluation that just ran."""

import hashlib
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ..checkpoints.load import read, sha256
from ..models.architectures import ARCHITECTURES, variant_of
from .records import Record, RecordError, make

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
        metrics={k: v for k, v in metrics.items() if k not in ('data_time', 'time')},
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
