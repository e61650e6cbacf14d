"""Transforms of masked image modeling: the two-view crop, the mask, and packing.

Images come and go as (H, W, C) arrays under `img`, in the channel order that they were loaded in.
"""

import math

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from PIL import Image

from ..ops.masking import blockwise_mask, random_mask
from ..registry import TRANSFORMS

FILTERS = dict(
    nearest=Image.Resampling.NEAREST,
    bilinear=Image.Resampling.BILINEAR,
    bicubic=Image.Resampling.BICUBIC,
    lanczos=Image.Resampling.LANCZOS,
)
CROP_ATTEMPTS = 10  # official transforms.py: then the largest centre crop of an allowed ratio


def generator() -> np.random.Generator:
    """A generator seeded from NumPy's global one, which mmengine seeds per worker."""
    return np.random.default_rng(np.random.randint(0, 2**31, size=4))


def random_resized_box(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(top, left, h, w) with a share `scale` of the area and a log-uniform width : height in `ratio`."""
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(CROP_ATTEMPTS):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    h, w = min(height, round(width / aspect)), min(width, round(height * aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """(H, W, C) -> (h, w, C) by Pillow, which antialiases; any number of bands, uint8 or float32."""
    kernel = FILTERS[interpolation]
    height, width = size
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((width, height), kernel))
    bands = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    return np.stack([np.asarray(band.resize((width, height), kernel)) for band in bands], axis=-1)


@TRANSFORMS.register_module()
class TwoViewCrop(BaseTransform):
    """Crop one random box and resize it twice: `patches` for the backbone, `tokens_view` for the tokenizer.

    patches_size, tokens_size: sides in pixels; None leaves that view out (a tokenizer is trained on one).
    scale (1, 1) with ratio (1, 1) takes the largest centred square, which is what evaluation wants.
    Source: official transforms.py, RandomResizedCropAndInterpolationWithTwoPic.
    """

    def __init__(
        self,
        patches_size: int | None = 224,
        tokens_size: int | None = 112,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = 'bicubic',
        tokens_interpolation: str = 'lanczos',
    ) -> None:
        for name in (interpolation, tokens_interpolation):
            if name not in FILTERS:
                raise ValueError(f'TwoViewCrop: interpolation {name!r} is none of {", ".join(FILTERS)}')
        self.views = {}
        if patches_size:
            self.views['patches'] = (patches_size, interpolation)
        if tokens_size:
            self.views['tokens_view'] = (tokens_size, tokens_interpolation)
        self.scale, self.ratio = scale, ratio

    def transform(self, results: dict) -> dict:
        image = results['img'] if results['img'].ndim == 3 else results['img'][..., None]
        top, left, h, w = random_resized_box(generator(), *image.shape[:2], self.scale, self.ratio)
        box = image[top : top + h, left : left + w]
        for view, (size, interpolation) in self.views.items():
            results[view] = resize(box, (size, size), interpolation)
        return results

    def __repr__(self) -> str:
        return f'TwoViewCrop({self.views}, scale={self.scale}, ratio={self.ratio})'


@TRANSFORMS.register_module()
class MaskPatches(BaseTransform):
    """Choose the patches to predict: `mask` (Gh, Gw) bool, True = predict.

    kind: `blockwise` (the paper) or `random` (Table 4). num_masked: 75 of 196 is the paper's 40 %.
    seed: the mask then depends on the sample's index alone, so that evaluations see the same masks.
    """

    def __init__(
        self,
        grid: tuple[int, int] = (14, 14),
        num_masked: int = 75,
        kind: str = 'blockwise',
        min_block: int = 16,
        max_block: int | None = None,
        min_aspect: float = 0.3,
        seed: int | None = None,
    ) -> None:
        if kind not in ('blockwise', 'random'):
            raise ValueError(f'MaskPatches: kind={kind!r} is neither blockwise nor random')
        self.grid, self.num_masked, self.kind, self.seed = tuple(grid), num_masked, kind, seed
        self.block = dict(min_block=min_block, max_block=max_block, min_aspect=min_aspect)

    def transform(self, results: dict) -> dict:
        rng = generator() if self.seed is None else np.random.default_rng([self.seed, results['sample_idx']])
        if self.kind == 'random':
            results['mask'] = random_mask(rng, self.grid, self.num_masked)
        else:
            results['mask'] = blockwise_mask(rng, self.grid, self.num_masked, **self.block)
        return results

    def __repr__(self) -> str:
        return f'MaskPatches({self.kind}, {self.num_masked} of {self.grid[0]} x {self.grid[1]})'


@TRANSFORMS.register_module()
class PackMIM(BaseTransform):
    """Keep what masked image modeling reads, as tensors: views (C, h, w) as stored, mask (Gh, Gw) bool."""

    def transform(self, results: dict) -> dict:
        packed = {}
        for view in ('patches', 'tokens_view'):
            if view in results:
                packed[view] = torch.from_numpy(np.ascontiguousarray(results[view].transpose(2, 0, 1)))
        for key in ('mask', 'tokens'):
            if key in results:
                packed[key] = torch.from_numpy(np.ascontiguousarray(results[key]))
        return packed
