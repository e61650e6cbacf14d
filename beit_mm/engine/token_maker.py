"""Computing a token cache: the visual tokens of K views of every training image, before training.

    python tools/prepare_data.py tokens CONFIG --views K

While it is made, a folder has the tokens so far, `done` (a byte per chunk of them) and `begun.json` (of what they are,
see tokens.py). A chunk counts once its tokens are on disk; the manifest is written when all are. Killed at any time,
the same command goes on with the chunks that do not count yet.
"""

import contextlib
import copy
import datetime
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS, DefaultScope
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, default_collate

from ..checkpoints.files import into_place
from ..checkpoints.load import sha256
from ..data.sampling import Draw
from ..data.tokens import FORMAT, MANIFEST, TOKENS, TokenCacheError, read_manifest
from ..models.targets import TokenTarget
from .checkpointing import code_revision
from .launch import parts_of
from .locking import acquire, holder, who
from .tokens import Views, difference, facts_of, name_of, view_steps

CHUNK = 512  # images of one view whose tokens are put on disk together
BATCH = 32
TRIED = 16  # views that are made before the start: are they reproducible, and how long do they take
BEGUN, DONE, PARTIAL, LOCK = 'begun.json', 'done', 'tokens.partial.npy', 'lock'


def _seed_all(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _try(source: Views, views: int) -> tuple[tuple[int, int], float, float]:
    """(grid, seconds to make a view, seconds to compute its tokens); raises where a view is not the same again."""
    draws = source.some(TRIED, views)
    _seed_all(1)
    first = default_collate([source.dataset[draw] for draw in draws])
    source.tokens({key: value[:1] for key, value in first.items()})  # what is made on first use is not timed
    _seed_all(2)
    start = time.perf_counter()
    again = default_collate([source.dataset[draw] for draw in draws])
    made = time.perf_counter()
    if not torch.equal(first['tokens_view'], again['tokens_view']):
        raise TokenCacheError(
            'the training pipeline makes another token view when it is asked again for the same one: a step of it '
            'draws from a global generator. Take the transforms of beit_mm, which draw from `generator_of`'
        )
    grid = source.tokens(again).shape[1:]
    return grid, (made - start) / len(draws), (time.perf_counter() - made) / len(draws)


def _amount(size: float) -> str:
    power = min(3, int(np.log10(max(size, 1)) // 3))
    return f'{size / 1000**power:.3g} {("B", "kB", "MB", "GB")[power]}'


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def make(
    config: Config,
    views: int | None = None,
    out: str | None = None,
    checkpoint: str | None = None,
    jobs: int = 4,
    device: str | None = None,
    seed: int | None = None,
) -> str:
    """Compute the tokens of `views` views of each training image of a pre-training config; returns what was done.

    views, out: default to what the config's TokensFromCache says. checkpoint: the tokenizer's, else the config's.
    Raises TokenCacheError for a config that this is nothing for, a folder with other tokens, and a disk too small.
    """
    if config.get('train_dataloader') is None:
        raise TokenCacheError(f'{config.filename}: has no train_dataloader, whose images tokens are computed of')
    if not (config.model.get('target') or {}).get('type'):
        raise TokenCacheError(f'{config.filename}: has no model.target; give a pre-training config, on tokens')
    steps = [step for part in parts_of(config.train_dataloader.dataset) for step in part['pipeline']]
    named = next((step for step in steps if name_of(step) == 'TokensFromCache'), {})
    views = views or named.get('views')
    folder = Path(out or named.get('cache') or f'data/tokens/{Path(config.filename).stem}')
    if not views or views < 1:
        raise TokenCacheError(f'{config.filename}: how many views of each image? --views K (16 are usual)')
    seed = config.get('randomness', {}).get('seed') if seed is None else seed
    if seed is None:
        raise TokenCacheError(f'{config.filename}: views are drawn for a seed: randomness=dict(seed=0), or --seed 0')
    source = _source(config, checkpoint, device or get_device(), seed)
    facts = facts_of(config, source.dataset, source.target, seed, views)
    with _alone(folder):
        return _complete(folder, facts) if (folder / MANIFEST).is_file() else _made(folder, facts, source, views, jobs)


def _made(folder: Path, facts: dict, source: Views, views: int, jobs: int) -> str:
    """Say what it will cost, and compute what is not there yet."""
    grid, to_make, to_tokenize = _try(source, views)
    cache = _Unfinished(folder, facts, grid)
    left = cache.left()
    count = sum(stop - start for _, start, stop in left)
    seconds = count * (max(to_make / jobs, to_tokenize) if jobs else to_make + to_tokenize)
    print(
        f'{folder}: {len(source.dataset):,} images x {views} views x {grid[0]} x {grid[1]} tokens, '
        f'{cache.dtype}: {_amount(cache.size)}\n'
        f'about {_duration(seconds)} for the {count:,} views to come (measured on {TRIED}: {1e3 * to_make:.1f} ms '
        f'to make one, {jobs or 1} at a time, {1e3 * to_tokenize:.1f} ms for its tokens)',
        flush=True,
    )
    cache.reserve()
    with cache.open():
        _fill(cache, left, source, jobs)
    return cache.finish()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else makes tokens in this folder meanwhile. The lock's file goes when there is nothing to go on with."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = acquire(path, inherited=False)
    if lock is None:
        raise TokenCacheError(f'{folder}: another process is computing these tokens: {who(holder(path) or {})}')
    lock.say(os.getpid())
    try:
        yield
    finally:
        if not (folder / BEGUN).is_file():
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # empty: nothing was begun
        lock.release()


def _source(config: Config, checkpoint: str | None, device: str, seed: int) -> Views:
    """The views of a config's training set, with its tokenizer on a device."""
    target = copy.deepcopy(config.model.get('target') or {})
    if checkpoint:
        target['checkpoint'] = checkpoint
    settings = copy.deepcopy(config.train_dataloader.dataset)
    for part in parts_of(settings):
        part['pipeline'] = view_steps(part['pipeline'])
    described = config.model.get('data_preprocessor') or config.get('data_preprocessor')
    described = copy.deepcopy(described or dict(type='BaseDataPreprocessor'))  # as mmengine's BaseModel
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        built = MODELS.build(target)
        if not isinstance(built, TokenTarget):
            raise TokenCacheError(
                f'{config.filename}: model.target is {target.get("type")}, which predicts no tokens of a tokenizer'
            )
        preprocessor = MODELS.build(described).to(device)
        return Views(config, DATASETS.build(settings), built, preprocessor, seed)


def _complete(folder: Path, facts: dict) -> str:
    """What is said of a cache that is whole already, if it is the one that was asked for and as it was written."""
    manifest = read_manifest(folder)
    if found := difference(manifest, facts):
        raise TokenCacheError(f'{folder}: holds other tokens: {found}. Give another --out, or remove the folder')
    if sha256(folder / TOKENS) != manifest['sha256']:
        raise TokenCacheError(f'{folder}: {TOKENS} is not as it was written: its sha256 differs. Remove the folder')
    return f'{folder}: complete, and as it was written'


class _Unfinished:
    """A cache while it is made: chunks (view, start, stop) of images, those done marked in a file of their own."""

    def __init__(self, folder: Path, facts: dict, grid: tuple[int, int]) -> None:
        self.folder, self.facts, self.grid = folder, dict(facts, grid=list(grid)), tuple(grid)
        self.dtype = np.dtype(np.uint16 if facts['vocabulary'] <= 2**16 else np.uint32)
        self.shape = (facts['views'], facts['images'], *grid)
        self.size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        images = facts['images']
        starts = range(0, images, CHUNK)
        self.chunks = [(view, s, min(s + CHUNK, images)) for view in range(facts['views']) for s in starts]
        self.partial, whole = folder / PARTIAL, folder / TOKENS
        if not (folder / BEGUN).is_file():
            return
        if whole.is_file():  # killed between its last two steps
            os.replace(whole, self.partial)
        begun = json.loads((folder / BEGUN).read_text())
        if found := difference(begun, facts):
            raise TokenCacheError(
                f'{folder}: another cache was begun here: {found}. Give another --out, or remove the folder'
            )

    def begun(self) -> bool:
        """Whether there are files to go on with."""
        return all((self.folder / name).is_file() for name in (BEGUN, DONE, PARTIAL))

    def left(self) -> list[tuple[int, int, int]]:
        """Chunks that are still to be computed."""
        if not self.begun():
            return self.chunks
        done = (self.folder / DONE).read_bytes().ljust(len(self.chunks), b'\0')
        return [chunk for chunk, mark in zip(self.chunks, done, strict=True) if not mark]

    def reserve(self) -> None:
        """Make the files, with all the room that they will need. Raises TokenCacheError where there is too little."""
        if self.begun():
            return
        free = shutil.disk_usage(self.folder).free
        if self.size > free:
            raise TokenCacheError(
                f'{self.folder}: {_amount(self.size)} are needed, and {_amount(free)} are free. Take fewer --views, or '
                f'another disk: --out'
            )
        (self.folder / DONE).write_bytes(b'')
        np.lib.format.open_memmap(self.partial, 'w+', self.dtype, self.shape)
        with open(self.partial, 'r+b') as file:
            if hasattr(os, 'posix_fallocate'):  # Linux
                os.posix_fallocate(file.fileno(), 0, self.partial.stat().st_size)
            os.fsync(file.fileno())
        into_place(self.folder / BEGUN, lambda file: file.write(json.dumps(self.facts, indent=1).encode()))

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """For `put`."""
        offset = np.load(self.partial, mmap_mode='r').offset
        with open(self.partial, 'r+b') as self.file, open(self.folder / DONE, 'r+b') as self.done:
            self.offset = offset
            yield

    def put(self, chunk: tuple[int, int, int], tokens: np.ndarray) -> None:
        """Write the tokens (n, Gh, Gw) of a chunk; it counts once they are on disk."""
        if tokens.shape[1:] != self.grid:
            raise TokenCacheError(f'{self.folder}: tokens of {tokens.shape[1:]} cells among those of {self.grid}')
        view, start, _ = chunk
        number = view * -(-self.shape[1] // CHUNK) + start // CHUNK
        place = (view * self.shape[1] + start) * self.grid[0] * self.grid[1] * self.dtype.itemsize
        for file, at, content in (
            (self.file, self.offset + place, tokens.astype(self.dtype).tobytes()),
            (self.done, number, b'\1'),
        ):
            os.pwrite(file.fileno(), content, at)
            os.fsync(file.fileno())

    def finish(self) -> str:
        """All chunks are there: give the file its name, and write the manifest."""
        manifest = dict(
            format=FORMAT,
            **self.facts,
            dtype=str(self.dtype),
            bytes=self.partial.stat().st_size,
            sha256=sha256(self.partial),
            revision=code_revision(),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        )
        os.replace(self.partial, self.folder / TOKENS)
        into_place(self.folder / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
        (self.folder / DONE).unlink()
        (self.folder / BEGUN).unlink()
        return f'{self.folder}: complete, {_amount(manifest["bytes"])}, sha256 {manifest["sha256"]}'


class _Batches:
    """Draws of the chunks, a batch at a time, for a DataLoader: billions of views are not listed."""

    def __init__(self, chunks: list[tuple[int, int, int]], source: Views) -> None:
        self.chunks, self.source = chunks, source

    def __iter__(self) -> Iterator[list[Draw]]:
        for view, start, stop in self.chunks:
            for at in range(start, stop, BATCH):
                yield [self.source.draw(view, index) for index in range(at, min(at + BATCH, stop))]


def _fill(cache: _Unfinished, left: list[tuple[int, int, int]], source: Views, jobs: int) -> None:
    """Compute the tokens of the chunks that are left."""
    batches = _Batches(left, source)
    loader = iter(DataLoader(source.dataset, batch_sampler=batches, num_workers=jobs, collate_fn=default_collate))
    shown = dict(description='tokens', console=Console(file=sys.stderr), disable=not sys.stderr.isatty())
    for chunk in track(left, **shown):
        _, start, stop = chunk
        cache.put(chunk, np.concatenate([source.tokens(next(loader)) for _ in range(start, stop, BATCH)]))
