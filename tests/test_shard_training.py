"""Training on shards, through tools/train.py: as on files; lost shards end it in time; it goes on exactly."""

import shutil

import pytest
from faults import config_file
from processes import call
from ranks import ranks_started
from shards import packed, write_images
from test_ranks import farthest
from test_resume import differences, steps_in
from tiny import CLASSIFY

from beit_mm.checkpoints.load import read
from beit_mm.data.shard_sampler import Row
from beit_mm.data.shards import TarShards
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import run

SEED, STEPS, BATCH = 3, 6, 4
WHOLE = ('state_dict', 'optimizer', 'param_schedulers', 'message_hub')
BLIND = dict(type='beit_mm.PreflightHook', sample=0)  # else it opens all shards, and what is open stays
PIPELINE = [
    dict(type='beit_mm.LoadImage', color_type='grayscale'),
    dict(type='RandomResizedCrop', scale=64),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Noise'),
    dict(type='PackInputs'),
]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('made')
    write_images(root / 'src', count=24, classes=12, size=20)
    packed(root / 'src', root / 's', per_shard=4)
    return root


@pytest.fixture
def shards(made, tmp_path):
    return shutil.copytree(made / 's', tmp_path / 's')


def last_shard(folder) -> str:
    """The shard that a pass reads last: of the fifth and the sixth step."""
    data = TarShards(str(folder))
    return data.index.shards[Row(data.shard_lengths, 1, 1, SEED, 0).shards[-1]].name


def options(folder, dataset='beit_mm.TarShards', sampler=True, workers=0, **more):
    own = dict(type='beit_mm.ShardInfiniteSampler', window=1, lanes=1)
    return {
        'train_dataloader.dataset': dict(_delete_=True, type=dataset, data_root=str(folder), pipeline=PIPELINE),
        'train_dataloader.sampler': dict(own if sampler else dict(type='InfiniteSampler'), _delete_=True),
        'train_dataloader.batch_size': BATCH,
        'train_dataloader.num_workers': workers,
        'train_cfg.max_iters': STEPS,
        'train_cfg.val_interval': 100,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'model.backbone.drop_path_rate': 0.3,
        **more,
    }


def recorder(folder):
    return dict(type='Recorder', file=str(folder / 'steps.jsonl'))


def train(folder, config, *args):
    work_dir = str(folder / 'w')
    return call('tools/train.py', config, '--work-dir', work_dir, '--no-validate', '--seed', SEED, *args)


def test_shards_train_as_files_do(made, tmp_path):
    """In the order of mmengine's sampler: the same batches, losses and weights, bit by bit."""
    packed(made / 'src', tmp_path / 'listed', order='list', per_shard=5)
    for name, dataset, root in (
        ('files', 'beit_mm.ImageList', made / 'src/train'),
        ('shards', 'beit_mm.TarShards', tmp_path / 'listed'),
    ):
        folder = tmp_path / name
        few = {'train_cfg.max_iters': 2, 'default_hooks.checkpoint.interval': 2}
        config = config_file(folder, CLASSIFY, recorder(folder), **options(root, dataset, sampler=False, **few))
        run(load_config(config), work_dir=str(folder / 'w'), no_validate=True, seed=SEED)
    files, tars = ([(s['loss'], s['lr']) for s in steps_in(tmp_path / name)] for name in ('files', 'shards'))
    assert files == tars  # a batch's digest has the paths in it
    a, b = (read(tmp_path / name / 'w/iter_2.pth') for name in ('files', 'shards'))
    assert [d for part in WHOLE for d in differences(a[part], b[part], part)] == []


def check_lost(shards, tmp_path, workers, **fault):
    whole = tmp_path / 'whole'
    code, _, err = train(
        whole, config_file(whole, CLASSIFY, recorder(whole), BLIND, **options(shards, workers=workers))
    )
    assert code == 0, err
    name, folder = last_shard(shards), tmp_path / 'lost'
    kept = (shards / name).read_bytes()
    loss = dict(type='RemoveAt', step=2, file=str(shards / name), **fault)
    config = config_file(folder, CLASSIFY, recorder(folder), BLIND, loss, **options(shards, workers=workers))
    code, _, err = train(folder, config)
    assert code == 1
    said = 'is cut off: it ends' if fault else 'there is no such shard'
    assert f'error: {shards}/{name}: {said}' in err
    assert err.rstrip().count('\n') <= 15
    done = len(steps_in(folder))
    assert 2 <= done < STEPS
    code, _, err = train(folder, config, '--resume')  # without it, before anything is built
    assert code == 1
    assert f'{shards}: 1 of 6 shards are not what the index says: {name}' in err
    (shards / name).write_bytes(kept)
    code, _, err = train(folder, config_file(folder, CLASSIFY, recorder(folder), BLIND, **options(shards)), '--resume')
    assert code == 0, err
    assert steps_in(folder) == steps_in(whole)
    a, b = (read(place / 'w/iter_6.pth') for place in (whole, folder))
    assert [d for part in WHOLE for d in differences(a[part], b[part], part)] == []


@pytest.mark.slow
def test_a_shard_is_lost(shards, tmp_path):
    check_lost(shards, tmp_path, workers=1)


@pytest.mark.slow
def test_a_shard_is_cut_off(shards, tmp_path):
    check_lost(shards, tmp_path, 0, keep=700)


@pytest.mark.slow
def test_a_shard_is_lost_on_four_ranks(shards, tmp_path):
    """The rank that needs it says so; all end with 1 within the time-out; one process goes on from there, exactly."""
    name = last_shard(shards)
    loss = dict(type='RemoveAt', step=2, file=str(shards / name))
    few = {'train_dataloader.batch_size': 1, 'env_cfg.dist_cfg': dict(backend='gloo', timeout=20)}
    config = config_file(tmp_path, CLASSIFY, BLIND, loss, **options(shards, **few))
    args = ['tools/train.py', config, '--work-dir', tmp_path / 'w', '--no-validate', '--seed', SEED]
    with ranks_started(4, *args) as ranks:
        codes = [rank.wait(90) for rank in ranks]
        said = [rank.stderr() for rank in ranks]
    assert codes == [1, 1, 1, 1]
    assert any(f'{shards}/{name}: there is no such shard' in text for text in said)
    assert 2 <= len(list((tmp_path / 'w').glob('iter_*.pth'))) < STEPS
    (shards / name.replace('.tar', '.lost')).rename(shards / name)
    with ranks_started(4, *args, '--resume') as ranks:
        assert [rank.wait(90) for rank in ranks] == [0] * 4
    whole = config_file(tmp_path / 'whole', CLASSIFY, **options(shards, **few))
    with ranks_started(4, args[0], whole, '--work-dir', tmp_path / 'whole/w', *args[4:]) as ranks:
        assert [rank.wait(90) for rank in ranks] == [0] * 4
    a, b = (read(place / 'w/iter_6.pth')['state_dict'] for place in (tmp_path, tmp_path / 'whole'))
    assert farthest(a, b)[0] < 1e-6  # not to the bit: DDP groups gradients anew after its first step, and sums change
