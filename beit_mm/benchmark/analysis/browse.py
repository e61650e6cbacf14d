"""`analyze.py browse`: what a config's pipeline makes of images, before they are normalised, with labels and masks.

A row per image: the picture as it is loaded, then what each epoch's augmentations make of it. Masks lie over the
picture; of masked image modeling both views are there, and the hidden patches are grey; where the model's data
preprocessor mixes images of a batch (Mixup, CutMix), the last columns show that.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image, ImageDraw, ImageFont

from ...data.check import parts_of
from ...data.sampling import Draw
from ...engine.overlay import as_rgb, distinct_colours, overlay
from ...engine.showing import as_loaded
from . import AnalysisError
from .tables import target

TILE, GAP, FONT = 192, 8, 12  # pixels: of a picture's longer side, between pictures, of letters
HIDDEN = 190  # grey of a masked patch
SHARE_SHOWN = 0.005  # of a mixed label
NAMES = dict(patches='patches', tokens_view='for the tokenizer')  # of the two views


class Cell(NamedTuple):
    """A picture (H, W, 3) uint8 and what is written over it."""

    caption: str
    picture: np.ndarray


def dataset_of(config: Config, split: str):
    """The data set of `<split>_dataloader`, built. Raises AnalysisError where it is not in the config, or not here."""
    loader = config.get(f'{split}_dataloader')
    if loader is None:
        raise AnalysisError(f'{config.filename}: {split}_dataloader is missing: there is no {split} split to look at')
    try:
        with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
            return DATASETS.build(loader.dataset)
    except (OSError, ValueError) as error:
        raise AnalysisError(f'{config.filename}: {split}_dataloader.dataset: {error}') from error


def rows_of(config: Config, split: str, indices: Sequence[int], epochs: int = 1, seed: int = 0) -> list[list[Cell]]:
    """Per image its cells. epochs: how many times it is augmented; the same (seed, epoch, index) is the same picture.

    Raises AnalysisError for an index that the data set does not have.
    """
    dataset = dataset_of(config, split)
    if wrong := [i for i in indices if not 0 <= i < len(dataset)]:
        raise AnalysisError(
            f'--indices {wrong[0]}: the {split} split has {len(dataset):,} images, 0 to {len(dataset) - 1}'
        )
    preprocessor = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    show = _Show(dataset.metainfo, bool(preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')))
    rows, batches = [], [[] for _ in range(epochs)]
    for index in indices:
        cells = _original(dataset, index, show)
        for epoch in range(epochs):
            sample = _sample(dataset, index, epoch, seed)
            batches[epoch].append(sample)
            cells += show.cells(sample, f'epoch {epoch}')
        rows.append(cells)
    preprocessor = _mixing(config, preprocessor)
    if split == 'train' and preprocessor.get('batch_augments'):
        for epoch, batch in enumerate(batches):
            for cells, mixed in zip(rows, _mixed(config, preprocessor, batch, show, epoch), strict=True):
                cells.append(mixed)
    return rows


def _seeded(*key: int) -> None:
    """The global generators that other projects' transforms draw from."""
    number = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _sample(dataset, index: int, epoch: int, seed: int):
    _seeded(seed, epoch, index)
    sample = dataset[Draw(index, (seed, epoch, index))]
    if sample is None:
        raise AnalysisError(f'image {index}: its pipeline gives nothing (a loader that skips what it cannot read?)')
    return sample


def _original(dataset, index: int, show: '_Show') -> list[Cell]:
    """The picture after the loading steps of its own data set; nothing for data sets that have none."""
    if isinstance(dataset, ConcatDataset):
        part, index = dataset._get_ori_dataset_idx(index)
        return _original(dataset.datasets[part], index, show)
    own = next(iter(parts_of(dataset)), None)
    steps = getattr(getattr(own, 'pipeline', None), 'transforms', None)
    if steps is None or not hasattr(dataset, 'get_data_info'):
        return []
    info = dataset.get_data_info(index)
    for step in steps:
        if type(step).__name__.startswith('Load') and info is not None:
            info = step(info)
    if not info or 'img' not in info:
        return []
    image = info['img'] if info['img'].ndim == 3 else info['img'][..., None]
    ordered = image[..., ::-1] if show.flipped and image.shape[2] == 3 else image
    size = f'{image.shape[1]} x {image.shape[0]}'
    return [Cell(f'{Path(str(info.get("img_path", index))).name}, {size}', as_rgb(np.ascontiguousarray(ordered)))]


class _Show:
    """Turns packed samples into cells, with the names and colours of a data set's classes."""

    def __init__(self, metainfo: dict, flipped: bool) -> None:
        self.classes = list(metainfo.get('classes') or ())
        palette = metainfo.get('palette')
        self.palette = np.asarray(palette, np.uint8) if palette else distinct_colours(max(len(self.classes), 256))
        self.flipped = flipped

    def name(self, index: int) -> str:
        return self.classes[index].strip() if index < len(self.classes) else str(index)

    def cells(self, sample: dict, title: str) -> list[Cell]:
        """Of a sample as mmpretrain, mmseg or beit_mm packs it. Raises AnalysisError for any other."""
        if 'patches' in sample or 'tokens_view' in sample:
            return self._views(sample, title)
        inputs = sample.get('inputs')
        if isinstance(inputs, (list, tuple)):
            return [
                c for i, one in enumerate(inputs) for c in self._cell(one, sample['data_samples'][i], f'{title}.{i}')
            ]
        if inputs is None:
            raise AnalysisError(
                f'a sample has {", ".join(sample)}: neither inputs nor patches; what packs it is unknown'
            )
        return self._cell(inputs, sample.get('data_samples'), title)

    def _cell(self, inputs: torch.Tensor, packed, title: str) -> list[Cell]:
        picture = as_rgb(np.ascontiguousarray(as_loaded(inputs, inputs.shape[1:], self.flipped)))
        label = ''
        if packed is not None and 'gt_label' in packed:
            label = ', ' + ' + '.join(self.name(int(i)) for i in packed.gt_label)
        if packed is not None and 'gt_sem_seg' in packed:
            mask = packed.gt_sem_seg.data.squeeze(0).numpy()
            if mask.shape == picture.shape[:2]:
                picture = overlay(picture, mask, self.palette)
                present = [self.name(i) for i in np.unique(mask) if i < max(len(self.classes), 1)]
                label = f', {", ".join(present)}'
        return [Cell(f'{title}{label}', picture)]

    def _views(self, sample: dict, title: str) -> list[Cell]:
        cells = []
        for view in ('patches', 'tokens_view'):
            if view not in sample:
                continue
            picture = as_rgb(np.ascontiguousarray(as_loaded(sample[view], sample[view].shape[1:], self.flipped)))
            side = f'{picture.shape[1]} px'
            if view == 'patches' and 'mask' in sample:
                cells.append(Cell(f'{title}: {NAMES[view]}, {side}', picture))
                mask = sample['mask'].numpy()
                rows, columns = (np.arange(n) * m // n for n, m in zip(picture.shape[:2], mask.shape))
                hidden = mask[rows][:, columns]
                picture = np.where(hidden[..., None], np.uint8(HIDDEN), picture)
                cells.append(Cell(f'{int(mask.sum())} of {mask.size} masked', picture))
            else:
                cells.append(Cell(f'{title}: {NAMES[view]}, {side}', picture))
        return cells


def _mixing(config: Config, preprocessor: dict) -> dict:
    """The preprocessor with what mixes its batches: its own, or as mmpretrain's classifiers do `model.train_cfg`."""
    training = config.model.get('train_cfg') or {}
    if not preprocessor.get('batch_augments') and training.get('augments'):
        return dict(preprocessor, batch_augments=training)
    return dict(preprocessor)


def _mixed(config: Config, preprocessor: dict, batch: list[dict], show: _Show, epoch: int) -> list[Cell]:
    """The chosen images as one batch after Mixup and CutMix, in their own colours, with the shares of the labels."""
    if len({tuple(sample['inputs'].shape) for sample in batch}) > 1:
        return [Cell('images of several sizes are not mixed', np.full((TILE, TILE, 3), 255, np.uint8)) for _ in batch]
    _seeded(epoch, len(batch))
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        options = dict(preprocessor)
        options.setdefault('type', 'ClsDataPreprocessor')  # mmengine's Runner has mmpretrain fill this in
        built = MODELS.build(options)
    data = built(pseudo_collate(batch), training=True)
    mean, std = getattr(built, 'mean', None), getattr(built, 'std', None)
    images = data['inputs'] * std + mean if mean is not None else data['inputs']
    cells = []
    for image, packed in zip(images, data['data_samples'], strict=True):
        picture = as_rgb(image.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
        shares = packed.gt_score if 'gt_score' in packed else torch.zeros(0)
        named = [f'{show.name(int(i))} {100 * shares[i]:.0f} %' for i in shares.argsort(descending=True)
                 if shares[i] > SHARE_SHOWN]  # fmt: skip
        cells.append(Cell(f'batch {epoch}: {" + ".join(named[:3])}', picture))
    return cells


def sheet(rows: list[list[Cell]]) -> Image.Image:
    """The cells on one page, each scaled to TILE pixels, its caption above it."""
    font = ImageFont.load_default(FONT)
    height = TILE + 2 * FONT + 2 * GAP
    width = max(len(cells) for cells in rows) * (TILE + GAP) + GAP
    page = Image.new('RGB', (width, height * len(rows) + GAP), 'white')
    draw = ImageDraw.Draw(page)
    for r, cells in enumerate(rows):
        for c, cell in enumerate(cells):
            left, top = GAP + c * (TILE + GAP), GAP + r * height
            for i, line in enumerate(_wrapped(cell.caption, font)):
                draw.text((left, top + i * FONT), line, fill='black', font=font)
            page.paste(_fitted(cell.picture), (left, top + 2 * FONT + GAP // 2))
    return page


def _wrapped(text: str, font) -> list[str]:
    """Two lines at most, none wider than a picture."""
    lines = ['']
    for word in text.split(' '):
        longer = f'{lines[-1]} {word}'.strip()
        if font.getlength(longer) <= TILE or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= 2 else [lines[0], f'{lines[1]} ...']


def _fitted(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture))
    longer = max(image.size)
    size = max(1, image.width * TILE // longer), max(1, image.height * TILE // longer)
    return image.resize(size, Image.Resampling.LANCZOS if longer > TILE else Image.Resampling.NEAREST)


def show(
    config: Config,
    split: str = 'train',
    indices: Sequence[int] = (0, 1, 2, 3),
    epochs: int = 3,
    seed: int = 0,
    out: str = 'browse.png',
) -> str:
    """Write the sheet; returns a line per image: its captions."""
    path = target(out, ('.png',))
    rows = rows_of(config, split, indices, epochs, seed)
    sheet(rows).save(path)
    lines = [f'{index}: {" | ".join(cell.caption for cell in cells)}' for index, cells in zip(indices, rows)]
    return '\n'.join([*lines, '', str(path)])
