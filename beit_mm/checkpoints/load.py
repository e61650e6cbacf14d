"""Reading and writing weight files. The only place of beit_mm that opens one, and never as a pickle with code."""

import argparse
import hashlib
import math
import os
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from ..ops.pixels import inflate_bands
from ..ops.relative_position import NUM_CLASS_ROWS, num_offsets, resize_positions, resize_table
from .convert import ConversionReport, convert_state_dict, few, stripped
from .errors import CheckpointError


class PickledModule:
    """What stands for a module of OpenAI's encoder.pkl and decoder.pkl: its attributes, and none of its code."""

    def parameters(self, prefix: str = '') -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of this module and of those inside, as in a state dict."""
        for name, value in vars(self).get('_parameters', {}).items():
            if value is not None:
                yield prefix + name, value.detach()
        for name, module in vars(self).get('_modules', {}).items():
            if isinstance(module, PickledModule):
                yield from module.parameters(f'{prefix}{name}.')


OF_DALLE = (  # OpenAI dall_e 0.1: the classes in its pickles
    'dall_e.encoder.Encoder',
    'dall_e.encoder.EncoderBlock',
    'dall_e.decoder.Decoder',
    'dall_e.decoder.DecoderBlock',
    'dall_e.utils.Conv2d',
    'torch.nn.modules.activation.ReLU',
    'torch.nn.modules.container.Sequential',
    'torch.nn.modules.linear.Identity',
    'torch.nn.modules.pooling.MaxPool2d',
    'torch.nn.modules.upsampling.Upsample',
)


def read(filename: str | os.PathLike, map_location=None) -> dict:
    """Read a .pth, .safetensors or .pdparams file with `weights_only=True`, whatever the environment says.

    OpenAI's encoder.pkl and decoder.pkl are whole modules: their parameters are read, their classes are not needed.
    Raises CheckpointError, naming the file, when it is missing, damaged, a web page, or holds code.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob('*.pth'))[:5] if path.parent.is_dir() else []
        hint = f'; that folder has {", ".join(near)}' if near else ''
        raise CheckpointError(f'{path}: there is no such checkpoint{hint}')
    with open(path, 'rb') as file:
        start = file.read(512).lstrip().lower()
    if not start:
        raise CheckpointError(f'{path}: the file is empty; the run that wrote it was cut off. Use an older one')
    if start.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise CheckpointError(f'{path}: this is a web page, not weights; the download was answered by an error page')
    if path.suffix == '.pdparams':
        return _read_paddle(path)
    if path.suffix == '.safetensors':
        try:
            return load_file(path, device=str(map_location or 'cpu'))
        except SafetensorError as error:
            raise CheckpointError(f'{path}: not a readable safetensors file ({error})') from error
    try:
        # The official BEiT files hold their command line; a Namespace is a bag of values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace, *((PickledModule, name) for name in OF_DALLE)]):
            content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r'(?:GLOBAL|global|class) ([A-Za-z_][\w.]*\.\w+)', str(error)):
            raise CheckpointError(
                f'{path}: holds Python objects besides tensors ({found[1]}), and loading those could run code. '
                f'Save it again as tensors and plain types'
            ) from error
        raise CheckpointError(f'{path}: not a checkpoint, or damaged') from error
    except Exception as error:  # damaged bytes make torch raise IndexError, struct.error, AssertionError, ...
        said = (str(error).splitlines() or [''])[0]
        raise CheckpointError(f'{path}: damaged or cut off ({type(error).__name__}: {said})') from error
    if isinstance(content, PickledModule):
        return dict(content.parameters())
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: holds a {type(content).__name__}, and a checkpoint is a dict of weights')
    return content


class ArraysOnly(pickle.Unpickler):
    """Unpickles containers, numbers, bytes and NumPy arrays, and refuses every other name."""

    ALLOWED = {
        ('numpy', 'ndarray'),
        ('numpy', 'dtype'),
        ('numpy.core.multiarray', '_reconstruct'),
        ('numpy._core.multiarray', '_reconstruct'),
        ('numpy.core.numeric', '_frombuffer'),
        ('numpy._core.numeric', '_frombuffer'),
        ('_codecs', 'encode'),
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f'{module}.{name} is not an array')
        return super().find_class(module, name)


def _read_paddle(path: Path) -> dict[str, torch.Tensor]:
    """Paddle's .pdparams: a pickle of {name: array}, beside a table of names that is left out."""
    try:
        with open(path, 'rb') as file:
            content = ArraysOnly(file, encoding='latin1').load()
    except Exception as error:  # damaged bytes make pickle raise IndexError, struct.error, KeyError, ...
        raise CheckpointError(f'{path}: not a file of Paddle parameters ({error})') from error
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: holds a {type(content).__name__}, and Paddle parameters are a dict of arrays')
    return {key: torch.from_numpy(np.array(value)) for key, value in content.items() if isinstance(value, np.ndarray)}


def _into_place(path: Path, put: Callable[[IO[bytes]], object]) -> None:
    """Write so that the name only ever holds a complete file: temporary file, sync, rename."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            put(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(checkpoint: dict, filename: str | os.PathLike) -> None:
    """Write a checkpoint so that the name only ever holds a complete file."""
    _into_place(Path(filename), lambda file: torch.save(checkpoint, file))


KEY_OF_WEIGHTS = {'unilm': 'model', 'beit_mm': 'state_dict', 'mmpretrain': 'state_dict', 'mmseg': 'state_dict'}


def convert_file(source: Path, destination: Path, form: str | None, target: str, *options) -> ConversionReport:
    """Read weights, convert them, and write them as the target's projects expect to find them.

    .safetensors and .pth hold tensors, .pdparams (of passl) arrays. options: the rest of convert_state_dict's
    arguments. Raises CheckpointError naming the file; nothing is written then.
    """
    suffixes = ('.pdparams',) if target == 'passl' else ('.pth', '.safetensors')
    if destination.suffix not in suffixes:
        raise CheckpointError(f'{destination}: {target} is written to a file that ends in {" or ".join(suffixes)}')
    if destination.exists():
        raise CheckpointError(f'{destination}: is there already; choose another name or remove it')
    try:
        weights, report = convert_state_dict(state_dict_of(read(source, map_location='cpu')), form, target, *options)
    except CheckpointError as error:
        raise error if str(error).startswith(str(source)) else CheckpointError(f'{source}: {error}') from error
    weights = {key: value.contiguous().clone() for key, value in weights.items()}  # of chunks and shared tables
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.suffix == '.safetensors':
        _into_place(destination, lambda file: file.write(serialise(weights, metadata=dict(format='pt'))))
    elif destination.suffix == '.pdparams':
        arrays = {key: value.numpy() for key, value in weights.items()}
        _into_place(destination, lambda file: pickle.dump(arrays, file, protocol=4))
    else:
        key = KEY_OF_WEIGHTS.get(target)
        write({key: weights} if key else weights, destination)
    return report


def sha256(filename: str | os.PathLike) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(filename, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def state_dict_of(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The weights inside a checkpoint, whichever of the usual names they are under."""
    for key in ('state_dict', 'model', 'module'):
        if isinstance(checkpoint.get(key), dict):
            return checkpoint[key]
    return checkpoint


def as_ours(weights: dict[str, torch.Tensor], prefix: str = '') -> tuple[dict[str, torch.Tensor], str]:
    """(weights under our names, with `backbone.` in front of the backbone's; what was done about them).

    Any format of formats.py is converted; what has our names for a backbone's blocks stays as it is, whatever it holds
    besides. prefix: only the keys that start with it, without it. Raises CheckpointError for a prefix that no key has
    and for an unknown format.
    """
    weights = stripped(weights)
    if prefix:
        starts = sorted({key.split('.')[0] for key in weights})
        weights = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        if not weights:
            raise CheckpointError(f'no key starts with the prefix {prefix!r}; they start with {few(starts, 8)}')
    if 'layers.0.ln1.weight' in weights:
        weights = {f'backbone.{key}': value for key, value in weights.items()}
    if 'backbone.layers.0.ln1.weight' in weights:
        # beit2mmseg.py leaves the patch embedding under its official name too
        return {key: value for key, value in weights.items() if '.patch_embed.proj.' not in key}, ''
    weights, report = convert_state_dict(weights)
    return weights, f'{report}; '


@dataclass
class LoadReport:
    """What became of the keys of a checkpoint: names by fate."""

    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    expanded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f'{len(names)} {fate}' for fate, names in vars(self).items() if names]
        for fate in ('resized', 'expanded', 'missing', 'dropped'):
            names = getattr(self, fate)
            if names:
                parts[[p.split()[1] for p in parts].index(fate)] += f' ({few(names)})'
        return ', '.join(parts)


PATCH_EMBEDDING = 'patch_embed.projection.weight'
TABLE, SHARED_TABLE = 'relative_position_bias_table', 'rel_pos_bias.relative_position_bias_table'
# Of the backbone: what a pre-training checkpoint has and a fine-tuned model may lack, and the other way round.
# Official fine-tuning with mean pooling drops the pre-trained `norm` and starts `fc_norm` (ln2) at one and zero;
# a segmentor that starts from a classifier has neither.
MAY_BE_DROPPED = ('mask_token', 'ln1.weight', 'ln1.bias', 'ln2.weight', 'ln2.bias')
MAY_BE_MISSING = ('ln1.weight', 'ln1.bias', 'ln2.weight', 'ln2.bias', 'mask_token')


def fit(
    weights: dict[str, torch.Tensor],
    own: dict[str, torch.Tensor],
    grid: tuple[int, int],
    prefix: str = 'backbone.',
    interpolation: str = 'bicubic',
) -> tuple[dict[str, torch.Tensor], LoadReport]:
    """Fit weights to a model whose state dict is `own` and whose backbone (under `prefix`) has `grid` patches.

    A shared relative position table is expanded to all blocks, tables and positions are resized, the patch
    embedding is inflated to more bands, heads of another shape or name keep their initial values. Raises
    CheckpointError when any other part of the backbone is missing, left over or of another shape.
    """
    report = LoadReport()
    given = weights
    weights = {k: v for k, v in weights.items() if not k.endswith('relative_position_index')}
    per_block = [k for k in own if k.startswith(prefix + 'layers.') and k.endswith(TABLE)]
    shared = prefix + SHARED_TABLE
    if shared in weights and shared not in own and per_block:
        table = weights.pop(shared)
        weights.update({key: table.clone() for key in per_block})
        report.expanded = list(per_block)
    fitted = {}
    refused = []
    for key, value in weights.items():
        in_backbone = key.startswith(prefix)
        if key not in own:
            if in_backbone and key[len(prefix) :] not in MAY_BE_DROPPED:
                refused.append(f'{key} is not in the model')
            else:
                report.dropped.append(key)
            continue
        if in_backbone and value.shape != own[key].shape:
            value = _resized(key, value, own[key].shape, grid, interpolation)
            if value.shape == own[key].shape:
                fate = report.expanded if key.endswith(PATCH_EMBEDDING) else report.resized
                fate.append(key)
        if value.shape == own[key].shape:
            fitted[key] = value
            if key not in report.resized and key not in report.expanded:
                report.matched.append(key)
        elif in_backbone:
            refused.append(f'{key} is {tuple(weights[key].shape)}, the model has {tuple(own[key].shape)}')
        else:
            report.dropped.append(key)
    for key in own:
        if key not in fitted:
            report.missing.append(key)
            if key.startswith(prefix) and key[len(prefix) :] not in MAY_BE_MISSING and key not in weights:
                refused.append(f'{key} is not in the checkpoint')
    if refused:
        shown = '\n  '.join(refused[:4]) + (f'\n  ... {len(refused) - 4} more' if len(refused) > 4 else '')
        raise CheckpointError(f'the backbone does not fit: {_difference(given, own, prefix)}\n  {shown}')
    return fitted, report


def outline(weights: dict[str, torch.Tensor], prefix: str = 'backbone.') -> dict[str, int | str]:
    """What the shapes of a backbone's weights say about it, under the names of BEiTViT's arguments."""
    of = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    layers = {key.split('.')[1] for key in of if key.startswith('layers.')}
    outline: dict[str, int | str] = dict(num_layers=len(layers))
    if 'cls_token' in of:
        outline['embed_dims'] = of['cls_token'].shape[-1]
    if 'layers.0.ffn.layers.0.0.weight' in of:
        outline['feedforward_channels'] = of['layers.0.ffn.layers.0.0.weight'].shape[0]
    if PATCH_EMBEDDING in of:
        outline['patch_size'] = of[PATCH_EMBEDDING].shape[-1]
    tables = [value for key, value in of.items() if key.endswith(TABLE)]
    if tables:
        outline['num_heads'] = tables[0].shape[-1]
    outline['relative positions'] = 'yes' if tables else 'no'
    outline['absolute positions'] = 'yes' if 'pos_embed' in of else 'no'
    outline['LayerScale'] = 'yes' if 'layers.0.gamma_1' in of else 'no'
    return outline


def _difference(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor], prefix: str) -> str:
    """In which of the outline's points a checkpoint differs from a model, in words."""
    theirs, ours = outline(weights, prefix), outline(own, prefix)
    if not theirs['num_layers']:
        return f'no key of the checkpoint starts with {prefix}layers.; is the prefix right?'
    points = [f'{name} is {theirs[name]} in the checkpoint and {ours[name]} here'
              for name in ours if name in theirs and theirs[name] != ours[name]]  # fmt: skip
    return '; '.join(points) or "some of its keys are another model's"


def _resized(
    key: str, value: torch.Tensor, wanted: torch.Size, grid: tuple[int, int], interpolation: str
) -> torch.Tensor:
    """Tables and positions of another square grid resized to `grid`, bands inflated; all else as it is."""
    if key.endswith(PATCH_EMBEDDING) and value.ndim == 4 and (wanted[1] == 1 or wanted[1] > value.shape[1]):
        return inflate_bands(value, wanted[1])
    if key.endswith(TABLE):
        side = (math.isqrt(value.shape[0] - NUM_CLASS_ROWS) + 1) // 2
        return resize_table(value, (side, side), grid) if num_offsets((side, side)) == value.shape[0] else value
    if key.endswith('pos_embed'):
        side = math.isqrt(value.shape[1] - 1)
        if side * side == value.shape[1] - 1:
            return resize_positions(value, (side, side), grid, interpolation)
    return value
