"""Segmentation: images of any size, windows in batches, and the mean over scales and flips.

Training is mmseg's EncoderDecoder, its losses computed without the logits at the size of the image.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg import models as mmseg_models
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import nn

from ..registry import MODELS
from .segmentation_loss import head_losses


def window_corners(size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """(top, left) of the windows that cover an image of `size` (H, W), at least as large as `crop`, row by row.

    The last window of a row or column is moved back to end with the image. Source: mmseg's and the official
    slide_inference.
    """
    sides = []
    for length, window, step in zip(size, crop, stride, strict=True):
        count = math.ceil(max(length - window, 0) / step) + 1
        sides.append([min(i * step, length - window) for i in range(count)])
    return [(top, left) for top in sides[0] for left in sides[1]]


def padded_to(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images (B, C, H, W) with zeros, the mean colour of normalised images, at the right and below up to `size`."""
    down, right = (max(wanted - have, 0) for wanted, have in zip(size, images.shape[2:], strict=True))
    return F.pad(images, (0, right, 0, down)) if down or right else images


def _two(name: str, value: int | Sequence[int] | None) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, int) else tuple(value or ())
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f'EncoderDecoder: test_cfg.{name}={value!r} must be two positive numbers of pixels (H, W)')
    return sides


@MODELS.register_module()
class EncoderDecoder(mmseg_models.EncoderDecoder):
    """mmseg's EncoderDecoder, whose inference takes images of any size.

    test_cfg: `mode='whole'`: the image is padded to whole patches, and what was predicted for the padding is cut off.
        `mode='slide'` with `crop_size` and `stride`: logits of overlapping windows are averaged. An image smaller than
        a window is padded to it, as in training; mmseg feeds such an image as it is, which models of a fixed size
        refuse. `windows_per_batch` (default 4) windows go through the model at once: it changes speed and memory, and
        the result by rounding only; 1 is bit for bit mmseg's.

    Raises ValueError for a test_cfg that does not say these.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        mode = self.test_cfg.get('mode', 'whole')
        if mode not in ('whole', 'slide'):
            raise ValueError(f'EncoderDecoder: test_cfg.mode={mode!r} is neither whole nor slide')
        if mode == 'slide':
            self.crop, self.stride = (_two(name, self.test_cfg.get(name)) for name in ('crop_size', 'stride'))
            if any(step > window for step, window in zip(self.stride, self.crop)):
                raise ValueError(
                    f'EncoderDecoder: test_cfg.stride={self.stride} is larger than crop_size={self.crop}: pixels '
                    f'between windows would have no prediction'
                )
            self.windows_per_batch = self.test_cfg.get('windows_per_batch', 4)
            if not isinstance(self.windows_per_batch, int) or self.windows_per_batch < 1:
                raise ValueError(f'EncoderDecoder: test_cfg.windows_per_batch={self.windows_per_batch!r} must be >= 1')

    def _decode_head_forward_train(self, inputs: Sequence[torch.Tensor], data_samples: list) -> dict:
        return add_prefix(head_losses(self.decode_head, inputs, data_samples, self.train_cfg), 'decode')

    def _auxiliary_head_forward_train(self, inputs: Sequence[torch.Tensor], data_samples: list) -> dict:
        heads, losses = self.auxiliary_head, {}
        named = (
            {f'aux_{i}': head for i, head in enumerate(heads)} if isinstance(heads, nn.ModuleList) else {'aux': heads}
        )
        for name, head in named.items():
            losses.update(add_prefix(head_losses(head, inputs, data_samples, self.train_cfg), name))
        return losses

    def test_step(self, data: dict) -> list:
        sizes = {tuple(image.shape[1:]) for image in data['inputs']}
        if len(sizes) > 1:
            raise ValueError(
                f'EncoderDecoder: a batch of images of different sizes ({", ".join(map(str, sorted(sizes)))}): take '
                f'batch_size=1 to test and to predict'
            )
        return super().test_step(data)

    def inference(self, inputs: torch.Tensor, batch_img_metas: list[dict]) -> torch.Tensor:
        """Logits (B, classes, H, W) for images (B, C, H, W)."""
        if self.test_cfg.get('mode', 'whole') == 'slide':
            return self.slide_inference(inputs, batch_img_metas)
        return self.whole_inference(inputs, batch_img_metas)

    def whole_inference(self, inputs: torch.Tensor, batch_img_metas: list[dict]) -> torch.Tensor:
        height, width = inputs.shape[2:]
        patch = getattr(self.backbone, 'patch_size', 1)
        patch = patch if isinstance(patch, int) else 1  # of a backbone that is not ours, and knows its sizes
        least = patch * 2 ** getattr(getattr(self, 'neck', None), 'num_down', 0)  # the coarsest map has a pixel
        padded = padded_to(inputs, tuple(max(math.ceil(side / patch) * patch, least) for side in (height, width)))
        (logits,) = self._logits(padded, at_once=len(padded))
        return logits[..., :height, :width]

    def slide_inference(self, inputs: torch.Tensor, batch_img_metas: list[dict]) -> torch.Tensor:
        (height, width), crop = inputs.shape[2:], self.crop
        inputs = padded_to(inputs, crop)
        corners = window_corners(inputs.shape[2:], crop, self.stride)
        total = inputs.new_zeros((len(inputs), self.out_channels, *inputs.shape[2:]))
        seen = inputs.new_zeros(inputs.shape[2:])
        for first in range(0, len(corners), self.windows_per_batch):
            chunk = corners[first : first + self.windows_per_batch]
            places = [(..., slice(top, top + crop[0]), slice(left, left + crop[1])) for top, left in chunk]
            windows = self._logits(torch.cat([inputs[place] for place in places]), at_once=len(inputs))
            for place, window in zip(places, windows, strict=True):
                total[place] += window
                seen[place[1:]] += 1
        return total.div_(seen)[..., :height, :width]

    def _logits(self, images: torch.Tensor, at_once: int) -> Iterator[torch.Tensor]:
        """(B, classes, H, W) of images that go through the model as they are; B is `at_once`.

        The coarse logits of all images are there together, the large ones of so many only.
        """
        head = self.decode_head
        # the heads of mmseg take a torch.Size as the size to resize to, whatever the image was padded to
        metas = [dict(img_shape=images.shape[2:])] * len(images)
        own = BaseDecodeHead.predict, mmseg_models.EncoderDecoder.encode_decode
        if (type(head).predict, type(self).encode_decode) != own:
            yield from self.encode_decode(images, metas).split(at_once)
            return
        for coarse in head.forward(self.extract_feat(images)).split(at_once):
            yield head.predict_by_feat(coarse, metas[:at_once])

    def postprocess_result(self, seg_logits: torch.Tensor, data_samples: list | None = None) -> list:
        """As mmseg's, bit for bit; logits that have the image's size already are not resized, which copies them."""
        if seg_logits.shape[1] == 1:
            return super().postprocess_result(seg_logits, data_samples)
        samples = [SegDataSample() for _ in seg_logits] if data_samples is None else data_samples
        for sample, logits in zip(samples, seg_logits, strict=True):
            if data_samples is not None:
                logits = self._of_the_image(logits, sample.metainfo)
            sample.set_data(dict(seg_logits=PixelData(data=logits), pred_sem_seg=PixelData(data=best_class(logits))))
        return samples

    def _of_the_image(self, logits: torch.Tensor, meta: dict) -> torch.Tensor:
        """Logits (classes, H, W) without padding, flipped back, at the size that the image had as it was loaded."""
        left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', (0, 0, 0, 0)))
        logits = logits[:, top : logits.shape[1] - bottom, left : logits.shape[2] - right]
        if meta.get('flip'):
            logits = logits.flip(dims=({'horizontal': 2, 'vertical': 1}[meta['flip_direction']],))
        size = tuple(meta['ori_shape'][:2])
        if tuple(logits.shape[1:]) == size:
            return logits
        return F.interpolate(logits[None], size, mode='bilinear', align_corners=self.align_corners)[0]


def best_class(scores: torch.Tensor) -> torch.Tensor:
    """(1, H, W) int64, the class of the highest of scores (classes, H, W), of equal ones the first.

    `argmax` gives the same; across a dimension that is not the last, `max` takes less than half its time on a CPU.
    """
    return scores.max(dim=0, keepdim=True).indices


@MODELS.register_module()
class SegTTAModel(mmseg_models.SegTTAModel):
    """Mean of the classes' probabilities over the views (scales, flips) that `TestTimeAug` makes, at the image's size.

    The numbers of mmseg's SegTTAModel and of the official aug_test. That one keeps the logits of all views (12 of
    ADE20K are 2.5 GB); here they are summed up, and views that came out alike, as scales do that were clamped to the
    crop, go through the model once and count as often as they are there.
    """

    def test_step(self, data: dict) -> list:
        """data: `inputs` and `data_samples`, each a list of views of lists of images."""
        pairs = zip(data['inputs'], data['data_samples'], strict=True)
        views = [dict(inputs=images, data_samples=samples) for images, samples in pairs]
        merged, probabilities = None, None
        for view, times in _distinct(views):
            samples = self.module.test_step(view)
            found = [self._probabilities(sample.seg_logits.data) * (times / len(views)) for sample in samples]
            probabilities = found if merged is None else [a.add_(b) for a, b in zip(probabilities, found)]
            merged = merged or samples
        for sample, probability in zip(merged, probabilities, strict=True):
            several = self.module.out_channels > 1
            best = best_class(probability) if several else probability > self._threshold
            sample.set_data(dict(pred_sem_seg=PixelData(data=best.long()), seg_logits=PixelData(data=probability)))
        return merged

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        # of one channel, postprocess_result has taken the sigmoid already; mmseg's takes it twice
        return logits.float().softmax(dim=0) if self.module.out_channels > 1 else logits.float()

    @property
    def _threshold(self) -> float:
        return self.module.decode_head.threshold


def _distinct(views: list[dict]) -> Iterator[tuple[dict, int]]:
    """Each view that differs from those before it, and how many are like it."""
    kinds: list[list[dict]] = []
    for view in views:
        like = next((kind for kind in kinds if _alike(kind[0], view)), None)
        if like is None:
            kinds.append([view])
        else:
            like.append(view)
    yield from ((kind[0], len(kind)) for kind in kinds)


def _alike(one: dict, other: dict) -> bool:
    def turned(view: dict) -> list:
        return [(s.metainfo.get('flip'), s.metainfo.get('flip_direction')) for s in view['data_samples']]

    return turned(one) == turned(other) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one['inputs'], other['inputs'], strict=True)
    )
