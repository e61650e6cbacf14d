"""Attention alone with a learned relative position bias, in each way that PyTorch offers; for benchmarks/gpu.py.

B images, h heads of d = 64, T = 1 + grid * grid tokens. What learns: qkv (B, T, 3, h, d), as a block's projection gives
it, and the table of the bias, (rows, h) float32; a step looks the bias up, as a block does. Under autocast, as there.
"""

import contextlib
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from peers import BACKWARD, FLOPS_PER_MAC, Setting, Size, Step
from torch.nn.attention import SDPBackend, sdpa_kernel

HEAD = 64  # width of a head
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # qkv, table, index -> (B, T, h, d)


def heads_of(qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """q, k, v, each (B, h, T, d)."""
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def bias_of(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(h, T, T), with the heads first already where it is looked up."""
    return table.T.contiguous().index_select(1, index.flatten()).view(-1, *index.shape)


def plain(qkv: torch.Tensor, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """As mmpretrain, mmseg and the official code compute it."""
    q, k, v = heads_of(qkv)
    bias = table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1).contiguous()
    logits = (q * HEAD**-0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)
    return (logits.softmax(dim=-1) @ v).transpose(1, 2)


def sdpa(
    qkv: torch.Tensor, table: torch.Tensor, index: torch.Tensor, backend: SDPBackend | None = None
) -> torch.Tensor:
    """scaled_dot_product_attention with the bias as its mask, by PyTorch's choice of kernel or by a given one."""
    q, k, v = heads_of(qkv)
    mask = bias_of(table, index).unsqueeze(0).to(q.dtype)
    with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


@functools.lru_cache(maxsize=1)
def _flex(device: str) -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == 'cpu' else torch.compile(flex_attention, dynamic=False)


def flex(qkv: torch.Tensor, table: torch.Tensor, index: torch.Tensor, written_out: bool = False) -> torch.Tensor:
    """FlexAttention: each score looks its bias up in the table, or in the bias (h, T, T), `written_out` before."""
    bias = bias_of(table, index) if written_out else None

    def score(logit, b, h, query, key):
        return logit + (table[index[query, key], h] if bias is None else bias[h, query, key])

    return _flex(qkv.device.type)(*heads_of(qkv), score_mod=score).transpose(1, 2)


def by_hand(qkv: torch.Tensor, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Ours, of beit_mm/ops/biased_attention.py, made for the CPU."""
    from beit_mm.ops.biased_attention import attention

    return attention(qkv, bias_of(table, index), HEAD**-0.5)


WAYS: dict[str, Attend] = {
    'plain': plain,
    'SDPA': sdpa,
    'SDPA efficient': functools.partial(sdpa, backend=SDPBackend.EFFICIENT_ATTENTION),
    'SDPA cuDNN': functools.partial(sdpa, backend=SDPBackend.CUDNN_ATTENTION),
    'SDPA math': functools.partial(sdpa, backend=SDPBackend.MATH),
    'FlexAttention table': flex,
    'FlexAttention bias': functools.partial(flex, written_out=True),
    'ours by hand': by_hand,
}


def attention(way: str, grid: int, backward: bool, size: Size, setting: Setting, batch: int) -> Step:
    """forward: gives the output. backward too: gives the gradients of qkv and of the table."""
    from beit_mm.ops.relative_position import num_offsets, relative_position_index

    attend, tokens = WAYS[way], grid * grid + 1
    dtype = torch.float32 if setting.smoke else torch.bfloat16
    with setting.building():
        index = relative_position_index((grid, grid), torch.device(setting.device))
        table = torch.randn(num_offsets((grid, grid)), size.heads).requires_grad_(backward)
        qkv = torch.randn(batch, tokens, 3, size.heads, HEAD, dtype=dtype).requires_grad_(backward)
        upstream = torch.randn(batch, tokens, size.heads, HEAD, dtype=dtype)

    def forward() -> torch.Tensor:
        with setting.autocast():
            return attend(qkv, table, index)

    def both() -> tuple[torch.Tensor, ...]:
        out = forward()
        return torch.autograd.grad(out, (qkv, table), upstream.to(out.dtype))

    return both if backward else torch.no_grad()(forward)


def flops_attention(grid: int, backward: bool, size: Size) -> float:
    """Of an image: two matrix products; a backward pass is counted as twice that, whatever is computed again."""
    forward = FLOPS_PER_MAC * 2 * (grid * grid + 1) ** 2 * size.heads * HEAD
    return forward * (1 + BACKWARD) if backward else forward
