"""data/shard_reads.py: shards behind a URL, by ranges, within time-outs, with errors that name the URL."""

import contextlib
import functools
import http.server
import re
import threading
import time

import fsspec
import pytest
import torch
from mmengine.dataset import pseudo_collate
from shards import packed, write_images

from beit_mm.data import shard_reads
from beit_mm.data.samples import seed_samples
from beit_mm.data.sampling import SeededSampler
from beit_mm.data.shard_index import ShardError
from beit_mm.data.shards import TarShards

PIPELINE = [dict(type='beit_mm.LoadImage'), dict(type='PackInputs')]


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files by ranges, keeping the connection; `faults`: what to do instead of answering the next requests."""

    protocol_version = 'HTTP/1.1'
    faults: list[str] = []
    asked: list[tuple[str, str]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers['Range']))
        fault = self.faults.pop(0) if self.faults else ''
        if fault == 'silent':
            time.sleep(3)
        if fault in ('drop', 'silent'):
            self.close_connection = True
            return
        if fault.isdigit():
            self.answer(int(fault), b'')
            return
        try:
            content = open(self.translate_path(self.path), 'rb').read()  # noqa: SIM115
        except OSError:
            self.answer(404, b'')
            return
        begin, end = map(int, re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers['Range']).groups())
        if fault == 'whole':
            self.answer(200, content)
        elif begin >= len(content):
            self.answer(416, b'')
        else:
            part = content[begin : end + 1]
            self.answer(206, part, cut=len(part) // 2 if fault == 'cut' else None)

    def answer(self, status: int, content: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        self.close_connection = cut is not None

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('remote')
    write_images(root / 'src', count=20)
    packed(root / 'src', root / 'in 22k', per_shard=5)
    return root


@pytest.fixture
def server(made):
    """(URL of the shards, its handler)."""
    handler = type('Handler', (Ranges,), dict(faults=[], asked=[]))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(handler, directory=made)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_port}/in 22k', handler
        running.shutdown()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(shard_reads, 'PAUSE', 0.01)


def remote(url, made, **options):
    return TarShards(url, index=str(made / 'in 22k/index'), pipeline=[dict(PIPELINE[0], **options), PIPELINE[1]])


def images(dataset, workers=0):
    seed_samples(dataset)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=4,
        sampler=SeededSampler(dataset, seed=0),
        num_workers=workers,
        collate_fn=pseudo_collate,
        timeout=60 if workers else 0,
    )
    return [image for batch in loader for image in batch['inputs']]


def test_by_ranges(made, server):
    url, handler = server
    local = images(TarShards(str(made / 'in 22k'), pipeline=PIPELINE))
    for workers in (0, 2):
        assert all(torch.equal(a, b) for a, b in zip(images(remote(url, made), workers), local, strict=True))
    assert len(handler.asked) == 40
    info = remote(url, made).get_data_info(3)
    assert info['img_path'].startswith(f'tar+{url}/t-000000.tar@')
    at = shard_reads.parse(info['img_path'])
    asked = ('/in%2022k/t-000000.tar', f'bytes={at.offset - 512}-{at.offset + at.size - 1}')
    assert handler.asked.count(asked) == 2


@pytest.mark.parametrize('fault', ['drop', '503', '429', 'cut'])
def test_what_passes_is_tried_again(made, server, fault):
    url, handler = server
    data = remote(url, made)
    handler.faults[:] = [fault] * 3
    assert torch.equal(data[2]['inputs'], TarShards(str(made / 'in 22k'), pipeline=PIPELINE)[2]['inputs'])
    assert len(handler.asked) == 4


def test_what_does_not_pass_ends_in_time_and_names_the_url(made, server):
    url, handler = server
    data = remote(url, made, backend_args=dict(tries=2, timeout=0.3))
    handler.faults[:] = ['503'] * 9
    with pytest.raises(
        ShardError, match=rf'{url}/t-000000\.tar: n0\S+ cannot be read \(OSError: 503 .*asked for 2 times'
    ):
        data[1]
    assert len(handler.asked) == 2
    handler.faults[:] = ['silent'] * 9
    began = time.monotonic()
    with pytest.raises(ShardError, match=r'cannot be read \(TimeoutError: timed out\), asked for 2 times'):
        data[1]
    assert time.monotonic() - began < 2
    handler.faults.clear()
    with pytest.raises(ShardError, match=r'127\.0\.0\.1:1/x/t-000000\.tar: .*Connection refused'):
        remote('http://127.0.0.1:1/x', made)[0]


@pytest.mark.parametrize(
    ('fault', 'said'),
    [
        ('404', r't-000000\.tar: there is no such shard \(404 Not Found\); put the shard back'),
        ('403', r't-000000\.tar: the server answers `403 Forbidden`: look at the URL'),
        ('302', r't-000000\.tar: the server answers `302 Found`'),
        ('whole', r'the server sends whole files only, no ranges'),
        ('416', r't-000000\.tar: is cut off'),
    ],
)
def test_what_will_not_pass_is_not_tried_again(made, server, fault, said):
    url, handler = server
    handler.faults[:] = [fault] * 9
    with pytest.raises(ShardError, match=said):
        remote(url, made)[0]
    assert len(handler.asked) == 1


def test_a_shard_that_was_replaced_is_noticed(made, server):
    url, _ = server
    path = made / 'in 22k/t-000001.tar'
    kept = path.read_bytes()
    path.write_bytes(kept[1024:])
    try:
        with pytest.raises(ShardError, match=r't-000001\.tar: at \d+ is not n0\S+ of \d+ bytes: the shard is another'):
            remote(url, made)[5]
    finally:
        path.write_bytes(kept)


def test_by_fsspec(made):
    """Any file system that fsspec has; here one in memory."""
    memory = fsspec.filesystem('memory')
    for path in sorted((made / 'in 22k').glob('*.tar')):
        memory.pipe(f'/bucket/{path.name}', path.read_bytes())
    data = remote('memory://bucket', made, backend_args=dict(tries=2))
    local = TarShards(str(made / 'in 22k'), pipeline=PIPELINE)
    assert all(torch.equal(data[i]['inputs'], local[i]['inputs']) for i in range(20))
    memory.rm('/bucket/t-000002.tar')
    with pytest.raises(ShardError, match=r'memory://bucket/t-000002\.tar: there is no such shard'):
        data[12]
    with contextlib.suppress(ImportError):
        import s3fs  # noqa: F401

        return
    with pytest.raises(ShardError, match=r's3://bucket/t-000000\.tar: Install s3fs'):
        remote('s3://bucket', made)[0]
