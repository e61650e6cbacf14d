"""What tools/visualize.py was asked for, made: one picture, or all that a config has, as PNG and as one HTML page."""

import functools
import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ...apis import init_model
from ...checkpoints.load import CheckpointError, trust
from ...engine.configs import load_config, parse_overrides
from ...engine.errors import ConfigError
from ...models.backbone import BEiTViT
from .. import page
from . import images as sources
from .attention import attention_panel, rollout_panel
from .canvas import Panel, PictureError
from .features import features_panel
from .masks import DRAWS, masks_panel
from .models import load_backbone, load_tokenizer, painter_of
from .positions import absolute_panel, relative_bias_panel
from .reconstruction import reconstruction_panel
from .segmentation import segmentation_panel
from .tokens import tokens_panel

SHOWN = 4  # images in a picture: the first ones, not chosen ones
JUDGED = 200  # images behind a number
PLACED = 400  # images in the plane of their features
FOLDER = 'work_dirs/pictures'
Pair = tuple[int, int]


@dataclass
class Wishes:
    """What a picture is made of; tools/visualize.py's options under their names."""

    config: str
    checkpoint: str | None = None
    images: Sequence[str] = ()
    indices: Sequence[int] | None = None
    data: str | None = None
    voc: str | None = None
    size: int | None = None
    judged: int | None = None
    layer: int = -1
    query: Pair | None = None
    query_pixel: Pair | None = None
    draws: int = DRAWS
    decoder: str | None = None
    absolute: bool = False
    pool: str = 'mean'
    plane: str = 'tsne'
    against: Sequence[tuple[str, str]] = ()
    seed: int = 0
    cfg_options: Sequence[str] | None = None
    loaded: Config = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.loaded = load_config(self.config, parse_overrides(self.cfg_options))
        given = [name for name in ('images', 'data', 'voc') if getattr(self, name)]
        if len(given) > 1:
            raise PictureError(f'--{given[0]} and --{given[1]} are both said to be the images; give one of them')
        for name, least in (('judged', 0), ('draws', 1), ('size', 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise PictureError(f'--{name} {getattr(self, name)}: must be {least} or more')

    @functools.cached_property
    def backbone(self) -> BEiTViT:
        return load_backbone(self.loaded, self.checkpoint)

    def chosen(self, count: int) -> list[int]:
        """The images that are shown: as asked, else all files, else the first ones."""
        return list(range(count if self.images else min(count, SHOWN))) if self.indices is None else list(self.indices)

    def packed(self, most: int) -> tuple[list[dict], list[dict]]:
        """Of the config's test pipeline: the samples that are shown, and others that are only counted."""
        source = sources.packed(self.loaded, self.images)
        shown = self.chosen(source.count)
        most = 0 if self.images else min(source.count, most if self.judged is None else self.judged)
        return source.chosen(shown), source.chosen([i for i in range(most) if i not in shown])

    def source(self) -> sources.Images:
        """Where the images are: files, a VOC folder, another config's test data, or this one's."""
        if self.images:
            return sources.from_files(self.loaded, self.images, whole=self.size is not None)
        if self.voc:
            return sources.from_voc(self.voc)
        return sources.from_config(load_config(self.data) if self.data else self.loaded)


def _masks(wishes: Wishes) -> Panel:
    source = wishes.source()
    return masks_panel(wishes.loaded, source.chosen(wishes.chosen(source.count)), wishes.draws, wishes.seed)


def _tokens(wishes: Wishes) -> Panel:
    tokenizer, preprocessor = load_tokenizer(wishes.loaded, wishes.checkpoint)
    samples, counted = wishes.packed(JUDGED)
    return tokens_panel(tokenizer, preprocessor, samples, counted, painter_of(tokenizer, wishes.decoder))


def _reconstruction(wishes: Wishes) -> Panel:
    if wishes.loaded.model.get('target') is None:
        raise ConfigError(
            f'{wishes.config}: {wishes.loaded.model.type} predicts no masked patches; give a pre-training'
        )
    model = init_model(wishes.loaded, _needed(wishes))
    return reconstruction_panel(model, *wishes.packed(JUDGED), wishes.decoder)


def _needed(wishes: Wishes) -> str:
    if not wishes.checkpoint:
        raise PictureError(f'{wishes.config}: give CHECKPOINT after it, the weights of this model')
    return wishes.checkpoint


def _looked_at(wishes: Wishes) -> tuple:
    """(backbone, images, where from, the size that they are brought to)."""
    backbone, source = wishes.backbone, wishes.source()
    # What does not come through a pipeline of the model's size is brought to the model's size
    own = min(backbone.own_grid) * backbone.patch_size if wishes.voc or wishes.data else None
    return backbone, source.chosen(wishes.chosen(source.count)), source, wishes.size or own


def _attention(wishes: Wishes) -> Panel:
    backbone, images, source, size = _looked_at(wishes)
    judged: Iterator = iter(())
    if images[0].mask is not None or images[0].objects is not None:
        most = JUDGED if wishes.judged is None else wishes.judged
        judged = (source.load(i) for i in range(min(source.count, most)))
    query, in_pixels = _query(wishes)
    return attention_panel(backbone, wishes.loaded, images, judged, wishes.layer, query, in_pixels, size)


def _query(wishes: Wishes) -> tuple[Pair | None, bool]:
    if wishes.query and wishes.query_pixel:
        raise PictureError('--query and --query-pixel: give one of them')
    return wishes.query or wishes.query_pixel, wishes.query_pixel is not None


def _rollout(wishes: Wishes) -> Panel:
    backbone, images, _, size = _looked_at(wishes)
    return rollout_panel(backbone, wishes.loaded, images, *_query(wishes), size)


def _relative_bias(wishes: Wishes) -> Panel:
    return (absolute_panel if wishes.absolute else relative_bias_panel)(wishes.backbone)


def _features(wishes: Wishes) -> Panel:
    backbone, images, source, size = _looked_at(wishes)
    most = PLACED if wishes.judged is None else wishes.judged
    placed = [source.load(i) for i in range(min(source.count, most))]
    options = (wishes.layer, wishes.pool, wishes.plane, wishes.seed, size)
    return features_panel(backbone, wishes.loaded, images, placed, source.classes, *options)


def _segmentation(wishes: Wishes) -> Panel:
    pairs = [(wishes.loaded, _needed(wishes))]
    pairs += [(load_config(config, parse_overrides(wishes.cfg_options)), weights) for config, weights in wishes.against]
    names = [config.get('protocol') or Path(config.filename).stem for config, _ in pairs]
    if len(set(names)) < len(names):
        names = [
            f'{name} ({Path(weights).parent.name}/{Path(weights).stem})' for name, (_, weights) in zip(names, pairs)
        ]
    named = {name: (config, init_model(config, weights)) for name, (config, weights) in zip(names, pairs)}
    count = sources.packed(wishes.loaded, wishes.images).count
    return segmentation_panel(named, wishes.chosen(count), wishes.images)


KINDS: dict[str, Callable[[Wishes], Panel]] = {
    'masks': _masks,
    'tokens': _tokens,
    'reconstruction': _reconstruction,
    'attention': _attention,
    'rollout': _rollout,
    'relative-bias': _relative_bias,
    'features': _features,
    'segmentation': _segmentation,
}


def show(kind: str, out: str | None = None, page_file: str | None = None, trusted: bool = False, **wishes) -> list[str]:
    """Make a picture (or all that the config has) and write it; returns what to tell the user.

    out: the PNG, or for `all` a folder of them; default below work_dirs/pictures. page_file: an HTML page with the same
    and their numbers, which needs no other file. trusted: the checkpoint may hold code.
    """
    if out and (kind == 'all') == (Path(out).suffix.lower() == '.png'):
        wanted = 'a folder, for many pictures' if kind == 'all' else 'a name that ends in .png: pictures are PNG'
        raise PictureError(f'--out {out}: give {wanted}')
    if trusted and wishes.get('checkpoint'):
        trust(wishes['checkpoint'])
    asked = Wishes(**wishes)
    folder = Path(FOLDER) / Path(asked.config).stem
    lines, panels = [], []
    for one in KINDS if kind == 'all' else [kind]:
        try:
            panel = panel_of(one, asked) if kind == 'all' else KINDS[one](asked)
        except (PictureError, ConfigError, CheckpointError, OSError) as error:
            if kind != 'all':
                raise
            lines.append(f'{one}: not here. {error}')
            continue
        path = Path(out) / f'{one}.png' if out and kind == 'all' else Path(out) if out else folder / f'{one}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(panel.png)
        panels.append(panel)
        width = max(map(len, panel.numbers), default=0) + 4
        lines += [f'{one}: {path}', *(f'{name:>{width}}  {_number(value)}' for name, value in panel.numbers.items())]
    if not panels:
        raise PictureError('nothing could be drawn:\n' + '\n'.join(lines))
    if page_file:
        Path(page_file).parent.mkdir(parents=True, exist_ok=True)
        Path(page_file).write_text(as_page(asked, panels))
        lines.append(f'page: {page_file}')
    return lines


def panel_of(kind: str, asked: Wishes) -> Panel:
    """A picture of that kind; of places what the backbone has: its relative bias, else its absolute positions."""
    if kind == 'relative-bias' and asked.backbone.pos_embed is not None:
        return absolute_panel(asked.backbone)
    return KINDS[kind](asked)


def as_page(asked: Wishes, panels: Sequence[Panel]) -> str:
    """One HTML page with the pictures inside it."""
    title = f'What {Path(asked.config).stem} learned'
    head = f'<h1>{html.escape(title)}</h1><p class="note">Checkpoint: {html.escape(str(asked.checkpoint))}</p>'
    parts = [page.section(p.kind, page.picture(p.png, p.caption) + numbers_table(p)) for p in panels]
    return page.whole(title, head, '\n'.join(parts))


def numbers_table(panel: Panel) -> str:
    """What a picture shows in numbers, folded; '' for none."""
    rows = [[name, _number(value)] for name, value in panel.numbers.items()]
    return f'<details><summary>Numbers</summary>{page.table(["", "value"], rows)}</details>' if rows else ''


def _number(value: float) -> str:
    return f'{value:,.0f}' if np.isclose(value, round(value)) and abs(value) >= 1 else f'{value:.4f}'
