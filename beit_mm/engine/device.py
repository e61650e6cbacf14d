"""What a config asks for and this machine does not have: replaced by what it has, and said once."""

import logging
import os

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from .amp import OF_MMENGINE, with_amp

SYNCHRONISED = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm', 'naiveSyncBN')
RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')  # of torchrun, Slurm, MPI; before there is a group
NEEDS_CUDA = ('AmpOptimWrapper', 'mmengine.AmpOptimWrapper', 'beit_mm.Fp16OptimWrapper')


def suit_device(config: Config, distributed: bool) -> None:
    """Change a config in place: norms are synchronised over ranks on CUDA only, fp16 is for CUDA only.

    torch's SyncBatchNorm refuses the CPU as soon as there are ranks; on one process mmengine turns it into BatchNorm
    itself. The names of weights stay.
    """
    if torch.cuda.is_available():
        return
    if distributed:
        count = _without_sync(config.get('model') or {}) + (config.pop('sync_bn', None) is not None)
        if count:
            _say('norms are not synchronised over ranks: that needs CUDA. Each rank normalises its own images')
    wrapper = config.get('optim_wrapper')
    if wrapper is not None and wrapper.get('type') in NEEDS_CUDA:
        if str(wrapper.get('dtype')) in ('bfloat16', 'torch.bfloat16'):
            config.optim_wrapper = with_amp(wrapper, 'bf16')
            return
        kept = {key: value for key, value in wrapper.items() if key not in OF_MMENGINE}
        config.optim_wrapper = dict(kept, type='beit_mm.OptimWrapper')
        _say('fp16 needs a CUDA device, and there is none: training in float32. The CPU has bf16: --amp bf16')


def _without_sync(node) -> int:
    """Turn every synchronised norm below `node` into a plain one; how many there were."""
    if isinstance(node, (list, tuple)):
        return sum(_without_sync(one) for one in node)
    if not isinstance(node, dict):
        return 0
    found = sum(_without_sync(value) for value in node.values())
    if node.get('type') in SYNCHRONISED:
        node['type'] = 'BN'
        found += 1
    return found


def _say(text: str) -> None:
    if next((os.environ[name] for name in RANKS if name in os.environ), '0') == '0':
        print_log(text, logger='current', level=logging.WARNING)
