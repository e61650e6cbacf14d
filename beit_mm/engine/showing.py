"""Pictures of what a segmentor predicted, beside the truth where there is one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..registry import HOOKS
from . import overlay
from .checkpointing import model_of


@HOOKS.register_module()
class ShowSegmentationHook(Hook):
    """Writes out_dir/<the image, below its data set's folder>.png while testing: image, prediction, truth, legend.

    interval: every how many batches. Without a palette of the data set, colours are made up.
    """

    def __init__(self, out_dir: str, interval: int = 1) -> None:
        if interval < 1:
            raise ValueError(f'ShowSegmentationHook: interval={interval} must be 1 or more')
        self.out_dir, self.interval = Path(out_dir), interval

    def before_test(self, runner: Runner) -> None:
        model = model_of(runner)
        if not hasattr(getattr(model, 'module', model), 'decode_head'):
            raise ValueError(f'--show-dir: {type(model).__name__} segments nothing that could be shown')

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence) -> None:
        if not self.every_n_inner_iters(batch_idx, self.interval):
            return
        meta = runner.test_dataloader.dataset.metainfo
        model = model_of(runner)
        flipped = getattr(getattr(model, 'module', model).data_preprocessor, 'channel_conversion', False)
        inputs = data_batch['inputs']
        inputs = inputs[0] if isinstance(inputs[0], (list, tuple)) else inputs  # of several views, the first
        for i, (image, sample) in enumerate(zip(inputs, outputs)):
            masks = {'prediction': sample.pred_sem_seg.data.squeeze(0).long().cpu().numpy()}
            if 'gt_sem_seg' in sample:
                masks['truth'] = sample.gt_sem_seg.data.squeeze(0).cpu().numpy()
            pixels = as_loaded(image, masks['prediction'].shape, flipped)
            folder = getattr(runner.test_dataloader.dataset, 'data_prefix', {}).get('img_path') or ''
            path = self.out_dir / name_of(sample.metainfo.get('img_path') or f'{batch_idx}_{i}', folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            overlay.picture(pixels, masks, list(meta['classes']), meta.get('palette') or None).save(path)

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        runner.logger.info(f'pictures: {self.out_dir}')


def name_of(image: str, folder: str) -> Path:
    """What a picture of an image is called: as the image is below its folder, or its name alone."""
    path = Path(image)
    below = path.relative_to(folder) if folder and path.is_relative_to(folder) else Path(path.name)
    return below.with_suffix('.png')


def as_loaded(image: torch.Tensor, size: tuple[int, int], flipped: bool) -> np.ndarray:
    """A packed image (C, h, w) -> (H, W, C), RGB, in the size of its mask."""
    image = image.flip(0) if flipped and len(image) == 3 else image
    if tuple(image.shape[1:]) != tuple(size):
        kind = image.dtype
        resized = F.interpolate(image[None].float(), size=size, mode='bilinear', align_corners=False)[0]
        image = resized.round().clamp(0, 255).to(kind) if kind == torch.uint8 else resized
    return image.permute(1, 2, 0).cpu().numpy()
