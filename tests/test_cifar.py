"""data/cifar.py: the archive is fetched on request only, checked, and unpacked into its own folder and nowhere else."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from beit_mm.data import cifar
from beit_mm.data.cifar import CIFAR10, CIFAR100
from beit_mm.data.export import export


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A stand-in for the site: an archive of CIFAR's files of other pixels, with things in it that do not belong."""
    export(tmp_path / 'made', 'cifar', train=10, val=2, size=32)
    folder = tmp_path / 'made' / CIFAR10.FOLDER
    archive = tmp_path / 'site.tar.gz'
    with tarfile.open(archive, 'w:gz') as tar:
        tar.add(folder, CIFAR10.FOLDER)
        for name in ('../outside.txt', '/tmp/beit_mm_outside.txt', f'{CIFAR10.FOLDER}/../../up.txt'):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b'evil'))
    asked = []

    def download(url, path):
        asked.append(url)
        Path(path).write_bytes(archive.read_bytes())

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    monkeypatch.setattr(CIFAR10, 'ARCHIVE_MD5', hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, 'MD5S', json.loads((folder / 'md5s.json').read_text()))
    return asked


def test_the_published_addresses():
    site = 'https://www.cs.toronto.edu/~kriz'
    assert [(kind.URL, kind.ARCHIVE_MD5) for kind in (CIFAR10, CIFAR100)] == [
        (f'{site}/cifar-10-python.tar.gz', 'c58f30108f718f92721af3b95e74349a'),
        (f'{site}/cifar-100-python.tar.gz', 'eb9058c3a382ffc7106e4002c42a8d85'),
    ]


def test_download_only_on_request(tmp_path, published):
    root = tmp_path / 'data'
    with pytest.raises(FileNotFoundError, match=r'batches\.meta: not found\. .*download=True'):
        CIFAR10(str(root), pipeline=[])
    assert published == []
    data = CIFAR10(str(root), pipeline=[], download=True)
    assert published == [CIFAR10.URL]
    there = CIFAR10(str(tmp_path / 'made'), pipeline=[])
    assert len(data) == 10
    for mine, theirs in zip(data, there, strict=True):
        np.testing.assert_array_equal(mine['img'], theirs['img'])
    CIFAR10(str(root), pipeline=[], split='test', download=True)
    assert published == [CIFAR10.URL]  # nothing is fetched twice
    (root / CIFAR10.FOLDER / 'test_batch').unlink()
    CIFAR10(str(root), pipeline=[], split='test', download=True)
    assert published == [CIFAR10.URL]  # the archive was still there


def test_nothing_is_written_elsewhere(tmp_path, published):
    before = set(tmp_path.rglob('*'))
    CIFAR10(str(tmp_path / 'data'), pipeline=[], download=True)
    new = {str(path.relative_to(tmp_path)) for path in set(tmp_path.rglob('*')) - before}
    files = {f'data/{CIFAR10.FOLDER}/{name}' for name in CIFAR10.MD5S}
    assert new == files | {'data', f'data/{CIFAR10.FOLDER}', 'data/cifar-10-python.tar.gz'}


def test_wrong_archives(tmp_path, published, monkeypatch):
    archive = tmp_path / 'cifar-10-python.tar.gz'
    archive.write_bytes(b'something else')
    with pytest.raises(ValueError, match=r'cifar-10-python\.tar\.gz: md5 is \w+, expected \w+; remove it'):
        CIFAR10(str(tmp_path), pipeline=[], download=True)
    assert published == []
    with pytest.raises(ValueError, match=r'cannot be unpacked into .*cifar-10-batches-py'):
        cifar.unpack(archive, tmp_path / CIFAR10.FOLDER, ['test_batch'])
    with tarfile.open(archive, 'w:gz') as tar:
        member = tarfile.TarInfo(f'{CIFAR10.FOLDER}/test_batch')
        member.type, member.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(member)
    with pytest.raises(ValueError, match='test_batch is no plain file'):
        cifar.unpack(archive, tmp_path / CIFAR10.FOLDER, ['test_batch'])


def test_without_a_network(tmp_path, monkeypatch):
    def fail(url, path):
        raise OSError('no route to host')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    with pytest.raises(
        ConnectionError, match=r'cifar-100-python\.tar\.gz: not downloaded \(no route to host\)\. .* put it'
    ):
        CIFAR100(str(tmp_path), pipeline=[], download=True)
