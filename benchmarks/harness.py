"""Candidates timed against each other: a process each, in turn, medians of ratios.

A script names its cases and hands them to `main`, which gives it the command line:

    python benchmarks/SCRIPT.py [--only WORD ...] [--threads 1|all] [--rounds 9] [--seconds 0.6] [--markdown]

Every candidate lives in a process of its own, with an allocator and threads of its own, and all wait for each other: in
a round each does its steps once, in an order that turns from round to round. What is compared is the ratio to the
baseline within a round, so that a machine which slows down slows all of them. With one thread, CPU seconds of the
process count (another program on the same core does not, nor do processes that a candidate starts, nor waiting); with
all, seconds of the clock. How to read a table: benchmarks/README.md.
"""

import argparse
import builtins
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

GEMM = (1576, 768, 3072)  # a batch of 8 images through the first layer of BEiT-B's MLP
MIB = 2**20
PREPARED = 'ready'
T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison: candidates do the same work.

    candidates: {name: make}; make() builds everything and returns the step to be timed.
    baseline: the name of the one that ratios are over; a faster candidate has a ratio above 1.
    work: what one step does of `unit`, for the rate. flops: of one step, for the share of the matrix rate; a dict
        where candidates reach the same result with fewer.
    bars: {name: (least ratio, over whom)}, as promised.
    overheads: {name: most ms of a step beyond the baseline's}, as promised.
    env: {name: environment of its process}, on top of the caller's.
    """

    name: str
    candidates: dict[str, Callable[[], Callable[[], object]]]
    baseline: str
    work: float = 1.0
    unit: str = 'steps'
    flops: float | dict[str, float] | None = None
    bars: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    overheads: dict[str, float] = dataclasses.field(default_factory=dict)
    env: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    def flops_of(self, name: str) -> float | None:
        return self.flops.get(name) if isinstance(self.flops, dict) else self.flops


@dataclasses.dataclass
class Timing:
    """Of one candidate: seconds of a step in every round, and MiB that it took beyond its imports (nan: not known)."""

    seconds: list[float]
    memory: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def matrix_product() -> Callable[[], object]:
    """The measured limit: fp32 matrix products of the shapes of BEiT-B, and nothing else, not even memory for them."""
    import torch

    rows, inner, columns = GEMM
    a, b, out = torch.randn(rows, inner), torch.randn(columns, inner).T, torch.empty(rows, columns)
    return lambda: torch.mm(a, b, out=out)


def resident(field: str) -> float:
    """MiB of this process now (VmRSS) or at most since the last reset (VmHWM); Linux."""
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / MIB
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def reset_peak() -> None:
    with contextlib.suppress(OSError):  # the peak then includes the imports
        Path('/proc/self/clear_refs').write_text('5')


@contextlib.contextmanager
def _metered_imports() -> Iterator[list[float]]:
    """A list of one number: MiB that imports take inside; those of a module include all that it imports in turn."""
    plain, taken, outermost = builtins.__import__, [0.0], [True]

    def metered(*args, **kwargs):
        if not outermost[0]:
            return plain(*args, **kwargs)
        outermost[0], before = False, resident('VmRSS')
        try:
            return plain(*args, **kwargs)
        finally:
            outermost[0] = True
            taken[0] += resident('VmRSS') - before

    builtins.__import__ = metered
    try:
        yield taken
    finally:
        builtins.__import__ = plain


def _count(step: Callable[[], object], least: float, clock: Callable[[], float]) -> int:
    """How many steps take `least` seconds, by the fastest of as many as that takes: the warm-up."""
    fastest, begun, done = math.inf, time.perf_counter(), 0
    while done < 2 or time.perf_counter() - begun < least:
        start = clock()
        step()
        fastest, done = min(fastest, clock() - start), done + 1
    return max(1, round(least / max(fastest, 1e-9))) if fastest > 0 else done


def _work(make: Callable[[], Callable[[], object]], least: float) -> None:
    """A candidate's process: build, then do as many steps as take `least` seconds whenever a line comes in."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever a candidate prints is no answer
    sys.stdout.reconfigure(line_buffering=True)  # or it would come after the error that ended it
    threads = int(os.environ['OMP_NUM_THREADS'])
    clock = time.process_time if threads == 1 else time.perf_counter
    before = resident('VmRSS')
    with _metered_imports() as imports:
        step = make()
        step()
    if 'torch' in sys.modules:
        sys.modules['torch'].set_num_threads(threads)
    count = _count(step, least, clock)
    reset_peak()
    print(PREPARED, file=answers, flush=True)
    for _ in sys.stdin:
        start = clock()
        for _ in range(count):
            step()
        said = dict(seconds=(clock() - start) / count, memory=resident('VmHWM') - before - imports[0])
        print(json.dumps(said), file=answers, flush=True)


class _Process:
    """A candidate's process, seen from outside."""

    def __init__(self, case: Case, name: str, args: argparse.Namespace) -> None:
        self.name = name
        self.said = None if args.verbose else tempfile.TemporaryFile('w+')  # noqa: SIM115 - closed with it
        threads = '1' if args.threads == '1' else str(len(os.sched_getaffinity(0)))
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], '--worker', case.name, name, '--seconds', str(args.seconds)],
            env={**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads, **case.env.get(name, {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
        )

    def ready(self) -> bool:
        """Whether it was built; if not, why is printed. A candidate that fails does not take the others along."""
        if self.process.stdout.readline().strip() == PREPARED:
            return True
        print(f'  {self.name}: could not be built: {self.last_words()}', file=sys.stderr)
        return False

    def last_words(self) -> str:
        if self.said is None:
            return 'see above'
        self.said.seek(0)
        return (self.said.read().strip().splitlines() or ['no word'])[-1]

    def round(self) -> dict | None:
        """What it says of its steps; None, and why is printed, where it has ended in the middle."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write('go\n')
            self.process.stdin.flush()
            if line := self.process.stdout.readline():
                return json.loads(line)
        print(f'  {self.name}: ended in the middle: {self.last_words()}', file=sys.stderr)
        return None

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def turn(names: Sequence[T], number: int) -> list[T]:
    """The order of round `number`: every second one is that before it backwards, every pair starts with another.

    So nobody is always first or always after the same neighbour, and a drift of the machine cancels out.
    """
    start = number // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order if number % 2 == 0 else order[::-1]


def measure(case: Case, args: argparse.Namespace) -> dict[str, Timing]:
    """Timings of the candidates that were built and went through, and of the matrix product where flops are known."""
    names = [*case.candidates, *(['GEMM'] if case.flops else [])]
    processes = []
    try:
        alive = []
        for name in names:
            processes.append(_Process(case, name, args))  # one after the other: building should not disturb
            if processes[-1].ready():
                alive.append(processes[-1])
        timings = {process.name: Timing([], 0.0) for process in alive}
        for number in range(args.rounds):
            for process in turn(alive, number) if alive else ():
                said = process.round()
                if said is None:
                    alive.remove(process)
                    del timings[process.name]
                    continue
                timings[process.name].seconds.append(said['seconds'])
                timings[process.name].memory = max(timings[process.name].memory, said['memory'])
        return timings
    finally:
        for process in processes:
            process.end()


def ratios(timings: dict[str, Timing], name: str, over: str) -> list[float]:
    """How many times faster `name` was, round by round."""
    return [b / a for a, b in zip(timings[name].seconds, timings[over].seconds, strict=True)]


def spread(found: Sequence[float]) -> tuple[float, float] | None:
    """Lower and upper quartile, both within what was found; None of a single round, which has no spread."""
    if len(found) < 2:
        return None
    low, _, high = statistics.quantiles(found, n=4, method='inclusive')
    return low, high


def table(
    case: Case,
    timings: dict[str, Timing],
    markdown: bool,
    limit: float | None = None,
    more: dict[str, dict[str, str]] | None = None,
) -> str:
    """Median step, rate, ratio with its quartiles, memory, share of the matrix rate; then what was promised.

    limit: the matrix rate (FLOP/s); without one, that of the candidate GEMM, round by round.
    more: {heading: {candidate: cell}} of further columns.
    """
    timings, product = dict(timings), timings.get('GEMM')
    timings.pop('GEMM', None)
    header = ['candidate', 'ms a step', f'{case.unit}/s', f'ratio to {case.baseline}', 'quartiles', 'MiB']
    rates = None
    if product is not None:
        rates = [2.0 * math.prod(GEMM) / seconds for seconds in product.seconds]
        limit = statistics.median(rates)
    shared = case.flops and limit
    header += ['of matrix rate'] * bool(shared) + [*(more or {})]
    lines = []
    for name, timing in timings.items():
        found = ratios(timings, name, case.baseline) if case.baseline in timings else []
        between = spread(found)
        cells = [name, f'{1e3 * timing.median:.4g}', f'{case.work / timing.median:.4g}']
        cells.append(f'{statistics.median(found):.2f}' if found else '-')
        cells.append('{:.2f} to {:.2f}'.format(*between) if between else '-')
        cells.append('-' if math.isnan(timing.memory) else f'{timing.memory:.0f}')
        if shared:
            flops, over = case.flops_of(name), rates or [limit] * len(timing.seconds)
            shares = [flops / s / r for s, r in zip(timing.seconds, over, strict=True)] if flops else []
            cells.append(f'{100 * statistics.median(shares):.0f} %' if shares else '-')
        lines.append(cells + [column.get(name, '-') for column in (more or {}).values()])
    said = [f'{case.name}' + (f' (matrix products: {limit / 1e9:.0f} GFLOP/s)' if shared else '')]
    said += aligned(header, lines, markdown)
    said += [f'{name}: not measured' for name in case.candidates if name not in timings]
    return '\n'.join(said + verdicts(case, timings))


def verdicts(case: Case, timings: dict[str, Timing]) -> list[str]:
    """A line for each promise: reached, or short by how much; and whether it lies within the spread of the rounds."""
    said = []
    for name, (least, over) in case.bars.items():
        if name not in timings or over not in timings:
            said.append(f'{name} over {over}: promised {least:.2f}x: NOT MEASURED')
            continue
        found = ratios(timings, name, over)
        middle = statistics.median(found)
        verdict = 'reached' if middle >= least else f'SHORT by {100 * (1 - middle / least):.2g} %'
        verdict += _doubt(found, least)
        said.append(f'{name} over {over}: {middle:.2f}x, promised {least:.2f}x: {verdict}')
    for name, most in case.overheads.items():
        if name not in timings or case.baseline not in timings:
            said.append(f'{name} beyond {case.baseline}: promised at most {most:g} ms a step: NOT MEASURED')
            continue
        pairs = zip(timings[name].seconds, timings[case.baseline].seconds, strict=True)
        found = [1e3 * (own - base) for own, base in pairs]
        middle = statistics.median(found)
        verdict = 'reached' if middle <= most else f'SHORT by {middle - most:.2g} ms'
        verdict += _doubt(found, most)
        said.append(f'{name} beyond {case.baseline}: {middle:.2f} ms a step, promised at most {most:g}: {verdict}')
    return said


def _doubt(found: Sequence[float], promised: float) -> str:
    """What to add to a verdict that another run may turn round."""
    between = spread(found)
    if between is None:
        return ', in a single round'
    return ', within the spread of the rounds' if between[0] < promised < between[1] else ''


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> list[str]:
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
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        model = next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    cores, torch = len(os.sched_getaffinity(0)), importlib.metadata.version('torch')
    return f'{model}, {cores} cores, Python {platform.python_version()}, torch {torch}'


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text}: at least 1')
    return int(text)


def main(description: str, cases: Sequence[Case], arguments: Sequence[str] | None = None) -> None:
    """The command line of a script: times its cases and prints a table each. Arguments: by default sys.argv's."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--only', nargs='+', metavar='WORD', help='cases whose name holds all of these words')
    parser.add_argument('--without', nargs='+', default=[], metavar='NAME', help='candidates to leave out')
    parser.add_argument('--threads', choices=('1', 'all'), default='1')
    parser.add_argument('--rounds', type=_positive, default=9, help='default 9')
    parser.add_argument('--seconds', type=float, default=0.6, help='that a candidate works in a round (default 0.6)')
    parser.add_argument('--markdown', action='store_true', help='tables in Markdown')
    parser.add_argument('--list', action='store_true', help='say the cases and their candidates, and time nothing')
    parser.add_argument('--verbose', action='store_true', help='show what the candidates print')
    parser.add_argument('--worker', nargs=2, metavar=('CASE', 'CANDIDATE'), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
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
    print(f'{machine()}, load {os.getloadavg()[0]:.1f} before')
    print(f'{args.rounds} rounds of {args.seconds:g} s; {counted}; medians\n', flush=True)
    for case in chosen:
        kept = {name: make for name, make in case.candidates.items() if name not in args.without}
        case = dataclasses.replace(case, candidates=kept)
        print(table(case, measure(case, args), args.markdown), end='\n\n', flush=True)
