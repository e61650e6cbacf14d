"""Write the embedded data as files of the usual layouts, so that stock data set classes read the same pixels."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from . import embedded
from .datasets import CIFAR10
from .layouts import EXPORTED


def _save_png(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array).save(path)


def export_imagefolder(out: Path, counts: dict[str, int], size: int, grey: bool, seed: int) -> int:
    """out/<split>/<class>/<index>.png; every class has a folder, also an empty one."""
    for split, count in counts.items():
        for name in embedded.CLASSES:
            (out / split / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            scene = embedded.scene(seed, split, index, size, grey)
            _save_png(scene.image, out / split / embedded.CLASSES[scene.label] / f'{index:06d}.png')
    return sum(counts.values())


def export_ade20k(out: Path, counts: dict[str, int], size: int, grey: bool, seed: int) -> int:
    """ADE20K's folders; masks hold class + 1, as ADE20K's, whose 0 is "other" (`reduce_zero_label=True`)."""
    folders = dict(train='training', val='validation')
    for split, count in counts.items():
        for index in range(count):
            scene = embedded.scene(seed, split, index, size, grey)
            name = f'ADE_{split}_{index:08d}.png'
            _save_png(scene.image, out / 'images' / folders[split] / name)
            _save_png(scene.mask + 1, out / 'annotations' / folders[split] / name)
    return sum(counts.values())


def export_cifar(out: Path, counts: dict[str, int], size: int, grey: bool, seed: int) -> int:
    """CIFAR-10's pickles (five training batches, 32 x 32 RGB) and `md5s.json` for the class's `md5s`."""
    if size != 32 or grey:
        raise ValueError(f'CIFAR is 32 x 32 pixels in colour; size={size}, grey={grey} cannot be written as CIFAR')
    folder = out / CIFAR10.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    md5s = {}

    def dump(name: str, content: dict) -> None:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        md5s[name] = hashlib.md5(data, usedforsecurity=False).hexdigest()

    def batch(split: str, indices: range) -> dict:
        scenes = [embedded.scene(seed, split, i, size, grey) for i in indices]
        flat = [s.image.transpose(2, 0, 1).reshape(-1) for s in scenes]
        return dict(data=np.stack(flat), labels=[s.label for s in scenes], batch_label=f'{split} {indices}')

    parts = CIFAR10.FILES['train']
    bounds = np.linspace(0, counts['train'], len(parts) + 1).astype(int)
    for name, begin, end in zip(parts, bounds[:-1], bounds[1:], strict=True):
        dump(name, batch('train', range(begin, end)))
    dump(CIFAR10.FILES['test'][0], batch('val', range(counts['val'])))
    meta_file, key = CIFAR10.META
    dump(meta_file, {key: list(embedded.CLASSES), 'num_vis': 3 * size * size})
    (folder / 'md5s.json').write_text(json.dumps(md5s, indent=1))
    return sum(counts.values())


def export(out: str | Path, kind: str, train: int, val: int, size: int = 64, grey: bool = False, seed: int = 0) -> int:
    """Write `train` + `val` scenes in one of EXPORTED below `out`, with CREDITS.txt; returns the number of images."""
    if kind not in EXPORTED:
        raise ValueError(f'format {kind!r} is none of {", ".join(EXPORTED)}')
    if train < 5 or val < 1:
        raise ValueError(f'train={train}, val={val}: write at least 5 training images and 1 validation image')
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f'{out} is not empty; choose a new folder, nothing is overwritten')
    write = dict(imagefolder=export_imagefolder, ade20k=export_ade20k, cifar=export_cifar)[kind]
    count = write(out, dict(train=train, val=val), size, grey, seed)
    lines = [
        f'{p.name}: {p.credit}, {p.licence}, {p.package}/{p.file}, sha256 {p.sha256}' for p in embedded.PHOTOGRAPHS
    ]
    (out / 'CREDITS.txt').write_text(
        'Embedded data of beit_mm, cut from these photographs:\n' + '\n'.join(lines) + '\n'
    )
    return count
