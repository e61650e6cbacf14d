"""What a config asks for and this machine does not have: replaced by what it has, and said once."""

import logging
import os

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from torch import nn

from ..registry import MODEL_WRAPPERS
from .amp import with_amp, without_scaler

NEEDS_CUDA = ('AmpOptimWrapper', 'mmengine.AmpOptimWrapper', 'beit_mm.Fp16OptimWrapper')


def suit_device(config: Config) -> None:
    """Without CUDA, take fp16 out of a config, in place: training goes on in float32. `devices` with cpu keeps it."""
    wrapper = config.get('optim_wrapper')
    if torch.cuda.is_available() or wrapper is None or wrapper.get('type') not in NEEDS_CUDA:
        return
    if 'cpu' in wrapper.get('devices', ()):
        return
    if str(wrapper.get('dtype')) in ('bfloat16', 'torch.bfloat16'):
        config.optim_wrapper = with_amp(wrapper, 'bf16')
        return
    config.optim_wrapper = without_scaler(wrapper, 'beit_mm.OptimWrapper')
    if os.environ.get('RANK', '0') == '0':
        print_log(
            'fp16 needs a CUDA device, and there is none: training in float32. The CPU has bf16: --amp bf16',
            logger='current',
            level=logging.WARNING,
        )


@MODEL_WRAPPERS.register_module()
class DistributedOnCPU(MMDistributedDataParallel):
    """Data parallel on CPUs: without device_ids, which mmengine's Runner passes and DDP refuses there, and without
    synchronised norms, which torch has for CUDA only.

    DDP sorts the gradients that it sends after its first step. Where a run goes on that step is another, and from three
    ranks on sums of another order differ in their last bit (measured: 7e-9 in a weight after 4 steps): here they are
    sorted at the start.
    """

    def __init__(self, module: nn.Module, **options) -> None:
        super().__init__(norms_of_device(module), **{**options, 'device_ids': None, 'broadcast_buffers': False})
        self.reducer._push_all_rebuilt_params()
        self.reducer._rebuild_buckets()


def norms_of_device(model: nn.Module) -> nn.Module:
    """The model; without CUDA, each of its norms is of one rank."""
    if not torch.cuda.is_available() and plain_norms(model):
        print_log(
            'norms are not synchronised over ranks: that needs CUDA. Each rank normalises its own images',
            logger='current',
            level=logging.WARNING,
        )
    return model


def plain_norms(model: nn.Module) -> int:
    """Turn every SyncBatchNorm below a model into a BatchNorm2d with the same parameters; how many there were.

    torch's refuses the CPU as soon as there are ranks. Wherever it came from: a config's norm_cfg, `sync_bn`, or the
    default of a neck (mmseg's Feature2Pyramid).
    """
    count = 0
    for name, child in model.named_children():
        if isinstance(child, nn.SyncBatchNorm):
            plain = nn.BatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
            for kind in ('_parameters', '_buffers'):
                getattr(plain, kind).update(getattr(child, kind))
            setattr(model, name, plain.train(child.training))
            count += 1
        else:
            count += plain_norms(child)
    return count
