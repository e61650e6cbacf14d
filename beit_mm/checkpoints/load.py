"""Reading and writing weight files. The only place of beit_mm that opens one, and never as a pickle with code."""

import argparse
import hashlib
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise

from .convert import ConversionReport, convert_state_dict
from .errors import CheckpointError
from .formats import Renaming


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


def _statistic(owner: type, name: str) -> Callable:
    """What `getattr` may do in a checkpoint of mmengine: name a method of its HistoryBuffer."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError('global builtins.getattr is not of a HistoryBuffer')
    return getattr(HistoryBuffer, name)


# (object, its name in a file): what torch's weights_only refuses, and what cannot do harm
HARMLESS = [
    argparse.Namespace,  # the official BEiT files hold their command line: a bag of values
    *((PickledModule, name) for name in OF_DALLE),
    HistoryBuffer,  # mmengine's training checkpoints, with NumPy's arrays and scalars
    (_statistic, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    *(kind for kind in vars(np.dtypes).values() if isinstance(kind, type)),
    *(
        (made, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for name, made in (
            ('scalar', np._core.multiarray.scalar),
            ('_reconstruct', np._core.multiarray._reconstruct),
        )
    ),
]
_trusted: set[Path] = set()


def trust(filename: str | os.PathLike) -> None:
    """Let `read` run what this one file holds: for old checkpoints with Python objects, if you know their origin."""
    _trusted.add(local_file(filename).resolve())
    print_log(
        f'{filename}: trusted, as you asked. Reading it runs whatever code it holds, with your rights. Convert it '
        f'once (tools/convert_checkpoint.py) and use the result, which holds none',
        logger='current',
        level=logging.WARNING,
    )


def local_file(filename: str | os.PathLike) -> Path:
    """The path of a checkpoint; one that is named by an http(s) address is downloaded, once, to torch's hub folder."""
    name = str(filename)
    if not name.startswith(('http://', 'https://')):
        return Path(name).expanduser()
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(name).path).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(name, str(path))
        except OSError as error:
            raise CheckpointError(f'{name}: not downloaded ({error}). Fetch it yourself and give its path') from error
    return path


def read(filename: str | os.PathLike, map_location=None) -> dict:
    """Read a .pth, .safetensors or .pdparams file, or address, with `weights_only=True`, whatever the environment says.

    OpenAI's encoder.pkl and decoder.pkl are whole modules: their parameters are read, their classes are not needed.
    Raises CheckpointError, naming the file, when it is missing, damaged, a web page, or holds code and is not trusted.
    """
    path = local_file(filename)
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
    if path.suffix == '.npz':
        return _read_flax(path)
    if path.suffix == '.safetensors':
        try:
            return load_file(path, device=str(map_location or 'cpu'))
        except SafetensorError as error:
            raise CheckpointError(f'{path}: not a readable safetensors file ({error})') from error
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location=map_location, weights_only=path.resolve() not in _trusted)
    except pickle.UnpicklingError as error:
        if found := re.search(r'(?:GLOBAL|global|class) ([A-Za-z_][\w.]*\.\w+)', str(error)):
            raise CheckpointError(
                f'{path}: holds Python objects besides tensors ({found[1]}), and loading those could run code. '
                f'If you know where the file comes from, allow it: --trust-checkpoint'
            ) from error
        if 'persistent_load' in str(error):
            raise CheckpointError(
                f'{path}: a whole module, pickled as before torch 1.6; save its state_dict() with the package it needs'
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


# Google's vision_transformer (Flax): {theirs: timm's}; {i} is the number of a block
FLAX = {
    'cls': 'cls_token',
    'embedding': 'patch_embed.proj',
    'Transformer/posembed_input/pos_embedding': 'pos_embed',
    'Transformer/encoderblock_{i}/LayerNorm_0': 'blocks.{i}.norm1',
    'Transformer/encoderblock_{i}/LayerNorm_2': 'blocks.{i}.norm2',
    'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/query': 'blocks.{i}.attn.query',
    'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/key': 'blocks.{i}.attn.key',
    'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/value': 'blocks.{i}.attn.value',
    'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/out': 'blocks.{i}.attn.proj',
    'Transformer/encoderblock_{i}/MlpBlock_3/Dense_0': 'blocks.{i}.mlp.fc1',
    'Transformer/encoderblock_{i}/MlpBlock_3/Dense_1': 'blocks.{i}.mlp.fc2',
    'Transformer/encoder_norm': 'norm',
    'pre_logits': 'pre_logits.fc',
    'head': 'head',
}
FLAX_LEAVES = {'kernel': '.weight', 'scale': '.weight', 'bias': '.bias'}


def _read_flax(path: Path) -> dict[str, torch.Tensor]:
    """The .npz of a supervised ViT (Google's vision_transformer, AugReg), under timm's names and in torch's layout."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: torch.from_numpy(archive[key].astype(np.float32)) for key in archive.files}
    except Exception as error:  # damaged bytes make NumPy raise BadZipFile, EOFError, KeyError, ...
        raise CheckpointError(f'{path}: not a readable .npz file of arrays ({error})') from error
    rename, weights = Renaming(FLAX), {}
    for key, value in arrays.items():
        stem, _, leaf = key.removeprefix('opt/target/').rpartition('/')
        whole = rename(key.removeprefix('opt/target/'))  # those without a leaf
        name = whole or (rename(stem) or '') + FLAX_LEAVES.get(leaf, '')
        if not whole and (rename(stem) is None or leaf not in FLAX_LEAVES):
            raise CheckpointError(f'{path}: {key} is of no plain vision transformer of vision_transformer')
        weights[name] = _in_torch(name, value) if leaf in FLAX_LEAVES else value
    for name in [name for name in weights if name.endswith(('.query.weight', '.query.bias'))]:
        parts = [name.replace('.query.', f'.{part}.') for part in ('query', 'key', 'value')]
        if missing := [part for part in parts if part not in weights]:
            raise CheckpointError(f'{path}: {missing[0]} is missing')
        weights[name.replace('.query.', '.qkv.')] = torch.cat([weights.pop(part) for part in parts])
    return weights


def _in_torch(name: str, value: torch.Tensor) -> torch.Tensor:
    """Flax's layout of a kernel or bias, (in, heads, dim), (heads, dim, out), (h, w, in, out), in torch's."""
    heads_come = name.endswith(('query.weight', 'key.weight', 'value.weight'))
    if value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    if name.endswith('.bias'):
        return value.flatten()
    if value.ndim == 3:
        value = value.flatten(1) if heads_come else value.flatten(0, 1)
    return value.T.contiguous() if value.ndim == 2 else value


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
    with open(local_file(filename), 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


WEIGHTS = ('state_dict', 'model', 'module', 'weights', 'teacher')  # under which a checkpoint has them; DINO has two


def state_dict_of(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The weights inside a checkpoint, whichever of the usual names they are under."""
    for key in WEIGHTS:
        if isinstance(checkpoint.get(key), dict):
            return checkpoint[key]
    return checkpoint
