"""Data at the scale of ImageNet-22K: how fast shards are read, in which order; how long a start takes, in what memory.

    python benchmarks/shards.py read [--folder DIR] [--gigabytes 2] [--workers 4]
    python benchmarks/shards.py start [--folder DIR] [--ranks 8]
    python benchmarks/shards.py list [--folder DIR]

read: images per second without decoding, of files of 110 kB, after the kernel was asked to forget them (posix_fadvise):
loose files and shards at random, shards by ShardSampler, webdataset and timm's tar reader where they are there, and how
often a read went on where the one before it in that shard had ended, or how far it jumped.
start: a made-up index of 14,197,088 images in 5,836 shards (which have the right size and no content): seconds to open,
and to the first batch's indices, and memory, in one process and in several at once.
list: the same number of images as a list file for ImageList.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

IMAGES, SHARDS, LABELS = 14_197_088, 5_836, 21_841
FILE_BYTES = 110_000
MIB = 1 << 20


def forget(paths: list[Path]) -> None:
    """Ask the kernel to drop these files from memory."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def disk_reads() -> int:
    """Bytes that the disks of this machine have given so far."""
    lines = [line.split() for line in Path('/proc/diskstats').read_text().splitlines()]
    return 512 * sum(int(line[5]) for line in lines if not line[2][-1:].isdigit())


def make_files(folder: Path, gigabytes: float) -> None:
    """Loose files of noise in 100 folders of classes, and shards of them."""
    from beit_mm.data.images import ImageList
    from beit_mm.data.shard_writer import Settings, write_shards

    rng = np.random.default_rng(0)
    for i in range(int(gigabytes * 1e9 / FILE_BYTES)):
        path = folder / 'files' / f'n{i % 100:08d}' / f'{i:07d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.bytes(FILE_BYTES))
    began = time.perf_counter()
    print(write_shards(ImageList(str(folder / 'files')), folder / 'shards', Settings(bytes=64 * 10**6), jobs=4))
    print(f'written: {gigabytes * 1000 / (time.perf_counter() - began):.0f} MB/s')


class _Raw:
    """A data set that reads bytes and decodes nothing."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:
        from mmengine import fileio

        return len(fileio.get(self.dataset.get_data_info(index)['img_path']))


def timed(name: str, files: list[Path], batches: Callable[[], Iterator]) -> None:
    """Read for at most 20 s from cold files."""
    forget(files)
    before, began, count = disk_reads(), time.perf_counter(), 0
    for batch in batches():
        count += len(batch)
        if time.perf_counter() - began > 20:
            break
    seconds = time.perf_counter() - began
    read = (disk_reads() - before) / MIB
    asked = count * FILE_BYTES / MIB
    print(
        f'{name:34} {count / seconds:8.0f} images/s  {count} images in {seconds:.1f} s; {asked:.0f} MiB asked for, the '
        f'disk gave {read:.0f} MiB',
        flush=True,
    )


def loaded(dataset, sampler, workers: int) -> Callable[[], Iterator]:
    from torch.utils.data import DataLoader

    return lambda: iter(DataLoader(_Raw(dataset), batch_size=64, sampler=sampler, num_workers=workers))


def jumps(dataset, sampler) -> str:
    """Of one pass: open shards among 1,000 reads in a row, and megabytes between two reads of a shard."""
    from beit_mm.data.shard_reads import parse

    ats = [parse(dataset.get_data_info(int(i))['img_path']) for i in itertools.islice(sampler, 4000)]
    at_once = [len({at.url for at in ats[i : i + 1000]}) for i in range(0, len(ats) - 999, 1000)]
    return f'{np.mean(at_once):.0f} shards among 1,000 reads'


def read(folder: Path, gigabytes: float, workers: int) -> None:
    import torch

    from beit_mm.data.images import ImageList
    from beit_mm.data.sampling import SeededSampler
    from beit_mm.data.shard_sampler import ShardSampler
    from beit_mm.data.shards import TarShards

    torch.set_num_threads(1)
    make_files(folder, gigabytes)
    tars, loose = sorted(folder.glob('shards/*.tar')), list(folder.glob('files/*/*.jpg'))
    files, shards = ImageList(str(folder / 'files')), TarShards(str(folder / 'shards'))
    timed('loose files, random', loose, loaded(files, SeededSampler(files, seed=0), workers))
    orders = {
        'shards, random': SeededSampler(shards, seed=0),
        'shards, ShardSampler(4, lanes=1)': ShardSampler(shards, 4, 1, seed=0),
        'shards, ShardSampler(4, lanes=4)': ShardSampler(shards, 4, 4, seed=0),
        'shards, in their order': SeededSampler(shards, shuffle=False, seed=0),
    }
    for name, sampler in orders.items():
        timed(name, tars, loaded(shards, sampler, workers))
        print(f'    {jumps(shards, sampler)}')
    by_others(tars, folder / 'shards', workers)


def by_others(tars: list[Path], folder: Path, workers: int) -> None:
    """webdataset's own pipeline, and timm's reader at random."""
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar
    from torch.utils.data import DataLoader, RandomSampler

    class Reader(ReaderImageInTar):
        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> int:
            return len(super().__getitem__(index)[0].read())

    began = time.perf_counter()
    reader = Reader(str(folder))
    print(f"timm's reader scans the tars in {time.perf_counter() - began:.1f} s")
    loader = DataLoader(reader, batch_size=64, sampler=RandomSampler(reader), num_workers=workers)
    timed("timm's ReaderImageInTar, random", tars, lambda: iter(loader))
    try:
        import webdataset
    except ImportError:
        return print('webdataset is not installed: pip install webdataset')
    data = webdataset.WebDataset([str(path) for path in tars], shardshuffle=100, seed=0).shuffle(1000)
    data = data.map(lambda sample: len(sample['jpg']))
    timed('webdataset, shuffle(1000)', tars, lambda: iter(DataLoader(data, batch_size=64, num_workers=workers)))


def make_index(folder: Path) -> None:
    """An index of IMAGES made-up images; the shards are sparse files."""
    from beit_mm.data.shard_index import sha256_of

    index = folder / 'index'
    index.mkdir(parents=True)
    counts = np.full(SHARDS, IMAGES // SHARDS)
    counts[: IMAGES % SHARDS] += 1
    place = np.concatenate([np.arange(count) for count in counts])
    size = -(-FILE_BYTES // 512) * 512 + 3 * 512
    names = ''.join(f'n{i % LABELS:08d}/n{i % LABELS:08d}_{i:08d}.jpg' for i in range(IMAGES)).encode()
    length = len(names) // IMAGES
    arrays = dict(
        offsets=512 + place * size,
        sizes=np.full(IMAGES, FILE_BYTES),
        labels=np.arange(IMAGES) % LABELS,
        names=np.frombuffer(names, np.uint8),
        name_ends=length * np.arange(1, IMAGES + 1),
    )
    for name, array in arrays.items():
        np.save(index / f'{name}.npy', array)
    shards = []
    for number, count in enumerate(counts.tolist()):
        (folder / f't-{number:06d}.tar').touch()
        os.truncate(folder / f't-{number:06d}.tar', count * size + 10240)
        shards.append([f't-{number:06d}.tar', count * size + 10240, count, '0' * 64])
    digests = {name: sha256_of(index / f'{name}.npy') for name in arrays}
    classes = [f'n{i:08d}' for i in range(LABELS)]
    manifest = dict(format=1, samples=IMAGES, classes=classes, arrays=digests, shards=shards)
    (index / 'shards.json').write_text(json.dumps(manifest))


def memory() -> dict[str, float]:
    """Of this process, in MiB: its own, and its share with what it shares."""
    lines = Path('/proc/self/smaps_rollup').read_text().splitlines()[1:]
    found = {line.split(':')[0]: int(line.split()[1]) / 1024 for line in lines}
    return dict(own=found['Anonymous'], pss=found['Pss'])


def peak() -> float:
    """The most MiB that this process ever had."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith('VmHWM'))


def probe(kind: str, folder: Path, sampler: str) -> None:
    """In a process of its own: one line of JSON."""
    from beit_mm.data.images import ImageList
    from beit_mm.data.sampling import SeededInfiniteSampler
    from beit_mm.data.shard_sampler import ShardInfiniteSampler
    from beit_mm.data.shards import TarShards

    before, began = memory(), time.perf_counter()
    data = (
        TarShards(str(folder)) if kind == 'start' else ImageList(str(folder), ann_file='list.txt', num_classes=LABELS)
    )
    opened = time.perf_counter()
    kinds = dict(shard=lambda: ShardInfiniteSampler(data, seed=0), plain=lambda: SeededInfiniteSampler(data, seed=0))
    chosen = kinds[sampler]()
    chosen.start = 10**6
    first = [data.get_data_info(int(index))['img_path'] for index in itertools.islice(chosen, 256)]
    done, most = time.perf_counter(), peak()
    print('ready', flush=True)
    sys.stdin.readline()  # until all processes are there
    after = memory()
    found = dict(open=opened - began, batch=done - opened, peak=most, first=first[0][-60:])
    print(json.dumps(dict(found, **{key: after[key] - before[key] for key in after})), flush=True)
    sys.stdin.readline()


def probes(kind: str, folder: Path, ranks: int, sampler: str) -> None:
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, __file__, 'probe', '--folder', str(folder), '--kind', kind, '--sampler', sampler]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    running = [subprocess.Popen(command, **pipes) for _ in range(ranks)]
    for process in running:
        while process.stdout.readline() != 'ready\n':
            pass
    found = []
    for process in running:
        process.stdin.write('\n')
        process.stdin.flush()
        found.append(json.loads(process.stdout.readline()))
    for process in running:
        process.communicate('\n')
    most = {key: max(one[key] for one in found) for key in ('open', 'batch', 'own', 'pss', 'peak')}
    print(
        f'{kind}, {sampler} sampler, {ranks} process(es): open {most["open"]:.2f} s, then {most["batch"]:.2f} s to 256 '
        f'samples of the 1,000,000th on; MiB: own {most["own"]:.0f} more, with its share of what is shared '
        f'{most["pss"]:.0f} more, peak {most["peak"]:.0f} in all; first: {found[0]["first"]}',
        flush=True,
    )


def make_list(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'list.txt', 'w') as file:
        for i in range(IMAGES):
            file.write(f'n{i % LABELS:08d}/n{i % LABELS:08d}_{i:08d}.JPEG {i % LABELS}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='?', choices=('read', 'start', 'list', 'probe'))
    parser.add_argument('--list', action='store_true', help='say what is measured, and time nothing')
    parser.add_argument('--folder', type=Path, help='a new one; default: a temporary one')
    parser.add_argument('--gigabytes', type=float, default=2)
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--ranks', type=int, default=8)
    parser.add_argument('--kind', default='start')
    parser.add_argument('--sampler', default='shard')
    args = parser.parse_args()
    if args.list:
        print('read: loose files, shards in three orders, webdataset, timm\nstart, list: of 14 million images')
        return None
    if args.what is None:
        parser.error('say what: read, start or list')
    if args.what == 'probe':
        return probe(args.kind, args.folder, args.sampler)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary) / 'made'
        if args.what == 'read':
            return read(folder, args.gigabytes, args.workers)
        if args.what == 'start':
            make_index(folder)
            for sampler, ranks in itertools.product(('shard', 'plain'), (1, args.ranks)):
                probes('start', folder, ranks, sampler)
        else:
            make_list(folder)
            probes('list', folder, 1, 'plain')


if __name__ == '__main__':
    main()
