"""BEiT on one CUDA card, ours and the peers: inference, training, pre-training, segmentation, attention; in bf16.

    python benchmarks/gpu.py --markdown            # BEiT-B; writes benchmarks/results/<card>.md and .json as it goes
    python benchmarks/gpu.py --models base large --only training
    python benchmarks/gpu.py --smoke               # all of it once on the CPU, tiny: does the script work?

Runs on the card as it is found; beit_mm need not be installed. What is missing or fails (out of memory, no graph) is
left out by name. All candidates live in one process and take turns as in harness.py; seconds are those of CUDA events
around blocks of steps, after a warm-up until two blocks agree. The share of the matrix rate counts the operations of
the plain computation, a step of training as three forward passes. What is compared: gpu_cases.py.
"""

import argparse
import contextlib
import dataclasses
import gc
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import harness

RESULTS = Path(__file__).parent / 'results'
VERSIONS = ('torch', 'mmengine', 'mmcv-lite', 'mmcv', 'mmpretrain', 'mmsegmentation', 'timm', 'transformers', 'triton')
MODELS = ('base', 'large')
# GiB of activations per image in a plain step of training (estimated), and the part of the memory that they may fill
ACTIVATIONS = {('base', 'images'): 0.2, ('base', 'crops'): 4.5, ('large', 'images'): 0.5, ('large', 'crops'): 16.0}
FILLED = 0.4
MOST = {'images': 256, 'crops': 8, 'one': 1}
STEADY, MOST_BLOCKS = 0.03, 12  # of a warm-up: two blocks agree; or it ends
RECOMPILATIONS = 64  # the peers' and our blocks are compiled for each candidate anew
GIB = 2**30
NO_CUDA = 'gpu.py: no CUDA card (torch.cuda.is_available() is False); --smoke runs it on the CPU with tiny models'


class Bench:
    """A device, and how to time and weigh work on it."""

    def __init__(self, smoke: bool) -> None:
        import torch

        self.torch, self.cuda = torch, not smoke
        if smoke:
            torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = True
        torch._dynamo.config.cache_size_limit = RECOMPILATIONS

    def seconds(self, step: Callable[[], object], count: int) -> float:
        """Of one step, as the mean over a block of `count`."""
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(count):
                step()
            return (time.perf_counter() - start) / count
        first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(count):
            step()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3 / count

    def best(self, step: Callable[[], object], blocks: int) -> float:
        self.seconds(step, 2)  # whatever is initialised then
        count = max(1, round(0.1 / self.seconds(step, 2))) if self.cuda else 1
        return min(self.seconds(step, count) for _ in range(blocks))

    def card(self):
        """Its name, memory and what else PyTorch knows."""
        return self.torch.cuda.get_device_properties(0)

    def allocated(self) -> float:
        if not self.cuda:
            return math.nan
        self.torch.cuda.synchronize()
        return self.torch.cuda.memory_allocated() / harness.MIB

    def peak_of(self, step: Callable[[], object]) -> float:
        """MiB that a step takes beyond what is there before it."""
        if not self.cuda:
            return math.nan
        before = self.allocated()
        self.torch.cuda.reset_peak_memory_stats()
        step()
        self.torch.cuda.synchronize()
        return self.torch.cuda.max_memory_allocated() / harness.MIB - before

    def free(self, graphs: bool = False) -> None:
        """Give back what nobody holds; `graphs` too, which others may still need."""
        if graphs:
            self.torch._dynamo.reset()
        gc.collect()
        if self.cuda:
            self.torch.cuda.empty_cache()

    def matrix_rate(self) -> float:
        """FLOP/s of bf16 matrix products: the best of the linear layers of BEiT-B and BEiT-L on 128 images."""
        rows, rates = (128 * 197, []) if self.cuda else (64, [])
        for dim in (768, 1024):
            for inner, columns in ((dim, dim), (dim, 3 * dim), (dim, 4 * dim), (4 * dim, dim)):
                a, b = self._random(rows, inner), self._random(inner, columns)
                out = self._random(rows, columns)
                seconds = self.best(lambda a=a, b=b, out=out: self.torch.mm(a, b, out=out), 5 if self.cuda else 1)
                rates.append(2.0 * rows * inner * columns / seconds)
        return max(rates)

    def copy_rate(self) -> float:
        """Bytes/s of a copy on the device, read and written both counted."""
        source = self._random(2**28 if self.cuda else 2**20)
        target = self.torch.empty_like(source)
        return 2 * source.nbytes / self.best(lambda: target.copy_(source), 5)

    def _random(self, *shape: int):
        return self.torch.randn(*shape, device='cuda' if self.cuda else 'cpu', dtype=self.torch.bfloat16)


@dataclasses.dataclass
class Candidate:
    """What is ready to be timed. count: of steps in a block; output: of the first step; build: seconds until then."""

    step: Callable[[], object]
    count: int
    output: object  # a vector, empty where it is not compared
    build: float
    timing: harness.Timing


@dataclasses.dataclass
class Found:
    """Of one comparison. off: how far the first output is from the baseline's, relative. build: s, and a first step."""

    case: harness.Case
    batch: int
    timings: dict[str, harness.Timing]
    left_out: dict[str, str]
    off: dict[str, float]
    build: dict[str, float]


def prepared(make: Callable, comparison, size, setting, batch: int, bench: Bench, seconds: float) -> Candidate:
    """Built, compared and warm; whatever goes wrong is raised."""
    start, before = time.monotonic(), bench.allocated()
    step = make(size=size, setting=setting, batch=batch)
    compared = 3 if setting.smoke else comparison.same  # losses of three steps: gradients count as well
    output = flat([step() for _ in range(compared)]) if compared else flat(step())[:0]
    build = time.monotonic() - start
    count = warm_up(step, bench, seconds / 5 if comparison.brief else seconds)
    resident = bench.allocated() - before
    return Candidate(step, count, output, build, harness.Timing([], resident + bench.peak_of(step)))


def flat(output: object):
    """Tensors, in tuples or not, as one vector in float32 on the CPU."""
    import torch

    if isinstance(output, torch.Tensor):
        return output.detach().float().flatten().cpu()
    return torch.cat([flat(part) for part in output])


def measure(comparison, size, setting, batch: int, bench: Bench, args: argparse.Namespace) -> Found:
    """Build all, then rounds in turns; whoever fails is left out with the reason."""
    import peers

    left_out, alive = {}, {}
    for name, make in comparison.candidates.items():
        if time.monotonic() > args.end:
            left_out[name] = f'no time left of --minutes {args.minutes:g}'
            continue
        try:
            alive[name] = prepared(make, comparison, size, setting, batch, bench, args.seconds)
        except Exception as error:
            left_out[name] = reason(error)
        bench.free()
    for number in range(args.rounds):
        for name in harness.turn(list(alive), number) if alive else ():
            try:
                alive[name].timing.seconds.append(bench.seconds(alive[name].step, alive[name].count))
            except Exception as error:
                left_out[name] = reason(error)
                del alive[name]
    baseline, off, flops = next(iter(alive), ''), {}, {}
    if baseline and len(alive[baseline].output) and not peers.without_ours():  # which lends all its weights
        expected = alive[baseline].output
        off = {name: float((c.output - expected).norm() / expected.norm()) for name, c in alive.items()}
    with contextlib.suppress(ImportError):  # without ours the share is not known
        flops = {name: batch * comparison.flops_of(name) for name in alive}
    name = f'{comparison.name}, batch {batch}'
    case = harness.Case(name, comparison.candidates, baseline, work=batch, unit='images', flops=flops)
    timings, build = {n: c.timing for n, c in alive.items()}, {n: c.build for n, c in alive.items()}
    alive.clear()
    bench.free(graphs=True)
    return Found(case, batch, timings, left_out, off, build)


def warm_up(step: Callable[[], object], bench: Bench, seconds: float) -> int:
    """Steps until two blocks in a row take as long; how many steps a block of `seconds` has."""
    count, last = 1, math.inf
    for _ in range(MOST_BLOCKS if bench.cuda else 1):
        now = bench.seconds(step, count)
        count = max(1, round(seconds / now))
        if abs(now / last - 1) < STEADY:
            break
        last = now
    return count


def reason(error: Exception) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'[:160]


def card(bench: Bench) -> dict[str, object]:
    """Which card and driver, how it is clocked under load, which versions."""
    facts: dict[str, object] = dict(card=harness.machine())
    if bench.cuda:
        properties = bench.card()
        facts['card'] = f'{properties.name}, {properties.total_memory / GIB:.0f} GiB'
        facts['cuda'] = bench.torch.version.cuda
        fields = 'driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu'
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            identity = f'GPU-{properties.uuid}' if hasattr(properties, 'uuid') else '0'
            command = ['nvidia-smi', f'--query-gpu={fields}', '--format=csv,noheader', f'--id={identity}']
            said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
            facts.update(zip(fields.split(','), (value.strip() for value in said.split(',')), strict=False))
    facts['python'] = platform.python_version()
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[name] = importlib.metadata.version(name)
    return facts


def batch_of(size, kind: str | int, args: argparse.Namespace, bench: Bench) -> int:
    """A power of two that leaves room for every candidate's weights; the same for all of them."""
    if args.smoke:
        return 1 if kind == 'one' else 2
    if isinstance(kind, int):
        return kind
    if args.batch != 'auto' and kind != 'one':
        return args.batch if kind == 'images' else max(2, args.batch // 16)
    room = FILLED * bench.card().total_memory / GIB
    least = 2 if kind == 'crops' else 1  # BatchNorm of pooled maps needs two
    fits = room / ACTIVATIONS.get((size.name, kind), math.inf)
    return min(MOST[kind], max(least, 2 ** int(math.log2(max(1, fits)))))


def section(found: Found, limit: float, markdown: bool) -> str:
    """The table, who won, who was left out."""
    more = {'differs by': {name: f'{value:.1e}' for name, value in found.off.items()}} if found.off else {}
    more['first step, s'] = {name: f'{value:.1f}' for name, value in found.build.items()}
    lines = []
    if found.timings:
        case = dataclasses.replace(found.case, candidates={name: found.case.candidates[name] for name in found.timings})
        lines = harness.table(case, found.timings, markdown, limit, more).splitlines()[1:]
        fastest = min(found.timings, key=lambda name: found.timings[name].median)
        lines += [''] * markdown + [f'fastest: {fastest}']
    if found.left_out:
        lines += [''] * markdown + [f'{"- " * markdown}{name} left out: {why}' for name, why in found.left_out.items()]
    return '\n'.join(['## ' * markdown + found.case.name, *lines])


def written(path: Path, markdown: list[str], record: dict) -> None:
    """The page and, beside it, all timings; whole files, so that a session that is cut off leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, text in ((path, '\n\n'.join(markdown) + '\n'), (path.with_suffix('.json'), json.dumps(record, indent=1))):
        part = file.with_name(f'{file.name}.part')
        part.write_text(text)
        part.replace(file)


def described(facts: dict[str, object], args: argparse.Namespace) -> str:
    known, clock = (
        ', '.join(f'{key} {value}' for key, value in facts.items()),
        'the clock' if args.smoke else 'CUDA events',
    )
    return f'{known}\n{args.rounds} rounds of {args.seconds:g} s; seconds of {clock}, medians'


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--models', nargs='+', choices=MODELS, default=['base'], help='default base')
    parser.add_argument('--only', nargs='+', metavar='WORD', default=[], help='comparisons whose name has all of these')
    parser.add_argument(
        '--batch', default='auto', help='images (crops: a sixteenth); auto goes by the memory of the card (default)'
    )
    parser.add_argument('--rounds', type=int, default=5, help='default 5')
    parser.add_argument('--seconds', type=float, default=0.25, help='that a candidate works in a round (default 0.25)')
    parser.add_argument('--minutes', type=float, default=8.0, help='after which nothing new is built (default 8)')
    parser.add_argument(
        '--markdown', nargs='?', const='', metavar='FILE', help=f'page to write; by itself {RESULTS.name}/<card>.md'
    )
    parser.add_argument('--smoke', action='store_true', help='on the CPU, tiny, one round')
    parser.add_argument('--list', action='store_true', help='say what would be compared, and time nothing')
    args = parser.parse_args(given)
    if args.batch != 'auto':
        if not args.batch.isdigit() or int(args.batch) < 1:
            parser.error(f'--batch {args.batch}: a number of images, or auto')
        args.batch = int(args.batch)
    if args.smoke:
        args.rounds, args.seconds, args.minutes = 1, 0.0, math.inf
    if args.rounds < 1:
        parser.error(f'--rounds {args.rounds}: at least 1')
    args.end = time.monotonic() + 60 * args.minutes
    return args


def main(given: list[str] | None = None) -> int:
    args = arguments(given)
    import torch

    if not (args.smoke or args.list or torch.cuda.is_available()):
        print(NO_CUDA, file=sys.stderr)
        return 2
    import gpu_cases
    import peers

    peers.without_ours()  # beit_mm first: what it mends (beit_mm/compat.py), the peers need as well
    sizes = {'tiny': peers.TINY} if args.smoke else {name: peers.SIZES[name] for name in args.models}
    chosen = [c for c in gpu_cases.of_all(list(sizes.values()), args.smoke) if all(w in c.name for w in args.only)]
    if args.list:
        print('\n'.join(f'{comparison.name}: {", ".join(comparison.candidates)}' for comparison in chosen))
        return 0
    if not chosen:
        print(f'gpu.py: --only {" ".join(args.only)}: there is no such comparison; see --list', file=sys.stderr)
        return 2
    setting, bench = peers.Setting('cpu' if args.smoke else 'cuda', args.smoke), Bench(args.smoke)
    limit, copies = bench.matrix_rate(), bench.copy_rate()
    facts = card(bench)
    rates = f'bf16 matrix products {limit / 1e12:.3g} TFLOP/s, copies {copies / 1e9:.4g} GB/s'
    print(f'{described(facts, args)}\n{rates}\n', flush=True)
    name = '-'.join(str(facts['card']).partition(',')[0].lower().split())
    path = None if args.markdown is None else Path(args.markdown or RESULTS / f'{name}.md')
    page = [f'# {facts["card"]}', f'`python benchmarks/gpu.py {" ".join(sys.argv[1:])}`', described(facts, args), rates]
    record = dict(facts=facts, matrix_flops=limit, copy_bytes=copies, comparisons=[])
    for comparison in chosen:
        size = sizes.get(comparison.name.split()[0], next(iter(sizes.values())))
        try:
            found = measure(comparison, size, setting, batch_of(size, comparison.batch, args, bench), bench, args)
        except RuntimeError as error:  # an illegal access, say: the card gives this process no more answers
            print(f'gpu.py: {comparison.name} ended it: {reason(error)}', file=sys.stderr)
            return 1
        print(section(found, limit, markdown=False), end='\n\n', flush=True)
        page.append(section(found, limit, markdown=True))
        record['comparisons'].append(recorded(found))
        if path:
            written(path, page, record)
    return 0


def recorded(found: Found) -> dict:
    timings = {
        name: dict(
            seconds=timing.seconds,
            mib=None if math.isnan(timing.memory) else timing.memory,
            flops=found.case.flops_of(name),
            differs_by=found.off.get(name),
            build=found.build[name],
        )
        for name, timing in found.timings.items()
    }
    return dict(name=found.case.name, images=found.batch, timings=timings, left_out=found.left_out)


if __name__ == '__main__':
    sys.exit(main())
