"""How long a door takes to answer: --help and a wrong argument of each, and from the command to the first step.

    python benchmarks/doors.py [--times 3] [--markdown] [--list]

Seconds of the clock, median of three, a new process each: what somebody at a terminal waits for. The first step is seen
from outside: the moment at which the log of a run with a line for every step has one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

ROOT = Path(__file__).parents[1]
MOST_HELP, MOST_FIRST_STEP = 1.0, 10.0  # seconds, as promised
DOORS = sorted(path.stem for path in (ROOT / 'tools').glob('[!_]*.py'))
TINY = ROOT / 'configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'
QUICKLY = ['train_cfg.max_iters=1', 'train_dataloader.batch_size=4', 'default_hooks.logger.interval=1']


def started(*args: str) -> subprocess.Popen:
    command = [sys.executable, *args]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def to_end(*args: str) -> float:
    """Seconds until a command has ended."""
    start = time.perf_counter()
    process = started(*args)
    process.communicate()
    return time.perf_counter() - start


def to_first_step() -> float:
    """Seconds until training the tiny config has said its first step."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = ['tools/train.py', str(TINY), '--work-dir', folder, '--no-validate', '--cfg-options', *QUICKLY]
        process = started('-u', *command)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if 'Iter(train)' in line:
                break
        taken = time.perf_counter() - start
        process.communicate()
        if process.returncode:
            raise RuntimeError(f'{" ".join(command)} failed:\n{"".join(lines[-10:])}')
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--times', type=int, default=3, metavar='N', help='of each (default 3)')
    parser.add_argument('--markdown', action='store_true', help='the table in Markdown')
    parser.add_argument('--list', action='store_true', help='say what is measured, and time nothing')
    args = parser.parse_args()
    if args.list:
        print('\n'.join([*(f'tools/{door}.py --help' for door in DOORS), f'first step of {TINY.stem}']))
        return
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    measured = {}
    for door in DOORS:
        for argument in ('--help', '--no-such-option'):
            name = f'tools/{door}.py {argument}'
            measured[name] = ([to_end(f'tools/{door}.py', argument) for _ in range(args.times)], MOST_HELP)
    measured['import torch'] = ([to_end('-c', 'import torch') for _ in range(args.times)], None)
    stack = 'import beit_mm.data, beit_mm.engine, beit_mm.models'
    measured[f'{stack}'] = ([to_end('-c', stack) for _ in range(args.times)], None)
    measured['tools/train.py to its first step'] = ([to_first_step() for _ in range(args.times)], MOST_FIRST_STEP)
    rows = []
    for name, (seconds, most) in measured.items():
        median = statistics.median(seconds)
        promised = '' if most is None else f'{most:g}'
        verdict = '' if most is None else 'reached' if median <= most else 'SHORT'
        rows.append([name, f'{median:.2f}', f'{min(seconds):.2f} to {max(seconds):.2f}', promised, verdict])
    header = ['what', 'seconds', 'spread', 'promised', '']
    print(f'{harness.machine()}\nseconds of the clock, median of {args.times}')
    print('\n'.join(harness.aligned(header, rows, args.markdown)))


if __name__ == '__main__':
    main()
