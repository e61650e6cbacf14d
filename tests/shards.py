"""Small images as files and as shards, for the tests of shards."""

from pathlib import Path

import numpy as np
from PIL import Image

from beit_mm.data.images import ImageList
from beit_mm.data.shard_writer import Settings, write_shards


def write_images(root: Path, count: int = 40, classes: int = 3, size: int = 8) -> Path:
    """root/train/<class>/<i>.png, each of other pixels; class k has the images i with i % classes == k."""
    for i in range(count):
        path = root / 'train' / f'n{i % classes:08d}' / f'im{i:04d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (size, size + i % 3, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def packed(root: Path, folder: Path, per_shard: int = 7, jobs: int = 1, with_label: bool = True, **settings) -> str:
    """write_shards of root/train."""
    images = ImageList(str(root), split='train', with_label=with_label)
    return write_shards(images, folder, Settings(samples=per_shard, name='t', **settings), jobs)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of shards and index, but for the lock that says who wrote."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != 'lock'
    }
