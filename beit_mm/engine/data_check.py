"""Before the first step of a segmentor: are its data what its heads can learn."""

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.check import SAMPLE, check_dataset, check_pipeline
from ..data.masks import IGNORED
from ..data.verify import Report
from ..registry import HOOKS
from .checkpointing import model_of
from .errors import ConfigError


class DataError(ValueError):
    """Data that cannot be trained on; the message names the files, the values and the way out."""


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Reads masks of the training and validation sets before the first step, and refuses what would train in vain.

    Missing pairs (all are looked for), masks of another size than their image, coloured ones, ids beyond the classes,
    nothing but ignored pixels, another number of classes than the heads'. What it found goes into the log: the share of
    the commonest classes, and classes that no mask holds.

    sample: masks to read of each set, None for all; 0 turns the look off.
    """

    priority = 'VERY_HIGH'

    def __init__(self, sample: int | None = SAMPLE) -> None:
        if sample is not None and sample < 0:
            raise ValueError(f'DataCheckHook: sample={sample} must be 0 or more, or None for all')
        self.sample = sample

    def before_train(self, runner: Runner) -> None:
        head = getattr(model_of(runner), 'decode_head', None)
        if head is None:
            return
        check_batch(head, runner.train_dataloader.batch_size)
        head = head[-1] if isinstance(head, nn.ModuleList) else head  # a cascade's last one predicts
        if self.sample == 0:
            return
        found = [self._problems(runner, head) if is_main_process() else None]
        broadcast_object_list(found)  # every rank ends, with the same words
        if found[0]:
            raise DataError(found[0])

    def _problems(self, runner: Runner, head: nn.Module) -> str:
        report = Report()
        sets = dict(train=runner.train_dataloader.dataset)
        if runner.val_loop is not None:
            sets['val'] = runner.val_loop.dataloader.dataset
        for what, dataset in sets.items():
            check_dataset(dataset, head.num_classes, what, report, self.sample, head.ignore_index)
        if runner.val_loop is not None:
            loader = runner.val_loop.dataloader
            check_pipeline(loader.dataset, loader.batch_size, 'val', report)
        for fact in report.facts:
            runner.logger.info(f'data: {fact}')
        return '\n'.join(f'{what}\n    do:  {remedy}' for what, remedy in report.problems)


def check_data_of(config: Config, sample: int | None = None) -> Report:
    """What DataCheckHook would find in the data sets of a segmentation config, in all of their masks or in a sample.

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
