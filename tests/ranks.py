"""Several ranks. Without torchrun: each a door in a child of the fork server, which takes a second instead of ten."""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from processes import ROOT, RunningDoor, alive_in_session, call, door_started


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(('127.0.0.1', 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def ranks_started(count: int, *args, **env) -> Iterator[list[RunningDoor]]:
    """`python tools/X.py ARGS --launcher pytorch` on so many ranks, which talk by gloo."""
    common = dict(WORLD_SIZE=str(count), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                door_started(*args, '--launcher', 'pytorch', **common, RANK=str(i), LOCAL_RANK=str(i), **env)
            )
            for i in range(count)
        ]


def dist_train(*args, **env) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `tools/dist_train.sh ARGS`: torchrun, and ranks that import all anew."""
    script = 'import os, sys; os.execv("tools/dist_train.sh", ["tools/dist_train.sh", *sys.argv[1:]])'
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])  # injected.py
    return call('-c', script, *args, timeout=250, PYTHON=sys.executable, PYTHONPATH=path, **env)


def forked(count: int, do: Callable[[int], object], seconds: float = 60) -> list:
    """What `do(rank)` returns on each of so many ranks that talk by gloo: forks of this process, which take no time to
    start. Of one that raises, the exception; of one that is killed, minus the signal."""
    with tempfile.TemporaryDirectory() as folder:
        children = [_fork(count, rank, do, Path(folder), seconds) for rank in range(count)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return [
            pickle.loads((Path(folder) / str(i)).read_bytes()) if code == 0 else code for i, code in enumerate(codes)
        ]


def _fork(count: int, rank: int, do: Callable[[int], object], folder: Path, seconds: float) -> int:
    if child := os.fork():
        return child
    try:
        signal.alarm(int(2 * seconds))
        store = dist.FileStore(str(folder / 'store'), count)
        dist.init_process_group('gloo', store=store, rank=rank, world_size=count, timeout=timedelta(seconds=seconds))
        try:
            done = do(rank)
        except Exception as error:
            done = error
        (folder / str(rank)).write_bytes(pickle.dumps(done))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


class RunningAgent(RunningDoor):
    """`tools/dist_train.sh` that runs: pid is torchrun's."""

    started: Path

    def ranks(self) -> list[int]:
        """Process ids of all that it has started, in the order of the attempts."""
        return [int(line) for line in self.started.read_text().split()]

    def alive(self) -> list[int]:
        """Those that have not ended, and their children."""
        return [pid for rank in self.ranks() for pid in alive_in_session(rank)]


@contextlib.contextmanager
def agent_started(script: str, *args, **env) -> Iterator[RunningAgent]:
    """`tools/dist_X.sh ARGS`, with ranks that are forks (forked_torchrun.py); the script says with which options."""
    command = subprocess.run(
        ['bash', script, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **env, 'PYTHON': 'echo'},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert command.pop(0) == 'tools/_torchrun.py'
    with tempfile.TemporaryDirectory() as folder:
        (started := Path(folder, 'ranks')).touch()
        with door_started(
            'tests/forked_torchrun.py', *command, RANKS_STARTED=str(started), TMPDIR=folder, **env
        ) as running:
            agent = RunningAgent(running.process, running.folder)
            agent.started = started
            try:
                yield agent
            finally:
                for pid in agent.ranks():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
