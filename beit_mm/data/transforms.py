"""Transforms of masked image modeling: colour jitter, the two-view crop, the mask, and packing.

In the official order: jitter, flip, one crop, two sizes. What a sample gets depends on its seed, epoch and index
where the sampler is one of sampling.py.

Images come and go as (H, W, C) arrays under `img`, in the channel order that they were loaded in.

The official code works by Pillow. OpenCV and torch do the same in a third of the time, and round a few values to the
next number: `ColorJitter` and `TwoViewCrop` say how many, and with `exact=True` are Pillow's to the last bit.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from PIL import Image, ImageEnhance
from torch.nn import functional as F

from ..ops.masking import blockwise_mask, random_mask
from ..registry import TRANSFORMS
from .sampling import generator_of

FILTERS = dict(
    nearest=Image.Resampling.NEAREST,
    bilinear=Image.Resampling.BILINEAR,
    bicubic=Image.Resampling.BICUBIC,
    lanczos=Image.Resampling.LANCZOS,
)
IN_TORCH = {name for name in FILTERS if name != 'nearest'}
if not hasattr(torch.ops.aten, '_upsample_lanczos2d_aa'):
    IN_TORCH -= {'lanczos'}
ROUND_DOWN = 2.0**-12 - 0.5  # added before OpenCV rounds to the nearest: Pillow cuts off
LUMA = np.array([19595, 38470, 7471]) / 65536  # Pillow's grey of R, G, B
CROP_ATTEMPTS = 10  # official transforms.py: then the largest centre crop of an allowed ratio


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
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), kernel))
    bands = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    return np.stack([np.asarray(band.resize((width, height), kernel)) for band in bands], axis=-1)


def resize_by_torch(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """`resize` of (H, W, 3) uint8 by torch: the same kernels, in weights of 16 bits where Pillow's have 32."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()


@TRANSFORMS.register_module()
class ColorJitter(BaseTransform):
    """Change brightness, contrast and saturation of `img` (uint8, 1 or 3 bands) by random factors in random order.

    Each factor is uniform in [max(0, 1 - x), 1 + x]. `img` is RGB: for grey values as OpenCV loads (BGR), set
    `channel_order='bgr'`. Source: official datasets.py (torchvision's ColorJitter on Pillow images, no hue).

    exact: by Pillow, as the official code. Else each of the three is one colour matrix of OpenCV, cut off to 0..255
        after each as Pillow does, contrast about the mean grey of the whole image as it then is; but greys are not
        rounded in between: over draws of photographs and noise 0.1 grey levels of 255 from Pillow's in the mean, 8 %
        of the values by 1 or more, 3 at most.
    """

    ENHANCERS = dict(brightness=ImageEnhance.Brightness, contrast=ImageEnhance.Contrast, saturation=ImageEnhance.Color)

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        channel_order: str = 'rgb',
        exact: bool = False,
    ) -> None:
        self.strengths = dict(brightness=brightness, contrast=contrast, saturation=saturation)
        for name, strength in self.strengths.items():
            if strength < 0:
                raise ValueError(f'ColorJitter: {name}={strength} must be 0 or more')
        strengths = np.array(list(self.strengths.values()))
        self.limits = np.maximum(1 - strengths, 0), 1 + strengths
        if channel_order not in ('rgb', 'bgr'):
            raise ValueError(f'ColorJitter: channel_order={channel_order!r} is neither rgb nor bgr')
        self.channel_order, self.exact = channel_order, exact

    def transform(self, results: dict) -> dict:
        image = results['img']
        if image.dtype != np.uint8 or (image.ndim == 3 and image.shape[2] not in (1, 3)):
            raise ValueError(
                f'ColorJitter: takes uint8 images of 1 or 3 bands, this one is {image.dtype} of shape {image.shape}; '
                f'leave it out for other data'
            )
        rng = generator_of(results, 'ColorJitter')
        factors = dict(zip(self.strengths, rng.uniform(*self.limits).tolist(), strict=True))
        order = [list(factors)[i] for i in rng.permutation(len(factors))]
        results['img'] = self.apply(image, {name: factors[name] for name in order if self.strengths[name]})
        return results

    def apply(self, image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
        """Apply the factors, {'brightness' | 'contrast' | 'saturation': factor}, in their order."""
        coloured = image.shape[2:] == (3,)
        pixels = np.ascontiguousarray(image) if coloured else np.ascontiguousarray(image).reshape(image.shape[:2])
        for_pillow = self.exact and coloured and self.channel_order == 'bgr'
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if for_pillow else pixels
        changed = self._by_pillow(pixels, factors) if self.exact else self._by_opencv(pixels, factors)
        return cv2.cvtColor(changed, cv2.COLOR_RGB2BGR) if for_pillow else changed.reshape(image.shape)

    def _by_pillow(self, image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
        picture = Image.fromarray(image)
        for name, factor in factors.items():
            picture = self.ENHANCERS[name](picture).enhance(factor)
        return np.asarray(picture)

    def _by_opencv(self, image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
        luma = np.array([1.0]) if image.ndim == 2 else LUMA if self.channel_order == 'rgb' else LUMA[::-1]
        bands = len(luma)
        for name, factor in factors.items():
            matrix = np.zeros((bands, bands + 1))
            matrix.flat[:: bands + 2] = factor
            matrix[:, bands] = ROUND_DOWN
            if name == 'saturation':  # towards each pixel's grey
                matrix[:, :bands] += (1 - factor) * luma
            elif name == 'contrast':  # towards the image's
                matrix[:, bands] += (1 - factor) * int(luma @ cv2.mean(image)[:bands] + 0.5)
            image = cv2.transform(image, matrix)
        return image

    def __repr__(self) -> str:
        return f'ColorJitter({self.strengths})'


@TRANSFORMS.register_module()
class TwoViewCrop(BaseTransform):
    """Crop one random box and resize it twice: `patches` for the backbone, `tokens_view` for the tokenizer.

    flip: probability of mirroring both views, left to right.
    patches_size, tokens_size: sides in pixels; None leaves that view out (a tokenizer is trained on one).
    scale (1, 1) with ratio (1, 1) takes the largest centred square, which is what evaluation wants.
    exact: resize by Pillow, as the official code; as it is for all data but three bands of 8 bits. Else by torch,
        whose weights of Pillow's kernels have 16 bits: 0.3 % of the values are 1 grey level off, 2 at most. Pillow 13
        resizes tall boxes down first and then across, older ones and torch all across first: between the two
        isolated pixels at sharp edges differ by a dozen levels (0.02 in the mean of photographs).
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
        flip: float = 0.0,
        exact: bool = False,
    ) -> None:
        for name in (interpolation, tokens_interpolation):
            if name not in FILTERS:
                raise ValueError(f'TwoViewCrop: interpolation {name!r} is none of {", ".join(FILTERS)}')
        self.views = {}
        if patches_size:
            self.views['patches'] = (patches_size, interpolation)
        if tokens_size:
            self.views['tokens_view'] = (tokens_size, tokens_interpolation)
        if not 0 <= flip <= 1:
            raise ValueError(f'TwoViewCrop: flip={flip} must be a probability, in [0, 1]')
        for name, (low, high) in dict(scale=scale, ratio=ratio).items():
            if not 0 < low <= high or (name == 'scale' and high > 1):
                raise ValueError(f'TwoViewCrop: {name}=({low}, {high}) must rise from above 0, a scale to at most 1')
        self.scale, self.ratio, self.flip, self.exact = scale, ratio, flip, exact

    def transform(self, results: dict) -> dict:
        image = results['img'] if results['img'].ndim == 3 else results['img'][..., None]
        rng = generator_of(results, 'TwoViewCrop')
        flipped = rng.random() < self.flip
        top, left, h, w = random_resized_box(rng, *image.shape[:2], self.scale, self.ratio)
        box = image[top : top + h, left : left + w]
        fast = not self.exact and box.dtype == np.uint8 and box.shape[2] == 3
        if flipped:  # the box of a mirrored image has the same law
            box = cv2.flip(box, 1) if fast else box[:, ::-1]
        box = np.ascontiguousarray(box)
        for view, (size, interpolation) in self.views.items():
            if view == 'tokens_view' and 'tokens' in results:
                continue  # computed before (tokens.py)
            by_torch = fast and interpolation in IN_TORCH
            results[view] = (resize_by_torch if by_torch else resize)(box, (size, size), interpolation)
        return results

    def __repr__(self) -> str:
        return f'TwoViewCrop({self.views}, scale={self.scale}, ratio={self.ratio}, flip={self.flip})'


def check_mask(grid, num_masked, kind: str, min_block: int, max_block: int | None, min_aspect: float) -> None:
    """Raise ValueError for masks that would be empty, always or often, by a slip in the numbers."""
    if not isinstance(grid, Sequence) or len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid):
        raise ValueError(f'MaskPatches: grid={grid!r} must be two positive integers: patches down and across')
    patches = grid[0] * grid[1]
    if not isinstance(num_masked, int) or not 0 < num_masked <= patches:
        raise ValueError(
            f'MaskPatches: num_masked={num_masked!r} must be a count in 1..{patches}; 40 % of a {grid[0]} x {grid[1]} '
            f'grid are {round(0.4 * patches)}'
        )
    if kind == 'random':
        return
    most = num_masked if max_block is None else max_block
    if not 1 <= min_block <= min(most, num_masked):
        raise ValueError(
            f'MaskPatches: min_block={min_block} must be in 1..{min(most, num_masked)}: num_masked={num_masked}, '
            f'max_block={max_block}'
        )
    if (grid[0] - 1) * (grid[1] - 1) < min_block:
        raise ValueError(
            f'MaskPatches: no block of min_block={min_block} patches is shorter and narrower than a grid of {grid[0]} '
            f'x {grid[1]}, as blocks have to be'
        )
    if not 0 < min_aspect <= 1:
        raise ValueError(f'MaskPatches: min_aspect={min_aspect} must be in (0, 1]')


@TRANSFORMS.register_module()
class MaskPatches(BaseTransform):
    """Choose the patches to predict: `mask` (Gh, Gw) bool, True = predict.

    kind: `blockwise` (the paper) or `random` (Table 4). num_masked: 75 of 196 is the paper's 40 %.
    seed: the mask then depends on the sample's index alone, so that evaluations see the same masks. None:
        on the key of the sample's Draw, so that any mask of a training run can be made again:
        `MaskPatches(...).draw(Draw(index, (run's seed, epoch, index)))`.
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
        check_mask(grid, num_masked, kind, min_block, max_block, min_aspect)
        self.grid, self.num_masked, self.kind, self.seed = tuple(grid), num_masked, kind, seed
        self.block = dict(min_block=min_block, max_block=max_block, min_aspect=min_aspect)

    def transform(self, results: dict) -> dict:
        results['mask'] = self.draw(results.get('sample_idx'))
        return results

    def draw(self, sample_idx: int | None) -> np.ndarray:
        """The mask (Gh, Gw) of a sample, which with a `seed` must have an index."""
        if self.seed is None:
            rng = generator_of(dict(sample_idx=sample_idx), 'MaskPatches')
        elif sample_idx is None:
            raise ValueError(f'MaskPatches: seed={self.seed} makes a mask from `sample_idx`, and the sample has none')
        else:
            rng = np.random.default_rng([self.seed, sample_idx])
        if self.kind == 'random':
            return random_mask(rng, self.grid, self.num_masked)
        return blockwise_mask(rng, self.grid, self.num_masked, **self.block)

    def __repr__(self) -> str:
        return f'MaskPatches({self.kind}, {self.num_masked} of {self.grid[0]} x {self.grid[1]})'


@TRANSFORMS.register_module()
class PackMIM(BaseTransform):
    """Keep what masked image modeling reads, as tensors: views (C, h, w) as stored, mask (Gh, Gw) bool.

    And the name of the file, which no model reads: it tells whose batch went wrong.
    """

    def transform(self, results: dict) -> dict:
        packed = dict(img_path=str(results.get('img_path', '')))
        for view in ('patches', 'tokens_view'):
            if view in results:
                packed[view] = torch.from_numpy(np.ascontiguousarray(results[view].transpose(2, 0, 1)))
        for key in ('mask', 'tokens'):
            if key in results:
                packed[key] = torch.from_numpy(np.ascontiguousarray(results[key]))
        return packed
