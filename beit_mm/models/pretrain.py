"""MaskedImageModel: BEiT's pre-training task (paper section 2.3) on one screen."""

import torch
from mmengine.model import BaseModel

from ..registry import MODELS
from .backbone import BEiTViT


@MODELS.register_module()
class MaskedImageModel(BaseModel):
    """Hide some patches, and predict for them what the target says they held.

    backbone: a BEiTViT with out_type='raw', final_norm=True, with_mask_token=True. Where only masked patches count, it
        is asked for the features of these alone (`masked_features`): the same to rounding.
    target, head: of one kind, TokenTarget with TokenHead, PixelTarget with PixelHead.
    predict: `masked` patches (the paper), or `all` (the "recover 100 %" ablations of Table 4).
    hide: False shows every patch to the backbone (the "- masking" ablation; needs predict='all').
    """

    def __init__(
        self,
        backbone: dict,
        target: dict,
        head: dict,
        predict: str = 'masked',
        hide: bool = True,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if predict not in ('masked', 'all'):
            raise ValueError(f"MaskedImageModel: predict={predict!r} is neither 'masked' nor 'all'")
        if not hide and predict == 'masked':
            raise ValueError("MaskedImageModel: hide=False leaves nothing masked to predict; set predict='all'")
        self.backbone = MODELS.build(backbone)
        self.target = MODELS.build(target)
        self.head = MODELS.build(head)
        if self.head.vocab_size != self.target.vocab_size:
            raise ValueError(
                f'MaskedImageModel: {type(self.head).__name__} predicts one of {self.head.vocab_size} tokens, '
                f'{type(self.target).__name__} has {self.target.vocab_size}: make both the same '
                f'(None stands for pixels)'
            )
        if self.backbone.out_type != 'raw':
            raise ValueError(f"MaskedImageModel: the backbone's out_type is {self.backbone.out_type!r}; set 'raw'")
        if self.head.embed_dims != self.backbone.embed_dims:
            raise ValueError(
                f'MaskedImageModel: {type(self.head).__name__} has embed_dims={self.head.embed_dims}, '
                f'the backbone {self.backbone.embed_dims}'
            )
        if not hide and self.backbone.mask_token is not None:
            self.backbone.mask_token.requires_grad_(False)  # DDP waits for the gradient of all that learns
        self.predict_all = predict == 'all'
        self.hide = hide

    def forward(self, mode: str = 'tensor', **batch):
        """batch: patches (B, C, H, W) normalised, tokens_view (B, C, h, w) or tokens, mask (B, Gh, Gw) bool."""
        if mode == 'loss':
            return self.loss(batch)
        if mode == 'predict':
            return self.predict(batch)
        return self.features(batch)

    def features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Patch features (B, N, D) of images whose masked patches are hidden."""
        mask = batch['mask'] if self.hide else None
        return self.backbone(batch['patches'], mask)[-1][:, self.backbone.num_extra_tokens :]

    def masked_features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features (M, D) of the M hidden patches."""
        if self._by_masked_features():
            return self.backbone.masked_features(batch['patches'], batch['mask'], batch['mask'])
        return self.features(batch)[batch['mask'].flatten(1).bool()]

    def _by_masked_features(self) -> bool:
        """Whether the backbone's `masked_features` stands for its call: nobody has changed that, or hangs on it."""
        backbone = self.backbone
        if type(backbone).forward is not BEiTViT.forward or 'forward' in vars(backbone):
            return False
        called = (backbone._compiled_call_impl, backbone._forward_hooks, backbone._forward_pre_hooks)
        return not any(called) and backbone.out_indices[-1] == backbone.num_layers - 1

    def loss(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        target = self.target(batch)
        if self.predict_all:
            return self.head.loss(self.features(batch).flatten(0, 1), target.flatten(0, 1))
        return self.head.loss(self.masked_features(batch), target[batch['mask'].flatten(1).bool()])

    def parse_losses(self, losses: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict]:
        """The loss to minimise, which knows of how many patches it is the mean (see engine/accumulation.py)."""
        count = losses.pop('num_predicted')
        loss, logged = super().parse_losses(losses)
        loss.count = count
        return loss, logged

    def predict(self, batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Per image: mask (N,), prediction and target, (N,) token ids or (N, D) pixels, on the CPU."""
        target = self.target(batch)
        guess = self.head(self.features(batch))
        if target.ndim == 2:
            guess = guess.argmax(dim=-1)
        mask = batch['mask'].flatten(1)
        return [dict(mask=m.cpu(), prediction=g.cpu(), target=t.cpu()) for m, g, t in zip(mask, guess, target)]
