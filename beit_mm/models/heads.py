"""How a masked patch is predicted, and what it costs to be wrong. M = masked patches of the batch."""

import torch
import torch.nn.functional as F
from mmengine import dist
from torch import nn

from ..registry import MODELS
from .backbone import INIT_STD


def mean_over_ranks(total: torch.Tensor, count: int) -> torch.Tensor:
    """total / count over all ranks' patches, scaled so that DDP's averaging of gradients gives just that.

    Masks are ragged: a mean of every rank's mean would be another loss.
    """
    if dist.get_world_size() == 1:
        return total / max(1, count)
    counts = torch.tensor(float(count), device=total.device)
    dist.all_reduce(counts)
    return total * dist.get_world_size() / counts.clamp_min(1)


@MODELS.register_module()
class TokenHead(nn.Module):
    """A linear layer over the vocabulary, cross-entropy, and the share of tokens guessed right."""

    def __init__(self, embed_dims: int, vocab_size: int) -> None:
        super().__init__()
        self.cls_head = nn.Linear(embed_dims, vocab_size)
        nn.init.trunc_normal_(self.cls_head.weight, std=INIT_STD, a=-INIT_STD, b=INIT_STD)
        nn.init.zeros_(self.cls_head.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> logits (..., K)."""
        return self.cls_head(features)

    def loss(self, features: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """features (M, D), tokens (M,) -> loss_mim, masked_accuracy in [0, 1]."""
        logits = self(features).float()
        total = F.cross_entropy(logits, tokens, reduction='sum')
        with torch.no_grad():
            accuracy = (logits.argmax(dim=-1) == tokens).float().mean()
        return dict(loss_mim=mean_over_ranks(total, len(tokens)), masked_accuracy=accuracy)


@MODELS.register_module()
class PixelHead(nn.Module):
    """A linear layer to a patch's pixels and the mean squared error (the pixel ablation of Table 4)."""

    def __init__(self, embed_dims: int, num_pixels: int) -> None:
        super().__init__()
        self.to_pixels = nn.Linear(embed_dims, num_pixels)
        nn.init.trunc_normal_(self.to_pixels.weight, std=INIT_STD, a=-INIT_STD, b=INIT_STD)
        nn.init.zeros_(self.to_pixels.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> pixels (..., patch * patch * C)."""
        return self.to_pixels(features)

    def loss(self, features: torch.Tensor, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """features (M, D), pixels (M, P) -> loss_mim."""
        total = F.mse_loss(self(features).float(), pixels, reduction='none').mean(dim=-1).sum()
        return dict(loss_mim=mean_over_ranks(total, len(pixels)))
