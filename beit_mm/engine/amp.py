"""Mixed precision that asks the device first: mmengine's AmpOptimWrapper asserts CUDA."""

import contextlib
import logging
from collections.abc import Sequence

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper as MMEngineAmpOptimWrapper
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper

from ..registry import OPTIM_WRAPPERS
from .accumulation import OptimWrapper, WeighsByCount
from .errors import ConfigError
from .finite import FiniteSteps, Skipped

DEVICES = ('cpu', 'cuda')


def check_devices(devices: Sequence[str]) -> None:
    """Raise ConfigError unless all are among DEVICES."""
    if wrong := set([devices] if isinstance(devices, str) else devices) - set(DEVICES):
        raise ConfigError(f'optim_wrapper.devices: {sorted(wrong)} are none of {", ".join(DEVICES)}')


def bf16_on(device_type: str, devices: Sequence[str] | None = None) -> bool:
    """Whether AmpOptimWrapper's bf16 is used on a device: it has it, and is among those that the config asks for."""
    present = device_type == 'cpu' or (device_type == 'cuda' and torch.cuda.is_bf16_supported())
    return present and device_type in (devices or DEVICES)


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper):
    """bfloat16 autocast without a loss scaler (bf16 needs none). Weights, softmax on CUDA and losses are float32.

    devices: where to use it, of cpu and cuda. The large configs say cuda alone: most CPUs emulate bf16, which takes
    several times as long as float32. `--amp bf16` asks for it wherever the run is. Elsewhere, and where the device has
    no bf16, trains in float32 and says so once.
    """

    def __init__(self, devices: Sequence[str] = DEVICES, **kwargs) -> None:
        super().__init__(**kwargs)
        check_devices(devices)
        self.device_type = get_device().split(':')[0]
        self.enabled = bf16_on(self.device_type, devices)
        if self.enabled:
            return
        if self.device_type not in devices and bf16_on(self.device_type):
            why = f'the config asks for bf16 on {" and ".join(devices)} only; --amp bf16 asks for it here'
        else:
            why = f'{self.device_type} has no bfloat16 here'
        print_log(f'training in float32 on {self.device_type}: {why}', logger='current', level=logging.WARNING)

    @contextlib.contextmanager
    def optim_context(self, model: torch.nn.Module):
        autocast = torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.enabled)
        with super().optim_context(model), autocast:
            yield


class ScaledAmp(MMEngineAmpOptimWrapper):
    """mmengine's AmpOptimWrapper, which asserts CUDA, and on a CPU too where `devices` says so."""

    def __init__(
        self,
        loss_scale: str | float | dict = 'dynamic',
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        devices: Sequence[str] = ('cuda',),
        **kwargs,
    ) -> None:
        check_devices(devices)
        self.on_cpu = get_device() == 'cpu' and 'cpu' in devices
        if not self.on_cpu:
            super().__init__(loss_scale, dtype, use_fsdp, **kwargs)
            return
        MMEngineOptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = loss_scale if isinstance(loss_scale, float) else None
        options = {} if loss_scale == 'dynamic' else loss_scale
        options = options if isinstance(options, dict) else dict(init_scale=options)
        self.loss_scaler = torch.amp.GradScaler('cpu', **options)
        self.cast_dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or 'float16')

    @contextlib.contextmanager
    def optim_context(self, model: torch.nn.Module):
        if not self.on_cpu:
            with super().optim_context(model):
                yield
            return
        # Not mmengine's autocast, which knows bf16 alone on a CPU
        with MMEngineOptimWrapper.optim_context(self, model), torch.autocast('cpu', dtype=self.cast_dtype):
            yield


@OPTIM_WRAPPERS.register_module()
class Fp16OptimWrapper(WeighsByCount, FiniteSteps, ScaledAmp):
    """mmengine's AmpOptimWrapper (fp16 with a loss scaler), exact under gradient accumulation, with finite steps.

    devices: where it may be used, of cpu and cuda. On a CPU fp16 gains nothing; it is for trying a run out there.
    Gradients that overflow are the scaler's business: the step is skipped, the scale halved (a fixed `loss_scale` stays
    as it is). A loss that is not finite before it is scaled is not: the step is skipped, the scale stays.
    """

    def unscale(self) -> None:
        self.loss_scaler.unscale_(self.optimizer)

    def take(self, **kwargs) -> None:
        self.optimizer.step(**kwargs)  # not the scaler's, which would ask the device once more whether all is finite
        self.loss_scaler.update(self._scale_update_param)

    def skip(self, skipped: Skipped) -> None:
        super().skip(skipped)
        if skipped.loss:
            self.loss_scaler.update(self.loss_scaler.get_scale())
            return
        for found in self.loss_scaler._found_inf_per_device(self.optimizer).values():
            found.fill_(1.0)  # it may have been another rank's
        self.loss_scaler.update(self._scale_update_param)
        skipped.scale = self.loss_scaler.get_scale()


# Arguments of mmengine's AmpOptimWrapper that ours has not: bf16 needs no scaler and is itself the dtype.
OF_MMENGINE = ('loss_scale', 'dtype', 'use_fsdp')


def with_amp(optim_wrapper: dict, precision: str) -> dict:
    """The config of the optim wrapper that serves `--amp bf16|fp16`, whatever was there before."""
    wanted = {key: value for key, value in optim_wrapper.items() if key != 'devices'}
    if precision == 'bf16':
        return without_scaler(wanted, 'beit_mm.AmpOptimWrapper')
    return dict(wanted, type='beit_mm.Fp16OptimWrapper')


def with_finite_steps(optim_wrapper: dict) -> dict:
    """The config of an optim wrapper with ours in place of mmengine's of the same meaning; others are left alone.

    mmengine's AmpOptimWrapper is fp16 with a loss scaler, or with dtype='bfloat16' what ours is.
    """
    if 'optimizer' not in optim_wrapper:  # of several, by a constructor of their own
        own = {k: with_finite_steps(v) for k, v in optim_wrapper.items() if isinstance(v, dict) and 'optimizer' in v}
        return dict(optim_wrapper, **own)
    kind = optim_wrapper.get('type', 'OptimWrapper')
    kind = kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__name__}'
    scope, _, name = kind.rpartition('.')
    if scope.startswith('beit_mm') or name not in ('OptimWrapper', 'AmpOptimWrapper'):
        return optim_wrapper
    if name == 'OptimWrapper':
        return dict(optim_wrapper, type='beit_mm.OptimWrapper')
    if str(optim_wrapper.get('dtype')) in ('bfloat16', 'torch.bfloat16'):
        return with_amp(optim_wrapper, 'bf16')
    return dict(optim_wrapper, type='beit_mm.Fp16OptimWrapper')


def without_scaler(optim_wrapper: dict, kind: str) -> dict:
    """The config of an optim wrapper of another type, which has no loss scaler."""
    return dict({key: value for key, value in optim_wrapper.items() if key not in OF_MMENGINE}, type=kind)
