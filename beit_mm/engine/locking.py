"""A lock that says who holds it: of a folder that one process at a time may work in, here or on another machine.

It is a `flock` of a file that stays: the kernel frees it when its last holder ends, however it ends.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import weakref
from multiprocessing import reduction
from pathlib import Path

_alone: weakref.WeakSet['Lock'] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for lock in list(_alone):
        lock.release()


os.register_at_fork(after_in_child=_leave_to_parent)


class Lock:
    """Held until the last process that has it closes it or ends; it can be sent to a child.

    inherited: children that are forked have it too. Data workers outlive a killed process by seconds, so that a lock
    that should be free at once is not inherited.
    """

    def __init__(self, fd: int, inherited: bool = True) -> None:
        self.fd: int | None = fd
        if not inherited:
            _alone.add(self)

    def __reduce__(self):
        return Lock._received, (reduction.DupFd(self.fd),)

    @staticmethod
    def _received(duplicate) -> 'Lock':
        return Lock(duplicate.detach())

    def say(self, pid: int) -> None:
        """Who holds it, for others to read."""
        since = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
        said = dict(pid=pid, host=socket.gethostname(), since=since, job=os.environ.get('SLURM_JOB_ID'))
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, json.dumps(said).encode(), 0)

    def leave_nothing(self, path: Path) -> None:
        """Remove the file, and its folder, if there is nothing else in it. While the lock is held."""
        with contextlib.suppress(OSError):
            if os.listdir(path.parent) == [path.name]:
                path.unlink()
                path.parent.rmdir()

    def release(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
        self.fd = None


def acquire(path: Path, inherited: bool = True) -> Lock | None:
    """The lock of this file, or None if a process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:  # some network disks cannot lock
        print(f'{path}: {error.strerror}; see to it that nobody else works here', flush=True)
    if not os.fstat(fd).st_nlink:  # its last holder has removed it: `Lock.leave_nothing`
        os.close(fd)
        return acquire(path, inherited)
    return Lock(fd, inherited)


def holder(path: Path) -> dict | None:
    """Who holds it now (pid, host, since, job), or None."""
    with contextlib.suppress(OSError), open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(ValueError):
                said = json.loads(file.read())
                if isinstance(said, dict):
                    return said
            return dict(pid='?', host='?', since='just now')
    return None


def who(held: dict) -> str:
    """Who holds a lock, and since when."""
    job = f' job {held["job"]}' if held.get('job') else ''
    return f'pid {held.get("pid")} on {held.get("host")}{job} since {str(held.get("since"))[:16].replace("T", " ")}'
