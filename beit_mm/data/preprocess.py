"""From stored pixels to what the networks read, a batch at a time, on the device."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor

from ..ops.pixels import map_pixels
from ..registry import MODELS


@MODELS.register_module()
class MIMDataPreprocessor(BaseDataPreprocessor):
    """Patches are normalised by mean and std (per band, on 0..255); the token view is mapped to [0.1, 0.9].

    bgr_to_rgb: reverse the bands of both views, for images loaded by OpenCV.
    token_bands: which bands of the token view the tokenizer sees, for N-band data; default all.
    max_value: what stands for 1.0 in the token view.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        bgr_to_rgb: bool = False,
        token_bands: Sequence[int] | None = None,
        max_value: float = 255.0,
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f'MIMDataPreprocessor: {len(mean)} means but {len(std)} standard deviations')
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.bgr_to_rgb = bgr_to_rgb
        self.token_bands = list(token_bands) if token_bands is not None else None
        self.max_value = max_value

    def forward(self, data: dict, training: bool = False) -> dict:
        batch = self.cast_data(data)
        if 'patches' in batch:
            patches = batch['patches'].float()
            if patches.shape[1] != len(self.mean):
                raise ValueError(
                    f'MIMDataPreprocessor: images have {patches.shape[1]} bands, mean and std have {len(self.mean)}'
                )
            patches = patches.flip(1) if self.bgr_to_rgb else patches
            batch['patches'] = (patches - self.mean) / self.std
        if 'tokens_view' in batch:
            view = batch['tokens_view'].float()
            view = view.flip(1) if self.bgr_to_rgb else view
            view = view[:, self.token_bands] if self.token_bands is not None else view
            batch['tokens_view'] = map_pixels(view / self.max_value)
        return batch
