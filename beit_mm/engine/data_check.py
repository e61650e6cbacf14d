"""Are the data of a segmentation config what its heads can learn: `tools/prepare_data.py verify --format config`."""

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.check import check_dataset, check_pipeline
from ..data.classes import check_names
from ..data.masks import IGNORED
from ..data.verify import Report
from .errors import ConfigError


def check_data_of(config: Config, sample: int | None = None) -> Report:
    """What PreflightHook would find in the data sets of a segmentation config, in all of their masks or in a sample.

    Raises ConfigError for a config that segments nothing.
    """
    head = (config.get('model') or {}).get('decode_head')
    if head is None:
        raise ConfigError(
            f'{config.filename}: has no model.decode_head: it segments nothing, and has no masks to check'
        )
    head = head[-1] if isinstance(head, (list, tuple)) else head
    report = Report()
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        for what in ('train', 'val', 'test'):
            description = (config.get(f'{what}_dataloader') or {}).get('dataset')
            if description and not (
                what == 'test' and description == (config.get('val_dataloader') or {}).get('dataset')
            ):
                dataset = DATASETS.build(description)
                check_names(dataset, head.num_classes, what, report, 'decode_head and auxiliary_head')
                check_dataset(dataset, head.num_classes, what, report, sample, head.get('ignore_index', IGNORED))
                if what != 'train':
                    check_pipeline(dataset, config[f'{what}_dataloader'].get('batch_size', 1), what, report)
    return report


def check_batch(head: nn.Module, batch_size: int) -> None:
    """Raise ConfigError where batch statistics would be of one value: UPerNet pools to 1 x 1, with a norm after it."""
    pooling = getattr(head, 'psp_modules', None)
    alone = [
        module
        for module in head.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and module.training
    ]
    if batch_size == 1 and 1 in getattr(pooling, 'pool_scales', ()) and alone:
        raise ConfigError(
            'train_dataloader.batch_size=1: the pooling module of the head normalises one value per channel, of which '
            'there is no deviation. Take 2 or more (with optim_wrapper.accumulative_counts the batch that counts stays '
            'the same), or train on several GPUs, where the norms are synchronised'
        )
