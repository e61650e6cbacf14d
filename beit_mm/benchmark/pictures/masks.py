"""Which patches are hidden: masks as a config draws them, and their law beside that of random masks."""

from collections.abc import Sequence

import numpy as np
from mmengine.config import Config

from ...data.transforms import MaskPatches
from ...engine.launch import parts_of
from ...engine.overlay import as_rgb
from ...ops.masking import blockwise_mask, random_mask
from .canvas import GAP, TILE, Panel, PictureError, chart, fitted, sheet
from .images import Image

HIDDEN = (191, 191, 191)  # the colour of a masked patch
DRAWS = 2000
CHART_HEIGHT = 270
FEWEST_COLUMNS = 4  # the charts below need their width


def settings_of(config: Config) -> MaskPatches:
    """The masking that a config trains with. Raises PictureError for one that masks nothing."""
    for name in ('train_dataloader', 'test_dataloader'):
        loader = config.get(name)
        for part in parts_of(loader.dataset) if loader else []:
            for step in part.get('pipeline') or []:
                if str(step['type']).endswith('MaskPatches'):
                    return MaskPatches(**{key: value for key, value in step.items() if key != 'type'})
    raise PictureError(f'{config.filename}: masks nothing (no beit_mm.MaskPatches); give the config of a pre-training')


def draw_masks(kind: str, masking: MaskPatches, count: int, seed: int) -> np.ndarray:
    """(count, Gh, Gw) bool: masks of one kind, in the size, number and blocks of the config's."""
    rng = np.random.default_rng([seed, count])
    if kind == 'random':
        return np.stack([random_mask(rng, masking.grid, masking.num_masked) for _ in range(count)])
    return np.stack([blockwise_mask(rng, masking.grid, masking.num_masked, **masking.block) for _ in range(count)])


def law_of(masks: np.ndarray, wanted: int) -> dict[str, float]:
    """What is always asked of masks (n, Gh, Gw): how many patches, where, and in how large pieces."""
    counts, share = masks.sum(axis=(1, 2)), masks.mean(axis=0)
    height, width = share.shape
    middle = share[(height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1]
    edge = np.concatenate([share[0], share[-1], share[1:-1, 0], share[1:-1, -1]])
    beside = masks[:, :, :-1] & masks[:, :, 1:]
    return {
        'masked patches, mean': float(counts.mean()),
        'masked patches, least': float(counts.min()),
        'masked patches, most': float(counts.max()),
        'share of masks with all that are wanted': float((counts == wanted).mean()),
        'share masked': float(share.mean()),
        'share masked at the edge': float(edge.mean()),
        'share masked in the middle': float(middle.mean()),
        'right neighbour of a masked patch masked too': float(beside.sum() / masks[:, :, :-1].sum()),
    }


def hidden(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 whose patches under the mask (Gh, Gw) are grey; the last row and column may be cut."""
    height, width = image.shape[:2]
    patch = -(-height // mask.shape[0]), -(-width // mask.shape[1])
    cover = mask.repeat(patch[0], axis=0).repeat(patch[1], axis=1)[:height, :width]
    return np.where(cover[..., None], np.array(HIDDEN, np.uint8), image)


def masks_panel(config: Config, images: Sequence[Image], draws: int = DRAWS, seed: int = 0) -> Panel:
    """Images under blockwise and under random masks; how often each patch is hidden, and how many are."""
    masking = settings_of(config)
    if not images:
        raise PictureError(f'{config.filename}: no image to draw masks on')
    wanted, (height, width) = masking.num_masked, masking.grid
    drawn = {kind: draw_masks(kind, masking, draws, seed) for kind in ('blockwise', 'random')}
    shape = images[0].pixels.shape[:2]
    whole = min(shape[0] // height, shape[1] // width)
    images = [as_rgb(image.pixels) for image in images]
    if whole == 0:
        raise PictureError(
            f'{config.filename}: an image of {shape[0]} x {shape[1]} pixels has no {height} x {width} patches'
        )
    columns = [
        ('', [image, *(hidden(image, masks[i % draws]) for masks in drawn.values())]) for i, image in enumerate(images)
    ]
    numbers = {
        f'{kind}: {name}': value for kind, masks in drawn.items() for name, value in law_of(masks, wanted).items()
    }
    tile = fitted(images[0], TILE).shape[1]
    total = max(len(columns), FEWEST_COLUMNS) * (tile + GAP) + GAP + 70
    with chart(total, CHART_HEIGHT, 3, width_ratios=(1, 1, 1.1)) as (axes, made):
        most = max(masks.mean(axis=0).max() for masks in drawn.values())
        for axis, (kind, masks) in zip(axes, drawn.items()):
            picture = axis.imshow(masks.mean(axis=0), vmin=0, vmax=most, cmap='inferno')
            axis.set_title(f'{kind}: how often masked')
            axis.set_xticks([0, width - 1])
            axis.set_yticks([0, height - 1])
            axis.figure.colorbar(picture, ax=axis, shrink=0.85)
        counts = drawn['blockwise'].sum(axis=(1, 2))
        values, times = np.unique(counts, return_counts=True)
        axes[2].bar(values, 100 * times / draws, width=0.8, color='#c2410c')
        axes[2].set_title('blockwise: patches masked')
        axes[2].set_xlabel(f'of {height * width}; wanted: {wanted}')
        axes[2].set_ylabel('% of masks')
        axes[2].xaxis.get_major_locator().set_params(integer=True)
    caption = (
        f'{draws:,} masks each of {height} x {width} patches, {wanted} wanted. Blockwise: as the official code, in '
        f'blocks of at least {masking.block["min_block"]} patches; never more than wanted, but it may stop short. '
        f'Random: exactly as many, anywhere. The config trains with {masking.kind} masks.'
    )
    png = sheet(columns, rows=('image', 'blockwise', 'random'), caption=caption, below=made)
    return Panel('masks', png, numbers, caption)
