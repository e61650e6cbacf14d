"""What segmentors say of images: the truth, where there is one, beside each model's prediction, with a legend."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmseg.models import BaseSegmentor

from ...data.masks import IGNORED
from ...engine.metrics import areas, class_mean, scores
from ...engine.overlay import as_rgb, distinct_colours, overlay, present
from ...engine.showing import as_loaded
from .canvas import Panel, PictureError, roomy, sheet
from .images import Image, packed, to_patches, told


def mean_iou(counts: torch.Tensor) -> float:
    """mIoU, in [0, 1], over the classes of truth or guess; nan where there is none. counts: of `areas`."""
    return class_mean(scores(counts.numpy(), ['mIoU'])['IoU'])


def _divisible(model: BaseSegmentor, samples: list[dict]) -> tuple[list[dict], list[str]]:
    """Samples whose images the patches of a model divide that looks at them whole, and what was done to which."""
    patch = getattr(model.backbone, 'patch_size', None)
    if model.test_cfg.get('mode', 'whole') != 'whole' or not isinstance(patch, int):
        return samples, []
    found, said = [], []
    for sample in samples:
        meta = sample['data_samples'].metainfo
        stored = Image(Path(str(meta.get('img_path', 'image'))).name, sample['inputs'].permute(1, 2, 0).numpy())
        image, done = to_patches(stored, patch)
        if done:
            said.append(done)
            sample = dict(sample, inputs=torch.from_numpy(np.array(image.pixels)).permute(2, 0, 1))
            sample['data_samples'].set_metainfo(dict(img_shape=image.pixels.shape[:2]))
        found.append(sample)
    return found, said


@torch.no_grad()
def segmentation_panel(
    named: dict[str, tuple[Config, BaseModel]], indices: Sequence[int], files: Sequence[str] = ()
) -> Panel:
    """image | truth | each model's prediction, laid over the image, and the mIoU of these images.

    named: {title: (config, model of apis.init_model)}; the first one's test data are shown, by `indices`, to all, each
    model by its own config's pipeline. files: images instead, which have no truth.
    """
    columns: list[tuple[str, list[np.ndarray]]] = []
    numbers, truths, images, held = {}, [], [], []
    classes, palette, resized = (), None, []
    for name, (config, model) in named.items():
        if not isinstance(model, BaseSegmentor):
            raise PictureError(f'{config.filename}: {type(model).__name__} segments nothing')
        own = tuple(model.dataset_meta['classes'] or map(str, range(model.num_classes)))
        samples, said = _divisible(model, packed(config, files).chosen(indices))
        resized += said
        guesses = [model.test_step(pseudo_collate([s]))[0].pred_sem_seg.data[0].cpu().numpy() for s in samples]
        if not columns:
            classes = own
            colours = model.dataset_meta['palette']
            palette = distinct_colours(len(classes)) if colours is None else np.asarray(colours, np.uint8)
            reversed_bands = getattr(model.data_preprocessor, 'channel_conversion', False)
            images = [
                as_rgb(as_loaded(s['inputs'], guess.shape, reversed_bands))
                for s, guess in zip(samples, guesses, strict=True)
            ]
            columns.append(('image', images))
            if all('gt_sem_seg' in s['data_samples'] for s in samples):
                truths = [s['data_samples'].gt_sem_seg.data[0].numpy() for s in samples]
                columns.append(('truth', [overlay(i, t, palette) for i, t in zip(images, truths, strict=True)]))
        elif own != classes:
            raise PictureError(f'{config.filename}: {name} tells other classes apart than {next(iter(named))}')
        title = name
        if [g.shape for g in guesses] != [i.shape[:2] for i in images]:
            raise PictureError(f'{config.filename}: its test images are others than those of {next(iter(named))}')
        if truths:
            pairs = list(zip(guesses, truths, strict=True))
            counts = sum(areas(torch.tensor(g), torch.tensor(t), len(classes), IGNORED) for g, t in pairs)
            numbers[f'{name}: mIoU of these images'] = mean_iou(counts)
            numbers[f'{name}: pixels right'] = float(counts[0].sum() / max(1, counts[1].sum()))
            title += (
                f'\nmIoU {100 * mean_iou(counts):.1f} %\n{100 * numbers[f"{name}: pixels right"]:.0f} % of pixels right'
            )
        columns.append((title, [overlay(i, g, palette) for i, g in zip(images, guesses, strict=True)]))
        held += guesses
    caption = f'Classes as colours over {len(images)} images.'
    if truths:
        caption += ' mIoU is that of these images alone: the mean over the classes in them, void pixels left out.'
        if any((truth == IGNORED).any() for truth in truths):
            caption += ' Void pixels are left uncoloured in the truth.'
    caption += told(resized)
    entries = present([*truths, *held], classes, palette)
    tile = roomy(images, len(columns))
    return Panel('segmentation', sheet(columns, tile, entries=entries, caption=caption), numbers, caption)
