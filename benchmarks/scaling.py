"""How cost grows: fitted exponents of what gets big, and whether anything is quadratic by accident.

    python benchmarks/scaling.py [--only WORD ...] [--markdown] [--list]

Each item is timed at four sizes or more (CPU seconds, one thread, the best of a few); its exponent is the slope of a
least-squares line through log(seconds) against log(size). 1 is linear. Attention is quadratic in patches, so resolution
may lie between 1 and 2. Small sizes have fixed costs, which make an exponent smaller than what the last ones show: that
of the two largest sizes stands beside it, and the larger of the two decides.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import harness

LINEAR, QUADRATIC = 1.25, 2.1  # the largest exponents that count as such: timings scatter
REPEATS, LEAST, MOST = 3, 0.2, 2.0  # timings of a size; seconds that they take together
IMAGENET_22K = 14_197_122
PATCH = 16


@dataclass(frozen=True)
class Item:
    """What is timed against what.

    sizes: of `unit`. ready(size): context manager that gives the call to be timed. most: the exponent that it may have.
    large: a size that matters and is not tried: seconds and MiB are drawn on to it from the first and the last.
    """

    name: str
    unit: str
    sizes: tuple[int, ...]
    ready: Callable
    most: float = LINEAR
    large: int | None = None


def model(batch: int = 2, side: int = 128, depth: int = 4, train: bool = False) -> Callable[[], object]:
    import torch

    from beit_mm.models import BEiTViT

    size = dict(embed_dims=192, num_layers=depth, num_heads=3, feedforward_channels=768)
    backbone = BEiTViT(arch=size, img_size=side, patch_size=PATCH, variant='beit_plus').train(train)
    images = torch.randn(batch, 3, side, side)

    def step() -> None:
        with torch.set_grad_enabled(train):
            output = backbone(images)[-1]
        if train:
            output.square().mean().backward()

    step()
    return step


def backbone(name: str, train: bool) -> Callable:
    @contextmanager
    def ready(size: int) -> Iterator[Callable]:
        change = dict(side=round(size**0.5) * PATCH) if name == 'patches' else {name: size}
        yield model(train=train, **change)

    return ready


@contextmanager
def masks(cells: int) -> Iterator[Callable]:
    import numpy as np

    from beit_mm.ops.masking import blockwise_mask

    side = round(cells**0.5)
    generator = np.random.default_rng(0)
    yield lambda: [blockwise_mask(generator, (side, side), int(0.4 * cells)) for _ in range(10)]


@contextmanager
def list_file(files: int) -> Iterator[Callable]:
    from beit_mm.data import images

    with tempfile.TemporaryDirectory() as folder:
        lines = (f'n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG {i % 1000}\n' for i in range(files))
        (Path(folder) / 'train.txt').write_text(''.join(lines))
        yield lambda: images.ImageList(data_root=folder, ann_file='train.txt', num_classes=1000)


@contextmanager
def folders(files: int) -> Iterator[Callable]:
    from beit_mm.data import images

    with tempfile.TemporaryDirectory() as root:
        for i in range(files):
            path = Path(root) / f'class{i % 100:03d}'
            path.mkdir(exist_ok=True)
            (path / f'{i}.JPEG').touch()
        yield lambda: images.ImageList(data_root=root)


@contextmanager
def records(count: int) -> Iterator[Callable]:
    """Reading, board, texts and page of records of four seeds each; every other recipe is a baseline."""
    from beit_mm.benchmark import leaderboard, report, tables
    from beit_mm.benchmark.records import TRAINED, Record

    with tempfile.TemporaryDirectory() as root:
        for i in range(count):
            recipe, seed = divmod(i, 4)
            value = 50 + (i * 7919 % 1000) / 100
            record = Record(
                task='segmentation', dataset='EmbeddedScenes', embedded=True, split='val', num_images=1000,
                metric='mIoU', value=value, metrics={'mIoU': value}, preset=f'beit D96 L{recipe // 2}',
                protocol='from scratch' if recipe % 2 else 'fine-tune', seed=seed, config=f'config-{recipe}',
                origin=TRAINED, config_sha256=digest(recipe), recipe_sha256=digest(recipe), checkpoint='iter_300.pth',
                checkpoint_sha256=digest(count + i), stages=[], versions={}, device='cpu', seconds=1.0,
                revision=dict(version='0.1.0', commit='abc', dirty=False), cost=dict(parameters=900000),
                curves={'mIoU': [[150, 300], [value / 2, value]]}, date='2026-01-01T00:00:00+00:00',
            )  # fmt: skip
            folder = Path(root) / record.task / record.config
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f'seed{seed}_{record.digest}.json').write_text(record.text)

        def make() -> None:
            found = leaderboard.from_folder(root)
            tables.as_text(found.rows)
            report.conclusions(found.rows)
            report.write_all(found, Path(root) / 'page')

        yield make


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def weights(width: int = 64, layers: int = 4) -> Callable:
    """Conversion to the official names and back, and fitting to a model of 24 x 24 patches."""
    from beit_mm.checkpoints import convert_state_dict
    from beit_mm.checkpoints.fit import fit
    from beit_mm.models import BEiTViT

    size = dict(embed_dims=width, num_layers=layers, num_heads=4, feedforward_channels=4 * width)
    made = BEiTViT(arch=size, img_size=224, patch_size=PATCH, variant='beit_plus').state_dict()
    wanted = BEiTViT(arch=size, img_size=384, patch_size=PATCH, variant='beit_plus').state_dict()
    official, _ = convert_state_dict(made, target='unilm')

    def convert() -> None:
        ours, _ = convert_state_dict(official)
        fit({key.removeprefix('backbone.'): value for key, value in ours.items()}, wanted, (24, 24))

    return convert


@contextmanager
def layers(count: int) -> Iterator[Callable]:
    yield weights(layers=count)


@contextmanager
def parameters(width: int) -> Iterator[Callable]:
    yield weights(width=width)


@contextmanager
def stages(count: int) -> Iterator[Callable]:
    from beit_mm.benchmark import suite

    config = 'configs/classification/beit-mini-p8_scratch_1xb64-100_embedded-64.py'
    made = [dict(name=f'stage{i}', config=config, options={'train_cfg.max_iters': 2 + i}) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'suite.py'
        path.write_text(f"title = 'many'\nnote = ''\nroot = {folder!r}\nstages = {made!r}\n")

        def make() -> None:
            suite._configs.clear()  # else a second plan reads nothing
            suite.plan(str(path), None, False, None)

        yield make


@contextmanager
def history(steps: int) -> Iterator[Callable]:
    from mmengine.logging import HistoryBuffer

    import beit_mm  # noqa: F401 - mends it

    def fill() -> None:
        buffer = HistoryBuffer()
        for _ in range(steps):
            buffer.update(1.0)

    yield fill


BATCH, PATCHES, DEPTH = (2, 4, 8, 16), (64, 144, 256, 576, 1024), (2, 4, 8, 16)
ITEMS = [
    Item('forward, batch', 'images', BATCH, backbone('batch', False)),
    Item('forward, resolution', 'patches', PATCHES, backbone('patches', False), QUADRATIC),
    Item('forward, depth', 'blocks', DEPTH, backbone('depth', False)),
    Item('training step, batch', 'images', BATCH, backbone('batch', True)),
    Item('training step, resolution', 'patches', PATCHES[:4], backbone('patches', True), QUADRATIC),
    Item('training step, depth', 'blocks', DEPTH, backbone('depth', True)),
    Item('block masks', 'patches', (196, 784, 3136, 12544), masks),
    Item('data set, list file', 'files', (10_000, 30_000, 100_000, 300_000), list_file, large=IMAGENET_22K),
    Item('data set, folders', 'files', (5_000, 10_000, 20_000, 50_000), folders, large=IMAGENET_22K),
    Item('leaderboard', 'records', (300, 1_000, 3_000, 10_000), records),
    Item('conversion, depth', 'blocks', (6, 12, 24, 48), layers),
    Item('conversion, width', 'channels', (128, 256, 512, 1024), parameters, QUADRATIC),  # parameters are its square
    Item('suite, planning', 'stages', (4, 8, 16, 32), stages),
    Item("history of a run's scalar", 'steps', (1_000, 10_000, 100_000, 300_000), history, large=1_000_000),
]


def timed(item: Item, size: int) -> tuple[float, float]:
    """(CPU seconds of a call, the best of some; MiB that it takes at most)."""
    with item.ready(size) as call:
        harness.reset_peak()
        before, seconds = harness.resident('VmRSS'), []
        while (len(seconds) < REPEATS and sum(seconds) < MOST) or sum(seconds) < LEAST:
            start = time.process_time()
            call()
            seconds.append(max(time.process_time() - start, 1e-6))
        return min(seconds), harness.resident('VmHWM') - before


def measure(item: Item) -> list[str]:
    """Its line of the table."""
    import numpy as np

    found = [timed(item, size) for size in item.sizes]
    x, y = np.log(item.sizes), np.log([seconds for seconds, _ in found])
    slope = float(np.polyfit(x, y, 1)[0])
    steepest = float((y[-1] - y[-2]) / (x[-1] - x[-2]))
    exponent = max(slope, steepest)
    verdict = 'ACCIDENTAL' if exponent > item.most else 'linear' if exponent <= LINEAR else 'quadratic, as it must be'
    said = ''
    if item.large:
        factor = (item.large - item.sizes[-1]) / (item.sizes[-1] - item.sizes[0])
        seconds, memory = (last + (last - first) * factor for first, last in zip(found[0], found[-1]))
        said = f'{item.large:,}: {seconds:.0f} s, {memory:.0f} MiB'
    sizes = f'{item.sizes[0]:,} to {item.sizes[-1]:,} {item.unit}'
    times = ' '.join(f'{seconds:.3g}' for seconds, _ in found)
    return [item.name, sizes, times, f'{slope:.2f}', f'{steepest:.2f}', verdict, said]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', metavar='WORD', default=[], help='items whose name holds all of these')
    parser.add_argument('--markdown', action='store_true', help='the table in Markdown')
    parser.add_argument('--list', action='store_true', help='say the items, and time nothing')
    args = parser.parse_args()
    chosen = [item for item in ITEMS if all(word in item.name for word in args.only)]
    if args.list:
        print('\n'.join(f'{item.name}: {json.dumps(item.sizes)} {item.unit}' for item in chosen))
        return
    os.chdir(Path(__file__).parents[1])
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    header = ['what', 'sizes', 'CPU seconds', 'exponent', 'of the last two', 'verdict', 'extrapolated']
    rows = [measure(item) for item in chosen]
    print(f'{harness.machine()}; in {time.perf_counter() - started:.0f} s')
    print('\n'.join(harness.aligned(header, rows, args.markdown)))


if __name__ == '__main__':
    main()
