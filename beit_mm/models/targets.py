"""What a masked patch must predict: `target(batch) -> (B, N) int64` tokens, or `(B, N, D)` float pixels.

A target is frozen where it is built: no gradient, always in eval mode, and not in the model's checkpoint.
"""

import torch
from torch import nn

from ..checkpoints.load import CheckpointError, read, state_dict_of
from ..ops.pixels import patchify
from ..registry import MODELS


@MODELS.register_module()
class TokenTarget(nn.Module):
    """Visual tokens of the token view, by any tokenizer with `tokens(view)` and `vocab_size`.

    tokenizer: config of a DALLEEncoder, DiscreteVAE or KMeansTokenizer.
    checkpoint: its weights, a local file (a state dict, or a training checkpoint of beit_mm). None keeps
        random weights, which is for tests.
    A batch that brings `tokens` (computed before) is taken at its word.
    """

    def __init__(self, tokenizer: dict, checkpoint: str | None = None) -> None:
        super().__init__()
        # In a list the tokenizer is no submodule: not in state_dict(), parameters(), DDP or the optimizer.
        self._tokenizer = [MODELS.build(tokenizer).requires_grad_(False).eval()]
        if checkpoint:
            weights = state_dict_of(read(checkpoint, map_location='cpu'))
            try:
                self._tokenizer[0].load_state_dict(weights)
            except RuntimeError as error:
                raise CheckpointError(
                    f'{checkpoint}: does not fit the tokenizer {tokenizer.get("type")} of this config. {error}'
                ) from error

    @property
    def tokenizer(self) -> nn.Module:
        return self._tokenizer[0]

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @torch.no_grad()
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if 'tokens' in batch:
            return batch['tokens'].flatten(1).long()
        view = batch['tokens_view']
        if next(self.tokenizer.parameters()).device != view.device:
            self.tokenizer.to(view.device)
        # Official code: tokens are computed outside autocast, or some of them change.
        with torch.autocast(view.device.type, enabled=False):
            tokens = self.tokenizer.tokens(view.float()).flatten(1)
        patches = batch['mask'].flatten(1).shape[1]
        if tokens.shape[1] != patches:
            raise ValueError(
                f'the tokenizer gives {tokens.shape[1]} tokens for a view of {view.shape[2]} x {view.shape[3]} pixels, '
                f'and the backbone has {patches} patches: choose the second view so that both grids agree'
            )
        return tokens


@MODELS.register_module()
class PixelTarget(nn.Module):
    """The ablation of Table 4: the normalised pixels of each patch, (B, N, patch * patch * C)."""

    vocab_size = None

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return patchify(batch['patches'], self.patch_size)
