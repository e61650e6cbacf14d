"""Commands that tests run: nothing that they started outlives them, whatever happens."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCHRUN = ('-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone')


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
    """(exit code, stdout, stderr) of `python ARGS`. Raises TimeoutExpired after `timeout` seconds."""
    with started(*args, **env) as process:
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err
