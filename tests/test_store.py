"""checkpoints/files.py and store.py: whole or not there, found though others are damaged, at whatever moment killed."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from injected import Killed

from beit_mm.checkpoints import files, store
from beit_mm.checkpoints.files import into_place, leftovers
from beit_mm.checkpoints.load import CheckpointError, read, sha256
from beit_mm.checkpoints.store import abandon, entries, newest_verified, point_to, save, training_checkpoints, verify


def training(step: int, run: str = 'a', epoch: int = 0, value: float = 1.0) -> dict:
    """A training checkpoint of 3 x 4000 bytes."""
    weights = {f'w{i}': torch.full((1000,), value + step + i) for i in range(3)}
    meta = dict(iter=step, epoch=epoch, seed=0, beit_mm=dict(run=run))
    return dict(state_dict=weights, optimizer=dict(state={}), message_hub={}, meta=meta)


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('made')
    for step in (8, 16):
        save(training(step), folder / f'iter_{step}.pth')
    save(training(24, epoch=1), folder / 'epoch_1.pth')
    point_to(folder, folder / 'epoch_1.pth')
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """Of a run with checkpoints at steps 8, 16 and 24, the last of which ends an epoch."""
    return Path(shutil.copytree(made, tmp_path / 'w'))


@pytest.fixture
def said(monkeypatch) -> list[str]:
    heard: list[str] = []
    monkeypatch.setattr(store, 'print_log', lambda text, level, **_: heard.append((level, text)))
    return heard


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def test_the_manifest_says_what_a_file_is(folder):
    assert [(e.name, e.step, e.epoch, e.run, e.resumable) for e in entries(folder)] == [
        ('iter_8.pth', 8, 0, 'a', True),
        ('iter_16.pth', 16, 0, 'a', True),
        ('epoch_1.pth', 24, 1, 'a', True),
    ]
    for entry in entries(folder):
        assert entry.sha256 == sha256(folder / entry.name)
        assert entry.bytes == (folder / entry.name).stat().st_size
    assert (folder / 'last_checkpoint').read_text() == 'epoch_1.pth'
    assert newest_verified(folder) == folder / 'epoch_1.pth'  # by its step, not by its number
    (folder / 'epoch_1.pth').unlink()
    assert newest_verified(folder) == folder / 'iter_16.pth'
    save(training(32), folder / 'iter_32.pth')
    assert [e.name for e in entries(folder)] == ['iter_8.pth', 'iter_16.pth', 'iter_32.pth']  # what is gone, goes


def _bit_in_tensor(path: Path) -> None:
    content = path.read_bytes()
    flip(path, content.index(torch.full((1000,), 25.0).numpy().tobytes()) + 2000)


DAMAGES = {
    'truncated by 100 bytes': lambda path: os.truncate(path, path.stat().st_size - 100),
    'cut in half': lambda path: os.truncate(path, path.stat().st_size // 2),
    'empty': lambda path: os.truncate(path, 0),
    'bit in tensor': _bit_in_tensor,
    'bit in header': lambda path: flip(path, 2),
    'bit in pickle': lambda path: flip(path, 200),
    'bit in the directory at its end': lambda path: flip(path, path.stat().st_size - 60),
    'text': lambda path: path.write_text('hello'),
}


@pytest.mark.parametrize('lost', [False, True], ids=['', 'manifest lost'])
@pytest.mark.parametrize('damage', DAMAGES)
def test_a12_damage_is_found_and_said(folder, said, damage, lost):
    """With the manifest by the digest; without it by the checksums inside the file, which torch does not look at."""
    DAMAGES[damage](folder / 'epoch_1.pth')
    if lost:
        (folder / 'checkpoints.json').unlink()
    assert newest_verified(folder) == folder / 'iter_16.pth'
    ((level, text),) = said
    assert level == logging.WARNING
    assert text.startswith(f'{folder}/epoch_1.pth: ')
    assert text.endswith('; an older checkpoint is tried instead')
    assert '\n' not in text
    with pytest.raises(CheckpointError) as error:
        verify(folder / 'epoch_1.pth')
    assert str(error.value).startswith(f'{folder}/epoch_1.pth: ')
    assert str(error.value).endswith(f'. The newest whole one beside it is {folder}/iter_16.pth')
    verify(folder / 'iter_16.pth')


def test_every_bit_of_a_listed_file_counts(tmp_path):
    """And of one that no manifest knows, every bit that decides a weight."""
    save(dict(training(1), state_dict=dict(w=torch.arange(4.0))), tmp_path / 'iter_1.pth')
    whole, expected = (tmp_path / 'iter_1.pth').read_bytes(), torch.arange(4.0)
    for at in range(0, len(whole), 23):
        flip(tmp_path / 'iter_1.pth', at)
        assert newest_verified(tmp_path, quiet=True) is None, at
        (tmp_path / 'iter_1.pth').write_bytes(whole)
    (tmp_path / 'checkpoints.json').unlink()
    for at in range(0, len(whole), 23):
        flip(tmp_path / 'iter_1.pth', at)
        if found := newest_verified(tmp_path, quiet=True):
            assert torch.equal(read(found)['state_dict']['w'], expected), at
        (tmp_path / 'iter_1.pth').write_bytes(whole)


def test_all_are_damaged(folder, said):
    for path in folder.glob('*.pth'):
        path.write_bytes(b'')
    assert newest_verified(folder) is None
    assert [Path(text.split(':')[0]).name for _, text in said] == ['epoch_1.pth', 'iter_16.pth', 'iter_8.pth']
    assert training_checkpoints(folder) == ['epoch_1.pth', 'iter_16.pth', 'iter_8.pth']


POINTERS = {
    'empty': lambda path: path.write_text(''),
    'stale': lambda path: path.write_text('/nowhere/w/iter_4.pth'),
    'bytes': lambda path: path.write_bytes(b'\xff\x00'),
    'deleted': Path.unlink,
}


@pytest.mark.parametrize('lost', [False, True], ids=['', 'manifest lost'])
@pytest.mark.parametrize('pointer', POINTERS)
def test_a13_pointer(folder, pointer, lost):
    POINTERS[pointer](folder / 'last_checkpoint')
    if lost:
        (folder / 'checkpoints.json').unlink()
    moved = folder.with_name('moved')
    assert newest_verified(folder) == folder / 'epoch_1.pth'
    folder.rename(moved)
    assert newest_verified(moved) == moved / 'epoch_1.pth'


def test_a_damaged_manifest_is_no_judge(folder, said):
    """A flipped bit in it must not make a good file look damaged."""
    text = (folder / 'checkpoints.json').read_text()
    digest = entries(folder)[-1].sha256
    (folder / 'checkpoints.json').write_text(text.replace(digest, 'f' * 64))
    assert newest_verified(folder) == folder / 'epoch_1.pth'
    assert said == [
        (logging.WARNING, f'{folder}/checkpoints.json: damaged; the checksums inside the checkpoints decide')
    ]
    assert entries(folder) == []
    assert len(said) == 1
    save(training(32), folder / 'iter_32.pth')
    said.clear()
    assert newest_verified(folder) == folder / 'iter_32.pth'
    assert said == []


def test_a_checkpoint_that_is_gone_is_missed(folder, said):
    """Of what the pointer names, the user learns that an older one is taken."""
    (folder / 'epoch_1.pth').unlink()
    assert newest_verified(folder, quiet=True) == folder / 'iter_16.pth'
    assert said == []
    assert newest_verified(folder) == folder / 'iter_16.pth'
    gone = f'{folder}/epoch_1.pth: is gone, and last_checkpoint names it; an older checkpoint is tried instead'
    assert said == [(logging.WARNING, gone)]


def test_what_is_no_candidate(folder, said):
    """The best ones, published ones, bare weights; and no line is said about them."""
    best = {key: value for key, value in training(99).items() if key != 'optimizer'}
    save(best, folder / 'best_accuracy_top1_iter_99.pth')
    save(best, folder / 'iter_99-12345678.pth')
    torch.save(training(99)['state_dict'], folder / 'iter_99.pth')
    (folder / 'best_mIoU_iter_99.pth').write_bytes(b'')
    (folder / 'iter_x.pth').write_bytes(b'')
    assert newest_verified(folder) == folder / 'epoch_1.pth'
    (folder / 'checkpoints.json').unlink()
    assert newest_verified(folder) == folder / 'epoch_1.pth'
    assert said == []
    assert 'iter_x.pth' not in training_checkpoints(folder)
    assert 'best_mIoU_iter_99.pth' in training_checkpoints(folder)


def test_a_name_of_its_own(tmp_path):
    """By `filename_tmpl`: the manifest knows it, or the pointer."""
    save(training(8), tmp_path / 'ours-8.pth')
    assert newest_verified(tmp_path) == tmp_path / 'ours-8.pth'
    point_to(tmp_path, tmp_path / 'ours-8.pth')
    (tmp_path / 'checkpoints.json').unlink()
    assert newest_verified(tmp_path) == tmp_path / 'ours-8.pth'
    assert training_checkpoints(tmp_path) == ['ours-8.pth']
    os.truncate(tmp_path / 'ours-8.pth', 100)
    assert newest_verified(tmp_path, quiet=True) is None
    assert training_checkpoints(tmp_path) == ['ours-8.pth']


def test_runs(folder):
    """The one that wrote last is gone on with; another's only if it left nothing whole."""
    save(training(4, run='b'), folder / 'iter_4.pth')
    assert newest_verified(folder) == folder / 'iter_4.pth'
    assert newest_verified(folder, run='a') == folder / 'epoch_1.pth'
    (folder / 'iter_4.pth').write_bytes(b'')
    assert newest_verified(folder, quiet=True) == folder / 'epoch_1.pth'


def test_a_run_that_went_on_from_an_earlier_step(folder):
    assert abandon(folder, 'a', 8) == ['epoch_1.pth', 'iter_16.pth']
    assert abandon(folder, 'a', 8) == []
    assert newest_verified(folder) == folder / 'iter_8.pth'
    save(training(16, value=5.0), folder / 'iter_16.pth')
    assert newest_verified(folder) == folder / 'iter_16.pth'


def test_a_run_that_counts_on_from_a_smaller_step(folder):
    """It went on with larger batches, of which an epoch has fewer."""
    save(training(6, epoch=1), folder / 'iter_6.pth')
    assert newest_verified(folder) == folder / 'iter_6.pth'
    save(training(12, epoch=2), folder / 'epoch_2.pth')
    assert newest_verified(folder) == folder / 'epoch_2.pth'
    (folder / 'epoch_2.pth').write_bytes(b'')
    assert newest_verified(folder, quiet=True) == folder / 'iter_6.pth'


def test_no_more_is_read_than_is_needed(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(store, 'sha256', lambda path: seen.append(path.name) or sha256(path))
    newest_verified(folder)
    assert seen == ['epoch_1.pth']


# Killed


def _save_all(folder: Path) -> None:
    """What a run does with max_keep_ckpts=1: a new name, the pointer, the old one goes; then the same name again."""
    save(training(2), folder / 'iter_2.pth')
    point_to(folder, folder / 'iter_2.pth')
    (folder / 'iter_1.pth').unlink(missing_ok=True)
    save(training(2, value=7.0), folder / 'iter_2.pth')


def _places(calls: list[str]) -> list[int]:
    """All that is not a write, and of writes in a row the first, one in the middle, and the last."""
    places, start = [], 0
    for i, name in enumerate([*calls, 'end']):
        if name != 'write':
            places += [*sorted({start, (start + i - 1) // 2, i - 1} if i > start else ()), i]
            start = i + 1
    return places[:-1]


def test_a10_a11_killed_at_every_stage_of_writing(tmp_path):
    """After a kill at any of them all that has a checkpoint's name is whole, and the newest is found."""
    begun = tmp_path / 'begun'
    begun.mkdir()
    save(training(1), begun / 'iter_1.pth')
    point_to(begun, begun / 'iter_1.pth')
    shutil.copytree(begun, tmp_path / 'dry')
    with Killed() as dry:
        _save_all(tmp_path / 'dry')
    assert {'write', 'fsync', 'replace', 'unlink'} == set(dry.calls)
    places = _places(dry.calls)
    assert len(places) >= 30
    steps = []
    for number in places:
        folder = tmp_path / f'killed{number}'
        shutil.copytree(begun, folder)
        if (pid := os.fork()) == 0:
            try:
                Killed(number).__enter__()
                _save_all(folder)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9, dry.calls[number]
        for path in folder.glob('*.pth'):
            verify(path)  # A10
            read(path)
        found = newest_verified(folder)  # A11
        steps.append(read(found)['meta']['iter'])
        listed = {entry.name for entry in entries(folder)}
        assert {path.name for path in folder.glob('*.pth')} <= listed
        left = list(leftovers(folder))
        assert {path.name for path in left} == {path.name for path in folder.glob('.*')}
        for path in left:
            path.unlink()
        save(training(3), folder / 'iter_3.pth')
        assert newest_verified(folder) == folder / 'iter_3.pth'
        verify(found)  # both its digests are still known
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


def test_temporary_files_of_the_living_stay(tmp_path):
    (tmp_path / f'.a.pth.{os.getppid()}.tmp').touch()
    for name in (f'.a.pth.{os.getpid()}.tmp', '.a.pth.999999999.tmp', '.a.pth.99999999999999999999.tmp'):
        (tmp_path / name).touch()
    (tmp_path / '.tmp').touch()
    (tmp_path / '.other.tmp').touch()
    expected = [f'.a.pth.{os.getpid()}.tmp', '.a.pth.999999999.tmp', '.a.pth.99999999999999999999.tmp']
    assert sorted(path.name for path in leftovers(tmp_path)) == sorted(expected)


# A disk that does not take it


@pytest.mark.parametrize('room', [0, 100, 6000, 13000])
def test_a25_full_disk(folder, monkeypatch, room):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    written = 0
    original = files._Counted.write

    class Disk:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            nonlocal written
            written += memoryview(data).nbytes
            if written > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    def write(counted, data):
        counted.file = counted.file if isinstance(counted.file, Disk) else Disk(counted.file)
        return original(counted, data)

    monkeypatch.setattr(files._Counted, 'write', write)
    free = shutil.disk_usage(folder)._replace(free=5_300_000)
    monkeypatch.setattr(store.shutil, 'disk_usage', lambda path: free)
    for name in ('iter_32.pth', 'iter_16.pth'):
        written = 0
        with pytest.raises(CheckpointError) as error:
            save(training(32), folder / name)
        assert str(error.value) == (
            f'{folder}/{name}: not saved: No space left on device. It takes 0.0 MB, 5.3 MB are free. Older '
            f'checkpoints are as they were; when there is room, `--resume` goes on from epoch_1.pth'
        )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_disk_that_does_not_keep_what_it_takes(tmp_path, monkeypatch):
    (tmp_path / 'a').write_bytes(b'old')

    def fsync(fd: int) -> None:
        os.pwrite(fd, b'X', 100)

    monkeypatch.setattr(files.os, 'fsync', fsync)
    with pytest.raises(OSError, match='does not read back as it was; is the disk failing'):
        into_place(tmp_path / 'a', lambda file: file.write(bytes(1000)))
    assert [path.name for path in tmp_path.iterdir()] == ['a']
    assert (tmp_path / 'a').read_bytes() == b'old'


def test_a_large_file_is_digested_while_it_is_written(tmp_path):
    weights = {f'w{i}': torch.randn(300_000) for i in range(10)}
    save(dict(training(1), state_dict=weights), tmp_path / 'iter_1.pth')
    (entry,) = entries(tmp_path)
    assert entry.sha256 == sha256(tmp_path / 'iter_1.pth')
    assert json.loads((tmp_path / 'checkpoints.json').read_text())['checkpoints'][0]['sha256'] == entry.sha256
