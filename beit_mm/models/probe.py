"""Probes: what the frozen features of each block know about the labels, by linear classifiers or nearest neighbours.

Letters in shapes: B images, T tokens, D width, F = D or 2 D features, K classes, A candidates, M images in the bank.

A probe tries several candidates (blocks; numbers of neighbours) at once. Which of them counts is chosen on held-out
images (engine/probing.py), not on those that it is evaluated on.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine import dist
from mmengine.model import BaseModel
from torch import nn

from ..checkpoints.fit import fit
from ..registry import MODELS

FEATURES = ('cls', 'mean', 'both')
HEAD_STD = 0.01  # official run_linear_eval.py
BATCH_NORM_EPS = 1e-6  # official MAE main_linprobe.py
SHOWN = 5  # labels per candidate that a prediction holds, the likeliest first


class Choice(NamedTuple):
    """Which candidate was best on held-out images, and its accuracy there in percent."""

    index: int
    held_out_top1: float


def pooled(tokens: torch.Tensor, features: str, num_extra_tokens: int = 1) -> torch.Tensor:
    """Tokens (B, T, D) of one block -> float32: the first token, the mean of the patches' (B, D), or both (B, 2 D)."""
    tokens = tokens.float()
    patches = tokens[:, num_extra_tokens:].mean(dim=1)
    if features == 'mean':
        return patches
    return tokens[:, 0] if features == 'cls' else torch.cat([tokens[:, 0], patches], dim=1)


class _Probe(BaseModel):
    """A frozen backbone: no gradient, in no optimizer group, always in eval mode. It is in the checkpoint.

    backbone: a BEiTViT, or a ViT of mmpretrain, with out_type='raw' and the blocks to probe as out_indices; a last
        block is raw if final_norm=False. timm's weights load into BEiTViT.
    features: `cls`, `mean` (of patch tokens) or `both`, the class token's first.
    """

    candidates: tuple[dict[str, int], ...]

    def __init__(
        self,
        backbone: dict,
        num_classes: int,
        features: str = 'both',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        name = type(self).__name__
        self.backbone = MODELS.build(backbone)
        out_type = getattr(self.backbone, 'out_type', None)
        if out_type != 'raw':
            raise ValueError(f"{name}: the backbone's out_type is {out_type!r}; set out_type='raw'")
        if features not in FEATURES:
            raise ValueError(f'{name}: features={features!r} is none of {", ".join(FEATURES)}')
        if features != 'mean' and not self.backbone.num_extra_tokens:
            raise ValueError(f"{name}: features={features!r}: the backbone has no class token; use 'mean'")
        self.backbone.requires_grad_(False)
        self.backbone.eval()
        self.num_classes, self.features = num_classes, features
        self.blocks = [index + 1 for index in self.backbone.out_indices]  # as papers count them
        self.choice: Choice | None = None

    def train(self, mode: bool = True) -> '_Probe':
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def extract(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Images (B, C, H, W) -> features (B, F) float32 of every block."""
        extra = self.backbone.num_extra_tokens
        return [pooled(tokens, self.features, extra) for tokens in self.backbone(inputs)]

    def scores(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Features of every block -> (A, B, K): the higher, the likelier."""
        raise NotImplementedError

    def loss(self, features: list[torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NotImplementedError(f'{type(self).__name__} learns nothing: evaluate it with tools/test.py')

    def forward(self, inputs: torch.Tensor, data_samples: list | None = None, mode: str = 'tensor'):
        """`tensor`: features of every block; `loss`: a loss per candidate; `predict`: see `predict`."""
        features = self.extract(inputs)
        if mode == 'tensor':
            return features
        labels = torch.cat([sample.gt_label for sample in data_samples]).to(inputs.device)
        return self.loss(features, labels) if mode == 'loss' else self.predict(features, labels)

    @torch.no_grad()
    def predict(self, features: list[torch.Tensor], labels: torch.Tensor) -> list[dict]:
        """Per image: label, top (A, 5) labels, the likeliest first (of equals the lowest), candidates and choice."""
        order = self.scores(features).sort(dim=-1, descending=True, stable=True).indices
        tops = order[..., :SHOWN].transpose(0, 1).cpu()
        return [
            dict(label=label, top=top, candidates=self.candidates, choice=self.choice)
            for label, top in zip(labels.tolist(), tops, strict=True)
        ]


@MODELS.register_module()
class LinearProbe(_Probe):
    """One linear classifier per block, trained all at once, each as it would be trained alone.

    batch_norm: normalises features by a BatchNorm without affine parameters first, as MAE's probe; per GPU.
    Source: official run_linear_eval.py (the class token and the mean of the patches, no norm, N(0, 0.01) start).
    """

    def __init__(
        self,
        backbone: dict,
        num_classes: int,
        features: str = 'both',
        batch_norm: bool = False,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, features, data_preprocessor, init_cfg)
        width = self.backbone.embed_dims * (2 if features == 'both' else 1)
        norm = (lambda: nn.BatchNorm1d(width, BATCH_NORM_EPS, affine=False)) if batch_norm else nn.Identity
        self.norms = nn.ModuleList(norm() for _ in self.blocks)
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for _ in self.blocks)
        for head in self.heads:
            nn.init.normal_(head.weight, std=HEAD_STD)
            nn.init.zeros_(head.bias)
        self.candidates = tuple(dict(block=block) for block in self.blocks)

    def scores(self, features: list[torch.Tensor]) -> torch.Tensor:
        # Mixed precision is for the backbone; the official heads are float32 too
        with torch.autocast(features[0].device.type, enabled=False):
            parts = zip(self.heads, self.norms, features, strict=True)
            return torch.stack([head(norm(feature)) for head, norm, feature in parts])

    def loss(self, features: list[torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross-entropy (nats) of every block's head. The heads share nothing that learns: their sum trains each."""
        logits = self.scores(features)
        return {f'loss_block{block}': F.cross_entropy(part, labels) for block, part in zip(self.blocks, logits)}


def vote(
    similarities: torch.Tensor, labels: torch.Tensor, num_neighbours: int, num_classes: int, temperature: float | None
) -> torch.Tensor:
    """Similarities (B, n) of the nearest images, falling, and their labels (B, n) -> votes (B, K) of the first k.

    A vote weighs exp(similarity / temperature), as in DINO's eval_knn.py, or 1 if there is no temperature.
    """
    similarities, labels = similarities[:, :num_neighbours], labels[:, :num_neighbours]
    weights = torch.ones_like(similarities) if temperature is None else (similarities / temperature).exp()
    return similarities.new_zeros(len(labels), num_classes).scatter_add_(1, labels, weights)


@MODELS.register_module()
class KNNProbe(_Probe):
    """k nearest neighbours by the cosine of frozen features. Nothing is trained: any checkpoint of the backbone does.

    k: numbers of neighbours. temperature: of the votes' weights, 0.07 as DINO's; None: every vote counts 1.
    bank_dtype: of the features that are kept, `float32` or, for half the memory, `float16`. The bank takes
        images x blocks x F numbers on the backbone's device; ProbeHook fills it before every evaluation.
    """

    def __init__(
        self,
        backbone: dict,
        num_classes: int,
        features: str = 'mean',
        k: int | Sequence[int] = (10, 20, 100),
        temperature: float | None = 0.07,
        bank_dtype: str = 'float32',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, features, data_preprocessor, init_cfg)
        self.k = (k,) if isinstance(k, int) else tuple(k)
        if not self.k or min(self.k) < 1:
            raise ValueError(f'KNNProbe: k={k} must be one or more positive numbers')
        if temperature is not None and temperature <= 0:
            raise ValueError(f'KNNProbe: temperature={temperature} must be positive, or None for equal votes')
        if bank_dtype not in ('float32', 'float16'):
            raise ValueError(f'KNNProbe: bank_dtype={bank_dtype!r} is neither float32 nor float16')
        if dist.get_world_size() > 1:
            raise ValueError('KNNProbe: it keeps one bank, in one process; run it with --launcher none')
        self.temperature = temperature
        self.bank_dtype = getattr(torch, bank_dtype)
        self.candidates = tuple(dict(block=block, k=k) for block, k in itertools.product(self.blocks, self.k))
        self._register_load_state_dict_pre_hook(_leave_the_backbone, with_module=True)
        self.forget()

    def forget(self) -> None:
        """Empty the bank."""
        self._kept: list[list[torch.Tensor]] = [[] for _ in self.blocks]
        self._kept_labels: list[torch.Tensor] = []
        self._bank: list[torch.Tensor] = []

    def remember(self, inputs: torch.Tensor, data_samples: list) -> None:
        """Put images and their labels into the bank."""
        for kept, feature in zip(self._kept, self.extract(inputs), strict=True):
            kept.append(F.normalize(feature, dim=1).to(self.bank_dtype))
        self._kept_labels.append(torch.cat([sample.gt_label for sample in data_samples]).to(inputs.device))
        self._bank = []

    def bank(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(features (M, F) of length 1 of every block, labels (M,))."""
        if not self._kept_labels:
            raise ValueError("KNNProbe: its bank is empty; custom_hooks=[dict(type='beit_mm.ProbeHook', bank=...)]")
        if not self._bank:
            for i, kept in enumerate(self._kept):
                self._kept[i] = [torch.cat(kept)]
            self._kept_labels = [torch.cat(self._kept_labels)]
            self._bank = [kept[0] for kept in self._kept]
        return self._bank, self._kept_labels[0]

    def scores(self, features: list[torch.Tensor]) -> torch.Tensor:
        bank, labels = self.bank()
        if max(self.k) > len(labels):
            raise ValueError(f'KNNProbe: k={max(self.k)} neighbours of {len(labels)} images in the bank; lower k')
        votes = []
        for feature, kept in zip(features, bank, strict=True):
            query = F.normalize(feature, dim=1).to(self.bank_dtype)
            similarities, nearest = (query @ kept.T).float().topk(max(self.k), dim=1)
            votes += [vote(similarities, labels[nearest], k, self.num_classes, self.temperature) for k in self.k]
        return torch.stack(votes)


def _leave_the_backbone(probe: KNNProbe, state_dict: dict, prefix: str, *_) -> None:
    """Whatever was trained on the backbone can be probed: what else a checkpoint holds is not taken."""
    own = probe.state_dict()
    weights = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(f'{prefix}backbone.')}
    if hasattr(probe.backbone, 'own_grid'):
        weights, _ = fit(weights, own, probe.backbone.own_grid, interpolation=probe.backbone.interpolate_mode)
    state_dict.clear()
    state_dict.update({f'{prefix}{key}': value for key, value in weights.items()})
