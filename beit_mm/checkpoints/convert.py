"""Converting the weights of a BEiT between the formats of seven projects, through ours. The tables are in formats.py.

python tools/convert_checkpoint.py SRC DST --to unilm
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ..ops.relative_position import (
    NUM_CLASS_ROWS,
    Grid,
    num_offsets,
    relative_position_index,
    resize_positions,
    resize_table,
    square_of_patches,
    square_of_table,
)
from .errors import CheckpointError
from .formats import FORMATS, INDEX, ONLY_IN_PYRAMID_16, TABLE, Format, Renaming, pattern

Weights = dict[str, torch.Tensor]
SHARED = f'backbone.rel_pos_bias.{TABLE}'
POSITIONS = 'backbone.pos_embed'
SHOWN = 5  # names in an error
INTERPOLATIONS = ('geometric', 'bicubic', 'bilinear')


@dataclass
class ConversionReport:
    """What became of the keys, by name: those of the source that were dropped, and those of the result that are new."""

    source: str
    target: str
    converted: int = 0
    dropped: list[str] = field(default_factory=list)
    expanded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f'{self.source} -> {self.target}: {self.converted} keys']
        parts += [f'{len(v)} {k} ({few(v)})' for k, v in vars(self).items() if isinstance(v, list) and v]
        return ', '.join(parts)


def few(names: Iterable[str], shown: int = 3) -> str:
    """The first names, and how many more."""
    names = list(names)
    return ', '.join(names[:shown]) + (f', ... {len(names) - shown} more' if len(names) > shown else '')


def convert_state_dict(
    state_dict: Weights,
    source: str | None = None,
    target: str = 'beit_mm',
    grid: Grid | None = None,
    interpolation: str = 'geometric',
    tables: str = 'keep',
    drop: tuple[str, ...] = (),
    source_grid: Grid | None = None,
) -> tuple[Weights, ConversionReport]:
    """(weights under the target's names, report). The tensors are those of the source wherever nothing changes them.

    source, target: names of FORMATS; source None finds out. grid: (h, w) patches to resize tables and positions to.
    source_grid: (h, w) patches that they are for; by default what the index buffers say, else the square that fits.
    interpolation: `geometric` (the official one for tables; bicubic for positions), `bicubic` or `bilinear`.
    tables: `keep`; `expand` gives every block its own copy of a shared one; `share` the other way, where all blocks
    agree. drop: prefixes of our names to leave out, such as `head.`.
    Raises CheckpointError, with names, for an unknown format or key, keys of two formats, blocks that disagree, and
    weights that the target has no place for.
    """
    if target not in FORMATS:
        raise CheckpointError(f'there is no format {target!r}; there are {", ".join(FORMATS)}')
    if interpolation not in INTERPOLATIONS:
        raise CheckpointError(f'interpolation={interpolation!r} is none of {", ".join(INTERPOLATIONS)}')
    for named in (grid, source_grid):
        if named is not None and not (len(named) == 2 and all(isinstance(n, int) and n > 0 for n in named)):
            raise CheckpointError(f'a grid is two positive numbers, patches down and across, and not {named}')
    state_dict = stripped(state_dict)
    form, table = recognise(state_dict, source)
    report = ConversionReport(form.name, target)
    weights = _to_ours(state_dict, form, table, report)
    check_shapes(weights)
    for prefix in drop:
        names = [name for name in weights if name.startswith(prefix)]
        if not names:
            starts = sorted({name.split('.')[0] + '.' for name in weights})
            raise CheckpointError(f'drop={prefix!r}: no name starts so; there are {few(starts, SHOWN)}')
        report.dropped += names
        weights = {name: value for name, value in weights.items() if name not in names}
    if tables == 'expand' or (tables == 'keep' and target == 'mmseg'):  # which knows no shared table
        _expand(weights, report)
    elif tables == 'share':
        _share(weights)
    elif tables != 'keep':
        raise CheckpointError(f'tables={tables!r} is none of keep, expand, share')
    own_grid = _own_grid(weights, state_dict, source_grid, grid)
    if grid is not None:
        _resize(weights, own_grid, tuple(grid), interpolation, report)
    converted = _from_ours(weights, FORMATS[target], tuple(grid) if grid else own_grid, report)
    report.converted = len(converted)
    return converted, report


def stripped(state_dict: Weights) -> Weights:
    """Without a `module.` (of DataParallel and DDP) that every key has in front."""
    if state_dict and all(key.startswith('module.') for key in state_dict):
        return {key[len('module.') :]: value for key, value in state_dict.items()}
    return dict(state_dict)


def _ignored(key: str, form: Format) -> bool:
    return key.endswith(INDEX) or any(pattern(name).fullmatch(key) for name in form.ignored)


def _merged(key: str, form: Format) -> str:
    """The name that the tables have for one of three matrices."""
    if form.split:
        for part in form.split[0]:
            if key.endswith(part):
                return key[: -len(part)] + form.split[1]
    return key


def recognise(state_dict: Weights, source: str | None = None) -> tuple[Format, dict[str, str]]:
    """The format of these keys, and its table for them. Raises CheckpointError naming the keys that do not fit."""
    if source is not None and source not in FORMATS:
        raise CheckpointError(f'there is no format {source!r}; there are {", ".join(FORMATS)}')
    if not state_dict:
        raise CheckpointError('there are no weights in it')
    candidates = []
    indexed = any(key.endswith(INDEX) for key in state_dict)
    for form in [FORMATS[source]] if source else FORMATS.values():
        keys = {_merged(key, form) for key in state_dict if not _ignored(key, form)}
        for table in form.layouts:
            rename = Renaming(table)
            unknown = [key for key in keys if rename(key) is None]
            if not unknown and _is_of_this_pyramid(keys, table) and _lies_so(state_dict, form):
                # Formats that differ in the index buffers only: the one that has them, if they are there
                return _preferred(form, indexed, keys, source), table
            candidates.append((len(unknown), len(keys), form, unknown))
    number, total, form, unknown = min(candidates, key=lambda c: c[0])
    form = _preferred(form, indexed, set(state_dict), source)
    other = _other_format(unknown, form)
    if source and other and number > total / 2:
        raise CheckpointError(f'these are not names of {source} but of {other}: {few(sorted(unknown), SHOWN)}')
    if other:
        raise CheckpointError(
            f'keys of two formats are mixed: most are {form.name}, but {other} has {few(sorted(unknown), SHOWN)}'
        )
    raise CheckpointError(
        f'no BEiT in a known format{f" ({source})" if source else ""}: the nearest is {form.name}, which does not '
        f'know {few(sorted(unknown), SHOWN)}'
    )


def _lies_so(state_dict: Weights, form: Format) -> bool:
    """Whether the matrices lie as the format has them; PASSL's names without a head are unilm's."""
    for key, value in state_dict.items():
        if key.endswith('attn.qkv.weight') and value.ndim == 2:
            return value.shape[int(form.transposed)] == 3 * value.shape[int(not form.transposed)]
    return True


def _is_of_this_pyramid(keys: set[str], table: dict[str, str]) -> bool:
    has = any(key.endswith(name) for key in keys for name in ONLY_IN_PYRAMID_16)
    once = table.get('backbone.fpn1.{i}.**') == 'neck.upsample_2x.{i}.**'
    if any('fpn1.' in key or 'neck.' in key for key in keys) and 'backbone.fpn1.{i}.**' in table:
        return has != once
    return True


def _preferred(form: Format, indexed: bool, keys: set[str], source: str | None) -> Format:
    if source:
        return form
    if form.name == 'beit_mm' and indexed:
        return FORMATS['mmseg' if any('decode_head' in key for key in keys) else 'mmpretrain']
    if form.name in ('unilm', 'timm') and any(key.endswith('attn.qkv.bias') for key in keys):
        return FORMATS['vit']  # a BEiT has biases for q and v only
    if form.name == 'unilm' and not indexed and any(TABLE in key for key in keys):
        return FORMATS['timm']
    return form


def _other_format(unknown: list[str], form: Format) -> str | None:
    for other in FORMATS.values():
        if other.layouts != form.layouts:
            for table in other.layouts:
                rename = Renaming(table)
                if all(rename(_merged(key, other)) for key in unknown):
                    return other.name
    return None


def _to_ours(state_dict: Weights, form: Format, table: dict[str, str], report: ConversionReport) -> Weights:
    rename, weights, pieces = Renaming(table), {}, {}
    for key, value in state_dict.items():
        if _ignored(key, form):
            if not key.endswith(INDEX):
                report.dropped.append(key)
            continue
        merged = _merged(key, form)
        name = rename(merged)
        if merged != key:
            pieces.setdefault(name, {})[key.removeprefix(merged[: -len(form.split[1])])] = value
            continue
        if name in weights:
            raise CheckpointError(f'{key} and another key are both {name}: which is meant?')
        weights[name] = value
    for name, parts in pieces.items():
        missing = [part for part in form.split[0] if part not in parts]
        if missing:
            raise CheckpointError(f'{name} is made of {", ".join(form.split[0])}, and {missing[0]} is not there')
        weights[name] = torch.cat([parts[part] for part in form.split[0]])
    if not any(name.startswith('backbone.') for name in weights):
        weights = {f'backbone.{name}': value for name, value in weights.items()}
    if form.transposed:
        weights = {name: _transposed(name, value) for name, value in weights.items()}
    return weights


def _transposed(name: str, value: torch.Tensor) -> torch.Tensor:
    return value.T.contiguous() if value.ndim == 2 and name.endswith('.weight') else value


def _from_ours(weights: Weights, form: Format, grid: Grid | None, report: ConversionReport) -> Weights:
    weights = dict(weights)
    for name in list(weights):
        for lacking, optional in form.lacks.items():
            if pattern(lacking).fullmatch(name):
                if not optional:
                    raise CheckpointError(f'{form.name} has no place for {name}; its BEiT has relative positions only')
                report.dropped.append(name)
                del weights[name]
    chosen, best = None, None
    for table in form.layouts:
        rename = Renaming({ours: theirs for theirs, ours in table.items()})
        unknown = [name for name in weights if rename(name) is None]
        if not unknown and _is_of_this_pyramid(set(weights), table):
            chosen = rename
            break
        best = unknown if best is None or len(unknown) < len(best) else best
    if chosen is None:
        raise CheckpointError(f'{form.name} has no name for {few(sorted(best), SHOWN)}; leave them out by name (drop)')
    converted = {}
    for name, value in weights.items():
        key = chosen(name)
        value = _transposed(name, value) if form.transposed else value
        if form.split and key.endswith(form.split[1]):
            stem = key[: -len(form.split[1])]
            converted.update(zip((stem + part for part in form.split[0]), value.chunk(3), strict=True))
        else:
            converted[key] = value
        if form.index_buffers and name.endswith(TABLE):
            if grid is None or num_offsets(grid) != len(value):
                raise CheckpointError(
                    f'{form.name} stores an index beside {key}, and its {len(value)} rows are of no square grid: '
                    f'give the grid'
                )
            converted[key.removesuffix(TABLE) + INDEX] = relative_position_index(grid)
    return converted


def _expand(weights: Weights, report: ConversionReport) -> None:
    if SHARED in weights:
        table = weights.pop(SHARED)
        for name in [name for name in weights if name.endswith('attn.qkv.weight')]:
            own = name.replace('qkv.weight', TABLE)
            # timm's BEiT may have both, and adds them
            weights[own] = weights[own] + table if own in weights else table.clone()
            report.expanded.append(own)


def _share(weights: Weights) -> None:
    names = [name for name in weights if name.endswith(f'attn.{TABLE}')]
    if names and SHARED in weights:
        raise CheckpointError(f'there is a table for all blocks and {names[0]}; to add them: tables=expand')
    for name in names:
        if not torch.equal(weights[name], weights[names[0]]):
            raise CheckpointError(f'one table for all blocks: {name} differs from {names[0]}')
    if names:
        weights[SHARED] = weights[names[0]]
        for name in names:
            del weights[name]


def grid_of_index(source: Weights) -> Grid | None:
    """The grid that an index buffer was made for, rectangles too; None without one."""
    for key, value in source.items():
        if key.endswith(INDEX) and value.ndim == 2 and len(value) > 1:
            patches = len(value) - 1
            for height in range(1, patches + 1):
                grid = (height, patches // height)
                fits = patches % height == 0 and num_offsets(grid) == int(value.max()) + 1
                if fits and torch.equal(relative_position_index(grid), value.cpu().long()):
                    return grid
    return None


def square_of(weights: Weights) -> Grid | None:
    """The square grid that tables, or positions, are for; None where none fits."""
    for name, value in weights.items():
        if name.endswith(TABLE):
            return square_of_table(len(value))
    return square_of_patches(weights[POSITIONS].shape[1] - 1) if POSITIONS in weights else None


def _own_grid(weights: Weights, source: Weights, given: Grid | None, wanted: Grid | None) -> Grid | None:
    """The grid that tables and positions are for. Raises CheckpointError where it would have to be guessed."""
    if given is not None:
        if not _is_for(weights, tuple(given)):
            raise CheckpointError(f'tables and positions are not for {given[0]} x {given[1]} patches')
        return tuple(given)
    found, square = grid_of_index(source), square_of(weights)
    if found is not None or wanted is None or not _is_for(weights, tuple(wanted)) or square == tuple(wanted):
        return found or square
    if square is not None and _has_positions(weights):
        raise CheckpointError(
            f'tables and positions fit {wanted[0]} x {wanted[1]} as well as {square[0]} x {square[1]} patches: which '
            f'are they for? Give the source_grid (--from-grid)'
        )
    return tuple(wanted)


def _has_positions(weights: Weights) -> bool:
    return POSITIONS in weights or any(name.endswith(TABLE) for name in weights)


def _is_for(weights: Weights, grid: Grid) -> bool:
    tables = all(len(value) == num_offsets(grid) for name, value in weights.items() if name.endswith(TABLE))
    return tables and (POSITIONS not in weights or weights[POSITIONS].shape[1] == 1 + grid[0] * grid[1])


SHAPES = {  # dimensions of what is looked at more closely than by its name
    'cls_token': 3,
    'mask_token': 3,
    'pos_embed': 3,
    'patch_embed.projection.weight': 4,
    TABLE: 2,
    'attn.qkv.weight': 2,
}


def check_shapes(weights: Weights) -> None:
    """Raise CheckpointError, with the name, for a weight of a backbone that cannot be what it is called."""
    for name, value in weights.items():
        for end, dimensions in SHAPES.items():
            wrong = value.ndim != dimensions or (end == TABLE and len(value) <= NUM_CLASS_ROWS)
            if wrong and name.startswith('backbone.') and name.endswith(end):
                raise CheckpointError(f'{name} is {tuple(value.shape)}, and no {end} looks like that')


def _resize(weights: Weights, own: Grid | None, grid: Grid, interpolation: str, report: ConversionReport) -> None:
    for name in list(weights):
        if not (name.endswith(TABLE) or name == POSITIONS):
            continue
        if own is None:
            raise CheckpointError(f'{name}: {tuple(weights[name].shape)} is of no square grid, so it cannot be resized')
        value = weights[name].float()  # half precision would be resized in its own
        if name == POSITIONS:
            mode = 'bicubic' if interpolation == 'geometric' else interpolation
            resized = resize_positions(value, own, grid, mode)
        else:
            resized = resize_table(value, own, grid, interpolation)
        if resized is not value:
            weights[name] = resized.to(weights[name].dtype)
            report.resized.append(name)


def mixed_in(keys: Iterable[str]) -> tuple[str, list[str]]:
    """(a format, those of the keys that are its names for parts of a backbone, though not ours); ('', []) for none."""
    ours = [Renaming(table) for table in FORMATS['beit_mm'].layouts]
    left = [key for key in keys if not key.endswith(INDEX) and not any(rename(key) for rename in ours)]
    for form in FORMATS.values():
        for table in form.layouts:
            rename = Renaming(table)
            names = [key for key in left if 'backbone.layers.' in f'backbone.{rename(_merged(key, form))}']
            if names:
                return form.name, names
    return '', []
