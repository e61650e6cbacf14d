"""What a masked patch must predict: `target(batch) -> (B, N) int64` tokens, or `(B, N, D)` float pixels.

A target is frozen where it is built: no gradient, always in eval mode, and not in the model's checkpoint.
"""

import hashlib
import itertools
import json

import torch
from torch import nn

from ..checkpoints.load import CheckpointError, read, state_dict_of
from ..checkpoints.tokenizers import tokenizer_weights
from ..ops.pixels import patchify
from ..registry import MODELS

PATCH_VARIANCE_EPS = 1e-6  # official MAE models_mae.py: a flat patch has no variance


def same_grid(tokens: torch.Tensor, mask: torch.Tensor) -> bool:
    """Do tokens and mask, (B, Gh, Gw) or (B, N), stand for the same patches?"""
    if tokens.ndim == mask.ndim == 3:
        return tokens.shape == mask.shape
    return min(tokens.ndim, mask.ndim) > 1 and tokens.flatten(1).shape == mask.flatten(1).shape


def grid_of(tensor: torch.Tensor) -> str:
    """How many images of how many patches, in words."""
    return f'{len(tensor)} images of {" x ".join(map(str, tensor.shape[1:]))} patches'


@MODELS.register_module()
class TokenTarget(nn.Module):
    """Visual tokens of the token view, by any tokenizer with `tokens(view)` and `vocab_size`.

    tokenizer: config of a DALLEEncoder, DiscreteVAE, KMeansTokenizer or UnilmDiscreteVAE.
    checkpoint: its weights: OpenAI's encoder.pkl, mmpretrain's dalle_encoder.pth, a FlavaImageCodebook, unilm's
        pytorch_model.bin, or a training checkpoint of beit_mm. None keeps random weights, which is for tests.
    A batch that brings `tokens` (B, Gh, Gw), computed before, has no need of the tokenizer.
    Raises ValueError where the grids of tokens and patches, or the ids and the vocabulary, do not agree.
    """

    def __init__(self, tokenizer: dict, checkpoint: str | None = None) -> None:
        super().__init__()
        self._arguments = {key: value for key, value in tokenizer.items() if key not in ('type', '_scope_')}
        built = MODELS.build(tokenizer).requires_grad_(False).eval()
        # In a list the tokenizer is no submodule: not in state_dict(), parameters(), DDP or the optimizer.
        # Its convolutions read channels last, which costs them less; the tokens are the same (benchmarks/mim.py).
        self._tokenizer = [built.to(memory_format=torch.channels_last)]
        if not hasattr(self.tokenizer, 'tokens'):
            raise ValueError(f'TokenTarget: {type(self.tokenizer).__name__} gives no tokens; it is no tokenizer')
        if checkpoint:
            own = self.tokenizer.state_dict()
            try:
                weights = tokenizer_weights(state_dict_of(read(checkpoint, map_location='cpu')), own, self.vocab_size)
            except CheckpointError as error:
                name = '' if str(error).startswith(str(checkpoint)) else f'{checkpoint}: '
                kind = tokenizer.get('type')
                raise CheckpointError(
                    f'{name}{error} (the tokenizer is {kind}; for another: model.target.checkpoint=FILE)'
                ) from error
            self.tokenizer.load_state_dict({**own, **weights})

    @property
    def tokenizer(self) -> nn.Module:
        return self._tokenizer[0]

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if 'tokens' in batch:
            return self._given(batch)
        if 'tokens_view' not in batch:
            raise ValueError(f'the batch has neither tokens_view nor tokens, but {", ".join(batch)}')
        tokens = self.tokens(batch['tokens_view'])
        if not same_grid(tokens, batch['mask']):
            height, width = batch['tokens_view'].shape[2:]
            raise ValueError(
                f'the tokenizer gives tokens for {grid_of(tokens)} from a view of {height} x {width} '
                f'pixels, the mask is for {grid_of(batch["mask"])}: choose the second view so that both agree'
            )
        return tokens.flatten(1)

    @torch.no_grad()
    def tokens(self, view: torch.Tensor) -> torch.Tensor:
        """Tokens (B, Gh, Gw) of preprocessed token views (B, C, h, w), on their device."""
        held = next(itertools.chain(self.tokenizer.parameters(), self.tokenizer.buffers()), view)
        if held.device != view.device:
            self.tokenizer.to(view.device)
        # Official code: tokens are computed outside autocast, or some of them change.
        with torch.autocast(view.device.type, enabled=False):
            return self.tokenizer.tokens(view.float().contiguous(memory_format=torch.channels_last))

    def digest(self) -> str:
        """sha256 of what decides over tokens: the kind of tokenizer, its arguments, its weights."""
        kind = dict(type=type(self.tokenizer).__name__, **self._arguments)
        digest = hashlib.sha256(json.dumps(kind, sort_keys=True, default=str).encode())
        for name, weight in sorted(self.tokenizer.state_dict().items()):
            digest.update(f'{name} {weight.dtype} {tuple(weight.shape)}'.encode())
            digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _given(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        tokens = batch['tokens']
        if not same_grid(tokens, batch['mask']):
            raise ValueError(
                f'the tokens computed before are for {grid_of(tokens)}, the mask is for '
                f'{grid_of(batch["mask"])}: compute them for this size'
            )
        if tokens.is_floating_point():
            raise ValueError(f'the tokens computed before are {tokens.dtype}, and ids are integers')
        tokens = tokens.long()
        if not tokens.numel():
            return tokens.flatten(1)
        low, high = tokens.aminmax()
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f'the tokens computed before hold id {int(low if low < 0 else high)}, and the vocabulary has '
                f'{self.vocab_size} (0..{self.vocab_size - 1}): they were made by another tokenizer'
            )
        return tokens.flatten(1)


@MODELS.register_module()
class CachedTokens(TokenTarget):
    """Visual tokens that were computed before training and come with the batch (docs/tokens.md).

    Arguments as TokenTarget's: the tokenizer is the one whose tokens they are, which is checked before the first step
    (`TokenCacheHook`), and it computes those of evaluations. Raises ValueError for a training batch without tokens.
    """

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.training and 'tokens' not in batch:
            raise ValueError(
                "CachedTokens: the training data bring no tokens. Put dict(type='beit_mm.TokensFromCache', cache=..., "
                'views=...) first in their pipeline, or set target.type to beit_mm.TokenTarget, which computes them'
            )
        return super().forward(batch)


@MODELS.register_module()
class PixelTarget(nn.Module):
    """The ablation of Table 4: the normalised pixels of each patch, (B, N, patch * patch * C).

    per_patch: take from each patch its own mean, and divide by its own standard deviation (as MAE does).
    """

    vocab_size = None

    def __init__(self, patch_size: int, per_patch: bool = False) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.per_patch = per_patch

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pixels = patchify(batch['patches'], self.patch_size)
        if 'mask' in batch and batch['mask'].flatten(1).shape[1] != pixels.shape[1]:
            raise ValueError(
                f'PixelTarget: patch_size={self.patch_size} gives {pixels.shape[1]} patches, the mask is for '
                f'{grid_of(batch["mask"])}: take the patch size of the backbone'
            )
        if self.per_patch:
            variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
            pixels = (pixels - mean) / (variance + PATCH_VARIANCE_EPS).sqrt()
        return pixels
