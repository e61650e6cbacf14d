"""Saving a training checkpoint of 300 MiB, against mmengine's writer; finding the newest whole one of a folder.

    python benchmarks/checkpoints.py [--only find] [--threads all] [--rounds 9]

`torch.save` writes the file by its name, as most trainers do; `mmengine` a copy in memory, in one go; neither syncs or
looks at what it wrote. `ours` syncs, reads again, digests (SHA-256), lists and renames; `ours, finite` looks for values
that are not finite before, as our CheckpointHook does. Seconds of the clock (`--threads all`) have what the disk takes.
A processor without instructions for SHA-256 spends most of the time on that.
"""

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import Case, main

TENSORS, SIZE = 75, 2**20  # of float32: 300 MiB


def checkpoint() -> dict:
    """A training checkpoint whose weights are TENSORS x 4 MiB."""
    import torch

    torch.manual_seed(0)
    weights = {f'w{i}': torch.randn(SIZE) for i in range(TENSORS)}
    return dict(state_dict=weights, optimizer={}, message_hub={}, meta=dict(iter=1, epoch=0))


def folder() -> Path:
    made = tempfile.mkdtemp(dir='.', prefix='.checkpoints-')  # of this disk: /tmp may be memory
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def plain() -> Callable[[], object]:
    import torch

    content, path = checkpoint(), folder() / 'iter_1.pth'
    return lambda: torch.save(content, path)


def mmengines() -> Callable[[], object]:
    from mmengine.runner.checkpoint import save_checkpoint  # without beit_mm: its own

    content, path = checkpoint(), folder() / 'iter_1.pth'
    return lambda: save_checkpoint(content, str(path))


def ours() -> Callable[[], object]:
    from beit_mm.checkpoints.store import save

    content, path = checkpoint(), folder() / 'iter_1.pth'
    return lambda: save(content, path)


def ours_finite() -> Callable[[], object]:
    from beit_mm.checkpoints.store import save
    from beit_mm.engine.saving import not_finite

    content, path = checkpoint(), folder() / 'iter_1.pth'

    def step() -> None:
        assert not list(not_finite(content))
        save(content, path)

    return step


def kept(manifest: bool) -> Path:
    from beit_mm.checkpoints.store import save

    made, content = folder(), checkpoint()
    for step in (1, 2, 3):
        save(content, made / f'iter_{step}.pth')
    if not manifest:
        (made / 'checkpoints.json').unlink()
    return made


def find_listed() -> Callable[[], object]:
    from beit_mm.checkpoints.store import newest_verified

    made = kept(manifest=True)
    return lambda: newest_verified(made)


def find_unlisted() -> Callable[[], object]:
    from beit_mm.checkpoints.store import newest_verified

    made = kept(manifest=False)
    return lambda: newest_verified(made)


def digest() -> Callable[[], object]:
    path = kept(manifest=True) / 'iter_1.pth'

    def step() -> str:
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()

    return step


CASES = [
    Case(
        name='save 300 MiB',
        candidates={'torch.save': plain, 'mmengine': mmengines, 'ours': ours, 'ours, finite': ours_finite},
        baseline='mmengine',
        work=300,
        unit='MiB',
    ),
    Case(
        name='find the newest of three of 300 MiB',
        candidates={'sha256 of one': digest, 'ours': find_listed, 'ours, manifest lost': find_unlisted},
        baseline='sha256 of one',
        work=300,
        unit='MiB',
    ),
]

if __name__ == '__main__':
    main(__doc__.splitlines()[0], CASES)
