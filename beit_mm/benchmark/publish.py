"""Publishing a checkpoint: only what is needed to use it, in a file whose name says which bytes it holds.

A training checkpoint is three times its weights: the optimizer's state, the schedulers, the logs. What is published has
the weights and `meta`: classes, the config's text, architecture, normalisation, lineage, code revision. Its name ends
in the first eight digits of the file's sha256, as OpenMMLab's do: `verify` tells a file that was changed or cut off.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoints.convert import few, stripped
from ..checkpoints.files import bytes_of
from ..checkpoints.load import CheckpointError, read, sha256, state_dict_of, write, write_safetensors
from ..engine.checkpointing import STAMP, plain
from ..engine.launch import check_writable

DIGITS = 8  # of the sha256, in a name
PUBLISHED = re.compile(rf'.+-([0-9a-f]{{{DIGITS}}})\.(?:pth|safetensors)')
KEPT = ('epoch', 'iter', 'seed', 'time', 'experiment_name', 'dataset_meta', 'CLASSES', 'PALETTE', 'cfg', 'beit_mm',
        'mmengine_version')  # fmt: skip
AVERAGES = ('model_ema', 'state_dict_ema', 'ema')  # under which other projects keep averaged weights
SUMS = 'SHA256SUMS'


def check_manifest(path: Path) -> str:
    """Compare a file with its digest in FILE.sha256 or SHA256SUMS beside it: lines `<sha256>  <name>`, as sha256sum
    writes them, whose names may be `*name`, `./name` or paths.

    Returns the manifest's name, '' without one. Raises CheckpointError where they differ.
    """
    for manifest in (path.with_name(f'{path.name}.sha256'), path.with_name(SUMS)):
        if not manifest.is_file():
            continue
        lines = [line.split(maxsplit=1) for line in manifest.read_text().splitlines() if line.strip()]
        named = [(line[0].lower(), Path(line[1].strip().lstrip('*') if line[1:] else path.name)) for line in lines]
        named = [(digest, name) for digest, name in named if name.name == path.name]
        here = [(digest, name) for digest, name in named if path.resolve().parts[-len(name.parts) :] == name.parts]
        digests = [digest for digest, _ in here or named]  # of other folders' files only where none is of this one
        if digests and sha256(path) not in digests:
            raise CheckpointError(
                f'{path}: its sha256 is {sha256(path)}, and {manifest} has {" and ".join(digests)}: not published'
            )
        if digests:
            return manifest.name
    return ''


def check_out(folder: Path) -> None:
    """Make the folder of --out. Raises PermissionError naming folder and flag if no file can be made in it."""
    try:
        check_writable(folder)
    except PermissionError as error:
        reason = error.__cause__.strerror  # check_writable's own way out is a work_dir's
        raise PermissionError(f'{folder} cannot be written ({reason}): give another folder by --out') from error


def check_out_file(path: Path) -> None:
    """The same for a file: its folder is made, and it is none itself."""
    if path.is_dir():
        raise IsADirectoryError(f'--out {path}: is a folder, and a file is written: {path / "NAME"}')
    check_out(path.parent)


def check_finite(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Raise CheckpointError naming weights that hold nan or infinity."""
    broken = [f'{k} ({int((~torch.isfinite(v)).sum())} of {v.numel()})' for k, v in weights.items()
              if v.is_floating_point() and not torch.isfinite(v).all()]  # fmt: skip
    if broken:
        raise CheckpointError(
            f'{path}: weights that are nan or infinite: {few(broken, 4)}. Publish an older checkpoint'
        )


def stripped_down(content: dict) -> tuple[dict[str, torch.Tensor], dict, list[str]]:
    """(weights, meta, lines that say what was chosen) of a checkpoint's content."""
    said = []
    averages = next((key for key in AVERAGES if isinstance(content.get(key), dict)), None)
    if averages:
        said.append(f'the averaged weights of {averages!r} are published')
    elif 'ema_state_dict' in content:  # mmengine's EMAHook swaps the two when it saves
        said.append('the averaged weights (EMA) are published: they are its state_dict; the others are left out')
    chosen = state_dict_of(content[averages] if averages else content)
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in stripped(chosen).items()}
    meta = content.get('meta') if isinstance(content.get('meta'), dict) else {}
    left = [k for k, v in content.items() if isinstance(v, (dict, list)) and k != 'meta' and v is not chosen]
    if left:
        said.append(f'left out: {", ".join(left)}')
    return weights, plain({key: meta[key] for key in KEPT if key in meta}), said


def _default_name(meta: dict, path: Path) -> str:
    return STAMP.sub('', str(meta.get('experiment_name') or path.stem))


def publish(
    checkpoint: str, out: str | None = None, name: str | None = None, safetensors: bool = False
) -> tuple[Path, list[str]]:
    """Write OUT/<name>-<sha256[:8]>.pth, or .safetensors; returns its path and lines to print.

    out: default the checkpoint's folder. name: default the experiment's. Nothing in the file is run.
    Raises CheckpointError for a file that is damaged, that differs from its manifest, or whose weights are not finite.
    """
    path = Path(checkpoint)
    content = read(path, map_location='cpu')
    folder = Path(out) if out else path.parent
    check_out(folder)
    manifest = check_manifest(path)
    weights, meta, said = stripped_down(content)
    if not weights:
        raise CheckpointError(f'{path}: there are no weights in it')
    check_finite(weights, path)
    if manifest:
        said.append(f'its sha256 is that of {manifest}')
    name, suffix = name or _default_name(meta, path), '.safetensors' if safetensors else '.pth'
    if '/' in name or name.startswith('.'):
        raise CheckpointError(f'--name {name}: a name, not a path; folders are --out')
    temporary = folder / f'.{name}.{os.getpid()}{suffix}'
    try:
        if safetensors:
            write_safetensors(weights, dict({'beit_mm': {}}, **meta), temporary)
        else:
            write(dict(meta=meta, state_dict=weights), temporary)
        final = folder / f'{name}-{sha256(temporary)[:DIGITS]}{suffix}'
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    told = {
        'class names': (meta.get('dataset_meta') or {}).get('classes'),
        'the config': meta.get('cfg'),
        'the code revision': (meta.get('beit_mm') or {}).get('revision'),
    }
    lacking = [what for what, there in told.items() if not there]
    if lacking:
        said.append(f'{path} does not say, and so what is published does not: {", ".join(lacking)}')
    before, after = bytes_of(path), final.stat().st_size
    said.append(f'{len(weights)} weights, {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB')
    return final, said


def verify(path: str) -> str:
    """A line that says that a published file is whole. Raises CheckpointError where its name is not its content's."""
    file = Path(path)
    found = PUBLISHED.fullmatch(file.name)
    if not file.is_file() or not found:
        why = (
            'there is no such file' if not file.is_file() else f'its name does not end in -<{DIGITS} digits of sha256>'
        )
        raise CheckpointError(f'{file}: {why}: it is no published checkpoint')
    digest = sha256(file)
    if digest[:DIGITS] != found[1]:
        raise CheckpointError(f'{file}: its sha256 begins with {digest[:DIGITS]}: it was changed, or cut off')
    weights = state_dict_of(read(file, map_location='cpu'))
    check_finite(weights, file)
    return f'{file}: {len(weights)} weights, sha256 {digest}'


def verify_all(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """(lines on files that are whole, lines on those that are not) of all these."""
    whole, bad = [], []
    for path in paths:
        try:
            whole.append(verify(path))
        except (CheckpointError, OSError) as error:
            bad.append(str(error))
    return whole, bad
