"""tools/_torchrun.py with ranks that are forks of it, where it has the stack imported: a second each instead of ten.

All else is as it is: torchrun's agent, its children in sessions of their own, signals, exit codes. tests/ranks.py.
"""

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler


def main(args: list[str], env: dict[str, str]) -> None:
    """What a rank does: args as Popen has them, python -u tools/X.py ARGS."""
    os.setsid()
    for name in os.listdir('/proc/self/fd'):  # the agent's, which an exec would close
        with contextlib.suppress(OSError):
            if os.readlink(f'/proc/self/fd/{name}').startswith('socket:'):
                os.close(int(name))
    weakref.finalize._registry.clear()  # the agent's temporary folder is not this process's to remove
    os.environ.clear()
    os.environ.update(env)
    sys.argv = args[2:]
    runpy.run_path(args[2], run_name='__main__')


class Forked:
    """As much of a Popen as the agent needs."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], **_) -> None:
        self.process = multiprocessing.get_context('fork').Process(target=main, args=(list(args), env))
        self.process.start()
        self.pid = self.process.pid
        with open(os.environ['RANKS_STARTED'], 'a') as file:
            file.write(f'{self.pid}\n')

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired('a rank', timeout)
        return self.process.exitcode


if __name__ == '__main__':
    subprocess_handler.Popen = Forked
    tempfile.tempdir = None  # TMPDIR, where nothing is left of an agent that is killed
    runpy.run_path(str(Path(__file__).parents[1] / 'tools/_torchrun.py'), run_name='__main__')
