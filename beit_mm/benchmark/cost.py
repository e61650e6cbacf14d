"""What a model costs: parameters and multiply-accumulates of one forward pass, counted operation by operation."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

BACKWARD = 2  # forward passes that a backward pass costs


class Cost(NamedTuple):
    """parameters: trained or not. macs: multiply-accumulates of one forward pass; FLOPs are twice that."""

    parameters: int
    macs: int


@torch.no_grad()
def cost_of(model: nn.Module, *inputs: torch.Tensor, forward: Callable | None = None) -> Cost:
    """Cost of `forward(*inputs)`, by default `model(*inputs)`, in eval mode; divide macs by the batch for one image.

    Matrix products, convolutions and attention count; norms, activations and additions do not. Fused attention is off
    while counting, since the counter does not know all its kernels: BEiT-B at 224 px has 17.56 GMACs.
    """
    training = model.training
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            (forward or model)(*inputs)
    finally:
        model.train(training)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)
