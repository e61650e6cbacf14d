"""What a backbone knows about places: its relative position bias, or how alike its absolute positions are."""

from typing import NamedTuple

import numpy as np

from ...models.backbone import BEiTViT
from ...ops.relative_position import NUM_CLASS_ROWS
from .canvas import GAP, TILE, Panel, PictureError, chart, fitted, heat, sheet

MOST_ROWS = 12  # blocks in one picture; of deeper backbones every other or third is shown
BAR_HEIGHT = 62
SMALL_TILE = 84
FEW_HEADS = 4
MARGIN = 80  # pixels: names of the rows
WHOLE_WIDTH = 4 * TILE  # of the picture of absolute positions


class Table(NamedTuple):
    """offsets (h, 2 Gh - 1, 2 Gw - 1): the bias by where the key lies from the query, which is in the middle.
    of_class (3, h): from class token to patches, from patches to it, and to itself."""

    offsets: np.ndarray
    of_class: np.ndarray


def tables_of(backbone: BEiTViT) -> dict[str, Table]:
    """{'all blocks' or 'block i': its table}. Raises PictureError for a backbone without tables."""
    if backbone.rel_pos_bias is not None:
        tables = {'all blocks': backbone.rel_pos_bias.relative_position_bias_table}
    else:
        tables = {f'block {i}': block.attn.relative_position_bias_table for i, block in enumerate(backbone.layers)}
    if any(table is None for table in tables.values()):
        known = '; it has absolute positions: --absolute shows these' if backbone.pos_embed is not None else ''
        raise PictureError(f'this backbone (variant `beit`) has no relative position bias{known}')
    height, width = (2 * side - 1 for side in backbone.own_grid)
    found = {}
    for name, table in tables.items():
        table = table.detach().cpu().numpy()
        offsets = table[:-NUM_CLASS_ROWS].T.reshape(-1, height, width)
        # Rows of a table are query minus key: turned around, the picture is what lies around the query
        found[name] = Table(offsets[:, ::-1, ::-1], table[-NUM_CLASS_ROWS:])
    return found


def bias_numbers(tables: dict[str, Table]) -> dict[str, float]:
    """Per block and head what is added to the logits (nats) of the patch itself, of its four neighbours, on average,
    and of the class token; `least` and `greatest` of all offsets."""
    numbers = {}
    for name, table in tables.items():
        for head, values in enumerate(table.offsets):
            row, column = (side // 2 for side in values.shape)
            beside = [values[row + y, column + x] for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0))
                      if 0 <= row + y < values.shape[0] and 0 <= column + x < values.shape[1]]  # fmt: skip
            of_head = {
                'itself': values[row, column],
                'neighbours': np.mean(beside),
                'all offsets': values.mean(),
                'least': values.min(),
                'greatest': values.max(),
                'patch to class token': table.of_class[1, head],
            }
            numbers |= {f'{name}, head {head}: {what}': float(value) for what, value in of_head.items()}
    return numbers


def relative_bias_panel(backbone: BEiTViT) -> Panel:
    """The learned bias of each head (columns) and block (rows; one where all share it) around the query."""
    tables = tables_of(backbone)
    numbers = bias_numbers(tables)
    most = max(float(np.abs(table.offsets).max()) for table in tables.values())
    step = -(-len(tables) // MOST_ROWS)
    chosen = list(tables.items())[::-1][::step][::-1]
    heads, height, width = chosen[0][1].offsets.shape
    tile = TILE if heads <= FEW_HEADS else SMALL_TILE
    columns = [
        (f'head {i}', [heat((table.offsets[i] / max(most, 1e-12) + 1) / 2, 'RdBu_r') for _, table in chosen])
        for i in range(heads)
    ]
    wide = fitted(columns[0][1][0], tile).shape[1]
    with chart(heads * (wide + GAP) + MARGIN, BAR_HEIGHT) as ((axis,), made):
        _colour_bar(axis, most, 'added to the logits, nats: blue less attention, red more')
    near = [
        float(np.exp(numbers[f'{name}, head {i}: neighbours'] - numbers[f'{name}, head {i}: all offsets']))
        for name in tables for i in range(heads)
    ]  # fmt: skip
    caption = (
        f'Relative position bias of {height} x {width} offsets: the query in the middle, the key where the colour is; '
        f'all maps on one scale. By it a head gives its four neighbours {min(near):.1f} to {max(near):.1f} times the '
        f'attention of an offset of average bias.'
    )
    if step > 1:
        caption += f' Every {step}. of {len(tables)} blocks is shown, the last among them.'
    rows = [name for name, _ in chosen]
    return Panel('relative-bias', sheet(columns, tile, rows, caption=caption, below=made, most=heads), numbers, caption)


def _colour_bar(axis, most: float, label: str) -> None:
    axis.imshow(np.linspace(0, 1, 256)[None], aspect='auto', cmap='RdBu_r', extent=(-most, most, 0, 1))
    axis.set_yticks([])
    axis.set_xlabel(label)
    axis.spines[:].set_visible(False)


def similarity_of(backbone: BEiTViT) -> np.ndarray:
    """(Gh, Gw, Gh, Gw): cosine similarity of every position embedding with every other, without the class token's.

    Raises PictureError for a backbone without absolute positions.
    """
    if backbone.pos_embed is None:
        raise PictureError('this backbone has no absolute positions; without --absolute its relative bias is shown')
    positions = backbone.pos_embed.detach()[0, 1:].double().cpu().numpy()
    positions = positions / np.linalg.norm(positions, axis=1, keepdims=True).clip(1e-12)
    return (positions @ positions.T).reshape(*backbone.own_grid, *backbone.own_grid)


def absolute_panel(backbone: BEiTViT) -> Panel:
    """For each patch how alike its position embedding is to all others (ViT, Figure 7), laid out as the patches are."""
    similarity = similarity_of(backbone)
    height, width = backbone.own_grid
    cell = max(1, WHOLE_WIDTH // (width * width))
    margin = max(1, cell // 2)
    tile = [side * cell + margin for side in (height, width)]
    page = np.full((height * tile[0] - margin, width * tile[1] - margin, 3), 255, np.uint8)
    for row in range(height):
        for column in range(width):
            picture = heat((similarity[row, column] + 1) / 2, 'RdBu_r').repeat(cell, 0).repeat(cell, 1)
            top, left = row * tile[0], column * tile[1]
            page[top : top + height * cell, left : left + width * cell] = picture
    y, x = np.mgrid[:height, :width]
    places = np.stack([y.ravel(), x.ravel()], axis=1)
    distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    flat = similarity.reshape(height * width, height * width)
    apart = ~np.eye(len(flat), dtype=bool)
    same = {
        'row': (places[:, None, 0] == places[None, :, 0]) & apart,
        'column': (places[:, None, 1] == places[None, :, 1]) & apart,
    }
    numbers = {
        'cosine of neighbours': float(flat[distance == 1].mean()),
        'cosine in one row': float(flat[same['row']].mean()),
        'cosine in one column': float(flat[same['column']].mean()),
        'cosine of all pairs': float(flat[apart].mean()),
        'correlation of cosine and distance': float(np.corrcoef(flat[apart], distance[apart])[0, 1]),
    }
    total = page.shape[1] + 2 * GAP
    with chart(total, BAR_HEIGHT) as ((axis,), made):
        _colour_bar(axis, 1.0, 'cosine similarity')
    caption = (
        f'Cosine similarity of position embeddings: each of {height} x {width} maps is one patch at its place, against '
        f'all. Neighbours {numbers["cosine of neighbours"]:.2f}, all pairs {numbers["cosine of all pairs"]:.2f}.'
    )
    columns = [('similarity of absolute positions', [page])]
    png = sheet(columns, tile=max(page.shape[:2]), caption=caption, below=made)
    return Panel('relative-bias', png, numbers, caption)
