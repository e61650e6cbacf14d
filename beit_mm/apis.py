"""Inference from Python: classify, segment or tokenize images that need no labels.

    from beit_mm.apis import classify
    for row in classify('configs/classification/....py', 'epoch_100.pth', 'folder/of/images'):
        print(row['image'], row['name'], row['score'])

A config's own test pipeline, data preprocessor and test batches are used, and weights are loaded as strictly as by
`tools/test.py`: the numbers are those of a test.

`images` is, everywhere, a folder, a file, a list file (.txt, paths below its folder), an array, or a list of files and
arrays. Arrays are (H, W), (H, W, 3) in RGB, or (H, W, bands), with the range of values that the files would have.
"""

import copy
import csv
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, DefaultScope
from mmengine.runner.amp import autocast
from mmpretrain.models import BaseClassifier
from mmseg.models import BaseSegmentor
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .checkpoints.load import trust
from .data.images import read_list
from .data.loading import UnreadableImage
from .data.verify import images_below
from .engine import overlay
from .engine.configs import load_config
from .engine.errors import ConfigError
from .engine.launch import load_whole, merging, parts_of, with_tta
from .engine.showing import name_of

Images = str | Path | np.ndarray | Sequence[str | Path | np.ndarray]


def init_model(
    config: str | Path | Config, checkpoint: str, device: str | None = None, trust_checkpoint: bool = False
) -> nn.Module:
    """The model of a config with a checkpoint's weights, in eval, with its `cfg` and `dataset_meta`.

    device: default CUDA where there is one. Raises ConfigError and CheckpointError as the tools do.
    """
    config = config if isinstance(config, Config) else load_config(config)
    if trust_checkpoint:
        trust(checkpoint)
    model = build_model(config)
    meta = load_whole(model, config, checkpoint)
    model.cfg = config
    model.dataset_meta = dict(classes=_classes(meta, config), palette=_palette(meta, config))
    return model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu')).eval()


def build_model(config: Config) -> nn.Module:
    """A config's model with the weights that it starts with, built in the config's own scope."""
    description = copy.deepcopy(config.model)  # models write into what they are built of
    if config.get('data_preprocessor') is not None:  # as mmengine's Runner does
        description.setdefault('data_preprocessor', copy.deepcopy(config.data_preprocessor))
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        return MODELS.build(description)


def _test_dataset(config: Config) -> dict:
    """The innermost data set of `test_dataloader`, which has the pipeline."""
    dataset = (config.get('test_dataloader') or {}).get('dataset')
    if dataset is None:
        raise ConfigError(f'{config.filename}: test_dataloader is missing, whose pipeline inference goes through')
    return parts_of(dataset)[0]


def _classes(meta: dict, config: Config) -> tuple[str, ...] | None:
    """Names of the classes: what the checkpoint was trained on, else what the config tests on."""
    found = _of_data(meta, 'classes')
    if not found or not all(isinstance(name, str) for name in found):
        dataset = _test_dataset(config)
        found = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
        with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
            found = found or getattr(DATASETS.get(dataset['type']), 'METAINFO', {}).get('classes')
    if isinstance(found, str):
        found = list_from_file(found)
    return tuple(found) if found else None


def _of_data(meta: dict, key: str) -> list | tuple | None:
    """`classes` or `palette` of the data set that a checkpoint was trained on, as its `meta` lists them: no name of a
    file, which mmengine would open, nor anything else."""
    dataset = meta.get('dataset_meta')
    found = (dataset.get(key) if isinstance(dataset, dict) else None) or meta.get(key.upper())
    return found if isinstance(found, (list, tuple)) else None


def _palette(meta: dict, config: Config) -> list | None:
    """RGB of each class, where the checkpoint's data set or the config's have them."""
    found = _of_data(meta, 'palette')
    if not found:
        dataset = _test_dataset(config)
        with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
            own = getattr(DATASETS.get(dataset['type']), 'METAINFO', {})
        found = (dataset.get('metainfo') or {}).get('palette') or own.get('palette')
    return found or None


def find_images(images: Images) -> list[str | np.ndarray]:
    """The files and arrays that `images` stands for. Raises FileNotFoundError where there are none."""
    if isinstance(images, np.ndarray):
        return [images]
    if not isinstance(images, (str, Path)):
        return [image if isinstance(image, np.ndarray) else str(image) for image in images]
    path = Path(images)
    if path.is_dir():
        found = images_below(path)
    elif path.suffix == '.txt' and path.is_file():
        found = [str(path.parent / entry.path) for entry in read_list(path, with_label=False)]
    else:
        found = [str(path)] if path.is_file() else []
    if not found:
        raise FileNotFoundError(f'{path}: no image there')
    return found


def flips(preprocessor: dict) -> bool:
    return bool(preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb'))


class ImageSamples(Dataset):
    """Images through the test pipeline of a config: (position, packed sample or None, why it cannot be read)."""

    def __init__(self, images: list[str | np.ndarray], config: Config, skip: bool) -> None:
        self.images, self.skip = images, skip
        preprocessor = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
        steps = _unlabelled(_test_dataset(config)['pipeline'])
        loaders = [step for step in steps if _named(step).startswith('Load')]
        if not loaders:  # a data set that makes its images, in the order of bands that the preprocessor takes
            bands = len(preprocessor.get('mean') or ()) or (config.model.get('backbone') or {}).get('in_channels', 3)
            color_type = {1: 'grayscale', 3: 'color'}.get(bands, 'unchanged')
            order = 'bgr' if flips(preprocessor) else 'rgb'
            loaders = [dict(type='beit_mm.LoadImage', color_type=color_type, channel_order=order)]
        if _named(loaders[0]) == 'LoadImage':
            self.bgr = loaders[0].get('channel_order') == 'bgr'
        else:
            self.bgr = True  # mmcv's
        with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
            self.load = Compose(loaders)
            self.rest = Compose([step for step in steps if step not in loaders])

    def __len__(self) -> int:
        return len(self.images)

    def loaded(self, index: int) -> dict:
        """An image as the config's loading steps give it. Raises UnreadableImage."""
        image = self.images[index]
        if isinstance(image, np.ndarray):
            image = image if image.ndim == 3 else image[..., None]
            image = image[..., ::-1] if self.bgr and image.shape[2] == 3 else image
            shape = image.shape[:2]
            return dict(img=np.ascontiguousarray(image), img_path=f'array {index}', img_shape=shape, ori_shape=shape)
        try:
            sample = self.load(dict(img_path=image))
            if sample is None:
                raise ValueError('its loader took it for unreadable')
        except Exception as error:  # the loader is any project's
            reason = str(error).removeprefix(f'{image}: ')
            raise UnreadableImage(f'{image}: {reason}') from error
        return sample

    def __getitem__(self, index: int) -> tuple[int, dict | None, str]:
        try:
            sample = self.loaded(index)
        except UnreadableImage as error:
            if self.skip:
                return index, None, str(error).removeprefix(f'{self.images[index]}: ')
            raise
        return index, self.rest(dict(sample, sample_idx=index)), ''


def _named(step: dict) -> str:
    return str(step['type']).rsplit('.', 1)[-1]


def _unlabelled(steps: Sequence[dict]) -> list[dict]:
    """A pipeline without the steps that load labels, inside of TestTimeAug too."""
    kept = []
    for step in steps:
        if _named(step) == 'LoadMask' or _named(step).startswith('LoadAnn'):
            continue
        if _named(step) == 'TestTimeAug':
            groups = [_unlabelled(group) for group in step['transforms']]
            step = dict(step, transforms=[group for group in groups if group])
        kept.append(step)
    return kept


class _Options(NamedTuple):
    """How images go through a model. on_error: `stop` or `skip`. tta: over the views of the config's tta_pipeline."""

    batch_size: int
    device: str | None = None
    num_workers: int = 0
    on_error: str = 'stop'
    tta: bool = False


def _collate(samples: list[tuple], collate: Callable) -> tuple[list[int], dict | None, dict[int, str]]:
    good = [(index, sample) for index, sample, _ in samples if sample is not None]
    batch = collate([sample for _, sample in good]) if good else None
    return [index for index, _ in good], batch, {index: why for index, sample, why in samples if sample is None}


def _run(config: Config, images: list, step: Callable, options: _Options) -> Iterator[tuple[int, object, str]]:
    """(position, what `step` gave for the image or None, why it cannot be read) of every image, in order."""
    collate = (config.test_dataloader.get('collate_fn') or {}).get('type')
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        collate = FUNCTIONS.get(collate) if isinstance(collate, str) else collate or pseudo_collate
    loader = DataLoader(
        ImageSamples(images, config, options.on_error == 'skip'),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        collate_fn=functools.partial(_collate, collate=collate),
    )
    half = bool((config.get('test_cfg') or {}).get('fp16'))
    for indices, batch, unread in loader:
        found = {}
        if batch is not None:
            with torch.no_grad(), autocast(enabled=half):
                found = dict(zip(indices, step(batch), strict=True))
        for index in sorted([*indices, *unread]):
            yield index, found.get(index), unread.get(index, '')


def _each(
    model, checkpoint: str | None, images: Images, row: Callable, step: Callable, kind: str, options: _Options
) -> Iterator[dict]:
    """One row per image: `row(output)` with `image`, its path or its position; `error` where it cannot be read."""
    if options.on_error not in ('stop', 'skip'):
        raise ValueError(f'on_error={options.on_error!r} is neither stop nor skip')
    if not isinstance(model, nn.Module):
        model = init_model(model, checkpoint, options.device)
    if task_of(model) != kind:
        raise ConfigError(f'{model.cfg.filename}: {type(model).__name__} is for {task_of(model)}, not for {kind}')
    images, config, asked = find_images(images), model.cfg, model
    if options.tta:
        config = copy.deepcopy(config)
        with_tta(config)
        asked = merging(config, model)
    for index, output, why in _run(config, images, functools.partial(step, asked), options):
        name = index if isinstance(images[index], np.ndarray) else images[index]
        yield dict(image=name, error=why) if why else dict(image=name, **row(model, output))


def task_of(model: nn.Module) -> str:
    """classification, segmentation, tokenization, or pretraining without a tokenizer."""
    if isinstance(model, BaseSegmentor):
        return 'segmentation'
    if isinstance(model, BaseClassifier):
        return 'classification'
    return 'tokenization' if _tokenizer_of(model) is not None else 'pretraining'


def _tokenizer_of(model: nn.Module) -> nn.Module | None:
    """A tokenizer itself, or the one whose tokens a masked image model predicts."""
    return model if hasattr(model, 'tokens') else getattr(getattr(model, 'target', None), 'tokenizer', None)


def classify(
    config: str | Path | Config | nn.Module,
    checkpoint: str | None,
    images: Images,
    top: int = 5,
    device: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    on_error: str = 'stop',
) -> list[dict]:
    """Per image: image, label, name and score of the best class, `top` of such, and `scores` (num_classes,) float32.

    config: a path, a Config, or a model of `init_model` (checkpoint is then not read). on_error: `stop` raises for an
    image that cannot be read, `skip` gives it a row of image and error.
    """
    row = functools.partial(_class_row, top=top)
    options = _Options(batch_size, device, num_workers, on_error)
    return list(_each(config, checkpoint, images, row, _test_step, 'classification', options))


def _test_step(model: nn.Module, batch: dict) -> list:
    return model.test_step(batch)


def _class_row(model: nn.Module, sample, top: int) -> dict:
    scores = sample.pred_score.float().cpu().numpy()
    names = model.dataset_meta['classes']
    if names is not None and len(names) != len(scores):
        raise ConfigError(
            f'{model.cfg.filename}: the model tells {len(scores)} classes apart, and checkpoint or config name '
            f'{len(names)}: set metainfo=dict(classes=...) in test_dataloader.dataset'
        )
    best = [
        dict(label=int(i), name=names[i] if names else str(i), score=float(scores[i]))
        for i in np.argsort(-scores, kind='stable')[:top]
    ]
    return dict(best[0], top=best, scores=scores)


def segment(
    config: str | Path | Config | nn.Module,
    checkpoint: str | None,
    images: Images,
    device: str | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    on_error: str = 'stop',
    tta: bool = False,
) -> list[dict]:
    """Per image: image and `mask` (H, W) of the image's own size, class indices, uint8 or (above 256 classes) uint16.

    Arguments: `classify`. batch_size above 1 is for images that the pipeline makes equal in size. tta: the mean over
    the scales and flips of the config's tta_pipeline. `overlay_of` shows a mask over its image.
    """
    options = _Options(batch_size, device, num_workers, on_error, tta)
    return list(_each(config, checkpoint, images, _mask_row, _test_step, 'segmentation', options))


def _mask_row(model: nn.Module, sample) -> dict:
    mask = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
    return dict(mask=mask.astype(np.uint8 if mask.max() < 256 else np.uint16))


def tokenize(
    config: str | Path | Config | nn.Module,
    checkpoint: str | None,
    images: Images,
    device: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    on_error: str = 'stop',
) -> list[dict]:
    """Per image: image and `tokens` (Gh, Gw) int64, of the view that the test pipeline cuts. Arguments: `classify`.

    config: of a tokenizer, or of a pre-training, whose target's tokenizer is asked.
    """
    options = _Options(batch_size, device, num_workers, on_error)
    return list(_each(config, checkpoint, images, _token_row, _token_step, 'tokenization', options))


def _token_step(model: nn.Module, batch: dict) -> torch.Tensor:
    view = model.data_preprocessor(batch, False)['tokens_view']
    tokenizer = _tokenizer_of(model)
    return tokenizer.to(view.device).tokens(view)


def _token_row(model: nn.Module, tokens: torch.Tensor) -> dict:
    return dict(tokens=tokens.cpu().numpy())


def overlay_of(model: nn.Module, image: str | Path | np.ndarray, mask: np.ndarray) -> Image.Image:
    """The image beside itself under the colours of its mask (H, W), with a legend."""
    samples = ImageSamples([image if isinstance(image, np.ndarray) else str(image)], model.cfg, skip=False)
    pixels = samples.loaded(0)['img']
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    pixels = pixels[..., ::-1] if samples.bgr and pixels.shape[2] == 3 else pixels
    classes = model.dataset_meta['classes'] or [str(i) for i in range(max(model.num_classes, int(mask.max()) + 1))]
    return overlay.picture(pixels, {'prediction': mask}, list(classes), model.dataset_meta['palette'])


FILES = ('.json', '.csv', '.txt', '.png', '.jpg', '.npy')  # endings that are not meant for a folder


def write_predictions(
    model: nn.Module,
    images: Images,
    out: str | Path,
    batch_size: int | None = None,
    skip: bool = False,
    tta: bool = False,
    show_dir: str | Path | None = None,
) -> str:
    """Predict and write: classes to a .json or .csv file, masks as PNG into a folder; returns what to tell the user.

    batch_size, and the number of workers: default the config's `test_dataloader`'s; for masks 1. tta, show_dir: of
    masks, the mean over scales and flips, and a folder for pictures of them.
    PNG masks hold class indices, from 0, and keep the images' names and subfolders.
    """
    out, task = Path(out), task_of(model)
    loader = model.cfg.test_dataloader
    options = _Options(batch_size or 1, None, loader.get('num_workers', 0), 'skip' if skip else 'stop', tta)
    if task != 'segmentation' and (tta or show_dir):
        raise ConfigError(f'{model.cfg.filename}: --tta and --show-dir are for segmentation, this is for {task}')
    if task == 'classification':
        if out.suffix not in ('.json', '.csv'):
            raise ConfigError(f'{out}: predictions of classes are written to a file that ends in .json or .csv')
        options = options._replace(batch_size=batch_size or loader.get('batch_size', 1))
        row = functools.partial(_class_row, top=5)
        rows = list(_each(model, None, images, row, _test_step, task, options))
        out.parent.mkdir(parents=True, exist_ok=True)
        good = [r for r in rows if 'error' not in r]
        write = _write_json if out.suffix == '.json' else _write_csv
        write(good, [r for r in rows if 'error' in r], model.dataset_meta['classes'], out)
        done = f'{len(good)} images classified: {out}'
    elif task == 'segmentation':
        for folder in filter(None, (out, show_dir and Path(show_dir))):
            if folder.suffix.lower() in FILES or folder.is_file():
                raise ConfigError(f'{folder}: masks are written as PNG into a folder; give the name of one')
        if show_dir and Path(show_dir).resolve() == out.resolve():
            raise ConfigError(f'{out}: masks and pictures have the same names: give --out and --show-dir two folders')
        rows, written = [], set()
        for r in _each(model, None, images, _mask_row, _test_step, task, options):
            if 'error' not in r:
                written.add(_write_png(Image.fromarray(r['mask']), r['image'], images, out, written))
                if show_dir:
                    shown = images[r['image']] if isinstance(r['image'], int) else r['image']
                    page = overlay_of(model, shown, r['mask'])
                    _write_png(page, r['image'], images, Path(show_dir), set())
                r = dict(image=r['image'])
            rows.append(r)
        done = f'{len(written)} masks of class indices below {out}' + (f', pictures: {show_dir}' if show_dir else '')
    else:
        raise ConfigError(
            f'{model.cfg.filename}: {type(model).__name__} neither classifies nor segments; for tokens: '
            f'beit_mm.apis.tokenize'
        )
    lost = [f'\n    {r["image"]}: {r["error"]}' for r in rows if 'error' in r]
    more = f'\n    {len(lost) - 5} more' if len(lost) > 5 else ''
    return done + (
        f'\n{len(lost)} images could not be read and were left out:{"".join(lost[:5])}{more}' if lost else ''
    )


def _write_json(rows: list[dict], lost: list[dict], classes: tuple | None, out: Path) -> None:
    predictions = [{'image': r['image'], 'class': r['name'], 'label': r['label'], 'score': r['score'],
                    'top5': [{'class': t['name'], 'label': t['label'], 'score': t['score']} for t in r['top']]}
                   for r in rows]  # fmt: skip
    out.write_text(json.dumps(dict(classes=classes, predictions=predictions, unreadable=lost), indent=1) + '\n')


def _write_csv(rows: list[dict], lost: list[dict], classes: tuple | None, out: Path) -> None:
    """One line per image; the five best as class_1, label_1, score_1, ...; for one that was not read, its error."""
    width = max((len(r['top']) for r in rows), default=0)
    with open(out, 'w', newline='') as file:
        table = csv.writer(file)
        best = [f'{key}_{i}' for i in range(1, width + 1) for key in ('class', 'label', 'score')]
        table.writerow(['image', 'class', 'label', 'score', *best, 'error'])
        for r in rows:
            best = [value for t in r['top'] for value in (t['name'], t['label'], t['score'])]
            table.writerow([r['image'], r['name'], r['label'], r['score'], *best, ''])
        for r in lost:
            table.writerow([r['image'], *[''] * (3 + 3 * width), r['error']])


def _write_png(picture: Image.Image, image: str | int, images: Images, out: Path, written: set[Path]) -> Path:
    """Save a picture of an image below `out` under the image's name; ValueError for a second one of one name."""
    folder = str(images) if isinstance(images, (str, Path)) and os.path.isdir(images) else ''
    name = f'{image:06d}' if isinstance(image, int) else image  # arrays are called by their place
    path = out / name_of(name, folder)
    if path in written:
        raise ConfigError(f'{image}: {path} is written already, for an image of the same name')
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
