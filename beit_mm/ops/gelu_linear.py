"""GELU and the linear layer after it, keeping for the gradient what GELU read and not also what it gave.

That is a fifth of all that a block keeps. GELU is computed twice instead, a hundredth of a training step.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .biased_attention import eager


def takes(x: torch.Tensor, linear: nn.Module) -> bool:
    """Whether `gelu_linear` is for this case: training in full precision, and a plain linear layer.

    A compiler decides itself what it computes twice. torch.func's transforms go through plain operations only.
    """
    if not (torch.is_grad_enabled() and x.requires_grad and eager()):
        return False
    plain = type(linear) is nn.Linear and type(x) is torch.Tensor and type(linear.weight) is nn.Parameter
    real = x.device.type in ('cpu', 'cuda')  # of other devices, the meta device among them, autocast cannot be asked
    return plain and real and x.dtype == linear.weight.dtype and not torch.is_autocast_enabled(x.device.type)


def gelu_linear(x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    """linear(gelu(x)), bit for bit, and gradients equal to rounding."""
    return _GeluLinear.apply(x, linear.weight, linear.bias)


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = d_out.reshape(-1, d_out.shape[-1])
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[1]:
            d_weight = rows.T @ F.gelu(x).reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            d_bias = rows.sum(dim=0)
        if ctx.needs_input_grad[0]:
            d_x = torch.ops.aten.gelu_backward((rows @ weight).view(x.shape), x)
        return d_x, d_weight, d_bias
