"""`--compile`: torch.compile of the backbone, in training and testing, with a way back.

Only the backbone: it is most of the work, and its inputs and outputs are tensors. mmengine's own `compile=True` takes
`train_step` whole, with losses as dicts of names, data samples, the optimizer and the message hub, which breaks the
graph at every turn, and leaves the test uncompiled.
"""

import contextlib
import logging
from collections.abc import Callable

import torch
from mmengine.logging import print_log
from torch import nn
from torch._functorch import config as functorch_config

from .errors import ConfigError


def compile_backbone(model: nn.Module, frozen: bool = False, **options) -> None:
    """Compile `model.backbone` in place: same module, same parameters, same names, so that layer decay, EMA,
    checkpoints and data parallel wrappers see no difference. Copies and pickles of it are not compiled.

    frozen: weights never change again (a test): they become constants of the program. Whoever loads others afterwards
    calls `uncompile` first. The second size that comes then makes the program one for any size. In training every size
    has a program of its own, up to torch's recompile limit (8), for torch 2.13's programs for any size fail in their
    backward pass. options: torch.compile's.
    Compiled numbers differ from eager ones by the order of sums: in float32 by less than 1e-5 of the largest output,
    and of the largest gradient.

    What cannot be compiled, forward or backward, runs as it is, with one warning: the first call that fails gives up
    for good.
    Raises ConfigError for a model without a backbone.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        raise ConfigError(f'--compile compiles `model.backbone`, and {type(model).__name__} has none')
    if frozen:
        options['options'] = {**options.get('options', {}), 'freezing': True}
    else:
        options['dynamic'] = False
    try:
        backbone.compile(**options)
        backbone._compiled_call_impl = _or_as_it_is(backbone, backbone._compiled_call_impl)
    except Exception as error:  # no compiler for this Python or system
        _give_up(backbone, error)


def uncompile(model: nn.Module) -> None:
    """Back to eager: after `compile_backbone(frozen=True)`, before weights change."""
    if isinstance(getattr(model, 'backbone', None), nn.Module):
        model.backbone._compiled_call_impl = None


def _or_as_it_is(module: nn.Module, compiled: Callable) -> Callable:
    def call(*args, **kwargs):
        try:
            with _backward_at_once():
                return compiled(*args, **kwargs)
        except Exception as error:
            returned = module._call_impl(*args, **kwargs)  # a mistake of the caller's is raised again, as ever
            _give_up(module, error)
            return returned

    return call


def _backward_at_once() -> contextlib.AbstractContextManager:
    """Compile the backward pass along with the forward, not when it is first run: there nobody could do without it."""
    if torch.is_grad_enabled() and hasattr(functorch_config, 'force_non_lazy_backward_lowering'):
        return functorch_config.patch(force_non_lazy_backward_lowering=True)
    return contextlib.nullcontext()


def _give_up(module: nn.Module, error: Exception) -> None:
    module._compiled_call_impl = None
    first = ' '.join(str(error).strip().splitlines()[:2])
    print_log(
        f'--compile: {type(module).__name__} could not be compiled and runs as it is. {type(error).__name__}: {first}',
        logger='current',
        level=logging.WARNING,
    )
