"""engine/work_dir.py and locking.py: one run in a folder, and never over another run's checkpoints."""

import os
import re
import signal
import socket
from pathlib import Path

import pytest
from mmengine.config import Config
from test_store import training

from beit_mm.checkpoints.store import save
from beit_mm.engine.errors import ConfigError
from beit_mm.engine.locking import acquire, holder
from beit_mm.engine.work_dir import WorkDirError, alone, checkpoint_folder, refuse_used, remove_leftovers


def test_a41_the_second_is_refused(tmp_path):
    with alone(tmp_path), pytest.raises(WorkDirError) as error, alone(tmp_path):
        pass
    assert re.fullmatch(
        rf'{tmp_path}: another run is training here: pid {os.getpid()} on {socket.gethostname()} since '
        r'\d{4}-\d\d-\d\d \d\d:\d\d\. Wait for it or end it, or give this one a folder of its own: --work-dir',
        str(error.value),
    )
    with alone(tmp_path):  # the first has ended
        assert holder(tmp_path / 'run.lock')['pid'] == os.getpid()
    assert holder(tmp_path / 'run.lock') is None


def test_a41_the_first_rank_holds_it(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with alone(tmp_path, 'pytorch'):
        assert holder(tmp_path / 'run.lock') is None
    monkeypatch.setenv('RANK', '0')
    with alone(tmp_path, 'pytorch'):
        assert holder(tmp_path / 'run.lock')['pid'] == os.getpid()


@pytest.mark.parametrize('inherited', [False, True])
def test_a41_a_killed_run_holds_nothing(tmp_path, inherited):
    """Nor do the data workers that it leaves behind: a lock that forks inherit is theirs too."""
    reading, writing = os.pipe()
    if (run := os.fork()) == 0:
        lock = acquire(tmp_path / 'lock', inherited=inherited)
        lock.say(os.getpid())
        if (worker := os.fork()) == 0:
            os.write(writing, b'ready')
            signal.pause()
        os.write(writing, str(worker).encode())
        signal.pause()
    said = b''
    while not re.fullmatch(rb'(ready\d+|\d+ready)', said):
        said += os.read(reading, 100)
    worker = int(re.sub(rb'\D', b'', said))
    try:
        assert holder(tmp_path / 'lock')['pid'] == run
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
        os.kill(worker, 0)  # is still there
        taken = acquire(tmp_path / 'lock')
        assert (taken is None) == inherited
        if taken:
            taken.release()
    finally:
        os.kill(worker, signal.SIGKILL)


def config(work_dir: Path, resume: Path | None = None, **checkpoint) -> Config:
    return Config(
        dict(
            work_dir=str(work_dir),
            resume=resume is not None,
            load_from=str(resume or 'weights.pth'),
            default_hooks=dict(checkpoint=checkpoint),
        )
    )


def test_a42_a_used_folder(tmp_path):
    work = tmp_path / 'w'
    refuse_used(config(work))
    for step in (1, 2, 3, 4):
        save(training(step), work / f'iter_{step}.pth')
    with pytest.raises(WorkDirError) as error:
        refuse_used(config(work))
    assert str(error.value).splitlines() == [
        f'{work}: has the checkpoints of a run (iter_1.pth, iter_2.pth, ..., iter_4.pth), and this is a new run, which '
        f'would write over them. Either',
        '    go on with that run:            --resume',
        '    or give this one a new folder:  --work-dir DIR',
        '    or move the old checkpoints away, or remove them',
    ]
    refuse_used(config(work, work / 'iter_2.pth'))
    save(training(9), tmp_path / 'iter_9.pth')
    refuse_used(config(work, tmp_path / 'iter_9.pth'))  # a copy of the same run
    save(training(9, run='other'), tmp_path / 'iter_9.pth')
    with pytest.raises(WorkDirError, match=r'and this run goes on from .*iter_9\.pth, which would write over them'):
        refuse_used(config(work, tmp_path / 'iter_9.pth'))


@pytest.mark.parametrize(
    ('name', 'refused'),
    [('epoch_3.pth', True), ('best_mIoU_iter_3.pth', True), ('weights.pth', False), ('iter_3.pth.bak', False)],
)
def test_a42_what_counts(tmp_path, name, refused):
    (tmp_path / name).touch()
    if refused:
        with pytest.raises(WorkDirError):
            refuse_used(config(tmp_path))
    else:
        refuse_used(config(tmp_path))


def test_a_folder_of_its_own_for_checkpoints(tmp_path):
    assert checkpoint_folder(config(tmp_path / 'w', out_dir=str(tmp_path / 'o'))) == tmp_path / 'o' / 'w'
    assert checkpoint_folder(config(tmp_path / 'w')) == tmp_path / 'w'
    save(training(1), tmp_path / 'o' / 'w' / 'iter_1.pth')
    with pytest.raises(WorkDirError, match=str(tmp_path / 'o' / 'w')):
        refuse_used(config(tmp_path / 'w', out_dir=str(tmp_path / 'o')))
    with pytest.raises(ConfigError, match=r'out_dir=s3://bucket/w: checkpoints are written to a disk'):
        checkpoint_folder(config(tmp_path / 'w', out_dir='s3://bucket/w'))


def test_what_a_killed_run_left_is_removed(tmp_path):
    for folder in (tmp_path / 'w', tmp_path / 'o' / 'w'):
        folder.mkdir(parents=True)
        (folder / '.iter_8.pth.999999999.tmp').touch()
        (folder / '.iter_8.dcp.999999999.tmp').mkdir()
        (folder / '.iter_8.dcp.999999999.tmp/rest-a.pth').touch()
        (folder / f'.iter_8.pth.{os.getppid()}.tmp').touch()
    remove_leftovers(config(tmp_path / 'w', out_dir=str(tmp_path / 'o')))
    assert [path.name for path in tmp_path.rglob('*.tmp')] == [f'.iter_8.pth.{os.getppid()}.tmp'] * 2
