"""The transformer block of BEiT: attention with biases for q and v only, relative positions, stochastic depth.

Letters in shapes: B images, N patches, T = 1 + N tokens (the class token first), D width, h heads.
Source: official modeling_finetune.py (Attention, Block, Mlp, RelativePositionBias).
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.relative_position import num_offsets, resize_table


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is dropped with probability `rate`, the rest scaled up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class RelativePositionBias(nn.Module):
    """A learned bias per head and offset (query minus key), zero at the start; see ops/relative_position.py."""

    def __init__(self, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_offsets(grid), num_heads))

    def forward(self, grid: tuple[int, int], index: torch.Tensor) -> torch.Tensor:
        """The bias (h, T, T) for `grid`, resized from the table's own grid where they differ."""
        return position_bias(self.relative_position_bias_table, self.grid, grid, index)


def position_bias(
    table: torch.Tensor, own_grid: tuple[int, int], grid: tuple[int, int], index: torch.Tensor
) -> torch.Tensor:
    """Look the table (rows, h) of `own_grid` up for every pair of tokens of `grid`, by its index: (h, T, T)."""
    by_head = resize_table(table, own_grid, grid).T.contiguous()
    return by_head.index_select(1, index.flatten()).view(-1, *index.shape)


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

    def split_heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, D) -> q, k, v, each (B, h, T, D / h)."""
        qkv_bias = self.qkv.bias
        if self.q_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        return qkv.view(*x.shape[:2], 3, self.num_heads, x.shape[2] // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)

    def probabilities(self, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Softmax of the scaled products plus bias: (B, h, T, T)."""
        logits = (q * self.scale) @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        return logits.softmax(dim=-1)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x (B, T, D), bias (h, T, T) or None -> (B, T, D)."""
        q, k, v = self.split_heads(x)
        dropout = self.attn_drop if self.training else 0.0
        learns_bias = bias is not None and bias.requires_grad and torch.is_grad_enabled()
        # Asked for a gradient of the bias, SDPA has no fused kernel on the CPU and is slower than the plain form.
        # A trace is for inference, and is checked against a second one made without gradients.
        learns_bias = learns_bias and not torch.jit.is_tracing()
        if self.fused and not learns_bias:
            mask = None if bias is None else bias.unsqueeze(0).to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)
        else:
            out = F.dropout(self.probabilities(q, k, bias), dropout, self.training) @ v
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(x.shape)))


class FeedForward(nn.Module):
    """Linear, GELU, linear, dropout. The nesting of `layers` gives mmcv's FFN key names."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU()), nn.Linear(hidden, dim), nn.Dropout(drop)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


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

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        attended = self.attn(self.ln1(x), bias)
        x = x + self.drop_path(attended if self.gamma_1 is None else self.gamma_1 * attended)
        transformed = self.ffn(self.ln2(x))
        return x + self.drop_path(transformed if self.gamma_2 is None else self.gamma_2 * transformed)
