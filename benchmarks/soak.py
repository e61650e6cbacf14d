"""Does a training survive being killed again and again, and does its memory stay where it is?

    python benchmarks/soak.py kills --minutes 120 --every 60
    python benchmarks/soak.py memory --steps 10000

kills: pre-training of the miniature (random crops, masks, drop path, averaged weights) is killed `every` seconds after
its first step, by SIGKILL, SIGTERM, SIGINT and SIGUSR1 in turn, and called again with the same command until it is
done; then every tensor of its last checkpoint is compared with those of a run that was left alone.
memory: the resident memory of a training, every 500 steps.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRETRAIN = 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py'
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
STEPS_PER_MINUTE = 600  # about, on one core of 2023; decides how long the undisturbed run takes


def options(steps: int, interval: int) -> list[str]:
    """`--cfg-options` of the soak: a random tokenizer's tokens will do."""
    return [
        'model.target.checkpoint=None',
        'model.backbone.drop_path_rate=0.1',
        f'train_cfg.max_iters={steps}',
        f'train_cfg.val_interval={steps}',
        f'default_hooks.checkpoint.interval={interval}',
        f'default_hooks.logger.interval={interval}',
        'train_dataloader.num_workers=1',
        "custom_hooks=[{'type': 'EMAHook'}]",
    ]


def command(config: str, work_dir: Path, chosen: list[str]) -> list[str]:
    return ['tools/train.py', config, '--work-dir', str(work_dir), '--resume', 'auto', '--cfg-options', *chosen]


def started(args: list[str]) -> subprocess.Popen:
    """A process of one thread, whose words go to a file beside its work_dir."""
    with open(f'{args[3]}.log', 'a') as log:
        return subprocess.Popen(
            [sys.executable, *args], cwd=ROOT, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'}
        )


def steps_done(work_dir: Path) -> int:
    """The last step that any start of a run has logged."""
    last = 0
    for file in work_dir.glob('*/vis_data/scalars.json'):
        lines = [line for line in file.read_text().splitlines() if line.endswith('}')]
        last = max([last, *(json.loads(line).get('step', 0) for line in lines)])
    return last


def kill_until_done(args: list[str], every: float, start: Callable = started) -> list[tuple[str, int, int]]:
    """Run a command again and again until it ends by itself: (signal, exit code, step) of every time that it did not.

    Raises RuntimeError where it ends otherwise than by what it was sent.
    """
    work_dir, killed = Path(args[3]), []
    for number in itertools.cycle(SIGNALS):
        before, process = steps_done(work_dir), start(args)
        while process.poll() is None and steps_done(work_dir) <= before:
            time.sleep(0.05)
        try:
            code = process.wait(every)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            code = process.wait()
        if code == 0:
            return killed
        expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}[number]
        if code != expected:
            raise RuntimeError(f'exit code {code} after {number.name}, not {expected}: see {work_dir}.log')
        killed.append((number.name, code, steps_done(work_dir)))
        print(f'{number.name} at about step {killed[-1][2]}: exit code {code}', flush=True)
    return killed


def unequal(first: Path, second: Path) -> list[str]:
    """The tensors of weights, averages and optimizer in which two checkpoints differ in any bit."""
    import torch

    from beit_mm.checkpoints.load import read

    def tensors(value, where: str = ''):
        if isinstance(value, torch.Tensor):
            yield where, value
        elif isinstance(value, (dict, list, tuple)):
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                yield from tensors(one, f'{where}.{key}')

    def of(path: Path) -> dict:
        content = read(path, map_location='cpu')
        return dict(tensors({key: content[key] for key in ('state_dict', 'ema_state_dict', 'optimizer')}))

    a, b = of(first), of(second)
    return sorted({key for key in {*a, *b} if key not in a or key not in b or not torch.equal(a[key], b[key])})


def kills(minutes: float, every: float, folder: Path) -> None:
    """The undisturbed run and the killed one, side by side; prints what happened, raises where they differ."""
    steps = int(minutes * STEPS_PER_MINUTE)
    chosen = options(steps, interval=max(1, STEPS_PER_MINUTE // 6))
    alone, hunted = folder / 'alone', folder / 'hunted'
    begun = time.perf_counter()
    undisturbed = started(command(PRETRAIN, alone, chosen))
    try:
        killed = kill_until_done(command(PRETRAIN, hunted, chosen), every)
        if undisturbed.wait():
            raise RuntimeError(f'the undisturbed run failed: see {alone}.log')
    finally:
        undisturbed.kill()
    wrong = unequal(alone / f'iter_{steps}.pth', hunted / f'iter_{steps}.pth')
    spent = (time.perf_counter() - begun) / 60
    print(f'{steps} steps, killed {len(killed)} times in {spent:.0f} minutes: {len(wrong)} tensors differ')
    if wrong:
        raise RuntimeError(f'not the same run: {", ".join(wrong[:5])}')


def memory(steps: int, folder: Path) -> None:
    """Train for many steps and print the resident memory of the process as it goes on."""
    chosen = [*options(steps, interval=500), 'train_dataloader.batch_size=2']
    process = started(command(PRETRAIN, folder / 'run', [o for o in chosen if 'custom_hooks' not in o]))
    told, samples = 0, []
    while process.poll() is None:
        done = steps_done(folder / 'run')
        if done >= told + 500:
            told = done
            status = Path(f'/proc/{process.pid}/status').read_text()
            samples.append((done, int(status.split('VmRSS:')[1].split()[0]) / 1024))
            print(f'step {done:6d}: {samples[-1][1]:7.1f} MiB', flush=True)
        time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f'exit code {process.returncode}: see {folder / "run"}.log')
    settled = [size for step, size in samples if step >= steps // 5]
    print(f'from step {steps // 5} to {steps}: {settled[0]:.1f} -> {settled[-1]:.1f} MiB')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--list', action='store_true', help='say what there is, and run nothing')
    kinds = parser.add_subparsers(dest='kind')
    one = kinds.add_parser('kills')
    one.add_argument('--minutes', type=float, default=120)
    one.add_argument('--every', type=float, default=60, help='seconds from the first step of a start to its end')
    other = kinds.add_parser('memory')
    other.add_argument('--steps', type=int, default=10_000)
    parser.add_argument('--folder', type=Path, help='where the runs go, and stay (default: a temporary folder)')
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job, and its children, ignore it
    if args.list or not args.kind:
        print('kills: a training that is killed and called again, against one left alone\nmemory: of a long training')
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        kills(args.minutes, args.every, folder) if args.kind == 'kills' else memory(args.steps, folder)


if __name__ == '__main__':
    main()
