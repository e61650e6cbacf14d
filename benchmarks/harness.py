"""Candidates timed against each other: a process each, in turn, medians of ratios.

A script names its cases and hands them to `main`, which gives it the command line:

    python benchmarks/SCRIPT.py [--only WORD ...] [--threads 1|all] [--rounds 9] [--seconds 0.6] [--markdown]

Every candidate lives in a process of its own, with an allocator and threads of its own, and all wait for each other: in
a round each does its steps once, in an order that turns from round to round. What is compared is the ratio to the
baseline within a round, so that a machine which slows down slows all of them. With one thread, CPU seconds of the
process count (another program on the same core does not); with all, seconds of the clock.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

GEMM = (1576, 768, 3072)  # a batch of 8 images through the first layer of BEiT-B's MLP
MIB = 2**20
PREPARED = 'ready'


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison: candidates do the same work.

    candidates: {name: make}; make() builds everything and returns the step to be timed.
    baseline: the name of the one that ratios are over; a faster candidate has a ratio above 1.
    work: what one step does of `unit`, for the rate. flops: of one step, for the share of the matrix rate.
    bars: {name: (least ratio, over whom)}, as promised.
    env: {name: environment of its process}, on top of the caller's.
    """

    name: str
    candidates: dict[str, Callable[[], Callable[[], object]]]
    baseline: str
    work: float = 1.0
    unit: str = 'steps'
    flops: float | None = None
    bars: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    env: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Timing:
    """Of one candidate: seconds of a step in every round, and MiB that it took beyond its imports."""

    seconds: list[float]
    memory: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def matrix_product() -> Callable[[], object]:
    """The measured limit: fp32 matrix products of the shapes of BEiT-B, and nothing else."""
    import torch

    rows, inner, columns = GEMM
    a, b = torch.randn(rows, inner), torch.randn(columns, inner)
    return lambda: torch.nn.functional.linear(a, b)


def _resident(field: str) -> float:
    """MiB of this process now (VmRSS) or at most since the last reset (VmHWM); Linux."""
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / MIB
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # the peak then includes the imports
        Path('/proc/self/clear_refs').write_text('5')


def _work(make: Callable[[], Callable[[], object]], least: float) -> None:
    """A candidate's process: build, then do as many steps as take `least` seconds whenever a line comes in."""
    import torch  # its imports are nobody's memory

    threads = int(os.environ['OMP_NUM_THREADS'])
    torch.set_num_threads(threads)
    before = _resident('VmRSS')
    step = make()
    step()
    step()
    start = time.perf_counter()
    step()
    count = max(1, round(least / max(time.perf_counter() - start, 1e-9)))
    _reset_peak()
    clock = time.process_time if threads == 1 else time.perf_counter
    print(PREPARED, flush=True)
    for _ in sys.stdin:
        start = clock()
        for _ in range(count):
            step()
        print(json.dumps(dict(seconds=(clock() - start) / count, memory=_resident('VmHWM') - before)), flush=True)


class _Process:
    """A candidate's process, seen from outside."""

    def __init__(self, case: Case, name: str, args: argparse.Namespace) -> None:
        self.name = name
        self.said = None if args.verbose else tempfile.TemporaryFile('w+')  # noqa: SIM115 - closed with it
        threads = '1' if args.threads == '1' else str(len(os.sched_getaffinity(0)))
        self.process = subprocess.Popen(
            [sys.executable, '-P', sys.argv[0], '--worker', case.name, name, '--seconds', str(args.seconds)],
            env={**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads, **case.env.get(name, {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )

    def ready(self) -> bool:
        """Whether it was built; if not, why is printed. A candidate that fails does not take the others along."""
        for line in self.process.stdout:
            if line.strip() == PREPARED:
                return True
        print(f'  {self.name}: could not be built: {self.last_words()}', file=sys.stderr)
        return False

    def last_words(self) -> str:
        if self.said is None:
            return 'see above'
        self.said.seek(0)
        return (self.said.read().strip().splitlines() or ['no word'])[-1]

    def round(self) -> dict:
        self.process.stdin.write('go\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{'):
                return json.loads(line)
        raise RuntimeError(f'{self.name} ended in the middle: {self.last_words()}')

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(case: Case, args: argparse.Namespace) -> dict[str, Timing]:
    """Timings of all candidates that could be built, and of the matrix product where flops are known."""
    names = [*case.candidates, *(['GEMM'] if case.flops else [])]
    processes = []
    try:
        for name in names:
            process = _Process(case, name, args)
            processes.append(process)  # one after the other: building is not timed, and should not disturb
            process.alive = process.ready()
        alive = [process for process in processes if process.alive]
        timings = {process.name: Timing([], 0.0) for process in alive}
        for number in range(args.rounds):
            turn = number % len(alive)
            order = alive[turn:] + alive[:turn]
            for process in order if number % 2 == 0 else reversed(order):
                said = process.round()
                timings[process.name].seconds.append(said['seconds'])
                timings[process.name].memory = max(timings[process.name].memory, said['memory'])
        return timings
    finally:
        for process in processes:
            process.end()


def ratios(timings: dict[str, Timing], name: str, over: str) -> list[float]:
    """How many times faster `name` was, round by round."""
    return [b / a for a, b in zip(timings[name].seconds, timings[over].seconds, strict=True)]


def table(case: Case, timings: dict[str, Timing], markdown: bool) -> str:
    """Median step, rate, ratio with its quartiles, memory, share of the matrix rate; then what was promised."""
    header = ['candidate', 'ms a step', f'{case.unit}/s', f'ratio to {case.baseline}', 'quartiles', 'MiB']
    limit = None
    if case.flops and 'GEMM' in timings:
        rows, inner, columns = GEMM
        limit = 2.0 * rows * inner * columns / timings['GEMM'].median
        header.append('of matrix rate')
    lines = []
    for name, timing in timings.items():
        if name == 'GEMM':
            continue
        found = ratios(timings, name, case.baseline) if case.baseline in timings else [float('nan')]
        low, _, high = statistics.quantiles(found, n=4) if len(found) > 1 else (found[0],) * 3
        cells = [name, f'{1e3 * timing.median:.4g}', f'{case.work / timing.median:.4g}']
        cells += [f'{statistics.median(found):.2f}', f'{low:.2f} to {high:.2f}', f'{timing.memory:.0f}']
        if limit:
            cells.append(f'{100 * case.flops / timing.median / limit:.0f} %')
        lines.append(cells)
    said = [f'{case.name}' + (f' (matrix products: {limit / 1e9:.0f} GFLOP/s)' if limit else '')]
    said += _aligned(header, lines, markdown)
    for name, (least, over) in case.bars.items():
        if name in timings and over in timings:
            found = statistics.median(ratios(timings, name, over))
            verdict = 'reached' if found >= least else f'SHORT by {100 * (1 - found / least):.0f} %'
            said.append(f'{name} over {over}: {found:.2f}x, promised {least:.2f}x: {verdict}')
    return '\n'.join(said)


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> list[str]:
    if markdown:
        marked = [f'| {" | ".join(row)} |' for row in (header, ['---'] * len(header), *rows)]
        return ['', *marked, '']
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        '  ' + '  '.join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        for row in (header, *rows)
    ]


def machine() -> str:
    """The processor, the number of its cores that are ours, and versions, in a line."""
    import torch

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        model = next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    return (
        f'{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, torch {torch.__version__}'
    )


def main(description: str, cases: Sequence[Case]) -> None:
    """The command line of a script: times its cases and prints a table each."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--only', nargs='+', metavar='WORD', help='cases whose name holds all of these words')
    parser.add_argument('--without', nargs='+', default=[], metavar='NAME', help='candidates to leave out')
    parser.add_argument('--threads', choices=('1', 'all'), default='1')
    parser.add_argument('--rounds', type=int, default=9, help='default 9')
    parser.add_argument('--seconds', type=float, default=0.6, help='that a candidate works in a round (default 0.6)')
    parser.add_argument('--markdown', action='store_true', help='tables in Markdown')
    parser.add_argument('--list', action='store_true', help='say the cases and their candidates, and time nothing')
    parser.add_argument('--verbose', action='store_true', help='show what the candidates print')
    parser.add_argument('--worker', nargs=2, metavar=('CASE', 'CANDIDATE'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        case, name = args.worker
        makers = {**next(c for c in cases if c.name == case).candidates, 'GEMM': matrix_product}
        _work(makers[name], args.seconds)
        return
    chosen = [case for case in cases if all(word in case.name for word in args.only or ())]
    if not chosen:
        parser.error(f'--only {" ".join(args.only)}: no case of {", ".join(case.name for case in cases)}')
    if args.list:
        print('\n'.join(f'{case.name}: {", ".join(case.candidates)}' for case in chosen))
        return
    counted = 'CPU seconds, one thread' if args.threads == '1' else 'seconds of the clock, all threads'
    print(f'{machine()}\n{args.rounds} rounds of {args.seconds:g} s; {counted}; medians\n', flush=True)
    for case in chosen:
        kept = {name: make for name, make in case.candidates.items() if name not in args.without}
        case = dataclasses.replace(case, candidates=kept)
        print(table(case, measure(case, args), args.markdown), end='\n\n', flush=True)
