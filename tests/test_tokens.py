"""Token caches, data/tokens.py, engine/tokens.py and engine/token_maker.py: made whole or not at all, the same tokens
as computed on the fly, and refused where they are of something else."""

import copy
import fcntl
import json
import runpy
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from PIL import Image

from beit_mm.checkpoints.load import sha256, write
from beit_mm.data import transforms
from beit_mm.data.sampling import Draw, SeededSampler
from beit_mm.data.tokens import TokenCacheError, TokensFromCache, read_manifest
from beit_mm.engine import token_maker
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import run
from beit_mm.engine.recipe import recipe_of
from beit_mm.engine.token_maker import make
from beit_mm.engine.tokens import TokenCacheHook, data_digest
from beit_mm.registry import DATA_SAMPLERS, DATASETS, MODELS, TRANSFORMS

pytestmark = pytest.mark.usefixtures('no_pretty_printing')
PLAIN = 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py'
CACHED = 'configs/pretrain/beit-mini-p8_dvae-tokens_1xb48-1500_embedded-64.py'
VIEWS, IMAGES = 3, 20
SMALL = {
    'model.backbone.arch': dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48, _delete_=True),
    'model.head.embed_dims': 24,
    'train_dataloader.dataset.length': IMAGES,
    'train_dataloader.batch_size': 10,
    'val_dataloader.dataset.length': 4,
    'test_dataloader.dataset.length': 4,
}


@TRANSFORMS.register_module()
class SameViews(BaseTransform):
    """What TokensFromCache does to the views, without a cache."""

    def __init__(self, views):
        self.views = views

    def transform(self, results):
        return dict(results, num_views=self.views)


@TRANSFORMS.register_module()
class GlobalNoise(BaseTransform):
    """A transform of another project: it draws from NumPy's own generator."""

    def transform(self, results):
        noise = np.random.randint(0, 9, results['img'].shape)
        return dict(results, img=(results['img'] // 2 + noise).astype(np.uint8))


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    """A file of random weights whose tokens are many."""
    torch.manual_seed(3)
    built = MODELS.build(load_config(PLAIN).model.target.tokenizer)
    for parameter in built.parameters():
        if parameter.ndim == 1:
            parameter.data.zero_()
    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.pth'
    write(dict(state_dict=built.state_dict()), path)
    return str(path)


def config(tokenizer, cache, path=CACHED, **changes):
    options = {**SMALL, 'model.target.checkpoint': tokenizer}
    if path == CACHED:
        options['train_dataloader.dataset.pipeline.0.cache'] = str(cache)
        options['train_dataloader.dataset.pipeline.0.views'] = VIEWS
    return load_config(path, copy.deepcopy({**options, **changes}))


@pytest.fixture(scope='module')
def cache(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cache') / 'tokens'
    make(config(tokenizer, folder), jobs=0)
    return folder


def dataset_of(config):
    return DATASETS.build(copy.deepcopy(config.train_dataloader.dataset))


def test_samples_are_those_of_their_view_with_a_mask_of_their_epoch(cache, tokenizer):
    """Of seven epochs: patches and tokens of epoch mod 3, the mask of the epoch itself; no second view is made."""
    cached, plain = (dataset_of(config(tokenizer, cache, path)) for path in (CACHED, PLAIN))
    model = MODELS.build(dict(config(tokenizer, cache, PLAIN).model.target))
    different = 0
    for epoch in range(7):
        for index in (0, 7, IMAGES - 1):
            sample = cached[Draw(index, (0, epoch, index))]
            view = plain[Draw(index, (0, epoch % VIEWS, index))]
            assert torch.equal(sample['patches'], view['patches'])
            assert torch.equal(sample['mask'], plain[Draw(index, (0, epoch, index))]['mask'])
            assert 'tokens_view' not in sample
            assert sample['tokens'].dtype == torch.int64
            tokens = model.tokens(view['tokens_view'][None].float() / 255 * 0.8 + 0.1)[0]
            assert torch.equal(sample['tokens'], tokens)
            different += len(tokens.unique()) > 3 and not torch.equal(sample['mask'], view['mask'])
    assert different >= 9  # epochs 3 to 6: the view comes again, its mask is another


def losses(folder):
    lines = [json.loads(line) for line in next(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    return [(line['loss'], line['grad_norm']) for line in lines if 'loss' in line]


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_training_is_that_on_tokens_computed_on_the_fly(cache, tokenizer, tmp_path, workers):
    """Four epochs of two steps with an infinite sampler: losses and norms of gradients are the same numbers."""
    short = {
        'train_cfg.max_iters': 8,
        'train_cfg.val_interval': 8,
        'default_hooks.logger.interval': 1,
        'visualizer.vis_backends': [{'type': 'LocalVisBackend'}],
        'train_dataloader.num_workers': workers,
    }
    fly = config(tokenizer, cache, PLAIN, **short)
    fly.train_dataloader.dataset.pipeline.insert(0, dict(type='beit_mm.SameViews', views=VIEWS))
    run(fly, work_dir=str(tmp_path / 'fly'))
    run(config(tokenizer, cache, **short), work_dir=str(tmp_path / 'cached'))
    assert losses(tmp_path / 'cached') == losses(tmp_path / 'fly')
    assert len(set(losses(tmp_path / 'fly'))) == 8
    said = next((tmp_path / 'cached').glob('*/*.log')).read_text()
    assert '100.0 % of the tokens of 4 views are as computed now' in said


def test_epochs_of_a_sampler_that_counts_them(cache, tokenizer):
    dataset = dataset_of(config(tokenizer, cache))
    sampler = SeededSampler(dataset, shuffle=True, seed=0)
    tokens = np.load(cache / 'tokens.npy')
    for epoch in (0, 2, 3, 11):
        sampler.set_epoch(epoch)
        for draw in list(sampler)[:3]:
            np.testing.assert_array_equal(dataset[draw]['tokens'].numpy(), tokens[epoch % VIEWS, draw])


def test_what_is_written(cache):
    manifest = read_manifest(cache)
    tokens = np.load(cache / 'tokens.npy', mmap_mode='r')
    assert (tokens.shape, tokens.dtype) == ((VIEWS, IMAGES, 8, 8), np.uint16)
    assert sorted(path.name for path in cache.iterdir()) == ['manifest.json', 'tokens.npy']
    assert manifest['sha256'] == sha256(cache / 'tokens.npy')
    assert (manifest['seed'], manifest['vocabulary'], manifest['grid']) == (0, 512, [8, 8])
    assert set(manifest['revision']) == {'version', 'commit', 'dirty'}
    assert len({row.tobytes() for view in tokens for row in view}) > IMAGES  # views differ


def made(tokenizer, folder, **wishes):
    return make(config(tokenizer, folder), jobs=0, **wishes)


def test_killed_and_made_to_the_end(cache, tokenizer, tmp_path, monkeypatch):
    """Killed before, within and after a chunk, and before the manifest: the file is that of a run in one go."""
    monkeypatch.setattr(token_maker, 'CHUNK', 8)
    monkeypatch.setattr(token_maker, 'BATCH', 4)
    given = config(tokenizer, tmp_path)
    put, written = token_maker._Unfinished.put, []

    def killed_at(number):
        def put_or_die(self, chunk, tokens):
            if len(written) == number:
                place = self.offset + (chunk[0] * IMAGES + chunk[1]) * 128
                self.file.seek(place)
                self.file.write(b'\xff' * 64)  # half of it, and no mark
                self.file.flush()
                raise KeyboardInterrupt
            written.append(chunk)
            put(self, chunk, tokens)

        monkeypatch.setattr(token_maker._Unfinished, 'put', put_or_die)

    for number in (0, 4, 5, 8):
        killed_at(number)
        with pytest.raises(KeyboardInterrupt):
            make(given, jobs=0)
        assert not (tmp_path / 'manifest.json').exists()
        with pytest.raises(TokenCacheError, match=r'its tokens are not complete. It is what this makes: python tools'):
            TokensFromCache(str(tmp_path), VIEWS)
    killed_at(None)
    with monkeypatch.context() as patched:
        patched.setattr(token_maker, 'into_place', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(given, jobs=0)
    assert (tmp_path / 'tokens.npy').exists()
    assert 'complete' in make(given, jobs=0)
    assert len(written) == len(set(written)) == 9  # none twice
    assert read_manifest(tmp_path)['sha256'] == read_manifest(cache)['sha256']
    assert 'complete, and as it was written' in make(given, jobs=0)


def test_what_was_begun_for_another_config_is_not_gone_on_with(tokenizer, tmp_path, monkeypatch):
    given = config(tokenizer, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(token_maker._Unfinished, 'put', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(given, jobs=0)
    with pytest.raises(TokenCacheError, match=r'another cache was begun here: the seed .* are of 0, the config has 5'):
        make(given, jobs=0, seed=5)
    with open(tmp_path / 'lock') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TokenCacheError, match='another process is computing these tokens'):
            make(given, jobs=0)
    assert 'complete' in make(given, jobs=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['manifest.json', 'tokens.npy']


def test_of_two_that_start_at_once_one_is_refused(tokenizer, tmp_path, monkeypatch):
    given, tried = config(tokenizer, tmp_path), token_maker._try

    def beside(*arguments):
        with pytest.raises(TokenCacheError, match='another process is computing these tokens'):
            make(given, jobs=0)
        return tried(*arguments)

    monkeypatch.setattr(token_maker, '_try', beside)
    assert 'complete' in make(given, jobs=0)


def test_a_full_disk_is_told_before_the_start(tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=7000))
    with pytest.raises(TokenCacheError, match=r'7.68 kB are needed, and 7 kB are free. Take fewer --views'):
        made(tokenizer, tmp_path / 'full')
    assert not (tmp_path / 'full').exists()
    said = capsys.readouterr().out
    assert '20 images x 3 views x 8 x 8 tokens, uint16: 7.68 kB' in said
    assert 'about 0:00:00 for the 60 views to come' in said


def test_ids_take_the_room_that_their_vocabulary_needs(tmp_path):
    facts = dict(views=16, images=1_281_167, vocabulary=8192)
    assert token_maker._Unfinished(tmp_path, facts, (14, 14)).size == 8_035_479_424  # of ImageNet: 8 GB
    assert token_maker._Unfinished(tmp_path, facts, (14, 14)).dtype == np.uint16
    assert token_maker._Unfinished(tmp_path, dict(facts, vocabulary=2**16), (14, 14)).dtype == np.uint16
    assert token_maker._Unfinished(tmp_path, dict(facts, vocabulary=2**16 + 1), (14, 14)).dtype == np.uint32


PIPELINE = 'train_dataloader.dataset.pipeline'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'randomness.seed': 1}, r'the seed of the views .*: the tokens are of 0, the config has 1'),
        ({'train_dataloader.dataset.length': 21}, 'the number of images: the tokens are of 20, the config has 21'),
        ({'train_dataloader.dataset.mosaic': True}, 'the data set: its list of files, their sizes, or its settings'),
        ({'model.target.checkpoint': None}, 'the tokenizer: its kind, its arguments or its weights'),
        ({'model.target.tokenizer.straight_through': True}, 'the tokenizer: its kind, its arguments or its weights'),
        (
            {f'{PIPELINE}.1.scale': (0.3, 1.0)},
            r"the token view: the tokens are of .*'scale': \[0.36, 1.0\].*, the config has .*'scale': \[0.3, 1.0\]",
        ),
        ({'model.data_preprocessor.max_value': 200.0}, 'the data preprocessor of the token view'),
        (
            {'train_dataloader.sampler': dict(type='RepeatAugSampler', shuffle=True, _delete_=True)},
            'needs train_dataloader.sampler DefaultSampler',
        ),
        (
            {
                'model.target': dict(type='beit_mm.PixelTarget', patch_size=8, _delete_=True),
                'model.head': dict(type='beit_mm.PixelHead', embed_dims=24, num_pixels=64, _delete_=True),
            },
            'model.target is PixelTarget: set beit_mm.CachedTokens',
        ),
    ],
)
def test_other_tokens_are_refused_before_the_first_step(cache, tokenizer, tmp_path, changes, message):
    with pytest.raises(TokenCacheError, match=message) as raised:
        run(config(tokenizer, cache, **changes), work_dir=str(tmp_path))
    assert str(cache) in str(raised.value)
    assert not list(tmp_path.glob('*.pth'))


def test_what_makes_no_difference_is_not_refused(cache, tokenizer):
    """Size and mean of the patches, the mask's law, the number of workers; and a recipe's digest has no places."""
    same = {
        f'{PIPELINE}.2.num_masked': 20,
        f'{PIPELINE}.1.patches_size': 32,
        'model.data_preprocessor.mean': [100.0],
    }
    found = check(config(tokenizer, cache, **same))
    assert found == ''
    assert recipe_of(config(tokenizer, cache)) == recipe_of(
        config(tokenizer, f'{cache}/../tokens', **{'token_cache': ''})
    )


def check(config):
    """What the hook finds of a config."""
    dataset, said = dataset_of(config), []
    sampler = DATA_SAMPLERS.build(dict(config.train_dataloader.sampler, dataset=dataset, seed=0))
    model = MODELS.build(copy.deepcopy(config.model))
    runner = SimpleNamespace(
        cfg=config,
        model=model,
        train_dataloader=SimpleNamespace(dataset=dataset, sampler=sampler),
        logger=SimpleNamespace(info=said.append),
    )
    try:
        TokenCacheHook().before_train(runner)
    except TokenCacheError as error:
        return str(error)
    return ''


def test_views_that_other_code_makes_are_refused(cache, tokenizer, monkeypatch):
    """What no digest holds: the crop is drawn otherwise than when the tokens were computed."""
    drawn = transforms.random_resized_box
    monkeypatch.setattr(transforms, 'random_resized_box', lambda rng, *rest: (rng.random(), drawn(rng, *rest))[1])
    assert 'what makes views has changed since it was made (by version' in check(config(tokenizer, cache))


def test_the_reader_comes_first(cache, tokenizer):
    late = config(tokenizer, cache)
    steps = late.train_dataloader.dataset.pipeline
    steps[0], steps[1] = steps[1], steps[0]
    assert 'as the first step of its pipeline' in check(late)
    with pytest.raises(TokenCacheError, match='put TokensFromCache first in the pipeline'):
        dataset_of(late)[Draw(0, (0, 0, 0))]


def test_samples_without_tokens_are_refused(cache):
    reader = TokensFromCache(str(cache), VIEWS)
    for sample, message in (
        (5, 'which view a sample is says the sampler of a training'),
        (Draw(5, (1, 0, 5)), 'drawn for seed 0, this run draws for seed 1. Run with --seed 0'),
        (Draw(20, (0, 0, 20)), 'has 20 images, and the sample is of image 20'),
    ):
        with pytest.raises(TokenCacheError, match=message):
            reader.transform(dict(sample_idx=sample))
    with pytest.raises(TokenCacheError, match='holds 3 views of each image, and the config reads views=4: give'):
        TokensFromCache(str(cache), 4)


def test_a_missing_or_damaged_cache_names_its_command(cache, tokenizer, tmp_path):
    named = load_config(CACHED).token_cache
    with pytest.raises(TokenCacheError, match=f'there is no such token cache. .*: .*prepare_data.py tokens {CACHED}$'):
        TokensFromCache(named, 4)
    copied = tmp_path / 'copied'
    shutil.copytree(cache, copied)
    with open(copied / 'tokens.npy', 'r+b') as file:
        file.seek(-4, 2)
        file.write(b'\x07\x00')
    with pytest.raises(TokenCacheError, match='is not as it was written: its sha256 differs'):
        made(tokenizer, copied)
    with open(copied / 'tokens.npy', 'r+b') as file:
        file.truncate(5000)
    with pytest.raises(TokenCacheError, match=r'tokens.npy has 5000 bytes, and should have 7808'):
        TokensFromCache(str(copied), VIEWS)
    (copied / 'manifest.json').write_text('{"format": ')
    with pytest.raises(TokenCacheError, match=r'manifest.json: damaged \(JSONDecodeError'):
        TokensFromCache(str(copied), VIEWS)


def test_pipelines_that_no_cache_can_be_made_of(tokenizer, tmp_path):
    cases = {
        'a step of it draws from a global generator': [dict(type='beit_mm.GlobalNoise')],
        'the training pipeline makes no tokens_view': [],
    }
    for message, steps in cases.items():
        plain = config(tokenizer, tmp_path, PLAIN)
        plain.train_dataloader.dataset.pipeline = steps + plain.train_dataloader.dataset.pipeline
        if not steps:
            plain.train_dataloader.dataset.pipeline[0]['tokens_size'] = None
        with pytest.raises(TokenCacheError, match=message):
            make(plain, views=2, out=str(tmp_path / 'none'), jobs=0)
    assert not (tmp_path / 'none').exists()
    with pytest.raises(TokenCacheError, match=r'how many views of each image\? --views K'):
        make(config(tokenizer, tmp_path, PLAIN), jobs=0)
    with pytest.raises(TokenCacheError, match=r'has no model\.target; give a pre-training config'):
        make(load_config('configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'), jobs=0)
    pixels = load_config('configs/pretrain/beit-mini-p8_pixels_1xb48-1500_embedded-64.py')
    with pytest.raises(TokenCacheError, match=r'model.target is beit_mm.PixelTarget, which predicts no tokens'):
        make(pixels, views=2, jobs=0)


def test_the_door(cache, tokenizer, tmp_path, monkeypatch, capsys):
    """The plain config with --views makes the cache that the other config names; processes change nothing."""
    monkeypatch.setattr(token_maker, 'make', lambda given, *rest: make(config(tokenizer, '', PLAIN), *rest))
    words = ['tokens', PLAIN, '--views', '3', '--out', tmp_path / 'out', '--jobs', '2', '--device', 'cpu']
    monkeypatch.setattr(sys, 'argv', ['prepare_data.py', *map(str, words), '--checkpoint', tokenizer])
    runpy.run_path('tools/prepare_data.py', run_name='__main__')
    assert 'out: complete, 7.81 kB, sha256' in capsys.readouterr().out
    assert read_manifest(tmp_path / 'out')['sha256'] == read_manifest(cache)['sha256']


def test_the_digest_of_files(tmp_path):
    """Names, order and sizes count, and not where the files lie."""

    def digest(root, sizes, length=None):
        for name, size in sizes.items():
            path = tmp_path / root / 'train' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((size, size), np.uint8)).save(path)
        settings = dict(type='beit_mm.ImageList', data_root=str(tmp_path / root), split='train', with_label=False)
        dataset = DATASETS.build(dict(settings, pipeline=[]))
        return data_digest(dataset, settings)

    names = {'a/1.png': 8, 'a/2.png': 8, 'b/1.png': 8}
    first = digest('one', names)
    assert digest('other/place', names) == first
    others = [
        digest('more', {**names, 'c/1.png': 8}),
        digest('size', {**names, 'b/1.png': 90}),
        digest('name', {'a/1.png': 8, 'a/3.png': 8, 'b/1.png': 8}),
        digest('folder', {'a/1.png': 8, 'a/2.png': 8, 'c/1.png': 8}),
    ]
    assert len({first, *others}) == 5
