"""Reading and writing weight files. The only place of beit_mm that opens one, and never as a pickle with code."""

import argparse
import hashlib
import json
import logging
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

import torch
from mmengine.logging import HistoryBuffer, print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from ..compat import CONFIG_ROOT
from .arrays import STAND_INS
from .convert import ConversionReport, convert_state_dict
from .errors import CheckpointError
from .files import FOLDER, LISTING, into_place
from .foreign import read_flax, read_paddle
from .limits import check_records, check_tensors


class PickledModule:
    """What stands for a module of OpenAI's encoder.pkl and decoder.pkl: its attributes, and none of its code."""


def _parameters(module: PickledModule, prefix: str = '') -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a module and of those inside, as in a state dict. A file can have put anything anywhere."""
    if prefix.count('.') > DEEPEST:
        raise ValueError('a module that is inside of itself')
    for name, value in dict(vars(module).get('_parameters') or {}).items():
        if value is not None:
            yield prefix + name, value.detach()
    for name, inside in dict(vars(module).get('_modules') or {}).items():
        if isinstance(inside, PickledModule):
            yield from _parameters(inside, f'{prefix}{name}.')


DEEPEST = 16  # modules inside of each other; OpenAI's are six deep
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
    *((made, name) for name, made in STAND_INS.items()),
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
    """The path of a checkpoint; one that is named by an http(s) address is downloaded, once, to torch's hub folder.

    What an address says of its file's sha256 has to be so: `...#sha256=<hex digits>`, or a name that ends in its first
    digits as published ones do, `beit-base-0f2b8a11.pth`.
    """
    name = str(filename)
    if not name.lower().startswith(('http://', 'https://')):
        return Path(name).expanduser()
    # Most addresses at Hugging Face end in the same file name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    path = Path(torch.hub.get_dir()) / 'checkpoints' / f'{digest}-{Path(urlparse(name).path).name}'
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(name, str(path), hash_prefix=_sha256_in(name))
        except RuntimeError as error:  # nothing is kept then
            raise CheckpointError(f'{name}: is another file than its address says: {error} of its sha256') from error
        except OSError as error:
            raise CheckpointError(f'{name}: not downloaded ({error}). Fetch it yourself and give its path') from error
        if said := not_weights(path):
            path.unlink()
            raise CheckpointError(f'{name}: {said}')
    return path


def _sha256_in(address: str) -> str | None:
    """The first digits of a file's sha256, if its address says them; eight that could be a date are none."""
    parts = urlparse(address)
    if parts.fragment.startswith('sha256='):
        return parts.fragment.removeprefix('sha256=').lower()
    found = re.search(r'-([0-9a-f]{8,64})\.\w+$', parts.path)
    return found[1] if found and not re.fullmatch(r'(19|20)\d{6}', found[1]) else None


def unpickle(file: Path | IO[bytes], map_location=None, trusted: bool = False, lazy: bool = False):
    """What torch saved. Without trust: tensors, plain types and HARMLESS, else pickle.UnpicklingError.

    lazy: tensors are read from the disk when they are looked at."""
    with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Detected pickle protocol')  # of a file of others: refused, or read
        return torch.load(file, map_location=map_location, weights_only=not trusted, mmap=lazy)


SIGNATURES = (  # how a file starts that is no file of weights, in small letters: what it is
    ((b'<!', b'<html', b'<head', b'<?xml', b'<error'), 'this is a web page, not weights; an error page was the answer'),
    (
        (b'version https://git-lfs',),
        'this is a pointer of Git LFS; run `git lfs pull` where it is from',
    ),
    ((b'{',), 'this is JSON, not weights; give the files that it names, one by one'),
)


def not_weights(path: Path) -> str:
    """What a file is, from how it starts, if that is a known mistake; else an empty string."""
    with open(path, 'rb') as file:
        start = file.read(512)
    text = start.decode('utf-16', 'ignore').encode() if start[:2] in (b'\xff\xfe', b'\xfe\xff') else start
    text = text.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    if not start:
        return 'the file is empty; the run that wrote it was cut off. Use an older one'
    return next((said for starts, said in SIGNATURES if text.startswith(starts)), '')


def made_by(checkpoint: str | os.PathLike) -> str:
    """For a missing work_dirs/<config>/... of one of our configs: the command that leaves it; else nothing."""
    path = Path(checkpoint)
    configs = sorted(CONFIG_ROOT.glob(f'*/{path.parent.name}.py'))
    if path.is_file() or not configs:
        return ''
    return f'. It is what this leaves: python tools/train.py configs/{configs[0].relative_to(CONFIG_ROOT)}'


def read(filename: str | os.PathLike, map_location=None, lazy: bool = False) -> dict:
    """Read a .pth, .safetensors or .pdparams file, or address, with `weights_only=True`, whatever the environment says;
    or the folder of a sharded training, .dcp, as one file would have it.

    OpenAI's encoder.pkl and decoder.pkl are whole modules: their parameters are read, their classes are not needed.
    lazy: of a .pth, tensors are read from the disk when they are looked at; on a CPU. Of a folder, those that were
    sharded have no data.
    Raises CheckpointError, naming the file, when it is missing, damaged, a web page, or holds code and is not trusted.
    """
    content = content_of(filename, map_location, lazy)
    if not isinstance(content, dict):
        raise CheckpointError(f'{filename}: holds a {type(content).__name__}, and a checkpoint is a dict of weights')
    return content


def content_of(filename: str | os.PathLike, map_location=None, lazy: bool = False):
    """What `read` reads, be it a dict or not."""
    path = local_file(filename)
    if path.is_dir():
        from .sharded import read_whole  # which reads a part of it by this

        return read_whole(path, map_location, lazy)
    if not path.is_file():
        near = (
            sorted(p.name for p in path.parent.glob('*') if p.suffix in ('.pth', FOLDER))
            if path.parent.is_dir()
            else []
        )
        hint = f'; that folder has {", ".join(near[:5])}' if near else ''
        raise CheckpointError(f'{path}: there is no such checkpoint{hint}{made_by(path)}')
    if said := not_weights(path):
        raise CheckpointError(f'{path}: {said}')
    check_records(path)
    content = _content_by_kind(path, map_location, lazy)
    check_tensors(path, content)
    return content


def _content_by_kind(path: Path, map_location, lazy: bool):
    if path.suffix == '.pdparams':
        return read_paddle(path)
    if path.suffix == '.npz':
        return read_flax(path)
    if path.suffix == '.safetensors' or _is_safetensors(path):
        return _read_safetensors(path, str(map_location or 'cpu'))
    try:
        content = unpickle(
            path, map_location, trusted=path.resolve() in _trusted, lazy=lazy and zipfile.is_zipfile(path)
        )
        if isinstance(content, PickledModule):
            return dict(_parameters(content))
    except pickle.UnpicklingError as error:
        if found := re.search(r'(?:GLOBAL|global|class) ([A-Za-z_][\w.]*\.\w+)', str(error)):
            raise CheckpointError(
                f'{path}: holds Python objects besides tensors ({found[1]}), and loading those could run code. '
                f'If you know where the file comes from, allow it: --trust-checkpoint (of train, test and '
                f'convert_checkpoint, for the one file that they are given)'
            ) from error
        if 'persistent_load' in str(error):
            raise CheckpointError(
                f'{path}: a whole module, pickled as before torch 1.6; save its state_dict() with the package it needs'
            ) from error
        raise CheckpointError(f'{path}: not a checkpoint, or damaged') from error
    except Exception as error:  # damaged bytes make torch raise IndexError, struct.error, AssertionError, ...
        said = (str(error).splitlines() or [''])[0]
        raise CheckpointError(f'{path}: damaged or cut off ({type(error).__name__}: {said})') from error
    return content


def _is_safetensors(path: Path) -> bool:
    """Whatever its name: the length of a header, and the header, which is JSON."""
    with open(path, 'rb') as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b'{' and int.from_bytes(start[:8], 'little') < path.stat().st_size


def _read_safetensors(path: Path, device: str) -> dict:
    """The tensors; beside those that we wrote, the `meta` that belongs to them."""
    try:
        with safe_open(path, framework='pt', device=device) as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
            said = (file.metadata() or {}).get('beit_mm')
        if not said:
            return weights
        meta = json.loads(said)
        return dict(state_dict=weights, meta=meta if 'beit_mm' in meta else dict(beit_mm=meta))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f'{path}: not a readable safetensors file ({error})') from error


def write(checkpoint: dict, filename: str | os.PathLike) -> None:
    """Write a checkpoint so that the name only ever holds a complete file."""
    into_place(Path(filename), lambda file: torch.save(checkpoint, file))


def write_safetensors(weights: dict[str, torch.Tensor], said: dict, filename: str | os.PathLike) -> None:
    """Write weights so that the name only ever holds a complete file. said: what `read` gives back as `meta` if it has
    a `beit_mm`, else as `meta.beit_mm`; of what JSON can hold."""
    metadata = dict(format='pt', **({'beit_mm': json.dumps(said)} if said else {}))
    content = serialise(weights, metadata=metadata)
    # the library puts the entries of its header in a random order; here the same weights are the same file
    start = 8 + int.from_bytes(content[:8], 'little')
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    header += b' ' * (-len(header) % 8)
    into_place(
        Path(filename), lambda file: file.writelines([len(header).to_bytes(8, 'little'), header, content[start:]])
    )


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
        content = read(source, map_location='cpu')
        weights, report = convert_state_dict(state_dict_of(content), form, target, *options)
    except CheckpointError as error:
        raise error if str(error).startswith(str(source)) else CheckpointError(f'{source}: {error}') from error
    weights = {key: value.detach().contiguous().clone() for key, value in weights.items()}  # of chunks, shared tables
    preprocessing = preprocessing_in(content)
    carried = dict(preprocessing=preprocessing) if preprocessing else {}
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.suffix == '.safetensors':
        write_safetensors(weights, carried, destination)
    elif destination.suffix == '.pdparams':
        arrays = {key: _array(value) for key, value in weights.items()}
        into_place(destination, lambda file: pickle.dump(arrays, file, protocol=4))
    else:
        key = KEY_OF_WEIGHTS.get(target)
        meta = dict(meta=dict(beit_mm=carried)) if carried else {}
        write({key: weights, **meta} if key else weights, destination)
    return report


def _array(value: torch.Tensor):
    """As NumPy has it, which knows no bfloat16."""
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()


def meta_of(checkpoint: dict) -> dict:
    """A checkpoint's `meta`, or an empty dict where that is missing or something else."""
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) else {}


def of_beit_mm(checkpoint: dict) -> dict:
    """What beit_mm wrote about a checkpoint: `meta.beit_mm`, or an empty dict where that is missing or not ours."""
    ours = meta_of(checkpoint).get('beit_mm')
    return ours if isinstance(ours, dict) else {}


def preprocessing_in(checkpoint: dict) -> dict:
    """What a checkpoint of ours says about its images: words, numbers, and lists of numbers; what else is left out."""
    found = of_beit_mm(checkpoint).get('preprocessing')
    plain = (str, int, float)
    return {
        key: value
        for key, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, plain) or (isinstance(value, list) and all(isinstance(one, plain) for one in value))
    }


def sha256(filename: str | os.PathLike) -> str:
    """Hex digest of a file, read in blocks; of a folder, that of the listing of its files and their digests."""
    digest, path = hashlib.sha256(), local_file(filename)
    with open(path / LISTING if path.is_dir() else path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


WEIGHTS = ('state_dict', 'model', 'module', 'weights', 'teacher')  # under which a checkpoint has them; DINO has two


def state_dict_of(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The weights inside a checkpoint, whichever of the usual names they are under.

    Raises CheckpointError, naming the key, for what is no weight: another type, a sparse, quantised or empty-handed
    (meta) tensor.
    """
    found = next((checkpoint[key] for key in WEIGHTS if isinstance(checkpoint.get(key), dict)), checkpoint)
    for key, value in found.items():
        if not isinstance(key, str):
            raise CheckpointError(f'{key!r} is no name of a weight')
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f'{key} is no weight but {type(value).__name__}')
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            kind = 'quantised' if value.is_quantized else 'without data' if value.is_meta else 'sparse'
            raise CheckpointError(f'{key} is {kind}; save the weights as ordinary tensors')
    return found
