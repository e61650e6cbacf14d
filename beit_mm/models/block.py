"""The transformer block of BEiT: attention with biases for q and v only, relative positions, stochastic depth.

Letters in shapes: B images, N patches, T = 1 + N tokens (the class token first), D width, h heads.
Source: official modeling_finetune.py (Attention, Block, Mlp, RelativePositionBias).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from ..ops import biased_attention, gelu_linear
from ..ops.relative_position import num_offsets


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is dropped with probability `rate`, the rest scaled up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    @property
    def drops(self) -> bool:
        return self.training and self.rate > 0

    def draw(self, x: torch.Tensor, samples: int) -> torch.Tensor:
        """(samples,) 0 for those to drop, 1 / (1 - rate) for the others; of x's device and type."""
        keep = 1.0 - self.rate
        return x.new_empty(samples).bernoulli_(keep).div_(keep)

    def forward(self, x: torch.Tensor, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, ...), or (M, D): the tokens `wanted` (B, T) bool of samples, which are dropped whole all the same."""
        if not self.drops:
            return x
        scale = self.draw(x, len(x) if wanted is None else len(wanted))
        if wanted is not None:
            scale = scale[wanted.nonzero()[:, 0]]
        return x * scale.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


def add_scaled(x: torch.Tensor, branch: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
    """x + gamma * branch, in one pass."""
    return x + branch if gamma is None else torch.addcmul(x, gamma, branch)


class Attention(nn.Module):
    """Multi-head self-attention with biases for q and v only and an optional relative position bias."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: str | bool,
        grid: tuple[int, int] | None,
        attn_drop: float,
        proj_drop: float,
        fused: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.fused = fused
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias is True)
        self.q_bias = self.v_bias = None
        if bias == 'qv_bias':
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.own_grid = grid
        self.relative_position_bias_table = None
        if grid is not None:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(num_offsets(grid), num_heads))
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> queries, keys and values of all heads, (B, T, 3, h, D / h)."""
        qkv_bias = self.qkv.bias
        if self.q_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        return qkv.view(*x.shape[:2], 3, self.num_heads, x.shape[2] // self.num_heads)

    def bias_of(self, bias: torch.Tensor | Callable | None) -> torch.Tensor | None:
        """A bias (h, T, T), or None, also where it is given as what makes it of this attention's table."""
        return bias(self.relative_position_bias_table) if callable(bias) else bias

    def probabilities(self, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Softmax of the scaled products of q and k, both (B, h, T, D / h), plus bias: (B, h, T, T)."""
        logits = (q * self.scale) @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        return logits.softmax(dim=-1)

    def attend(self, qkv: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """(B, T, 3, h, D / h) -> values, weighted by the probabilities: (B, T, h, D / h). By the cheapest road."""
        dropout = self.attn_drop if self.training else 0.0
        if self.fused and not dropout and biased_attention.takes(qkv, bias):
            return biased_attention.attention(qkv, bias, self.scale)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        learns_bias = bias is not None and bias.requires_grad and torch.is_grad_enabled()
        # Asked for a gradient of the bias, SDPA has no fused kernel on the CPU and is slower than the plain form.
        # A trace is for inference, and is checked against a second one made without gradients.
        if self.fused and (not learns_bias or q.is_cuda or torch.jit.is_tracing()):
            mask = None if bias is None else bias.unsqueeze(0).to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)
        else:
            out = F.dropout(self.probabilities(q, k, bias), dropout, self.training) @ v
        return out.transpose(1, 2)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | Callable | None, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x (B, T, D), bias as for `bias_of` -> (B, T, D); with wanted (B, T) bool, its M tokens only: (M, D)."""
        out = self.attend(self.project(x), self.bias_of(bias)).reshape(x.shape)
        return self.proj_drop(self.proj(out if wanted is None else out[wanted]))


class FeedForward(nn.Module):
    """Linear, GELU, linear, dropout. The nesting of `layers` gives mmcv's FFN key names."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU()), nn.Linear(hidden, dim), nn.Dropout(drop)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (first, gelu), second, drop = self.layers
        hidden = first(x)
        if gelu_linear.takes(hidden, second):
            return drop(gelu_linear.gelu_linear(hidden, second))
        return drop(second(gelu(hidden)))


class Block(nn.Module):
    """Pre-norm transformer block: x + drop_path(gamma * branch(ln(x))) for attention, then for the MLP."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        bias: str | bool,
        grid: tuple[int, int] | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
        layer_scale: float,
        eps: float,
        fused: bool,
    ) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, bias, grid, attn_drop, drop, fused)
        self.ln2 = nn.LayerNorm(dim, eps=eps)
        self.ffn = FeedForward(dim, hidden, drop)
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale > 0:
            self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | Callable | None, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x (B, T, D), bias (h, T, T), None, or what makes it of the attention's table -> (B, T, D).

        With wanted (B, T) bool, `forward(x, bias)[wanted]`, (M, D): the other tokens are keys and values only.
        """
        if wanted is None:
            x = self.add(x, self.gamma_1, lambda x: self.attn(self.ln1(x), bias))
            return self.add(x, self.gamma_2, lambda x: self.ffn(self.ln2(x)))
        x = add_scaled(x[wanted], self.drop_path(self.attn(self.ln1(x), bias, wanted), wanted), self.gamma_1)
        return add_scaled(x, self.drop_path(self.ffn(self.ln2(x)), wanted), self.gamma_2)

    def add(self, x: torch.Tensor, gamma: torch.Tensor | None, branch: Callable) -> torch.Tensor:
        """x + drop_path(gamma * branch(x)). Where that can be, the branch is computed of the samples it is kept of."""
        # A GPU should not wait for a count, and in a graph or under vmap there is none
        uncounted = x.is_cuda or torch.compiler.is_compiling() or biased_attention.under_transform()
        if not self.drop_path.drops or uncounted:
            return add_scaled(x, self.drop_path(branch(x)), gamma)
        scale = self.drop_path.draw(x, len(x))
        kept = scale.nonzero()[:, 0]
        out = branch(x.index_select(0, kept))
        out = (out if gamma is None else gamma * out).to(x.dtype)
        return x.index_add(0, kept, out, alpha=1 / (1 - self.drop_path.rate))
