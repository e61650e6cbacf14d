"""Reading one image out of a tar, by its address: on a disk, by HTTP ranges, or through fsspec.

An address is a path that any loader can be given, as OpenMMLab's go through mmengine's file backends:

    tar://data/in22k/train-000017.tar@1536+14322/n01440764/n01440764_10026.jpg
    tar+https://host/in22k/train-000017.tar@1536+14322/n01440764/n01440764_10026.jpg

which is shard, offset, size, and the member's name. The tar header before those bytes is read along with them and has
to agree, so that a shard that was replaced is noticed at its first image. Nothing is run and nothing is unpacked: a
`pipe:` is no address.
"""

import contextlib
import http.client
import os
import re
import tarfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from mmengine.fileio import BaseStorageBackend, register_backend

from .shard_index import HEADER, MOST_IMAGE, ShardError

WITH_RANGES = ('http', 'https')
BY_FSSPEC = ('s3', 'gs', 'gcs', 'abfs', 'az', 'hf', 'sftp', 'memory')
ADDRESS = re.compile(r'tar(?:\+([a-z0-9]+))?://(.+?\.tar)@(\d{1,15})\+(\d{1,10})/(.+)', re.DOTALL)
TIMEOUT, TRIES, PAUSE = 30.0, 4, 0.5  # seconds that a server may be silent; requests for one image; before the second
MOST_OPEN = 64  # shards that a process keeps open
WAY_OUT = 'put the shard back as it was (prepare_data.py verify --format shards names all that changed), then --resume'


class Address(NamedTuple):
    """An image in a tar. url: of the tar, or its path."""

    url: str
    offset: int
    size: int
    name: str


def address_of(root: str, shard: str, offset: int, size: int, name: str) -> str:
    """The address of an image of a shard below a folder or a URL."""
    scheme, _, rest = root.rpartition('://')
    return f'tar{"+" if scheme else ""}{scheme}://{rest.rstrip("/")}/{shard}@{offset}+{size}/{name}'


def parse(address: str) -> Address:
    """Raises ShardError for what is no address of an image in a tar."""
    found = ADDRESS.fullmatch(str(address))
    if not found:
        raise ShardError(f'{str(address)[:300]}: not an address of an image in a tar')
    scheme, path, offset, size, name = found[1], found[2], int(found[3]), int(found[4]), found[5]
    if offset < HEADER or size > MOST_IMAGE:
        raise ShardError(f'{str(address)[:300]}: an image cannot be {size} bytes at {offset} of a tar')
    return Address(f'{scheme}://{path}' if scheme else path, offset, size, name)


@register_backend('beit_mm.tar', prefixes=['tar', *(f'tar+{scheme}' for scheme in (*WITH_RANGES, *BY_FSSPEC))])
class TarBackend(BaseStorageBackend):
    """mmengine's file backend for these addresses.

    For shards behind a URL, by `LoadImage(backend_args=...)`: timeout, seconds that a server may be silent; tries, how
    often an image is asked for, with a pause that doubles; storage_options, what fsspec gets (`anon`, keys).
    """

    def __init__(self, timeout: float = TIMEOUT, tries: int = TRIES, storage_options: dict | None = None) -> None:
        if tries < 1 or timeout <= 0:
            raise ValueError(f'TarBackend: timeout={timeout}, tries={tries}: both have to be more than 0')
        self.timeout, self.tries, self.storage_options = timeout, tries, storage_options or {}

    def get(self, filepath: str) -> bytes:
        """The bytes of an image. Raises ShardError where the shard is gone, cut off, or not what the index is of."""
        at = parse(filepath)
        begin, length = at.offset - HEADER, HEADER + at.size
        scheme = at.url.partition('://')[0] if '://' in at.url else ''
        if not scheme:
            block = _from_disk(at, begin, length)
        elif scheme in WITH_RANGES:
            block = self._tried(at, lambda: _by_http(at, begin, length, self.timeout))
        else:
            block = self._tried(at, lambda: _by_fsspec(at, begin, length, self.storage_options))
        if len(block) != length:
            raise ShardError(
                f'{at.url}: is cut off: it ends {length - len(block)} bytes before the end of {at.name}, which begins '
                f'at {at.offset}; {WAY_OUT}'
            )
        _check_header(block[:HEADER], at)
        return block[HEADER:]

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        return self.get(filepath).decode(encoding)

    def _tried(self, at: Address, ask: Callable[[], bytes]) -> bytes:
        """What `ask` gives, or a ShardError after so many tries."""
        pause = PAUSE
        for left in range(self.tries - 1, -1, -1):
            try:
                return ask()
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, FileNotFoundError):
                    raise ShardError(f'{at.url}: there is no such shard ({error}); {WAY_OUT}') from error
                if not left:
                    why = f'{type(error).__name__}: {error}'.strip(': ')
                    raise ShardError(
                        f'{at.url}: {at.name} cannot be read ({why}), asked for {self.tries} times; when it answers '
                        f'again: --resume'
                    ) from error
                time.sleep(pause)
                pause *= 2
        raise AssertionError


def _check_header(block: bytes, at: Address) -> None:
    """The member's header says its size, and its name as far as there is room."""
    try:
        header = tarfile.TarInfo.frombuf(block, 'utf-8', 'surrogateescape')
        # a tar in a tar has its own names
        name, found = (text.rpartition('.tar/')[2].removeprefix('./') for text in (at.name, header.name))
        same = header.size == at.size and header.isreg()
        same = same and (found == name or not name.isascii() or len(name) > tarfile.LENGTH_NAME)
    except tarfile.HeaderError:
        same = False
    if not same:
        raise ShardError(
            f'{at.url}: at {at.offset} is not {at.name} of {at.size} bytes: the shard is another than the one that was '
            f'indexed. Index it anew (prepare_data.py shards FOLDER --index), or {WAY_OUT}'
        )


_open: OrderedDict[str, int] = OrderedDict()  # paths and their descriptors, the last used last; reads take no position


def _from_disk(at: Address, begin: int, length: int) -> bytes:
    for again in (True, False):
        try:
            return _pread(_descriptor(at.url), begin, length)
        except OSError as error:
            with contextlib.suppress(KeyError, OSError):
                os.close(_open.pop(at.url))
            if isinstance(error, FileNotFoundError):
                raise ShardError(f'{at.url}: there is no such shard, and {at.name} is in it; {WAY_OUT}') from error
            if not again:  # a stale handle of a network disk is opened once more
                raise ShardError(f'{at.url}: {at.name} cannot be read ({error.strerror}); {WAY_OUT}') from error
    raise AssertionError


def _descriptor(path: str) -> int:
    """Of a shard, opened where it is first read: in each data worker."""
    if path in _open:
        _open.move_to_end(path)
        return _open[path]
    while len(_open) >= MOST_OPEN:
        os.close(_open.popitem(last=False)[1])
    _open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return _open[path]


def _pread(descriptor: int, begin: int, length: int) -> bytes:
    parts = []
    while length and (part := os.pread(descriptor, length, begin)):
        parts.append(part)
        begin, length = begin + len(part), length - len(part)
    return b''.join(parts)


_connections: dict[tuple[int, str, str], http.client.HTTPConnection] = {}  # by process: a forked worker takes its own


def _by_http(at: Address, begin: int, length: int, timeout: float) -> bytes:
    parts = urlsplit(at.url)
    key = (os.getpid(), parts.scheme, parts.netloc)
    connection = _connections.get(key)
    if connection is None:
        kind = http.client.HTTPSConnection if parts.scheme == 'https' else http.client.HTTPConnection
        connection = _connections[key] = kind(parts.netloc, timeout=timeout)
    try:
        wanted = {'Range': f'bytes={begin}-{begin + length - 1}', 'Accept-Encoding': 'identity'}
        target = quote(parts.path, safe="/%:@!$&'()*+,;=~") + (f'?{parts.query}' if parts.query else '')
        connection.request('GET', target, headers=wanted)
        answer = connection.getresponse()
        if answer.status == http.client.PARTIAL_CONTENT:
            promised = answer.length if answer.length is not None else length
            if promised > length:
                raise ShardError(f'{at.url}: the server sends more than the {length} bytes that were asked for')
            block = answer.read(promised)
            if len(block) < promised:
                raise http.client.IncompleteRead(block, promised - len(block))
            answer.close()
            return block
        connection.close()
    except (OSError, http.client.HTTPException):
        connection.close()
        _connections.pop(key, None)
        raise
    said = f'{answer.status} {answer.reason}'
    if answer.status == http.client.OK:
        raise ShardError(f'{at.url}: the server sends whole files only, no ranges (`{said}`): it cannot serve shards')
    if answer.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        return b''  # the file ends before
    if answer.status in (404, 410):
        raise FileNotFoundError(said)
    if answer.status in (408, 425, 429) or answer.status >= 500:
        raise OSError(said)
    raise ShardError(f'{at.url}: the server answers `{said}`: look at the URL, and at who may read it')


def _by_fsspec(at: Address, begin: int, length: int, options: dict) -> bytes:
    """s3://, gs:// and the like: the package of that file system (s3fs, gcsfs, ...) has to be there."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(at.url, **options)
    except ImportError as error:
        raise ShardError(f'{at.url}: {error}') from error
    try:
        return system.cat_file(path, start=begin, end=begin + length)
    except ValueError as error:  # of some file systems, for a range behind the end
        raise ShardError(f'{at.url}: {at.name} cannot be read ({error}); {WAY_OUT}') from error


def is_remote(root: str) -> bool:
    return '://' in root


def check_root(root: str) -> None:
    """Raise ShardError for a root of shards that cannot be read: a scheme that is not known, or no folder."""
    if not is_remote(root):
        if not Path(root).is_dir():
            raise ShardError(f'{root}: there is no such folder of shards')
        return
    scheme, _, rest = root.partition('://')
    if scheme not in (*WITH_RANGES, *BY_FSSPEC) or '://' in rest or '::' in root:
        raise ShardError(f'{root}: shards are read from folders, and by {", ".join((*WITH_RANGES, *BY_FSSPEC))}')
