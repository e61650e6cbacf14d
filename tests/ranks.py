"""Several ranks. Without torchrun: each a door in a child of the fork server, which takes a second instead of ten."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from processes import RunningDoor, call, door_started


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
