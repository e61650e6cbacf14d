"""Processes that run stages: how they start, on what, and that they end when they should."""

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..engine.errors import ConfigError
from ..engine.workers import die_with_parent
from . import worker
from .state import LOG, Lock, now, settings_of, weights_left, write_json
from .suite import Stage, tested

LOOK_EVERY = 0.2  # seconds between looks at children that may have ended
PATIENCE = 60.0  # seconds for a child that was asked to end: it takes its step to the end and saves


class Running(NamedTuple):
    """A stage's process and what it occupies."""

    process: multiprocessing.Process | subprocess.Popen
    devices: list[str]

    def exit_code(self) -> int | None:
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode


def devices_of(text: str | None) -> list[str] | None:
    """`0,1,2` -> ['0', '1', '2']; all that CUDA has by default, of those that CUDA_VISIBLE_DEVICES leaves."""
    if text is not None:
        names = [name.strip() for name in text.split(',') if name.strip()]
        if len(set(names)) < len(names) or not names:
            raise ConfigError(f'--devices {text}: write each once, as 0,1,2; or none')
        if names == ['none']:
            return None
        if not torch.cuda.device_count():
            raise ConfigError(f'--devices {text}: torch sees no GPU here; without --devices the stages share the cores')
        return names
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    count = torch.cuda.device_count()
    return (visible.split(',') if visible else [str(i) for i in range(count)]) if count else None


def threads_of(jobs: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // jobs)


def start(stage: Stage, lock: Lock, devices: list[str], jobs: int) -> Running:
    """A process that runs a stage and holds its lock from now on.

    On a CPU it is a child of a server that has the imports and nothing else: forked from here it would hang in its
    first parallel loop if this process had run one, for the threads of a pool do not live on in a child. With devices
    or ranks it is a new interpreter, for CUDA does not survive a fork.
    """
    stage.work_dir.mkdir(parents=True, exist_ok=True)
    (stage.work_dir / 'failed.json').unlink(missing_ok=True)
    options, checkpoint = stage.resolved({parent.name: str(weights_left(parent)) for parent in stage.parents})
    orders = dict(
        resolved=options,
        checkpoint=checkpoint,
        seed=stage.seed,
        amp=stage.amp,
        tta=stage.tta,
        tested=tested(stage),
        begun=now(),
        **settings_of(stage),
    )
    write_json(stage.work_dir / 'stage.json', orders)
    if devices or stage.gpus > 1:
        process = _new_interpreter(stage, lock, devices, jobs)
    else:
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([worker.__name__, 'mmpretrain.models', 'mmseg.models'])  # ours mends theirs
        process = context.Process(target=worker.child, args=(stage.work_dir, lock, threads_of(jobs), jobs > 1))
        process.start()
    lock.say(process.pid)
    lock.release()
    return Running(process, devices)


def _new_interpreter(stage: Stage, lock: Lock, devices: list[str], jobs: int) -> subprocess.Popen:
    """The worker, or torchrun with as many workers as the stage has ranks."""
    command = [sys.executable, '-m', worker.__name__, str(stage.work_dir)]
    torchrun = ['-m', 'torch.distributed.run', f'--nproc_per_node={stage.gpus}', '--standalone', '-m']
    if stage.gpus > 1:
        command = [sys.executable, *torchrun, *command[2:]]
    environment = {**os.environ, 'OMP_NUM_THREADS': str(max(1, threads_of(jobs) // stage.gpus))}
    if devices:
        environment['CUDA_VISIBLE_DEVICES'] = ','.join(devices)
    with open(stage.work_dir / LOG, 'a') as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=(lock.fd,),
            process_group=0,
            # torchrun ends its ranks when it is asked to end; they do the same for their own sake
            preexec_fn=functools.partial(die_with_parent, signal.SIGTERM if stage.gpus > 1 else signal.SIGKILL),
        )


def stop(*several: Running) -> None:
    """End stages' processes and all that they started: asked first, so that they save, all at once; then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for running in several:
            with contextlib.suppress(ProcessLookupError):
                try:
                    os.killpg(running.process.pid, number)
                except ProcessLookupError:  # it has no group of its own yet
                    os.kill(running.process.pid, number)
        deadline = time.monotonic() + PATIENCE
        while any(running.exit_code() is None for running in several) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY / 4)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM, as Slurm and `kill` send it, is as good as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
