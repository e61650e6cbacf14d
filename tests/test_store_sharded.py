"""checkpoints/store.py for what several ranks write: whole or not there, whichever rank is killed and when."""

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from faults import config_file
from injected import Killed
from mmengine.runner import checkpoint
from processes import call
from ranks import forked
from tiny import CLASSIFY, tiny
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from beit_mm.benchmark.publish import publish
from beit_mm.checkpoints import store
from beit_mm.checkpoints.files import _Counted, leftovers, remove
from beit_mm.checkpoints.load import CheckpointError, convert_file, read, sha256
from beit_mm.checkpoints.store import (
    abandon,
    as_one_file,
    entries,
    newest_verified,
    point_to,
    save,
    save_sharded,
    training_checkpoints,
    verify,
)
from beit_mm.engine.launch import evaluate, run

RANKS = 2


def training(step: int, run: str = 'a', epoch: int = 0, value: float = 1.0) -> dict:
    """A training checkpoint of 3 x 4000 bytes."""
    weights = {f'w{i}': torch.full((1000,), value + step + i) for i in range(3)}
    meta = dict(iter=step, epoch=epoch, seed=0, beit_mm=dict(run=run))
    return dict(state_dict=weights, optimizer=dict(state={}), message_hub={}, meta=meta)


def save_here(folder: Path, name: str, *args, **kwargs) -> None:
    """On the ranks of a group."""
    mesh, content = init_device_mesh('cpu', (RANKS,)), training(*args, **kwargs)
    weights = {key: distribute_tensor(value, mesh, [Shard(0)]) for key, value in content['state_dict'].items()}
    save_sharded(dict(content, state_dict=weights), folder / name)


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('made')

    def do(rank: int) -> None:
        save_here(folder, 'iter_16.dcp', 16)
        save_here(folder, 'epoch_1.dcp', 24, epoch=1)

    save(training(8), folder / 'iter_8.pth')
    assert forked(RANKS, do) == [None] * RANKS
    point_to(folder, folder / 'epoch_1.dcp')
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """Of a run with a file at step 8 and folders at 16 and 24, the last of which ends an epoch."""
    return Path(shutil.copytree(made, tmp_path / 'w'))


@pytest.fixture
def said(monkeypatch) -> list[str]:
    heard: list[str] = []
    monkeypatch.setattr(store, 'print_log', lambda text, level, **_: heard.append((level, text)))
    return heard


def shard(folder: Path, number: int = 1) -> Path:
    return next(folder.glob(f'shard-0000{number}-*'))


def equal(path: Path, content: dict) -> bool:
    found = read(path)
    weights = found['state_dict']
    return found['meta'] == content['meta'] and all(
        torch.equal(weights[k], v) for k, v in content['state_dict'].items()
    )


def test_the_manifest_says_what_a_folder_is(folder, said):
    assert [(e.name, e.step, e.epoch, e.run, e.resumable) for e in entries(folder)] == [
        ('iter_8.pth', 8, 0, 'a', True),
        ('iter_16.dcp', 16, 0, 'a', True),
        ('epoch_1.dcp', 24, 1, 'a', True),
    ]
    for entry in entries(folder)[1:]:
        files = list((folder / entry.name).iterdir())
        assert len(files) == RANKS + 2
        assert entry.sha256 == sha256(folder / entry.name) == sha256(folder / entry.name / 'files.json')
        assert entry.bytes == sum(path.stat().st_size for path in files)
        verify(folder / entry.name)
    assert newest_verified(folder) == folder / 'epoch_1.dcp'
    assert checkpoint.find_latest_checkpoint(str(folder)) == str(folder / 'epoch_1.dcp')  # as mmengine asks
    assert equal(folder / 'epoch_1.dcp', training(24, epoch=1))
    assert training_checkpoints(folder) == ['epoch_1.dcp', 'iter_16.dcp', 'iter_8.pth']
    assert sorted(path.name for path in folder.iterdir()) == [
        'checkpoints.json', 'epoch_1.dcp', 'iter_16.dcp', 'iter_8.pth', 'last_checkpoint'
    ]  # fmt: skip
    assert said == []


DAMAGES = {
    'a shard cut': (lambda path: os.truncate(shard(path), 100), 'damaged: shard-'),
    'a shard gone': (lambda path: shard(path, 2).unlink(), 'damaged: shard-'),
    'a bit': (lambda path: flip(shard(path, 2)), 'damaged: shard-'),
    'a bit of the rest': (lambda path: flip(next(path.glob('*.pth'))), 'damaged: rest-'),
    'the rest gone': (lambda path: next(path.glob('*.pth')).unlink(), 'damaged: rest-'),
    'the listing gone': (lambda path: (path / 'files.json').unlink(), 'a folder without files.json: no checkpoint'),
    'the listing empty': (lambda path: (path / 'files.json').write_text(''), 'damaged: it'),
    'empty': (lambda path: (shutil.rmtree(path), path.mkdir()), 'a folder without files.json: no checkpoint'),
    'a file': (lambda path: (shutil.rmtree(path), path.write_text('hello')), 'damaged or cut off'),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize('lost', [False, True], ids=['', 'manifest lost'])
@pytest.mark.parametrize('damage', DAMAGES)
def test_a12_damage_is_found_and_said(folder, said, damage, lost):
    do, words = DAMAGES[damage]
    do(folder / 'epoch_1.dcp')
    if lost:
        (folder / 'checkpoints.json').unlink()
    assert newest_verified(folder) == folder / 'iter_16.dcp'
    ((level, text),) = said
    assert level == logging.WARNING
    if damage == 'a file' and not lost:
        words = 'damaged: it has 5 bytes, and '
    assert text.startswith(f'{folder}/epoch_1.dcp: {words}')
    assert text.endswith('; an older checkpoint is tried instead')
    assert '\n' not in text
    with pytest.raises(CheckpointError) as error:
        verify(folder / 'epoch_1.dcp')
    assert str(error.value).startswith(f'{folder}/epoch_1.dcp: {words}')
    assert str(error.value).endswith(f'. The newest whole one beside it is {folder}/iter_16.dcp')
    verify(folder / 'iter_16.dcp')


def test_without_a_manifest(folder, said):
    (folder / 'checkpoints.json').unlink()
    (folder / 'last_checkpoint').unlink()
    assert newest_verified(folder) == folder / 'epoch_1.dcp'
    moved = folder.rename(folder.with_name('moved'))
    assert newest_verified(moved) == moved / 'epoch_1.dcp'
    assert said == []


def test_a_run_that_went_on_from_an_earlier_step(folder):
    assert abandon(folder, 'a', 8) == ['epoch_1.dcp', 'iter_16.dcp']
    assert newest_verified(folder) == folder / 'iter_8.pth'


def test_a_folder_is_replaced(folder, said):
    assert forked(RANKS, lambda rank: save_here(folder, 'iter_16.dcp', 32, value=5.0)) == [None] * RANKS
    assert newest_verified(folder) == folder / 'iter_16.dcp'
    assert equal(folder / 'iter_16.dcp', training(32, value=5.0))
    assert [e.name for e in entries(folder)] == ['iter_8.pth', 'epoch_1.dcp', 'iter_16.dcp']
    assert len(list((folder / 'iter_16.dcp').iterdir())) == RANKS + 2
    assert list(folder.glob('.*')) == []
    assert said == []


def test_it_is_removed_whole(folder, monkeypatch):
    """A process that is killed while it deletes leaves nothing under the name."""
    remove(folder / 'iter_8.pth')
    remove(folder / 'iter_8.pth')
    remove(folder / 'iter_16.dcp')
    names = ['checkpoints.json', 'epoch_1.dcp', 'last_checkpoint']
    assert sorted(path.name for path in folder.iterdir()) == names
    monkeypatch.setattr(store.shutil, 'rmtree', lambda path, **_: path.exists() and shard(path).unlink())
    remove(folder / 'epoch_1.dcp')
    monkeypatch.undo()
    gone = folder / f'.epoch_1.dcp.gone.{os.getpid()}.tmp'
    assert list(leftovers(folder)) == [gone]
    assert training_checkpoints(folder) == ['epoch_1.dcp'][:0]
    remove(gone)
    assert sorted(path.name for path in folder.iterdir()) == ['checkpoints.json', 'last_checkpoint']


def test_a_link_to_a_folder(folder, tmp_path):
    (tmp_path / 'iter_24.dcp').symlink_to(folder / 'epoch_1.dcp')
    assert equal(tmp_path / 'iter_24.dcp', training(24, epoch=1))
    remove(tmp_path / 'iter_24.dcp')
    verify(folder / 'epoch_1.dcp')


# Killed


class KilledAnywhere(Killed):
    """Before what is done to folders, too."""

    things = (*Killed.things, (os, 'mkdir'), (os, 'rename'), (os, 'rmdir'))


def _save_all(folder: Path) -> None:
    """What a run does with max_keep_ckpts=1: a new name, the pointer, the old one goes; then the same name again."""
    first = torch.distributed.get_rank() == 0
    save_here(folder, 'iter_2.dcp', 2)
    if first:
        point_to(folder, folder / 'iter_2.dcp')
        remove(folder / 'iter_1.dcp')
    save_here(folder, 'iter_2.dcp', 2, value=7.0)


@pytest.mark.parametrize('every', [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a10_a11_killed_at_every_stage_of_writing(tmp_path, every):
    """Either of two ranks; in the fast suite at every 13th place. All that has a checkpoint's name is whole, and the
    newest is found."""
    begun = tmp_path / 'begun'
    assert forked(RANKS, lambda rank: save_here(begun, 'iter_1.dcp', 1)) == [None] * RANKS
    point_to(begun, begun / 'iter_1.dcp')

    def dry(rank: int) -> list[str]:
        shutil.copytree(begun, tmp_path / 'dry', dirs_exist_ok=True)
        with KilledAnywhere() as calls:
            _save_all(tmp_path / 'dry')
        return calls.calls

    calls = forked(RANKS, dry)
    assert set(calls[0]) == {'write', 'fsync', 'replace', 'unlink', 'mkdir', 'rename', 'rmdir'}
    assert set(calls[1]) >= {'write', 'fsync'}
    places = [(rank, number) for rank in range(RANKS) for number in _places(calls[rank])]
    assert len(places) >= 60
    steps = []
    for rank, number in places[::every]:
        folder = tmp_path / f'killed{rank}-{number}'
        shutil.copytree(begun, folder)

        def do(own: int, rank: int = rank, number: int = number, folder: Path = folder) -> None:
            if own == rank:
                KilledAnywhere(number).__enter__()
            _save_all(folder)

        ends = forked(RANKS, do, seconds=20)
        assert ends[rank] == -9, (rank, calls[rank][number])
        steps.append((rank, _whole_after(folder, (rank, calls[rank][number]))))
        shutil.rmtree(folder)
    for rank in range(RANKS):
        assert [step for own, step in steps if own == rank] == sorted(step for own, step in steps if own == rank)
    assert {step for _, step in steps} == {1, 2}


def _places(calls: list[str]) -> list[int]:
    """All that is not a write, and of writes in a row the first and the last."""
    own = [i for i, name in enumerate(calls) if name != 'write']
    edges = [i for i, name in enumerate(calls) if name == 'write' and ({i - 1, i + 1} & {*own, -1, len(calls)})]
    return sorted({*own, *edges})


def _whole_after(folder: Path, place) -> int:
    """The step that a run goes on from."""
    for path in folder.glob('[!.]*.dcp'):
        verify(path)  # A10
        read(path)
    found = newest_verified(folder)  # A11
    step = read(found)['meta']['iter']
    assert equal(found, training(step)) or equal(found, training(step, value=7.0)), place
    listed = {entry.name for entry in entries(folder)}
    assert {path.name for path in folder.glob('[!.]*.dcp')} <= listed
    left = list(leftovers(folder))
    assert {path.name for path in left} == {path.name for path in folder.glob('.*')}
    for path in left:
        remove(path)
    save(training(3), folder / 'iter_3.pth')
    assert newest_verified(folder) == folder / 'iter_3.pth'
    verify(found)  # both its digests are still known
    return step


# A disk that does not take it


@pytest.mark.parametrize('rank', range(RANKS))
@pytest.mark.parametrize('room', [0, 100, 4000])
def test_a25_full_disk(folder, monkeypatch, rank, room):
    """Of one rank: all say so; nothing has changed."""
    before = {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob('*')}
    free = shutil.disk_usage(folder)._replace(free=5_300_000)
    monkeypatch.setattr(store.shutil, 'disk_usage', lambda path: free)
    original, written = _Counted.write, []

    def write(counted, data):
        written.append(memoryview(data).nbytes)
        if sum(written) > room:
            counted.failed = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise counted.failed
        return original(counted, data)

    def do(own: int) -> list[str]:
        texts = []
        for name in ('iter_32.dcp', 'iter_16.dcp'):
            if own == rank:
                written.clear()
                monkeypatch.setattr(_Counted, 'write', write)
            with pytest.raises(CheckpointError) as error:
                save_here(folder, name, 32)
            texts.append(str(error.value))
        return texts

    expected = [
        f'{folder}/{name}: not saved: on rank {rank}: No space left on device. It takes 0.0 MB, 5.3 MB are free. Older '
        f'checkpoints are as they were; when there is room, `--resume` goes on from epoch_1.dcp'
        for name in ('iter_32.dcp', 'iter_16.dcp')
    ]
    assert forked(RANKS, do) == [expected] * RANKS
    assert {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob('*')} == before


def test_a_disk_that_does_not_keep_what_it_takes(folder, monkeypatch):
    def do(rank: int) -> str:
        if rank == 1:
            monkeypatch.setattr(os, 'fsync', lambda fd: os.pwrite(fd, b'X', 100))
        with pytest.raises(CheckpointError) as error:
            save_here(folder, 'iter_32.dcp', 32)
        return str(error.value)

    for text in forked(RANKS, do):
        assert 'not saved: on rank 1: ' in text
        assert 'does not read back as it was; is the disk failing?. Older checkpoints are as they' in text
    assert not (folder / 'iter_32.dcp').exists()


def test_a_name_that_is_a_file(folder):
    (folder / 'iter_32.dcp').write_text('of somebody')
    first, second = forked(RANKS, lambda rank: save_here(folder, 'iter_32.dcp', 32))
    assert str(first) == str(second)
    assert str(first).startswith(f'{folder}/iter_32.dcp: not saved: on rank 0: Not a directory. Older checkpoints')
    assert (folder / 'iter_32.dcp').read_text() == 'of somebody'


# As one file


def test_as_one_file(folder, tmp_path):
    out = tmp_path / 'one' / 'iter_24.pth'
    as_one_file(folder / 'epoch_1.dcp', out)
    assert equal(out, training(24, epoch=1))
    assert list(read(out)) == list(training(24))
    verify(out)
    with pytest.raises(CheckpointError, match='is there already'):
        as_one_file(folder / 'epoch_1.dcp', out)
    with pytest.raises(CheckpointError, match=r'a training checkpoint is written to a file that ends in \.pth'):
        as_one_file(folder / 'epoch_1.dcp', tmp_path / 'x.dcp')
    flip(shard(folder / 'epoch_1.dcp'))
    with pytest.raises(CheckpointError, match='its sha256 differs'):
        as_one_file(folder / 'epoch_1.dcp', tmp_path / 'x.pth')
    save(dict(state_dict={}), folder / 'bare.pth')
    with pytest.raises(CheckpointError) as error:
        as_one_file(folder / 'bare.pth', tmp_path / 'x.pth')
    said = f'{folder}/bare.pth: is no training checkpoint: it has no message_hub, meta, optimizer'
    assert str(error.value) == said
    assert not (tmp_path / 'x.pth').exists()


# What takes a checkpoint


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A work_dir with the checkpoint of a tiny classifier after 2 steps, and one beside it that has it as a folder."""
    work_dir = tmp_path_factory.mktemp('trained') / 'one'
    short = {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 9, 'default_hooks.checkpoint.interval': 2}
    run(tiny(CLASSIFY, **short), work_dir=str(work_dir), no_validate=True, seed=3)

    def do(rank: int) -> None:
        mesh, content = init_device_mesh('cpu', (RANKS,)), read(work_dir / 'iter_2.pth')

        def spread(value):
            if isinstance(value, dict):
                return {key: spread(one) for key, one in value.items()}
            return (
                distribute_tensor(value, mesh, [Shard(0)]) if isinstance(value, torch.Tensor) and value.ndim else value
            )

        content.update(state_dict=spread(content['state_dict']))
        content['optimizer'].update(state=spread(content['optimizer']['state']))
        save_sharded(content, work_dir.with_name('two') / 'iter_2.dcp')

    assert forked(RANKS, do) == [None] * RANKS
    point_to(work_dir.with_name('two'), work_dir.with_name('two') / 'iter_2.dcp')
    return work_dir.parent


def alike(one: dict, other: dict) -> bool:
    """Tensors of both, in every bit."""
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_doors_take_a_folder(trained, tmp_path, no_pretty_printing):
    """As they take the file: converting, publishing, testing."""
    found = {}
    for path in (trained / 'one/iter_2.pth', trained / 'two/iter_2.dcp'):
        out = tmp_path / path.suffix[1:]
        convert_file(path, out / 'unilm.pth', None, 'unilm')
        published, lines = publish(str(path), str(out), name='model')
        _, metrics, _ = evaluate(tiny(CLASSIFY), str(path), work_dir=str(out / 'w'))
        found[path.suffix] = read(out / 'unilm.pth')['model'], read(published)['state_dict'], metrics
        assert float(lines[-1].split(' MB')[0].split()[-1]) > 2.5 * published.stat().st_size / 1e6
    assert alike(found['.pth'][0], found['.dcp'][0])
    assert alike(found['.pth'][1], found['.dcp'][1])
    assert found['.pth'][2]['accuracy/top1'] == found['.dcp'][2]['accuracy/top1']


@pytest.mark.slow
def test_one_process_goes_on_from_a_folder(trained, tmp_path):
    """By --resume in its work_dir, and from the one file that it becomes: exactly as from its own file."""
    whole = read(trained / 'one/iter_4.pth')['state_dict']
    config = config_file(tmp_path, CLASSIFY, **{'train_cfg.max_iters': 4, 'train_cfg.val_interval': 9})
    shutil.copytree(trained / 'two', tmp_path / 'w')
    arguments = ('--no-validate', '--cfg-options', 'default_hooks.checkpoint.interval=2')
    code, _, said = call('tools/train.py', config, '--work-dir', tmp_path / 'w', '--resume', *arguments)
    assert code == 0, said
    assert alike(read(tmp_path / 'w/iter_4.pth')['state_dict'], whole)
    one, folder = tmp_path / 'one.pth', trained / 'two/iter_2.dcp'
    code, out, said = call('tools/convert_checkpoint.py', folder, one, '--to', 'training')
    assert (code, said) == (0, '')
    size = f'{one.stat().st_size / 1e6:,.1f} MB'
    assert out == f'{one}: {size}, all of {folder}; a run goes on from it by --resume\n'
    code, _, said = call('tools/train.py', config, '--work-dir', tmp_path / 'v', '--resume', one, *arguments)
    assert code == 0, said
    assert alike(read(tmp_path / 'v/iter_4.pth')['state_dict'], whole)
    code, _, said = call('tools/convert_checkpoint.py', folder, one, '--to', 'training', '--drop', 'head.')
    assert code == 2
    assert said.endswith('--to training changes nothing in a checkpoint: it goes with no other option\n')
