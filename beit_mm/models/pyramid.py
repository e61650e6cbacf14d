"""ViTPyramid: four feature maps of four scales from a plain vision transformer, for UPerNet."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import nn

from ..registry import MODELS


@MODELS.register_module()
class ViTPyramid(BaseModule):
    """Four maps (B, D, Gh, Gw) -> maps of 4, 2, 1 and 1/2 times the grid (patch size 8: 2, 1, 1/2, 1/4).

    Keys are mmseg's Feature2Pyramid's; the official `fpn1` is `upsample_4x` and `fpn2` is `upsample_2x`.
    BatchNorm becomes SyncBatchNorm where the runner's `sync_bn` says so.
    Source: official semantic_segmentation/backbone/beit.py.
    """

    def __init__(self, embed_dim: int, patch_size: int = 16, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.embed_dim = embed_dim
        self.num_down = 2 if patch_size == 8 else 1
        if patch_size == 8:
            self.upsample_2x = nn.Sequential(nn.ConvTranspose2d(embed_dim, embed_dim, 2, 2))
        else:
            self.upsample_4x = nn.Sequential(
                nn.ConvTranspose2d(embed_dim, embed_dim, 2, 2),
                nn.BatchNorm2d(embed_dim),
                nn.GELU(),
                nn.ConvTranspose2d(embed_dim, embed_dim, 2, 2),
            )
            self.upsample_2x = nn.Sequential(nn.ConvTranspose2d(embed_dim, embed_dim, 2, 2))

    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if len(maps) != 4:
            raise ValueError(f'ViTPyramid takes four maps; the backbone gives {len(maps)}: set four out_indices')
        for one in maps:
            if one.ndim != 4 or one.shape[1] != self.embed_dim:
                raise ValueError(
                    f'ViTPyramid: embed_dim={self.embed_dim}, and a map of the backbone is {tuple(one.shape)}: '
                    f"set its width here, and out_type='featmap' there (of timm's: features_only=True)"
                )
        a, b, c, d = maps
        if self.num_down == 2:
            return self.upsample_2x(a), b, nn.functional.max_pool2d(c, 2), nn.functional.max_pool2d(d, 4)
        return self.upsample_4x(a), self.upsample_2x(b), c, nn.functional.max_pool2d(d, 2)
