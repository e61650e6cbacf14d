"""Pictures of what the models learned, as PNG bytes: reconstructions, segmentations, attention maps."""

import io
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image, ImageDraw, ImageFont

from ..checkpoints.load import CheckpointError, read, state_dict_of
from ..data import embedded
from ..engine.configs import load_config
from ..engine.overlay import as_rgb
from ..engine.showing import as_loaded
from ..ops.pixels import unpatchify
from . import attention

TILE = 192  # screen pixels per picture, at least: small images are scaled up by a whole factor
GAP, FONT, LEADING = 6, 14, 18  # pixels: between tiles, of letters, of lines
HIDDEN = 0.75  # grey of a masked patch


def build_model(config: Config) -> BaseModel:
    """A config's model with its initial weights, in eval mode, built in the config's own scope."""
    scope = config.get('default_scope', 'mmengine')
    if scope == 'mmseg':
        import mmseg.models  # noqa: F401
    with DefaultScope.overwrite_default_scope(scope):
        cfg = dict(config.model)
        if config.get('data_preprocessor') is not None:
            cfg.setdefault('data_preprocessor', config.data_preprocessor)
        return MODELS.build(cfg).eval()


def load_model(config: Config, checkpoint: str | Path) -> BaseModel:
    """`build_model` with the weights of a checkpoint, every key of which must fit. Raises CheckpointError."""
    model = build_model(config)
    weights = state_dict_of(read(checkpoint, map_location='cpu'))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = [line.strip() for line in str(error).splitlines()[1:4]]
        raise CheckpointError(f'{checkpoint}: does not fit the model of this config: {" ".join(first)}') from error
    return model


def load_stage(stage: dict) -> tuple[Config, BaseModel]:
    """Config and model of a finished stage of a suite, from the config that the run left in its work_dir.

    Without that copy: the config as it is now, with the options that the stage was run with.
    """
    own = Path(stage['work_dir']) / Path(stage['config']).name
    config = load_config(own) if own.is_file() else load_config(stage['config'], stage.get('options'))
    return config, load_model(config, stage['checkpoint'])


def test_samples(config: Config, indices: list[int]) -> list[dict]:
    """What a config's test pipeline makes of some samples."""
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    return [dataset[i] for i in indices]


def sheet(columns: list[tuple[str, list[np.ndarray]]], tile: int = TILE) -> bytes:
    """A PNG: one column of pictures (H, W) or (H, W, 3) uint8, all of one size, under each title."""
    height, width = columns[0][1][0].shape[:2]
    scale = max(1, round(tile / width))
    cell_w, cell_h = width * scale + GAP, height * scale + GAP
    head = LEADING * max(title.count('\n') + 1 for title, _ in columns) + GAP
    page = Image.new('RGB', (cell_w * len(columns) + GAP, cell_h * len(columns[0][1]) + head), 'white')
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT)
    for c, (title, pictures) in enumerate(columns):
        for i, line in enumerate(title.split('\n')):
            draw.text((GAP + c * cell_w, 3 + LEADING * i), line, fill='black', font=font)
        for r, picture in enumerate(pictures):
            enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            page.paste(Image.fromarray(enlarged).convert('RGB'), (GAP + c * cell_w, head + r * cell_h))
    out = io.BytesIO()
    page.save(out, 'PNG', optimize=True)
    return out.getvalue()


def as_picture(pixels: torch.Tensor, size: int) -> np.ndarray:
    """(C, h, w) in [0, 1] -> (size, size) or (size, size, 3) uint8."""
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    array = array[..., 0] if array.shape[2] == 1 else array
    return np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.NEAREST))


@torch.no_grad()
def reconstruction_panel(config: Config, model: BaseModel, indices: list[int]) -> bytes:
    """image | what the backbone saw | the masked patches as predicted | what the target says they hold.

    Tokens are painted by the tokenizer's decoder: predicted ones fill the masked patches alone, the others keep
    their true token, as in a completion task. Pixel targets (Table 4's ablation) are put in as they are.
    """
    samples = test_samples(config, indices)
    batch = {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
    data = model.data_preprocessor(batch, False)
    truth = model.target(data)
    guess = model.head(model.features(data))
    mask, grid = data['mask'].flatten(1), batch['mask'].shape[1:]
    images = batch['patches'].float() / 255
    size, patch = images.shape[-1], images.shape[-1] // grid[1]
    hidden = batch['mask'].repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    seen = torch.where(hidden[:, None], torch.full_like(images, HIDDEN), images)
    if truth.ndim == 2:
        guess = guess.argmax(dim=-1)
        share = 100 * float((guess == truth)[mask].float().mean())
        decoded = [
            model.target.tokenizer.decode(tokens.unflatten(1, grid))
            for tokens in (torch.where(mask, guess, truth), truth)
        ]
        titles = ('image', 'masked', f'predicted tokens\n{share:.0f} % of masked right', 'true tokens')
    else:
        pre = model.data_preprocessor
        mixed = unpatchify(torch.where(mask[..., None], guess, truth), patch, grid)
        decoded = [(mixed * pre.std + pre.mean) / 255, images]
        titles = ('image', 'masked', 'predicted pixels', 'true pixels')
    parts = (images, seen, *decoded)
    return sheet([(t, [as_picture(p, size) for p in part]) for t, part in zip(titles, parts, strict=True)])


@torch.no_grad()
def segmentation_panel(named: dict[str, tuple[Config, BaseModel]], indices: list[int]) -> bytes:
    """image | truth | each model's prediction, laid over the image."""
    palette = np.array(embedded.PALETTE, dtype=np.uint8)
    columns: list[tuple[str, list[np.ndarray]]] = []
    for name, (config, model) in named.items():
        samples = test_samples(config, indices)
        batch = dict(inputs=[s['inputs'] for s in samples], data_samples=[s['data_samples'] for s in samples])
        truths = [s['data_samples'].gt_sem_seg.data[0].numpy() for s in samples]
        flipped = model.data_preprocessor.channel_conversion
        images = [as_rgb(as_loaded(s['inputs'], t.shape, flipped)) for s, t in zip(samples, truths, strict=True)]
        guesses = [r.pred_sem_seg.data[0].numpy() for r in model.test_step(batch)]

        def over(maps: list[np.ndarray], images: list[np.ndarray] = images) -> list[np.ndarray]:
            return [(0.45 * i + 0.55 * palette[m]).astype(np.uint8) for i, m in zip(images, maps, strict=True)]

        if not columns:
            columns += [('image', images), ('truth', over(truths))]
        right = np.mean([(g == t).mean() for g, t in zip(guesses, truths, strict=True)])
        columns.append((f'{name}\n{100 * right:.0f} % of pixels right', over(guesses)))
    return sheet(columns)


def attention_panel(
    config: Config, model: BaseModel, indices: list[int], judged: int = 200
) -> tuple[bytes, dict[str, float]]:
    """image with the query | the mean over heads | each head; and `attention_jaccard` over `judged` images.

    Bright is attended to; every map is scaled to its own maximum.
    """
    dataset = config.test_dataloader.dataset
    scenes = [
        embedded.scene(dataset.get('seed', 0), 'val', i, dataset['size'], dataset.get('grey', False))
        for i in range(max(judged, *indices) + 1)
    ]
    images = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).float()
    pre = config.get('data_preprocessor') or config.model.data_preprocessor
    mean, std = (torch.tensor(pre[k]).view(1, -1, 1, 1) for k in ('mean', 'std'))
    grid = [images.shape[2] // model.backbone.patch_size] * 2
    masks = np.stack([s.mask for s in scenes])
    queries = torch.tensor(
        [_query(attention.patch_classes(m, grid), s.label) for m, s in zip(masks, scenes, strict=True)]
    )
    maps = attention.self_attention(model.backbone, (images - mean) / std, queries)
    numbers = attention.attention_jaccard(maps[:judged], masks[:judged], queries[:judged])
    pictures: dict[str, list[np.ndarray]] = {}
    for i in indices:
        image = scenes[i].image.repeat(3, axis=2) if scenes[i].image.shape[2] == 1 else scenes[i].image.copy()
        marked = image.copy()
        p = model.backbone.patch_size
        row, column = queries[i].tolist()
        marked[row * p : (row + 1) * p, column * p : (column + 1) * p] = (220, 40, 40)
        pictures.setdefault('image, query', []).append(marked)
        heads = maps[i].numpy()
        for name, one in [('mean of heads', heads.mean(axis=0)), *((f'head {h}', m) for h, m in enumerate(heads))]:
            heat = (one / one.max()).repeat(p, 0).repeat(p, 1)[..., None]
            tinted = image * (0.35 + 0.65 * heat) * np.array([1.0, 0.85, 0.6])
            pictures.setdefault(name, []).append(tinted.astype(np.uint8))
    return sheet(list(pictures.items()), tile=TILE * 2 // 3), numbers


def _query(classes: np.ndarray, label: int) -> tuple[int, int]:
    """The patch of class `label` that lies nearest to the middle of that region."""
    where = np.argwhere(classes == label)
    if not len(where):
        where = np.argwhere(np.ones_like(classes))
    nearest = np.square(where - where.mean(axis=0)).sum(axis=1).argmin()
    return tuple(int(v) for v in where[nearest])
