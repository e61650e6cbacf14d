"""Commands that tests run: nothing that they started outlives them, whatever happens."""

import contextlib
import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # the fork server's too: its children would take all cores each

ROOT = Path(__file__).parents[1]
TORCHRUN = ('-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone')
STACK = ['beit_mm.benchmark.jobs', 'beit_mm.benchmark.report', 'mmpretrain.models', 'mmseg.models']


@contextlib.contextmanager
def started(*args, **env) -> Iterator[subprocess.Popen]:
    """`python ARGS` in the repository's root and in a session of its own, which is killed whole at the end."""
    process = subprocess.Popen(
        [sys.executable, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **env},
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def call(*args, timeout: float = 300, **env) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `python ARGS`. Raises TimeoutExpired after `timeout` seconds.

    A door, tools/*.py, runs in a child of a server that has imported the stack once, which takes 10 s; all but the one
    that has such children of its own.
    """
    if str(args[0]).startswith('tools/') and args[0] != 'tools/benchmark.py':
        return _door(list(map(str, args)), timeout, env)
    with started(*args, **env) as process:
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err


def _door(args: list[str], timeout: float, env: dict[str, str]) -> tuple[int, str, str]:
    with door_started(*args, **env) as running:
        return running.wait(timeout), running.stdout(), running.stderr()


class RunningDoor:
    """A door in a child of the fork server: `pid`, `wait`, `send`, and what it has printed so far."""

    def __init__(self, process: multiprocessing.process.BaseProcess, folder: str) -> None:
        self.process, self.folder = process, Path(folder)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, signum: int) -> None:
        """To the process itself; to its whole group: os.killpg(pid, signum)."""
        os.kill(self.pid, signum)

    def wait(self, timeout: float = 300) -> int:
        """The exit code, as a shell has it negated for signals: -9 of a killed one."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.send(signal.SIGUSR2)  # where it hangs: _run_door
            self.process.join(1)
            raise subprocess.TimeoutExpired(f'process {self.pid}: {self.stderr()[-3000:]}', timeout)
        return self.process.exitcode

    def stdout(self) -> str:
        return (self.folder / 'stdout').read_text()

    def stderr(self) -> str:
        return (self.folder / 'stderr').read_text()


@contextlib.contextmanager
def door_started(*args, **env) -> Iterator[RunningDoor]:
    """`python tools/X.py ARGS`, in a session of its own which is killed whole at the end: for tests of signals."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(STACK)
    with tempfile.TemporaryDirectory() as folder:
        files = [f'{folder}/{name}' for name in ('stdout', 'stderr')]
        for file in files:
            Path(file).touch()
        process = context.Process(target=_run_door, args=(list(map(str, args)), files, {'OMP_NUM_THREADS': '1', **env}))
        process.start()
        try:
            yield RunningDoor(process, folder)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()


def alive_in_session(leader: int) -> list[int]:
    """Processes of the session that a door had for itself: its data workers, and it."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            state, _, _, session = (folder / 'stat').read_text().rsplit(')', 1)[1].split()[:4]
            if int(session) == leader and state != 'Z':
                found.append(int(folder.name))
    return found


def _run_door(args: list[str], files: list[str], env: dict[str, str]) -> None:
    os.setsid()
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    faulthandler.register(signal.SIGUSR2, file=2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where pytest is a script's background job
    os.environ.update(env)
    os.chdir(ROOT)
    multiprocessing.set_start_method('fork', force=True)  # as in a process of its own
    sys.argv = args
    sys.path[:0] = [str(ROOT / 'tools'), str(ROOT / 'tests')]  # injected.py
    runpy.run_path(args[0], run_name='__main__')
