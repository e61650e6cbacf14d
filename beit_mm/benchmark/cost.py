"""What a model costs: parameters and multiply-accumulates of one forward pass, counted operation by operation."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..apis import build_model

BACKWARD = 2  # forward passes that a backward pass costs
FLOPS_PER_MAC = 2


class Cost(NamedTuple):
    """parameters: trained or not. macs: multiply-accumulates of one forward pass; FLOPs are twice that."""

    parameters: int
    macs: int


def cost_of(model: nn.Module, *inputs: torch.Tensor, forward: Callable | None = None) -> Cost:
    """Cost of `forward(*inputs)`, by default `model(*inputs)`, in eval mode; divide macs by the batch for one image.

    Matrix products, convolutions and attention count; norms, activations and additions do not. Fused attention is off
    while counting, since the counter does not know all its kernels: BEiT-B at 224 px has 17.56 GMACs.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, macs_by_module(model, *inputs, forward=forward)[''])


@torch.no_grad()
def macs_by_module(model: nn.Module, *inputs: torch.Tensor, forward: Callable | None = None) -> dict[str, int]:
    """{name of a submodule that was called: multiply-accumulates in it, its parts included}; '' is all of them.

    Arguments and what counts: `cost_of`. A module that is called twice counts twice.
    """
    training = model.training
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            (forward or model)(*inputs)
    finally:
        model.train(training)
    macs = {'': counter.get_total_flops() // FLOPS_PER_MAC}
    root = f'{type(model).__name__}.'
    for name, counts in counter.get_flop_counts().items():
        if name.startswith(root):
            macs[name[len(root) :]] = sum(counts.values()) // FLOPS_PER_MAC
    return macs


def build_on_meta(config: Config) -> nn.Module:
    """A config's model without any memory for its weights, in eval mode; its tokenizer's checkpoint is not needed."""
    if (config.model.get('target') or {}).get('checkpoint'):
        config = copy.deepcopy(config)
        config.model.target.checkpoint = None
    with torch.device('meta'):
        return build_model(config).eval()
