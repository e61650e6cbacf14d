"""Where a patch looks: self-attention of each head, and its rollout through all blocks, over the images."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image as Pillow
from PIL import ImageDraw

from ...data.embedded import LUMA
from ...engine.overlay import as_rgb
from ...models.backbone import BEiTViT
from .. import attention
from .canvas import TILE, Panel, PictureError, fitted, heat, sheet
from .images import Image, Region, normalised, regions_of, to_patches, told
from .models import device_of

RED, WHITE = (230, 30, 40), (255, 255, 255)
IMAGE_SHARE = 0.3  # of the grey image under a heat map
HEAD_TILE = 150  # where a model has many heads
MOST_AT_FULL_SIZE = 5  # columns
READING = 'each map is scaled to its own maximum, from black (nothing) over red to yellow (most)'


def query_patch(query: Sequence[int] | None, in_pixels: bool, size: Sequence[int], patch: int) -> tuple[int, int]:
    """(row, column) of the patch that is asked for: as given, or at a pixel (row, column); default the centre.

    Raises PictureError for what lies outside of the image.
    """
    grid = size[0] // patch, size[1] // patch
    if query is None:
        return grid[0] // 2, grid[1] // 2
    row, column = (value // patch for value in query) if in_pixels else query
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        where = f'pixel {query[0]},{query[1]}' if in_pixels else f'row {row}, column {column}'
        sides = f'{size[0]} x {size[1]} pixels' if in_pixels else f'{grid[0]} x {grid[1]} patches, counted from 0'
        raise PictureError(f'the query {where} lies outside of an image of {sides}')
    return row, column


def over_image(image: np.ndarray, values: np.ndarray, tile: int, query: tuple[int, int] | None) -> np.ndarray:
    """A map (Gh, Gw) in the colours of heat over the grey image (H, W, 3), with a red frame around the query patch."""
    size = image.shape[:2]
    scaled = attention.over_pixels(values / max(values.max(), 1e-12), size)
    grey = (image @ LUMA)[..., None]
    return framed((IMAGE_SHARE * grey + (1 - IMAGE_SHARE) * heat(scaled)).astype(np.uint8), values.shape, tile, query)


def framed(picture: np.ndarray, grid: tuple[int, int], tile: int, query: tuple[int, int] | None) -> np.ndarray:
    """The picture in the size of a tile, with a red frame around a patch."""
    enlarged = fitted(picture, tile)
    if query is None:
        return enlarged
    page = Pillow.fromarray(enlarged)
    draw = ImageDraw.Draw(page)
    height, width = enlarged.shape[0] / grid[0], enlarged.shape[1] / grid[1]
    box = [query[1] * width, query[0] * height, (query[1] + 1) * width - 1, (query[0] + 1) * height - 1]
    draw.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline=WHITE)
    draw.rectangle(box, outline=RED, width=2)
    return np.asarray(page)


def _asked(
    backbone: BEiTViT, config: Config, image: Image, queries: Sequence[tuple[int, int]], layer: int
) -> np.ndarray:
    """(Q, h, Gh, Gw): attention of some patches of one image."""
    values = normalised(image.pixels, config)[None].to(device_of(backbone))
    return attention.self_attention(backbone, values, torch.tensor(queries), layer).cpu().numpy()


def _in_patches(backbone: BEiTViT, images: Sequence[Image], size: int | None) -> tuple[list[Image], list[str]]:
    if not images:
        raise PictureError('no image to look at')
    found = [to_patches(image, backbone.patch_size, size) for image in images]
    return [image for image, _ in found], [said for _, said in found if said]


def check_layer(backbone: BEiTViT, layer: int) -> None:
    """Raises PictureError for a block that there is not."""
    if not -backbone.num_layers <= layer < backbone.num_layers:
        last = backbone.num_layers - 1
        raise PictureError(f'--layer {layer}: there are {backbone.num_layers} blocks, 0 to {last}, or -1 for the last')


def _name_of_layer(backbone: BEiTViT, layer: int) -> str:
    number = layer % backbone.num_layers
    return f'block {number}' + (
        ', the last' if number == backbone.num_layers - 1 else f' of 0 to {backbone.num_layers - 1}'
    )


def jaccard_numbers(
    backbone: BEiTViT, config: Config, images: Iterable[Image], layer: int = -1, size: int | None = None
) -> dict[str, float]:
    """`attention.attention_jaccard` over all objects of images that have masks; empty where no image has one. An
    object's query is the patch nearest to its middle."""

    def objects() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for image in images:
            image, _ = to_patches(image, backbone.patch_size, size)
            found = regions_of(image, backbone.patch_size)
            queries = [region.query for region in found]
            for maps, region in zip(
                _asked(backbone, config, image, queries, layer) if found else (), found, strict=True
            ):
                yield maps, region.inside, region.valid

    return attention.attention_jaccard(objects())


def attention_panel(
    backbone: BEiTViT,
    config: Config,
    images: Sequence[Image],
    judged: Iterable[Image] = (),
    layer: int = -1,
    query: Sequence[int] | None = None,
    in_pixels: bool = False,
    size: int | None = None,
) -> Panel:
    """image with its query | mean over heads | each head; and the Jaccard indices of `jaccard_numbers` over `judged`.

    query: (row, column) of a patch, or of a pixel; default the middle of the image's first object where it has a
    mask, else of the image. size: pixels of the shorter side that images are brought to.
    """
    check_layer(backbone, layer)
    images, resized = _in_patches(backbone, images, size)
    columns: dict[str, list[np.ndarray]] = {}
    effective = []
    heads = backbone.layers[layer].attn.num_heads
    tile = TILE if 2 + heads <= MOST_AT_FULL_SIZE else HEAD_TILE
    for image in images:
        patch, sides = backbone.patch_size, image.pixels.shape[:2]
        found: list[Region] = regions_of(image, patch) if query is None else []
        place = found[0].query if found else query_patch(query, in_pixels, sides, patch)
        heads = _asked(backbone, config, image, [place], layer)[0]
        effective.append([attention.effective_patches(one) for one in heads])
        picture = as_rgb(image.pixels)
        columns.setdefault('image, query', []).append(framed(picture, heads.shape[-2:], tile, place))
        named = [('mean of heads', heads.mean(axis=0)), *((f'head {i}', one) for i, one in enumerate(heads))]
        for name, one in named:
            columns.setdefault(name, []).append(over_image(picture, one, tile, place))
    numbers = jaccard_numbers(backbone, config, judged, layer, size)
    grid = images[0].pixels.shape[0] // backbone.patch_size * (images[0].pixels.shape[1] // backbone.patch_size)
    numbers |= {f'effective patches, head {i}': float(v) for i, v in enumerate(np.mean(effective, axis=0))}
    caption = (
        f'Self-attention of the framed patch in {_name_of_layer(backbone, layer)}, without the class token; {READING}.'
    )
    if 'attended' in numbers:
        caption += (
            f' The patches that hold {100 * attention.KEPT_MASS:.0f} % of it overlap the object of the query with a '
            f'Jaccard index of {numbers["attended"]:.3f} (mean of {numbers["objects"]:,.0f} objects; best head '
            f'{numbers["best_head"]:.3f}); as many patches anywhere {numbers["shuffled"]:.3f}, all patches '
            f'{numbers["everywhere"]:.3f}.'
        )
    caption += f' Effective patches (exp of the entropy) of {grid}: {np.mean(effective):.1f}.'
    caption += told(resized)
    return Panel('attention', sheet(list(columns.items()), tile=tile, caption=caption), numbers, caption)


def rollout_panel(
    backbone: BEiTViT,
    config: Config,
    images: Sequence[Image],
    query: Sequence[int] | None = None,
    in_pixels: bool = False,
    size: int | None = None,
) -> Panel:
    """image | rollout of the class token | of the mean patch | of the query patch, through all blocks."""
    images, resized = _in_patches(backbone, images, size)
    columns: dict[str, list[np.ndarray]] = {}
    spread: dict[str, list[float]] = {}
    jaccards: dict[str, list[float]] = {}
    for image in images:
        patch, sides = backbone.patch_size, image.pixels.shape[:2]
        grid = sides[0] // patch, sides[1] // patch
        found: list[Region] = regions_of(image, patch) if query is None else []
        place = found[0].query if found else query_patch(query, in_pixels, sides, patch)
        values = normalised(image.pixels, config)[None].to(device_of(backbone))
        mixed = attention.rollout(backbone.attention_maps(values, range(backbone.num_layers)))[0]
        rows = {
            'class token': mixed[0],
            'mean of patches': mixed[1:].mean(dim=0),
            'query patch': mixed[1 + place[0] * grid[1] + place[1]],
        }
        picture = as_rgb(image.pixels)
        columns.setdefault('image, query', []).append(framed(picture, grid, TILE, place))
        for name, row in rows.items():
            one = attention.over_patches(row, grid).cpu().numpy()
            spread.setdefault(f'effective patches, {name}', []).append(attention.effective_patches(one))
            # A patch is a mixture of itself most of all, which would leave nothing else to see
            others = np.delete(one.ravel(), place[0] * grid[1] + place[1]) if name == 'query patch' else one
            seen = np.clip(one, None, others.max()) - others.min()
            columns.setdefault(f'rollout: {name}', []).append(
                over_image(picture, seen, TILE, place if name == 'query patch' else None)
            )
            if found:
                attended = attention.over_pixels(attention.mass_mask(one), sides)
                hit = attention.jaccard(attended[found[0].valid], found[0].inside[found[0].valid])
                jaccards.setdefault(f'Jaccard of 60 %, {name}', []).append(hit)
    numbers = {name: float(np.mean(values)) for name, values in (spread | jaccards).items()}
    caption = (
        f'Attention rollout through {backbone.num_layers} blocks (heads averaged, half of each block is its skip '
        f'connection, rows normalised), without the class token. Each map is stretched from its minimum (black) to its '
        f'maximum (yellow), the query patch itself left out. Effective patches (exp of the entropy) of '
        f'{grid[0] * grid[1]}: '
        + ', '.join(f'{name.split(", ")[1]} {np.mean(values):.1f}' for name, values in spread.items())
        + '.'
    )
    caption += told(resized)
    return Panel('rollout', sheet(list(columns.items()), caption=caption), numbers, caption)
