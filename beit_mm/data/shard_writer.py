"""Writing images as tar shards, and indexing shards of others: `tools/prepare_data.py shards`; docs/shards.md.

The same images and settings give the same bytes. Each shard gets its name when it is complete; after a kill the same
command goes on with the next. Files are copied as they are.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

import numpy as np
from rich.console import Console
from rich.progress import Progress

from ..checkpoints.files import into_place
from ..engine.locking import acquire, holder, who
from ..engine.workers import die_with_parent
from .images import ImageList
from .loading import UnreadableImage, decode_image
from .shard_index import FOLDER, HEADER, MANIFEST, MOST_IMAGE, SHARD, Shard, ShardError, sha256_of
from .shard_parts import PARTS, Part, load_part, save_part, write_index
from .shard_scan import labels_from, scan

PLAN, LOCK = 'plan.sha256', 'lock'
EVERY = 60  # seconds between two words on the progress, where nobody watches


@dataclass(frozen=True)
class Settings:
    """How shards are made: what of the command line decides over their bytes."""

    bytes: int = 256 * 10**6
    samples: int | None = None
    order: str = 'shuffled'
    seed: int = 0
    name: str = 'shard'
    check: str = 'no'


def run(wishes) -> str:
    """What `tools/prepare_data.py shards` was asked for (prepare_options.py), and what to say of it in the end."""
    if wishes.index:
        return index_shards(wishes.dir, wishes.labels, wishes.jobs)
    if not (wishes.root or wishes.list):
        raise ShardError('shards: say where the images are: --root, and --split, --prefix or --list; or --index')
    images = ImageList(
        wishes.root,
        split=wishes.split,
        data_prefix=wishes.prefix,
        ann_file=wishes.list,
        with_label=not wishes.unlabelled,
        num_classes=wishes.num_classes,
    )
    name = wishes.name or wishes.split or 'shard'
    settings = Settings(wishes.bytes, wishes.samples, wishes.order, wishes.seed, name, wishes.check)
    return write_shards(images, wishes.dir, settings, wishes.jobs)


class _Plan:
    """Which image goes into which shard. sizes (N,) of the files; order (N,); bounds (S + 1,): places in it."""

    def __init__(self, images: ImageList, settings: Settings, jobs: int) -> None:
        self.images, self.settings, count = images, settings, len(images)
        self.root = images.img_prefix or '.'
        with ProcessPoolExecutor(jobs, mp_context=get_context('fork'), initializer=_share, initargs=(self,)) as pool:
            pieces = np.array_split(np.arange(count), max(1, count // 10_000))
            self.sizes = np.concatenate(list(pool.map(_sizes_of, [(p[0], p[-1] + 1) for p in pieces])))
        self.order = np.arange(count)
        if settings.order == 'shuffled':
            self.order = np.random.default_rng(settings.seed).permutation(count)
        blocks = HEADER * (1 + -(-self.sizes[self.order] // HEADER) + (2 if images.with_label else 0))
        total = np.concatenate([[0], np.cumsum(blocks)])
        number = -(-int(total[-1]) // settings.bytes)
        if settings.samples:
            number = max(number, -(-count // settings.samples))
        number = min(number, count)
        by_bytes = np.searchsorted(total, total[-1] * np.arange(number + 1) / number)
        by_count = np.linspace(0, count, number + 1).astype(np.int64)
        self.bounds = by_count if settings.samples else np.unique([0, *by_bytes[1:-1], count])
        self.shards = [f'{settings.name}-{k:06d}.tar' for k in range(len(self.bounds) - 1)]

    def digest(self) -> str:
        """sha256 of all that decides over the bytes of the shards."""
        found = hashlib.sha256(json.dumps([asdict(self.settings), self.images.metainfo.get('classes')]).encode())
        found.update(self.order.tobytes() + self.bounds.tobytes() + self.sizes.tobytes())
        for index in range(len(self.images)):
            info = self.images.get_data_info(index)
            found.update(
                f'{self.relative(info["img_path"])}\0{info.get("gt_label")}\n'.encode(errors='surrogateescape')
            )
        return found.hexdigest()

    def relative(self, path: str) -> str:
        return os.path.relpath(path, self.root)


_plan: _Plan | None = None  # of a worker


def _share(plan: _Plan) -> None:
    global _plan
    _plan = plan


def _sizes_of(span: tuple[int, int]) -> np.ndarray:
    sizes = []
    for index in range(*span):
        path = _plan.images.get_data_info(index)['img_path']
        size = os.stat(path).st_size
        if size > MOST_IMAGE:
            raise ShardError(f'{path}: {size} bytes are more than {MOST_IMAGE}, the most that an image may have')
        sizes.append(size)
    return np.array(sizes, np.int64)


def member_names(path: str, taken: set[str]) -> tuple[str, str]:
    """(name of the image, name of its label) in the tar, by webdataset's rules: `key.jpg`, `key.cls`.

    path: relative. Folders stay, .jpeg and .JPEG become .jpg, dots elsewhere _, as a key ends at its first dot. taken:
    keys of this shard; one that is there already gets a number.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ('..', '/', '.')]
    *folders, last = parts
    stem, suffix = os.path.splitext(last)
    suffix = {'.jpeg': '.jpg'}.get(suffix.lower(), suffix.lower())
    key = first = '/'.join([*folders, stem.replace('.', '_')]).replace('://', ':/')
    number = 1
    while key in taken:
        number += 1
        key = f'{first}~{number}'
    taken.add(key)
    return f'{key}{suffix}', f'{key}.cls'


def _write(job: tuple[str, int]) -> tuple[str, int]:
    """Write a shard, read it again for its part of the index; its name and bytes."""
    folder, number = Path(job[0]), job[1]
    path, left_out = folder / _plan.shards[number], []

    def put(file) -> None:
        left_out.clear()
        taken: set[str] = set()
        with tarfile.open(fileobj=file, mode='w|', format=tarfile.PAX_FORMAT) as tar:
            for index in _plan.order[_plan.bounds[number] : _plan.bounds[number + 1]].tolist():
                info = _plan.images.get_data_info(index)
                content = _content(info['img_path'], int(_plan.sizes[index]))
                if reason := _unreadable(info['img_path'], content):
                    left_out.append((info['img_path'], reason))
                    continue
                image, cls = member_names(_plan.relative(info['img_path']), taken)
                _add(tar, image, content)
                if 'gt_label' in info:
                    _add(tar, cls, str(info['gt_label']).encode())

    written = into_place(path, put)
    _keep(folder / FOLDER, path, written.sha256, written.bytes, left_out)
    return path.name, written.bytes


def _content(path: str, size: int) -> bytes:
    with open(path, 'rb') as file:
        content = file.read(size + 1)
    if len(content) != size:
        raise ShardError(f'{path}: had {size} bytes when the shards were planned, and now it has others: start again')
    return content


def _unreadable(path: str, content: bytes) -> str:
    """Why an image cannot be read, where that was asked for; '' if it can."""
    if _plan.settings.check == 'no':
        return ''
    try:
        decode_image(content, path)
    except UnreadableImage as error:
        if _plan.settings.check == 'stop':
            raise ShardError(f'{error}. Replace or remove it, or leave such images out: --check skip') from error
        return str(error).removeprefix(f'{path}: ')
    return ''


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A member that depends on its name and content alone."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    tar.addfile(header, io.BytesIO(content))


def _keep(index: Path, path: Path, sha256: str, size: int, left_out: list) -> None:
    found = scan(path)
    save_part(index, Part(Shard(path.name, size, len(found.offsets), sha256), found, left_out))


def _index_one(job: tuple[str, str]) -> tuple[str, int]:
    """Scan a shard of somebody's; its name and bytes."""
    path, index = Path(job[0]), Path(job[1])
    _keep(index, path, sha256_of(path), path.stat().st_size, [])
    return path.name, path.stat().st_size


def write_shards(images: ImageList, folder: str | os.PathLike, settings: Settings, jobs: int = 1) -> str:
    """Write the images as shards below a folder, with their index; what was done, in words.

    Raises ShardError for a folder that holds anything but what the same call, ended early, has left there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FOLDER).exists() and (present := sorted(path.name for path in folder.iterdir())):
        raise _not_empty(folder, present)  # before anything is written into it, a lock included
    with _alone(folder):
        plan = _Plan(images, settings, jobs)
        digest, place = plan.digest(), folder / FOLDER / PLAN
        strange = sorted(path.name for path in folder.iterdir() if path.name not in {FOLDER, *plan.shards})
        strange = [name for name in strange if not name.endswith('.tmp')]
        planned = place.read_text() if place.is_file() else ''
        if planned and planned != digest:
            raise ShardError(
                f'{folder}: holds shards of other images or settings, or the images were changed; give a new folder'
            )
        if strange or (not planned and any((folder / name).exists() for name in plan.shards)):
            raise _not_empty(folder, strange or plan.shards[:1])
        for path in folder.rglob('.*.tmp'):  # whoever wrote them is gone: this one alone is here
            path.unlink()
        if (folder / FOLDER / MANIFEST).is_file():
            shutil.rmtree(folder / FOLDER / PARTS, ignore_errors=True)  # killed before they went
            return f'{folder}: is complete; nothing was written'
        (folder / FOLDER / PARTS).mkdir(parents=True, exist_ok=True)
        into_place(place, lambda file: file.write(digest.encode()))
        done = {name for name in plan.shards if _is_done(folder, name)}
        todo = [(str(folder), number) for number, name in enumerate(plan.shards) if name not in done]
        started = time.perf_counter()
        with _sharing(plan):
            _in_processes(_write, todo, jobs, len(done))
        labels = 'cls' if images.with_label else 'none'
        classes = _names_of(images)
        count = write_index(folder / FOLDER, plan.shards, labels, classes)
    again = f', {len(done)} of them before' if done else ''
    seconds = time.perf_counter() - started
    return f'{count} images in {len(plan.shards)} shards below {folder}{again}; {seconds:.1f} s'


def _not_empty(folder: Path, names: list[str]) -> ShardError:
    return ShardError(f'{folder}: is not empty ({", ".join(names[:3])}): give a new folder')


def _names_of(images: ImageList) -> list[str] | None:
    """Names of the labels: folders, whose order they have; else the classes that are known."""
    if not images.with_label:
        return None
    folders = getattr(images, 'folder_to_idx', None)
    if folders and sorted(folders.values()) == list(range(len(folders))):
        return sorted(folders, key=folders.get)
    return list(images.CLASSES) if images.CLASSES is not None else None


@contextlib.contextmanager
def _sharing(plan: _Plan) -> Iterator[None]:
    """Processes that are forked inside have the plan."""
    _share(plan)
    yield
    _share(None)


def _is_done(folder: Path, name: str) -> bool:
    """Whether a shard and its part of the index are there, and of one size."""
    part = load_part(folder / FOLDER, name)
    with contextlib.suppress(OSError):
        return part is not None and (folder / name).stat().st_size == part.shard.bytes
    return False


def index_shards(folder: str | os.PathLike, labels: str = 'auto', jobs: int = 1) -> str:
    """Write the index of tars that are there, in the order of their names; what was done, in words."""
    folder = Path(folder)
    shards = sorted(path.name for path in folder.glob('*.tar') if SHARD.fullmatch(path.name))
    if not shards:
        raise ShardError(f'{folder}: no .tar in it')
    index = folder / FOLDER
    with _alone(folder):
        if (index / MANIFEST).is_file():
            raise ShardError(f'{index}: is there already; to make it anew, remove it')
        (index / PARTS).mkdir(parents=True, exist_ok=True)
        first = load_part(index, shards[0])
        first = first.scanned if first else scan(folder / shards[0])
        chosen = labels_from(first, folder / shards[0]) if labels == 'auto' else labels
        done = {name for name in shards if _is_done(folder, name)}
        todo = [(str(folder / name), str(index)) for name in shards if name not in done]
        _in_processes(_index_one, todo, jobs, len(done))
        count = write_index(index, shards, chosen)
    what = dict(cls='of their .cls members', folder='their folders', tar='their tars', none='none')[chosen]
    return f'{count} images in {len(shards)} shards below {folder}; labels: {what}'


def _begin() -> None:
    """A worker ends with this process, and leaves Ctrl-C to it: shards in work are finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()


def _in_processes(work: Callable, jobs: Sequence, processes: int, done: int) -> None:
    """Call `work` for each job, in so many processes, and say how far it is. done: shards that were there before."""
    if not jobs:
        return
    whole, count, said = len(jobs) + done, done, time.monotonic()
    console = Console(file=sys.stderr)
    pool = ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context('fork'), initializer=_begin)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task('shards', total=whole, completed=done)
        try:
            for _ in pool.map(work, jobs):
                count += 1
                progress.update(bar, completed=count)
                if not console.is_terminal and time.monotonic() - said > EVERY:
                    said = time.monotonic()
                    print(f'{count} of {whole} shards', flush=True)
        except BrokenProcessPool as error:
            raise ShardError('a process was killed, most likely as memory ran out: fewer --jobs; then again') from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time writes into a folder."""
    path = folder / FOLDER / LOCK
    lock = acquire(path, inherited=False)
    if lock is None:
        raise ShardError(f'{folder}: is being written by {who(holder(path) or {})}')
    lock.say(os.getpid())
    try:
        yield
    finally:
        lock.release()
