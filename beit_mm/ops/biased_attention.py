"""Attention whose additive bias learns, with its gradient by hand: for the CPU, where torch has no fused kernel for it.

Letters in shapes: B images, T tokens, h heads, d width of a head.
`reference` is what all of it computes; the rest is there because it costs less.
"""

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

# Above so many tokens the probabilities outweigh all else that a block keeps for its gradient, and reading them back
# costs as much as computing them again, an image at a time: the bias is kept instead, which is as large as one image's.
KEPT_UP_TO = 512


def reference(qkv: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """qkv (B, T, 3, h, d), bias (h, T, T) -> softmax(scale * q k + bias) v, (B, T, h, d). In plain operations."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return (((q * scale) @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v).transpose(1, 2)


def takes(qkv: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `attention` is for this case: a bias that learns, on the CPU, and no reduced precision.

    A compiler does better with plain operations, a trace records them for inference, and torch.func's transforms and
    forward differentiation go through them only.
    """
    if bias is None or not (bias.requires_grad and torch.is_grad_enabled()):
        return False
    if not eager():
        return False
    plain = all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in (qkv, bias))  # nothing fake or sharded
    return (
        plain and qkv.device.type == 'cpu' and qkv.dtype == bias.dtype and qkv.dtype in (torch.float32, torch.float64)
    )


def eager() -> bool:
    """Whether operations run as they are written: neither compiled, nor traced, nor transformed."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or under_transform())


def under_transform() -> bool:
    """Within vmap, grad and the like of torch.func, or forward differentiation: tensors are more than they look."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def attention(qkv: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """Equal to `reference` to the rounding of sums, and so are its gradients, of which there are no further ones."""
    return _Attention.apply(qkv, bias, scale)


def _probabilities(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """q (n * h, T, d), scaled, and k of n images -> softmax(q k + bias), (n * h, T, T), in one buffer."""
    p = torch.bmm(q, k.mT)
    p.view(-1, *bias.shape).add_(bias)
    return torch.softmax(p, dim=-1, out=p)


class _Attention(torch.autograd.Function):
    """Against autograd: softmax in place, one buffer for the gradients of q, k and v, fewer copies of heads."""

    @staticmethod
    def forward(ctx, qkv: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
        images, tokens, _, heads, width = qkv.shape
        q, k, v = (part.reshape(images * heads, tokens, width) for part in qkv.permute(2, 0, 3, 1, 4))
        q = q * scale
        p = None
        if tokens <= KEPT_UP_TO or images == 1:
            p = _probabilities(q, k, bias)
            out = torch.bmm(p, v).view(images, heads, tokens, width)
        else:
            shape = (images, heads, tokens, width)
            # Detached, or it would not take its fused kernel
            out = F.scaled_dot_product_attention(
                q.view(shape), k.view(shape), v.view(shape), attn_mask=bias.detach()[None], scale=1.0
            )
        ctx.save_for_backward(q, k, v, p, bias if p is None else None)
        ctx.scale = scale
        return out.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx, d_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        if torch.is_grad_enabled():  # what follows has no derivative
            raise RuntimeError(
                'attention with a learned bias cannot be differentiated twice; for gradients of gradients build the '
                'backbone with fused_attention=False'
            )
        q, k, v, kept, bias = ctx.saved_tensors
        images, tokens, heads, width = d_out.shape
        d_out = d_out.transpose(1, 2).reshape(images * heads, tokens, width)
        d_qkv = d_out.new_empty(images, tokens, 3, heads, width)
        d_bias = d_out.new_zeros(heads, tokens, tokens)
        at_once = max(images, 1) if kept is not None else 1
        for first in range(0, images, at_once):
            rows = slice(first * heads, (first + at_once) * heads)
            p = _probabilities(q[rows], k[rows], bias) if kept is None else kept
            d_p = torch.bmm(d_out[rows], v[rows].mT)
            d_logits = torch._softmax_backward_data(d_p, p, -1, p.dtype, grad_input=d_p)
            by_image = (at_once, heads, tokens, width)
            d_q, d_k, d_v = d_qkv[first : first + at_once].permute(2, 0, 3, 1, 4)
            torch.mul(torch.bmm(d_logits, k[rows]).view(by_image), ctx.scale, out=d_q)
            d_k.copy_(torch.bmm(d_logits.mT, q[rows]).view(by_image))
            d_v.copy_(torch.bmm(p.mT, d_out[rows]).view(by_image))
            d_bias += d_logits.view(at_once, *d_bias.shape).sum(dim=0)
        return d_qkv, d_bias, None
