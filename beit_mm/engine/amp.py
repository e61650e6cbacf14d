"""Mixed precision that asks the device first: mmengine's AmpOptimWrapper asserts CUDA."""

import contextlib
import logging

import torch
from mmengine.device import get_device
from mmengine.logging import print_log

from ..registry import OPTIM_WRAPPERS
from .accumulation import OptimWrapper


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper):
    """bfloat16 autocast on any device, without a loss scaler (bf16 needs none).

    Where the device has no bf16, trains in float32 and says so once.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.device_type = get_device().split(':')[0]
        self.enabled = self.device_type == 'cpu' or (self.device_type == 'cuda' and torch.cuda.is_bf16_supported())
        if not self.enabled:
            print_log(
                f'--amp bf16: {self.device_type} has no bfloat16 here; training goes on in float32',
                logger='current',
                level=logging.WARNING,
            )

    @contextlib.contextmanager
    def optim_context(self, model: torch.nn.Module):
        autocast = torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.enabled)
        with super().optim_context(model), autocast:
            yield


# Arguments of mmengine's AmpOptimWrapper that ours has not: bf16 needs no scaler and is itself the dtype.
OF_MMENGINE = ('loss_scale', 'dtype', 'use_fsdp')


def with_amp(optim_wrapper: dict, precision: str) -> dict:
    """The config of the optim wrapper that serves `--amp bf16|fp16`, whatever was there before."""
    if precision == 'bf16':
        return without_scaler(optim_wrapper, 'beit_mm.AmpOptimWrapper')
    return dict(optim_wrapper, type='beit_mm.Fp16OptimWrapper')


def without_scaler(optim_wrapper: dict, kind: str) -> dict:
    """The config of an optim wrapper of another type, which has no loss scaler."""
    return dict({key: value for key, value in optim_wrapper.items() if key not in OF_MMENGINE}, type=kind)
