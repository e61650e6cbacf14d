"""engine/resuming.py, and A10 to A14, A25, A26, A41, A42 through tools/train.py, faults injected at a step."""

import errno
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from faults import config_file
from mmengine.config import Config
from processes import call, door_started
from test_store import DAMAGES, training
from tiny import CLASSIFY

from beit_mm.checkpoints.load import CheckpointError, read
from beit_mm.checkpoints.store import entries, save, verify
from beit_mm.engine import launch, resuming
from beit_mm.engine.resuming import choose_start

SHORT = {
    'train_cfg.max_iters': 6,
    'train_cfg.val_interval': 100,
    'train_dataloader.batch_size': 4,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'default_hooks.checkpoint.interval': 2,
    # Of what is random the order of the images alone: whether a run goes on exactly is not the question here
    'train_dataloader.dataset.pipeline': [dict(type='PackInputs')],
    'model.backbone.drop_path_rate': 0.0,
}


def train(config: str, work_dir: Path, *args) -> tuple[int, str]:
    code, out, err = call('tools/train.py', config, '--work-dir', work_dir, *args)
    return code, out + err


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read(path)['state_dict']


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> tuple[str, Path]:
    """(config, work_dir) of an undisturbed run of 6 steps, of which all checkpoints are kept."""
    folder = tmp_path_factory.mktemp('run')
    config = config_file(folder, CLASSIFY, **SHORT, **{'default_hooks.checkpoint.max_keep_ckpts': -1})
    code, said = train(config, folder / 'w')
    assert code == 0, said
    return config, folder / 'w'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'number'), [('write', 20), ('fsync', 0), ('replace', 0), ('replace', 1), ('unlink', 3)]
)
def test_a11_killed_while_saving_with_one_checkpoint_kept(tmp_path, run, name, number):
    """In a write, before the sync, before the manifest has its name and the checkpoint has, before the old one goes."""
    one = {**SHORT, 'default_hooks.checkpoint.max_keep_ckpts': 1}
    killed = config_file(
        tmp_path / 'k', CLASSIFY, dict(type='KillWhileSaving', step=4, name=name, number=number), **one
    )
    code, said = train(killed, tmp_path / 'w')
    assert code == -9, said
    for path in (tmp_path / 'w').glob('*.pth'):
        verify(path)
    code, said = train(config_file(tmp_path, CLASSIFY, **one), tmp_path / 'w', '--resume')
    assert code == 0, said
    assert re.search(r'resumed epoch: 0, iter: [24]\b', said)
    assert [path.name for path in (tmp_path / 'w').glob('*.pth')] == ['iter_6.pth']
    assert list((tmp_path / 'w').glob('.*')) == []
    assert_equal(weights(tmp_path / 'w' / 'iter_6.pth'), weights(run[1] / 'iter_6.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('damage', ['truncated by 100 bytes', 'empty', 'bit in tensor'])
def test_a12_damage_is_said_and_the_one_before_taken(tmp_path, run, damage):
    config, whole = run
    work = Path(shutil.copytree(whole, tmp_path / 'moved'))  # A13: another place
    path = work / 'iter_6.pth'
    if damage == 'bit in tensor':
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    else:
        DAMAGES[damage](path)
    (work / 'last_checkpoint').write_text('')
    code, said = train(config, work, '--resume', path)
    assert code == 1
    assert f'\nerror: {path}: damaged' in said or f'\nerror: {path}: the file is empty' in said
    assert f'The newest whole one beside it is {work}/iter_4.pth' in said
    code, said = train(config, work, '--resume')
    assert code == 0, said
    assert re.search(rf'WARNING - {path}: .*; an older checkpoint is tried instead\n', said)
    assert 'resumed epoch: 0, iter: 4' in said
    assert_equal(weights(path), weights(whole / 'iter_6.pth'))


@pytest.mark.slow
def test_a14_never_from_step_0_without_a_word(tmp_path, run):
    config, whole = run
    code, said = train(config, tmp_path / 'new', '--resume')
    assert code == 1
    assert said.strip().splitlines()[-1] == (
        f'error: {tmp_path}/new: there is no checkpoint to resume from. To start at step 0 if there is none: '
        f'--resume auto'
    )
    work = Path(shutil.copytree(whole, tmp_path / 'w'))
    (work / 'last_checkpoint').unlink()
    (work / 'checkpoints.json').unlink()
    code, said = train(config, work, '--resume')
    assert (code, 'resumed epoch: 0, iter: 6' in said) == (0, True), said
    for path in work.glob('*.pth'):
        path.write_bytes(b'')
    for wish in (['--resume'], ['--resume', 'auto']):
        code, said = train(config, work, *wish)
        assert code == 1
        assert (
            f'error: {work}: no run can go on from any of the checkpoints there (iter_2.pth, iter_4.pth, iter_6.pth); '
            f'the warnings say why. To start at step 0: another --work-dir' in said
        )
        assert said.count('WARNING') == 3


@pytest.mark.slow
def test_a25_full_disk(tmp_path, run):
    config = config_file(tmp_path / 'full', CLASSIFY, dict(type='FullDisk', step=4, room=50_000), **SHORT)
    code, said = train(config, tmp_path / 'w')
    assert code == 1
    end = said[said.index('\nerror: ') :].strip().splitlines()
    assert len(end) <= 3
    assert re.fullmatch(
        rf'error: {tmp_path}/w/iter_4\.pth: not saved: No space left on device\. It takes 0\.\d MB, [\d,.]+ MB are '
        r'free\. Older checkpoints are as they were; when there is room, `--resume` goes on from iter_2\.pth',
        end[0],
    )
    assert sorted(path.name for path in (tmp_path / 'w').glob('*.pth')) == ['iter_2.pth']
    assert list((tmp_path / 'w').glob('.*')) == []
    code, said = train(run[0], tmp_path / 'w', '--resume')
    assert code == 0, said
    assert_equal(weights(tmp_path / 'w' / 'iter_6.pth'), weights(run[1] / 'iter_6.pth'))


@pytest.mark.slow
def test_a23_no_checkpoint_of_a_nan(tmp_path):
    config = config_file(tmp_path, CLASSIFY, dict(type='SpoilWeight', step=4), **SHORT)
    code, _ = train(config, tmp_path / 'w')
    assert code == 1
    assert [path.name for path in (tmp_path / 'w').glob('*.pth')] == ['iter_2.pth']
    verify(tmp_path / 'w' / 'iter_2.pth')


@pytest.mark.slow
def test_a26_a_checkpoint_folder_that_cannot_be_written(tmp_path):
    """A file in the place of the folder: rights do not stop root."""
    (tmp_path / 'out').touch()
    options = {'default_hooks.checkpoint.out_dir': str(tmp_path / 'out')}
    code, said = train(config_file(tmp_path, CLASSIFY, **SHORT, **options), tmp_path / 'w')
    assert code == 1
    assert said.strip().splitlines()[-1] == (
        f'error: {tmp_path}/out/w cannot be written (Not a directory); give default_hooks.checkpoint.out_dir another '
        f'one'
    )
    assert 'Iter(train)' not in said


def test_a26_a_folder_without_the_right_to_write(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(launch.tempfile, 'TemporaryFile', refuse)
    with pytest.raises(PermissionError, match=r'o cannot be written \(Permission denied\); give another'):
        launch.check_writable(tmp_path / 'o', 'give another')


@pytest.mark.slow
def test_a41_two_runs_in_one_work_dir(tmp_path, run):
    """The second while the first is stopped in its third step; then the first is killed, and holds nothing."""
    config = config_file(tmp_path, CLASSIFY, dict(type='SignalAt', step=3, signal='SIGSTOP'), **SHORT)
    with door_started('tools/train.py', config, '--work-dir', tmp_path / 'w') as first:
        while not (tmp_path / 'w' / 'iter_2.pth').is_file():  # it goes no further than its third step
            time.sleep(0.05)
        for wish in ([], ['--resume'], ['--resume', 'auto']):
            code, said = train(run[0], tmp_path / 'w', *wish)
            assert code == 1
            assert f'error: {tmp_path}/w: another run is training here: pid {first.pid} on ' in said
        first.send(9)
        assert first.wait() == -9
    code, said = train(run[0], tmp_path / 'w', '--resume')
    assert code == 0, said


@pytest.mark.slow
def test_a42_a_used_work_dir(tmp_path, run):
    config, whole = run
    work = Path(shutil.copytree(whole, tmp_path / 'w'))
    before = {path.name: path.read_bytes() for path in work.iterdir() if path.is_file() and path.name != 'run.lock'}
    for wish in ([], ['--load-from', whole / 'iter_2.pth']):
        code, said = train(config, work, *wish)
        assert code == 1
        end = said[said.index('\nerror: ') :].strip().splitlines()
        assert end[0].startswith(f'error: {work}: has the checkpoints of a run (iter_2.pth, iter_4.pth, iter_6.pth), ')
        assert len(end) == 4
    after = {path.name: path.read_bytes() for path in work.iterdir() if path.is_file() and path.name != 'run.lock'}
    assert after == before
    config_of_training = (work / Path(config).name).read_bytes()
    code, out, err = call('tools/test.py', config, work / 'iter_6.pth', '--work-dir', work)
    assert code == 0, out + err
    assert (work / Path(config).name).read_bytes() == config_of_training


@pytest.mark.slow
@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_finished_run_says_that_it_is(tmp_path, run, by_epoch):
    config, whole = run
    if by_epoch:
        epochs = {
            **{key: value for key, value in SHORT.items() if 'train_cfg' not in key},
            'train_cfg': dict(_delete_=True, by_epoch=True, max_epochs=1),
            'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True),
            'default_hooks.checkpoint.by_epoch': True,
            'default_hooks.checkpoint.interval': 1,
        }
        config = config_file(tmp_path, CLASSIFY, **epochs)
        assert train(config, tmp_path / 'w')[0] == 0
    work = tmp_path / 'w' if by_epoch else Path(shutil.copytree(whole, tmp_path / 'w'))
    written = sorted(path.name for path in work.glob('*.pth'))
    code, said = train(config, work, '--resume')
    assert code == 0, said
    done = 'all 1 epochs are done' if by_epoch else 'all 6 iterations are done'
    assert f'nothing is left to train: {done}, which train_cfg asks for\n' in said
    assert 'Saving checkpoint' not in said
    assert said.count(f'{work}/{written[-1]}') == 1  # one line says what is loaded
    assert sorted(path.name for path in work.glob('*.pth')) == written


@pytest.mark.slow
def test_back_to_an_earlier_step(tmp_path, run):
    """`--resume FILE` of an older one: what lies beyond is no longer what `--resume` takes."""
    config, whole = run
    work = Path(shutil.copytree(whole, tmp_path / 'w'))
    killed = config_file(tmp_path, CLASSIFY, dict(type='SignalAt', step=3, signal='SIGKILL'), **SHORT)
    code, said = train(killed, work, '--resume', work / 'iter_2.pth')
    assert code == -9
    gone = 'What it had written of later steps is taken by `--resume` no more: iter_4.pth, iter_6.pth'
    assert f'{work}: this run goes on from step 2. {gone}' in said
    code, said = train(config, work, '--resume')
    assert code == 0
    assert 'resumed epoch: 0, iter: 2' in said
    assert len({entry.run for entry in entries(work)}) == 1


# The choice itself


def chosen(work_dir: Path, resume=None, seed: int | None = None, own: int | None = None, asked=()) -> Config:
    config = Config(dict(work_dir=str(work_dir), randomness=dict(seed=own), **dict(asked)))
    choose_start(config, resume, seed=seed)
    return config


def test_a08_the_seed_of_the_run_that_goes_on(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(resuming, 'print_log', lambda text, **_: said.append(text))
    save(dict(training(3), meta=dict(iter=3, epoch=0, seed=7)), tmp_path / 'iter_3.pth')
    for wishes in (dict(), dict(own=7), dict(seed=7), dict(seed=7, own=8)):
        config = chosen(tmp_path, True, **wishes)
        assert (config.load_from, config.resume) == (f'{tmp_path}/iter_3.pth', True)
        assert config.randomness.seed == 7
    assert said == []
    for wishes in (dict(own=8), dict(seed=8), dict(seed=8, own=7)):
        assert chosen(tmp_path, str(tmp_path / 'iter_3.pth'), **wishes).randomness.seed == 7
        assert said.pop() == (
            'seed 8 was asked for, and the run that goes on has seed 7, which it keeps: with another it would be '
            'another run. For that, give a new --work-dir'
        )
    assert chosen(tmp_path / 'new', 'auto', seed=8, own=9).randomness.seed == 8
    assert chosen(tmp_path / 'new', None, own=9).randomness.seed == 9
    drawn = {chosen(tmp_path / 'new', 'auto').randomness.seed for _ in range(5)}
    assert len(drawn) > 1


def test_a_config_can_ask_to_resume(tmp_path):
    """As in mmengine: resume=True alone starts at step 0 if there is nothing."""
    path = f'{tmp_path}/iter_3.pth'
    assert chosen(tmp_path, asked={'resume': True}).resume is False
    save(training(3), path)
    assert chosen(tmp_path, asked={'resume': True}).load_from == path
    assert chosen(tmp_path, asked={'resume': True, 'load_from': path}).resume is True
    assert chosen(tmp_path, asked={'load_from': path}).resume is False
    with pytest.raises(CheckpointError, match='there is no such checkpoint'):
        chosen(tmp_path, str(tmp_path / 'iter_5.pth'))


def test_an_epoch_that_never_ends_is_refused(tmp_path):
    """Epochs counted over an InfiniteSampler: training went on, and on, without a checkpoint."""
    epochs = {key: value for key, value in SHORT.items() if 'train_cfg' not in key}
    epochs['train_cfg'] = dict(_delete_=True, by_epoch=True, max_epochs=1)
    code, said = train(config_file(tmp_path, CLASSIFY, **epochs), tmp_path / 'w')
    assert code == 1
    assert 'error: train_dataloader.sampler: an InfiniteSampler, whose first epoch never ends' in said
