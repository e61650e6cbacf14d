"""What features tell apart: principal components of patches as colours, and images in a plane, with numbers.

Letters in shapes: n images, N patches, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config

from ...data.masks import IGNORED
from ...engine.overlay import as_rgb
from ...models.backbone import BEiTViT
from ...models.probe import pooled, vote
from .attention import check_layer
from .canvas import GAP, MOST_COLUMNS, TILE, Panel, PictureError, chart, fitted, sheet
from .images import Image, normalised, to_patches
from .models import device_of

NEIGHBOURS = 10
ACCURACY = f'{NEIGHBOURS}-NN accuracy, leave one out'
FEWEST_PLACED = 10  # images, in a plane
MOST_IN_LEGEND = 20
COMPONENTS = 3
CLIPPED = 1.0  # percent of values at either end that are beyond black and white
PLANES = ('tsne', 'pca')
POOLINGS = ('mean', 'cls')
PERPLEXITY = 30.0  # of t-SNE, at most; a third of the images where they are few
CHART = (760, 420)  # pixels


@torch.no_grad()
def tokens_of(
    backbone: BEiTViT, config: Config, images: Sequence[Image], layer: int, size: int | None = None
) -> list[tuple[torch.Tensor, Image]]:
    """Per image its tokens (1 + N, D) float32 after a block, on the CPU, and the image as the backbone saw it."""
    check_layer(backbone, layer)
    before, backbone.out_indices = backbone.out_indices, (layer % backbone.num_layers,)
    try:
        found = []
        for image in images:
            image, _ = to_patches(image, backbone.patch_size, size)
            values = normalised(image.pixels, config)[None].to(device_of(backbone))
            found.append((backbone(values)[0][0].float().cpu(), image))
        return found
    finally:
        backbone.out_indices = before


def principal(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, count) scores on the first principal components and (count,) their shares of the variance.

    The sign of a component is that which makes its largest loading positive: the same on every machine.
    """
    centred = features - features.mean(axis=0)
    _, values, axes = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    count = min(count, len(values))
    axes = axes[:count]
    axes = axes * np.sign(axes[np.arange(count), np.abs(axes).argmax(axis=1)])[:, None]
    return centred @ axes.T, values[:count] ** 2 / max(np.square(values).sum(), 1e-12)


def as_colours(scores: np.ndarray) -> np.ndarray:
    """(n, 3) -> (n, 3) uint8, every component stretched on its own."""
    low, high = np.percentile(scores, [CLIPPED, 100 - CLIPPED], axis=0)
    return (255 * np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)).round().astype(np.uint8)


def leave_one_out(features: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """The share of images whose nearest others, by the cosine, vote for their label: k-NN accuracy in [0, 1]."""
    unit = F.normalize(torch.from_numpy(features).double(), dim=1)
    similarities = unit @ unit.T
    similarities.fill_diagonal_(-torch.inf)
    near, index = similarities.topk(min(neighbours, len(labels) - 1), dim=1)
    truth = torch.from_numpy(labels)
    votes = vote(near, truth[index], len(near[0]), int(truth.max()) + 1, None)
    return float((votes.argmax(dim=1) == truth).double().mean())


def numbers_of(features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of features (n, D), not of their picture: k-NN accuracy, silhouette in [-1, 1], and what chance would give."""
    from sklearn.metrics import silhouette_score

    counts = np.unique(labels, return_counts=True)[1]
    found = {
        ACCURACY: leave_one_out(features, labels),
        'share of the most frequent class': float(counts.max() / counts.sum()),
    }
    if 1 < len(counts) < len(labels):
        found['silhouette (cosine)'] = float(silhouette_score(features, labels, metric='cosine'))
    return found


def in_plane(features: np.ndarray, how: str, seed: int) -> np.ndarray:
    """Features (n, D) -> (n, 2) by PCA, or by t-SNE of their cosines, turned so that it is widest across; the same for
    the same seed."""
    if how == 'pca':
        scores, _ = principal(features, 2)
        return np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))
    from sklearn.manifold import TSNE

    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    perplexity = min(PERPLEXITY, max(1.0, (len(features) - 1) / 3))
    places = TSNE(2, perplexity=perplexity, init='pca', random_state=seed, n_jobs=1).fit_transform(unit)
    return principal(places, 2)[0]


def features_panel(
    backbone: BEiTViT,
    config: Config,
    images: Sequence[Image],
    placed: Sequence[Image],
    classes: Sequence[str] | None = None,
    layer: int = -1,
    pooling: str = 'mean',
    plane: str = 'tsne',
    seed: int = 0,
    size: int | None = None,
) -> Panel:
    """Images over the first three principal components of their patches; below, `placed` images in a plane.

    The colours are of all `images` together. pooling: an image's feature is the `mean` of its patches or its `cls`
    token. plane: `tsne` or `pca`.
    """
    if plane not in PLANES or pooling not in POOLINGS:
        raise PictureError(
            f'{plane}, {pooling}: the plane is of {" or ".join(PLANES)}, features {" or ".join(POOLINGS)}'
        )
    if not images:
        raise PictureError('no image whose features could be shown')
    found = tokens_of(backbone, config, images, layer, size)
    patches = np.concatenate([tokens[1:].numpy() for tokens, _ in found])
    if len(patches) < COMPONENTS + 1:
        raise PictureError(f'{len(patches)} patches in all have no three principal components; show more images')
    scores, shares = principal(patches, COMPONENTS)
    colours, columns, start = as_colours(scores), [], 0
    for _, image in found:
        rows, width = (side // backbone.patch_size for side in image.pixels.shape[:2])
        part = colours[start : start + rows * width].reshape(rows, width, 3)
        start += rows * width
        patch = backbone.patch_size
        columns.append(('', [as_rgb(image.pixels), part.repeat(patch, axis=0).repeat(patch, axis=1)]))
    numbers = {f'variance of the {COMPONENTS} components': float(shares.sum())}
    caption = (
        f'The first three principal components of the patches of these images as red, green and blue '
        f'({100 * shares.sum():.0f} % of the variance).'
    )
    rows = ('image', 'patches')
    if len(placed) < FEWEST_PLACED:
        caption += f' {len(placed)} images are too few to be laid out in a plane.'
        return Panel('features', sheet(columns, rows=rows, caption=caption), numbers, caption)
    found = tokens_of(backbone, config, placed, layer, size)
    features = torch.cat([pooled(tokens[None], pooling) for tokens, _ in found]).numpy()
    known = [label_of(image) for image in placed]
    labels = None if any(label is None for label in known) else np.array(known)
    numbers['images in the plane'] = float(len(placed))
    if labels is None:
        caption += f' Below: {len(placed):,} images without labels, in one colour.'
    else:
        numbers |= numbers_of(features, labels)
        silhouette = numbers.get('silhouette (cosine)')
        whose = 'class' if placed[0].label is not None else 'largest class'
        caption += (
            f' Below: {len(placed):,} images coloured by their {whose}. Of the features themselves: {NEIGHBOURS}-NN '
            f'accuracy {100 * numbers[ACCURACY]:.1f} % (leave one out; always the most frequent class: '
            f'{100 * numbers["share of the most frequent class"]:.1f} %)'
        )
        caption += '.' if silhouette is None else f', silhouette {silhouette:.3f}.'
    tile = fitted(columns[0][1][0], TILE).shape[1]
    width = max(CHART[0], min(len(columns), MOST_COLUMNS) * (tile + GAP))
    with chart(width, CHART[1]) as ((axis,), made):
        _scatter(axis, in_plane(features, plane, seed), labels, classes)
        name = {'tsne': 't-SNE', 'pca': 'PCA'}[plane]
        what = 'mean of patches' if pooling == 'mean' else 'class token'
        axis.set_title(f'{name} of images ({what}, block {layer % backbone.num_layers})')
    return Panel('features', sheet(columns, rows=rows, caption=caption, below=made), numbers, caption)


def label_of(image: Image) -> int | None:
    """The image's class; without one the class that most of its mask has, a VOC mask's background left out."""
    if image.label is not None or image.mask is None:
        return image.label
    background = image.objects is not None
    counts = np.bincount(image.mask[image.mask != IGNORED].ravel(), minlength=2)[background:]
    return int(counts.argmax() + background) if counts.any() else None


def _scatter(axis, places: np.ndarray, labels: np.ndarray | None, classes: Sequence[str] | None) -> None:
    from matplotlib import colormaps

    axis.set_aspect('equal', adjustable='datalim')
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(True)
    axis.spines[:].set_color('#d1d5db')
    if labels is None:
        axis.scatter(*places.T, s=20, color='#2563eb', linewidths=0)
        return
    there, counts = np.unique(labels, return_counts=True)
    named = set(there[np.argsort(-counts, kind='stable')][:MOST_IN_LEGEND].tolist())
    for place, label in enumerate(there):
        colour = colormaps['tab20'](place % 20)
        name = str(classes[label]) if classes else f'class {label}'
        mine = places[labels == label]
        marker = 'o^sDv'[place // 20 % 5]
        text = name if label in named else None
        axis.scatter(*mine.T, s=20, color=colour, linewidths=0, marker=marker, label=text)
    axis.legend(loc='center left', bbox_to_anchor=(1.0, 0.5), markerscale=1.6, handletextpad=0.2)
