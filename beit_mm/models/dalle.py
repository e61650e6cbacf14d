"""OpenAI's DALL-E image tokenizer: encoder (pixels -> 8192 token logits, 8x smaller) and decoder.

Parameter names are OpenAI's, so that a state dict of encoder.pkl or decoder.pkl fits as it is.
Source: openai/DALL-E dall_e/encoder.py, decoder.py, utils.py (paper 2102.12092, Appendix A).
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from ..ops.pixels import unmap_pixels
from ..registry import MODELS

NUM_GROUPS = 4


class Conv2d(nn.Module):
    """A same-padded convolution whose parameters are called `w` and `b`, as in OpenAI's files."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(n_out, n_in, kernel, kernel).normal_(std=1 / math.sqrt(n_in * kernel**2)))
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


def residual_path(widths: list[int], kernels: list[int]) -> nn.Sequential:
    """ReLU before each convolution; widths has one entry more than kernels."""
    parts: list[tuple[str, nn.Module]] = []
    for i, kernel in enumerate(kernels, start=1):
        relu = nn.ReLU(inplace=i > 1)  # the first one's input is the block's, which goes on beside the path
        parts += [(f'relu_{i}', relu), (f'conv_{i}', Conv2d(widths[i - 1], widths[i], kernel))]
    return nn.Sequential(OrderedDict(parts))


class ResidualBlock(nn.Module):
    """id_path(x) + post_gain * res_path(x), with a quarter of the width inside."""

    def __init__(self, n_in: int, n_out: int, post_gain: float, kernels: list[int]) -> None:
        super().__init__()
        hidden = n_out // 4
        self.post_gain = post_gain
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.res_path = residual_path([n_in, hidden, hidden, hidden, n_out], kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(self.id_path(x), self.res_path(x), alpha=self.post_gain)


def _groups(widths: list[int], num_blocks: int, kernels: list[int], between: nn.Module) -> list[tuple[str, nn.Module]]:
    """Four groups of blocks; `between` follows all but the last."""
    post_gain = 1 / (NUM_GROUPS * num_blocks) ** 2
    groups = []
    for g in range(1, NUM_GROUPS + 1):
        blocks = OrderedDict(
            (f'block_{b}', ResidualBlock(widths[g - 1] if b == 1 else widths[g], widths[g], post_gain, kernels))
            for b in range(1, num_blocks + 1)
        )
        if g < NUM_GROUPS:
            blocks['pool' if isinstance(between, nn.MaxPool2d) else 'upsample'] = between
        groups.append((f'group_{g}', nn.Sequential(blocks)))
    return groups


class Frozen(nn.Module):
    """A network that is never trained here: no gradients, always in eval mode."""

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True):
        return super().train(False)


@MODELS.register_module(name='DALLEEncoder')
class Encoder(Frozen):
    """(B, 3, H, W) in [0.1, 0.9], after `map_pixels`, -> logits (B, vocab_size, H / 8, W / 8)."""

    downsampling = 8

    def __init__(self, n_hid: int = 256, vocab_size: int = 8192, n_blk_per_group: int = 2) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        widths = [n_hid, n_hid, 2 * n_hid, 4 * n_hid, 8 * n_hid]
        output = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(8 * n_hid, vocab_size, 1)))
        self.blocks = nn.Sequential(
            OrderedDict(
                [
                    ('input', Conv2d(3, n_hid, 7)),
                    *_groups(widths, n_blk_per_group, [3, 3, 3, 1], nn.MaxPool2d(2)),
                    ('output', output),
                ]
            )
        )
        self.freeze()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)

    def tokens(self, view: torch.Tensor) -> torch.Tensor:
        """Visual tokens (B, h, w) int64 of a token view in [0.1, 0.9]."""
        return self.blocks(view).argmax(dim=1)


@MODELS.register_module(name='DALLEDecoder')
class Decoder(Frozen):
    """One-hot tokens (B, vocab_size, h, w) -> logit-Laplace statistics (B, 6, 8h, 8w): 3 means, 3 log scales."""

    def __init__(self, n_init: int = 128, n_hid: int = 256, vocab_size: int = 8192, n_blk_per_group: int = 2) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        widths = [n_init, 8 * n_hid, 4 * n_hid, 2 * n_hid, n_hid]
        output = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(n_hid, 6, 1)))
        self.blocks = nn.Sequential(
            OrderedDict(
                [
                    ('input', Conv2d(vocab_size, n_init, 1)),
                    *_groups(widths, n_blk_per_group, [1, 3, 3, 3], nn.Upsample(scale_factor=2, mode='nearest')),
                    ('output', output),
                ]
            )
        )
        self.freeze()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, h, w) -> images (B, 3, 8h, 8w) in [0, 1]."""
        one_hot = F.one_hot(tokens, self.vocab_size).permute(0, 3, 1, 2).float()
        return unmap_pixels(torch.sigmoid(self.blocks(one_hot)[:, :3]))
