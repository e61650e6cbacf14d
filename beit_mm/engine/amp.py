"""Mixed precision that asks the device first: mmengine's AmpOptimWrapper asserts CUDA."""

import contextlib
import logging
from collections.abc import Sequence

import torch
from mmengine.device import get_device
from mmengine.logging import print_log

from ..registry import OPTIM_WRAPPERS
from .accumulation import OptimWrapper
from .errors import ConfigError

DEVICES = ('cpu', 'cuda')


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper):
    """bfloat16 autocast without a loss scaler (bf16 needs none). Weights, softmax on CUDA and losses are float32.

    devices: where to use it, of cpu and cuda. The large configs say cuda alone: most CPUs emulate bf16, which takes
    several times as long as float32. `--amp bf16` asks for it wherever the run is. Elsewhere, and where the device has
    no bf16, trains in float32 and says so once.
    """

    def __init__(self, devices: Sequence[str] = DEVICES, **kwargs) -> None:
        super().__init__(**kwargs)
        if wrong := set(devices) - set(DEVICES):
            raise ConfigError(f'optim_wrapper.devices: {sorted(wrong)} are none of {", ".join(DEVICES)}')
        self.device_type = get_device().split(':')[0]
        present = self.device_type == 'cpu' or (self.device_type == 'cuda' and torch.cuda.is_bf16_supported())
        self.enabled = present and self.device_type in devices
        if self.enabled:
            return
        if self.device_type not in devices and present:
            why = f'the config asks for bf16 on {" and ".join(devices)} only; --amp bf16 asks for it here'
        else:
            why = f'{self.device_type} has no bfloat16 here'
        print_log(f'training in float32 on {self.device_type}: {why}', logger='current', level=logging.WARNING)

    @contextlib.contextmanager
    def optim_context(self, model: torch.nn.Module):
        autocast = torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.enabled)
        with super().optim_context(model), autocast:
            yield


# Arguments of mmengine's AmpOptimWrapper that ours has not: bf16 needs no scaler and is itself the dtype.
OF_MMENGINE = ('loss_scale', 'dtype', 'use_fsdp')


def with_amp(optim_wrapper: dict, precision: str) -> dict:
    """The config of the optim wrapper that serves `--amp bf16|fp16`, whatever was there before."""
    wanted = {key: value for key, value in optim_wrapper.items() if key != 'devices'}
    if precision == 'bf16':
        return without_scaler(wanted, 'beit_mm.AmpOptimWrapper')
    return dict(wanted, type='beit_mm.Fp16OptimWrapper')


def without_scaler(optim_wrapper: dict, kind: str) -> dict:
    """The config of an optim wrapper of another type, which has no loss scaler."""
    return dict({key: value for key, value in optim_wrapper.items() if key not in OF_MMENGINE}, type=kind)
