"""`analyze.py flops`: parameters and multiply-accumulates of a config's model, module by module, without any weight.

The model is built on torch's meta device: neither memory nor data nor checkpoints are needed. What counts and how:
`benchmark/cost.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from mmengine.config import Config
from torch import nn

from ...models.pretrain import MaskedImageModel
from ...models.probe import KNNProbe
from ...models.targets import CachedTokens
from ..cost import FLOPS_PER_MAC, build_on_meta, macs_by_module
from . import AnalysisError
from .tables import aligned, target, write_csv

DEFAULT_SHARE = 0.4  # of patches that are masked, where no pipeline says it: the paper's
DEFAULT_SIDE = 224
TOKENIZER = 'target (tokenizer)'


class Row(NamedTuple):
    """A module: parameters, and multiply-accumulates for one image."""

    name: str
    parameters: int
    macs: int


class _Part(NamedTuple):
    """One call that belongs to a step of the model: what it is called, whose module it is, the call itself."""

    name: str
    module: nn.Module
    call: Callable[[], object]


def _steps(config: Config) -> Iterator[dict]:
    """The steps of the training pipeline, of the test's where there is none to train."""
    loader = config.get('train_dataloader') or config.get('test_dataloader') or {}
    dataset = loader.get('dataset') or {}
    while 'pipeline' not in dataset and isinstance(dataset.get('dataset'), dict):
        dataset = dataset['dataset']
    yield from (step for step in dataset.get('pipeline') or [] if isinstance(step, dict))


def _said(config: Config, key: str):
    """What the pipeline's first step with such an argument says; None without one."""
    return next((step[key] for step in _steps(config) if step.get(key) is not None), None)


def input_shape(config: Config, model: nn.Module, shape: Sequence[int] | None) -> tuple[int, int, int]:
    """(C, H, W) of an image: the size asked for, else the one that the backbone, or the token view, is made for."""
    backbone = getattr(model, 'backbone', None)
    if shape:
        height, width = shape[0], shape[-1]
    elif hasattr(backbone, 'own_grid'):
        height, width = (cells * backbone.patch_size for cells in backbone.own_grid)
    elif backbone is None and _said(config, 'tokens_size'):
        height = width = _said(config, 'tokens_size')
    else:
        side = (config.model.get('backbone') or {}).get('img_size') or DEFAULT_SIDE
        height, width = (side, side) if isinstance(side, int) else side
    return _channels(config), height, width


def _channels(config: Config) -> int:
    preprocessor = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    return (config.model.get('backbone') or config.model).get('in_channels') or len(
        preprocessor.get('mean') or (0,) * 3
    )


def _parts(config: Config, model: nn.Module, shape: tuple[int, int, int], batch: int) -> list[_Part]:
    """What a model does with a batch of images at inference; masked image modeling: in a forward pass of training."""
    with torch.device('meta'):
        images = torch.zeros(batch, *shape)
        if isinstance(model, MaskedImageModel):
            return _parts_of_pretraining(config, model, images)
    if hasattr(model, 'tokens'):
        return [_Part('', model, lambda: model(tokens_view=images))]
    if isinstance(model, KNNProbe):
        return [_Part('backbone', model.backbone, lambda: model.backbone(images))]
    return [_Part('', model, lambda: model(images, mode='tensor'))]


def _parts_of_pretraining(config: Config, model: MaskedImageModel, images: torch.Tensor) -> list[_Part]:
    batch, channels, height, width = images.shape
    patch = model.backbone.patch_size
    grid = height // patch, width // patch
    patches = grid[0] * grid[1]
    own = model.backbone.own_grid
    share = (_said(config, 'num_masked') or DEFAULT_SHARE * own[0] * own[1]) / (own[0] * own[1])
    predicted = patches if model.predict_all else round(share * patches)
    mask = torch.zeros(batch, *grid, dtype=torch.bool)
    features = torch.zeros(batch * predicted, model.backbone.embed_dims)
    parts = [
        _Part('backbone', model.backbone, lambda: model.backbone(images, mask if model.hide else None)),
        _Part('head', model.head, lambda: model.head(features)),
    ]
    tokenizer = getattr(model.target, 'tokenizer', None)
    if tokenizer is not None and not isinstance(model.target, CachedTokens):  # whose tokens are there already
        zoom = (_said(config, 'tokens_size') or own[0] * patch // 2) / (own[0] * patch)
        view = torch.zeros(batch, channels, round(height * zoom), round(width * zoom))
        parts.append(_Part(TOKENIZER, tokenizer, lambda: tokenizer.tokens(view)))
    return parts


def count(
    config: Config, shape: Sequence[int] | None = None, batch: int = 1, depth: int = 2
) -> tuple[list[Row], tuple[int, int, int]]:
    """Rows of modules down to `depth` parts of a name, in the model's order, the last one their total; all for one
    image, whose (C, H, W) is the second value.

    Raises AnalysisError where the model does not take images of this shape.
    """
    model = build_on_meta(config)
    size = input_shape(config, model, shape)
    rows, total = [], Row('all', 0, 0)
    for part in _parts(config, model, size, batch):
        try:
            macs = macs_by_module(part.module, forward=lambda call=part.call: call())
        except (ValueError, RuntimeError) as error:
            raise AnalysisError(
                f'--shape {size[1]} {size[2]}: {type(model).__name__} does not take it: {error}'
            ) from error
        parameters = sum(p.numel() for p in part.module.parameters())
        rows += _rows(part, macs, depth, batch)
        total = Row('all', total.parameters + parameters, total.macs + macs[''] // batch)
    return [*rows, total], size


def _rows(part: _Part, macs: dict[str, int], depth: int, batch: int) -> Iterator[Row]:
    left = depth - (1 if part.name else 0)
    if part.name:
        yield Row(part.name, sum(p.numel() for p in part.module.parameters()), macs[''] // batch)
    if part.name == TOKENIZER:
        return  # its `tokens` calls its parts, not itself: they are not known by name
    for name, module in part.module.named_modules():
        parts = name.split('.') if name else []
        if not parts or len(parts) > left:
            continue
        parameters = sum(p.numel() for p in module.parameters())
        inside = _inside(name, macs)
        if parameters or inside:
            yield Row('.'.join([part.name, name] if part.name else [name]), parameters, inside // batch)


def _inside(name: str, macs: dict[str, int]) -> int:
    """Of a module; one that is only a list, and never called, is the sum of those in it that are."""
    if name in macs:
        return macs[name]
    below = [other for other in macs if other.startswith(f'{name}.')]
    outermost = [one for one in below if not any(one.startswith(f'{other}.') for other in below)]
    return sum(macs[one] for one in outermost)


def show(
    config: Config, shape: Sequence[int] | None = None, batch: int = 1, depth: int = 2, out: str | None = None
) -> str:
    """The table for a terminal, and as .csv."""
    rows, size = count(config, shape, batch, depth)
    total = rows[-1]
    table = aligned(
        ('module', 'parameters', '%', 'GMACs', '%'),
        [
            (
                '  ' * row.name.count('.') + row.name.rsplit('.', 1)[-1] if row is not total else row.name,
                f'{row.parameters:,}',
                f'{100 * row.parameters / max(total.parameters, 1):.1f}',
                f'{row.macs / 1e9:.3f}',
                f'{100 * row.macs / max(total.macs, 1):.1f}',
            )
            for row in rows
        ],
    )
    if out:
        columns = ('module', 'parameters', 'macs')
        write_csv(target(out, ('.csv',)), columns, rows)
    return (
        f'{table}\n\none image of {size[0]} x {size[1]} x {size[2]}: {total.macs / 1e9:.2f} GMACs = '
        f'{FLOPS_PER_MAC * total.macs / 1e9:.2f} GFLOPs, {total.parameters / 1e6:.2f} M parameters'
    )
