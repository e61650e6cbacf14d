"""Writing a file so that its name only ever holds a complete one, whenever the process is killed or the disk is full.

A temporary file in the same folder, synced, read again and compared, then renamed; at last the folder is synced.
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

BLOCK = 1 << 20
TEMPORARY = re.compile(r'\..+\.(\d+)\.tmp')  # the process that writes it
FOLDER = '.dcp'  # how the name of a checkpoint that is a folder ends (sharded.py)
LISTING = 'files.json'  # in such a folder: the files that it is made of; what else lies there does not belong to it


class Written(NamedTuple):
    """What a file holds; sha256: hex digest."""

    sha256: str
    bytes: int


class _Counted(io.RawIOBase):
    """Writes to a file in sequence, and knows the CRC and the length of what it was given. written: what the file was
    found to hold, at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.crc, self.length = file, 0, 0
        self.failed: OSError | None = None
        self.written: Written | None = None

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        try:
            self.file.write(data)
        except OSError as error:  # torch's writer goes on after it, and ends with an error of its own
            self.failed = error
            raise
        self.crc, self.length = zlib.crc32(data, self.crc), self.length + memoryview(data).nbytes
        return memoryview(data).nbytes

    def tell(self) -> int:
        return self.length


class _Reader(threading.Thread):
    """Reads a file while it is written, for its digest, which would take longer than all else if it came after."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.complete = path, threading.Event()
        self.crc, self.digest, self.length = 0, hashlib.sha256(), 0

    def run(self) -> None:
        with contextlib.suppress(OSError), open(self.path, 'rb', buffering=0) as file:  # then the lengths differ
            while True:
                last = self.complete.is_set()  # asked before the read, which then sees all there is
                while block := file.read(BLOCK):
                    self.crc, self.length = zlib.crc32(block, self.crc), self.length + len(block)
                    self.digest.update(block)
                if last:
                    return
                self.complete.wait(0.002)

    def finish(self) -> None:
        """Wait until all that is in the file has been read."""
        self.complete.set()
        self.join()


def _crc_of(path: Path) -> tuple[int, int]:
    """(CRC, length) of what is in a file now."""
    crc = length = 0
    with open(path, 'rb', buffering=0) as file:
        while block := file.read(BLOCK):
            crc, length = zlib.crc32(block, crc), length + len(block)
    return crc, length


@contextlib.contextmanager
def verified(path: Path, name: Path | None = None) -> Iterator[_Counted]:
    """A stream to a new file, to be written in sequence; when it ends, its content is on the disk and found to be what
    was written. name: of the file in messages. Raises OSError."""
    with open(path, 'wb') as file:
        counted, reader = _Counted(file), _Reader(path)
        reader.start()
        try:
            yield counted
            file.flush()
            os.fsync(file.fileno())
        except RuntimeError:  # torch's, about what the failed write left unfinished
            if counted.failed:
                raise counted.failed from None
            raise
        finally:
            reader.finish()
    if not (reader.crc, reader.length) == (counted.crc, counted.length) == _crc_of(path):
        raise OSError(f'{name or path}: what was written does not read back as it was; is the disk failing?')
    counted.written = Written(reader.digest.hexdigest(), reader.length)


def into_place(
    path: Path, put: Callable[[IO[bytes]], object], ready: Callable[[Written], object] = lambda written: None
) -> Written:
    """Write a file so that its name only ever holds a complete one.

    put: writes the content, in sequence. ready: is called when the content is on the disk and found to be what was
    written, just before it gets its name. Raises OSError; the file that had the name before is then as it was.
    """
    temporary = temporary_of(path)
    try:
        with verified(temporary, path) as file:
            put(file)
        ready(file.written)
        os.replace(temporary, path)
        sync_folder(path.parent)
        return file.written
    finally:
        temporary.unlink(missing_ok=True)


def temporary_of(path: Path, what: str = '') -> Path:
    """The name beside it that this process writes to; what: the use, if there are several."""
    return path.with_name(f'.{path.name}{what}.{os.getpid()}.tmp')


def remove(path: Path) -> None:
    """Delete a file, or a folder so that half of it is never under its name. What is gone already is no error."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if not TEMPORARY.fullmatch(path.name):
        gone = temporary_of(path, '.gone')
        shutil.rmtree(gone, ignore_errors=True)
        path = path.rename(gone)
    shutil.rmtree(path)


def bytes_of(path: Path) -> int:
    """Of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def leftovers(folder: Path) -> Iterator[Path]:
    """What processes that are gone, or this one, which is about to start writing, have left half written or deleted: to
    be removed."""
    for path in sorted(folder.glob('.*.tmp')):
        found = TEMPORARY.fullmatch(path.name)
        if found and (int(found[1]) == os.getpid() or not alive(int(found[1]))):
            yield path


def alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True
