"""How a masked patch is predicted, and what it costs to be wrong. M = masked patches of the batch."""

import torch
import torch.nn.functional as F
from mmengine import dist
from torch import nn

from ..registry import MODELS
from .backbone import INIT_STD


def over_ranks(total: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(total / all ranks' count, that count); the loss is scaled so that DDP's mean of gradients is its gradient.

    Masks are ragged: a mean of every rank's mean would be another loss. No masked patch at all gives 0.
    """
    counts = torch.tensor(float(count), device=total.device)
    if dist.get_world_size() > 1:
        dist.all_reduce(counts)
        total = total * dist.get_world_size()
    return total / counts.clamp_min(1), counts


@MODELS.register_module()
class TokenHead(nn.Module):
    """A linear layer over the vocabulary, cross-entropy, and the share of tokens guessed right.

    Source: official modeling_pretrain.py (lm_head), engine_for_pretraining.py (loss, mlm_acc).
    """

    def __init__(self, embed_dims: int, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embed_dims = embed_dims
        self.cls_head = nn.Linear(embed_dims, vocab_size)
        nn.init.trunc_normal_(self.cls_head.weight, std=INIT_STD, a=-INIT_STD, b=INIT_STD)
        nn.init.zeros_(self.cls_head.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> logits (..., K)."""
        return self.cls_head(features)

    def loss(self, features: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """features (M, D), tokens (M,) -> loss_mim (nats), num_predicted, and what is logged beside them.

        masked_accuracy in [0, 1]; target_entropy (nats) and codes_used (a count) of this rank's tokens: a
        tokenizer that has collapsed makes the loss small and the entropy smaller.
        """
        logits = self(features).float()
        loss, count = over_ranks(F.cross_entropy(logits, tokens, reduction='sum'), len(tokens))
        with torch.no_grad():
            right = (logits.argmax(dim=-1) == tokens).sum()
            used = torch.bincount(tokens, minlength=self.vocab_size)
            share = used / max(1, len(tokens))
            logged = dict(
                masked_accuracy=right / max(1, len(tokens)),
                target_entropy=-torch.xlogy(share, share).sum(),
                codes_used=(used > 0).sum().float(),
            )
        return dict(loss_mim=loss, num_predicted=count, **logged)


@MODELS.register_module()
class PixelHead(nn.Module):
    """A linear layer to a patch's pixels and the mean squared error (the pixel ablation of Table 4)."""

    vocab_size = None

    def __init__(self, embed_dims: int, num_pixels: int) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.to_pixels = nn.Linear(embed_dims, num_pixels)
        nn.init.trunc_normal_(self.to_pixels.weight, std=INIT_STD, a=-INIT_STD, b=INIT_STD)
        nn.init.zeros_(self.to_pixels.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> pixels (..., patch * patch * C)."""
        return self.to_pixels(features)

    def loss(self, features: torch.Tensor, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """features (M, D), pixels (M, P) -> loss_mim, num_predicted."""
        if pixels.shape[1] != self.to_pixels.out_features:
            raise ValueError(
                f'PixelHead: num_pixels={self.to_pixels.out_features}, and a patch of the target has {pixels.shape[1]}'
            )
        total = F.mse_loss(self(features).float(), pixels, reduction='none').mean(dim=-1).sum()
        loss, count = over_ranks(total, len(pixels))
        return dict(loss_mim=loss, num_predicted=count)
