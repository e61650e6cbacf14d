"""data/shards.py and its index: the images of ImageList, bit by bit; what is damaged or forged is refused."""

import copy
import json
import os
import pickle
import shutil
import tarfile

import injected  # noqa: F401  (registers Noise)
import numpy as np
import pytest
import torch
from fuzzing import changed, clean_errors, damaged, examples, limited_memory  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import pseudo_collate
from PIL import Image
from shards import contents, packed, write_images

from beit_mm.data import loading
from beit_mm.data.check import check_images
from beit_mm.data.classes import check_labels, check_names
from beit_mm.data.failures import DataError
from beit_mm.data.images import ImageList
from beit_mm.data.samples import seed_samples
from beit_mm.data.sampling import SeededSampler
from beit_mm.data.shard_index import ShardError, ShardIndex
from beit_mm.data.shard_reads import TarBackend, parse
from beit_mm.data.shards import TarShards
from beit_mm.data.verify import Report, Scope, read_image, verify
from beit_mm.registry import DATASETS

LOAD = dict(type='beit_mm.LoadImage')
NOISY = [LOAD, dict(type='Noise'), dict(type='PackInputs')]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """src/ as files, list/ as shards in the order of the list, mixed/ in a shuffled one."""
    root = tmp_path_factory.mktemp('made')
    write_images(root / 'src')
    packed(root / 'src', root / 'list', order='list')
    packed(root / 'src', root / 'mixed')
    return root


@pytest.fixture
def shards(made, tmp_path):
    """A copy of the shards in the order of the list, that a test may spoil."""
    return shutil.copytree(made / 'list', tmp_path / 'shards')


def batches(dataset, workers=0, seed=3):
    seed_samples(dataset)
    sampler = SeededSampler(dataset, seed=seed)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, sampler=sampler, num_workers=workers, collate_fn=pseudo_collate
    )
    return [
        (image.clone(), sample.get('gt_label').item() if 'gt_label' in sample else None)
        for batch in loader
        for image, sample in zip(batch['inputs'], batch['data_samples'])
    ]


@pytest.mark.parametrize('with_label', [True, False])
def test_the_batches_are_image_lists(made, with_label):
    """The same images in the same order, with the same randomness, with and without workers."""
    files = ImageList(str(made / 'src'), split='train', with_label=with_label, pipeline=NOISY)
    theirs = batches(files)
    for workers in (0, 2):
        ours = batches(TarShards(str(made / 'list'), with_label=with_label, pipeline=NOISY), workers)
        assert len(ours) == len(theirs) == 40
        for (image, label), (other, other_label) in zip(ours, theirs):
            assert torch.equal(image, other)
            assert label == other_label


def test_a_shuffled_set_holds_each_image_once(made):
    files = ImageList(str(made / 'src'), split='train')
    mixed = TarShards(str(made / 'mixed'))
    assert mixed.shard_lengths.tolist() == [6, 7, 7, 6, 7, 7]
    assert mixed.metainfo['classes'] == files.metainfo['classes'] == ('n00000000', 'n00000001', 'n00000002')
    by_name = {os.path.basename(i['img_path']): i['gt_label'] for i in map(files.get_data_info, range(40))}
    names = [os.path.basename(mixed.get_data_info(i)['img_path']) for i in range(40)]
    assert sorted(names) == sorted(by_name)
    assert names != sorted(names)
    assert [mixed.get_data_info(i)['gt_label'] for i in range(40)] == [by_name[name] for name in names]


def test_an_image_is_read_by_every_loader(made):
    data = TarShards(str(made / 'list'))
    info = data.get_data_info(7)
    size = (made / 'src/train/n00000000/im0021.png').stat().st_size
    path = f'tar://{made}/list/t-000001.tar@2560+{size}/n00000000/im0021.png'  # 2560: two headers, image, .cls, header
    assert info == dict(img_path=path, gt_label=0, sample_idx=7)
    expected = np.asarray(Image.open(made / 'src/train/n00000000/im0021.png'))
    np.testing.assert_array_equal(read_image(info['img_path']), expected)
    stock = LoadImageFromFile()(dict(info))['img']
    np.testing.assert_array_equal(stock[..., ::-1], expected)
    assert data.get_data_info(-1)['sample_idx'] == 39


def test_subsets_and_copies(made):
    whole = TarShards(str(made / 'list'))
    paths = [whole.get_data_info(i)['img_path'] for i in range(40)]
    for indices, chosen in ((5, paths[:5]), (-5, paths[-5:]), ([3, 9, 30], [paths[i] for i in (3, 9, 30)])):
        for part in (TarShards(str(made / 'list'), indices=indices), whole.get_subset(indices)):
            assert [part.get_data_info(i)['img_path'] for i in range(len(part))] == chosen
    assert TarShards(str(made / 'list'), indices=[3, 9, 30]).shard_lengths.tolist() == [1, 1, 0, 0, 1, 0]
    with pytest.raises(ShardError, match='not in rising order'):
        _ = TarShards(str(made / 'list'), indices=[9, 3]).shard_lengths
    assert len(whole) == 40
    copies = [copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))]
    assert all(one.get_data_info(11) == whole.get_data_info(11) for one in copies)
    assert len(pickle.dumps(whole)) < 4000  # a spawned worker opens the index anew


def test_classes_in_another_order_or_more_of_them(made):
    names = ['n00000002', 'extra', 'n00000000', 'n00000001']
    files = ImageList(str(made / 'src'), split='train', classes=names)
    data = TarShards(str(made / 'list'), classes=names)
    assert [data.get_data_info(i)['gt_label'] for i in range(40)] == [
        files.get_data_info(i)['gt_label'] for i in range(40)
    ]
    assert data.metainfo['classes'] == tuple(names)
    with pytest.raises(ShardError, match=r'has 3 class folders, and 2 classes were given'):
        TarShards(str(made / 'list'), classes=['n00000000', 'n00000001'])


def test_labels_out_of_range_are_named(shards):
    with pytest.raises(ShardError, match=r'has 3 classes, num_classes=2'):
        TarShards(str(shards), num_classes=2)
    np.save(shards / 'index/labels.npy', np.r_[np.zeros(39, np.int64), 3])
    with pytest.raises(
        ShardError,
        match=r'shards/t-000005\.tar: n00000002/im0038\.png has the label 3, which is outside 0\.\.2 \(1 of 40',
    ):
        TarShards(str(shards))
    assert len(TarShards(str(shards), with_label=False)) == 40


def test_unlabelled_shards(made, tmp_path):
    packed(made / 'src', tmp_path / 'u', with_label=False)
    assert sorted(TarShards(str(tmp_path / 'u'), with_label=False).get_data_info(0)) == ['img_path', 'sample_idx']
    with pytest.raises(ShardError, match=r'u/index: these shards have no labels: with_label=False'):
        TarShards(str(tmp_path / 'u'))
    with tarfile.open(tmp_path / 'u/t-000000.tar') as tar:
        assert not any('.cls' in name for name in tar.getnames())


def test_missing_cut_and_longer_shards_are_found_at_the_start(shards):
    (shards / 't-000001.tar').unlink()
    with (shards / 't-000003.tar').open('ab') as file:
        file.write(b'x')
    os.truncate(shards / 't-000004.tar', 1000)
    size = (shards / 't-000003.tar').stat().st_size
    with pytest.raises(ShardError) as caught:
        TarShards(str(shards))
    assert str(caught.value).startswith(
        f'{shards}: 3 of 6 shards are not what the index says: t-000001.tar is missing; t-000003.tar has {size} bytes, '
        f'the index says {size - 1}; t-000004.tar has 1000 bytes'
    )


def test_what_changes_later_is_found_when_it_is_read(shards):
    data = TarShards(str(shards), pipeline=[dict(LOAD, on_error='skip')])
    data[0], data[11]
    last = parse(data.get_data_info(12)['img_path'])
    (shards / 't-000000.tar').unlink()
    assert data[1]['img'].shape[2] == 3  # it is open: the disk keeps it
    os.truncate(shards / 't-000001.tar', last.offset + 10)
    said = rf't-000001\.tar: is cut off: it ends {last.size - 10} bytes before the end of {last.name}, which begins at'
    with pytest.raises(ShardError, match=said):
        data[12]
    (shards / 't-000002.tar').unlink()
    with pytest.raises(ShardError, match=r't-000002\.tar: there is no such shard, and .* is in it; put the shard back'):
        data[14]
    tar = bytearray((shards / 't-000003.tar').read_bytes())
    (shards / 't-000003.tar').write_bytes(tar[512:] + bytes(512))  # other images at those places
    with pytest.raises(ShardError, match=r't-000003\.tar: at \d+ is not n0\S+png of \d+ bytes: the shard is another'):
        data[21]


def test_an_image_that_is_damaged_in_its_shard(made, tmp_path):
    """Skipped, or named with its shard: a lost shard is an error, one bad image is not."""
    write_images(tmp_path / 'src', count=6, classes=1)
    (tmp_path / 'src/train/n00000000/im0002.png').write_bytes(b'broken')
    packed(tmp_path / 'src', tmp_path / 's', order='list', per_shard=3)
    loading.skipped.cache_clear()
    data = TarShards(str(tmp_path / 's'), pipeline=[dict(LOAD, on_error='skip')])
    files = ImageList(str(tmp_path / 'src'), split='train', pipeline=[dict(LOAD, on_error='skip')])
    assert [data[i]['img'].tobytes() for i in range(6)] == [files[i]['img'].tobytes() for i in range(6)]
    address = data.get_data_info(2)['img_path']
    assert address.startswith(f'tar://{tmp_path}/s/t-000000.tar@')
    assert address.endswith('+6/n00000000/im0002.png')
    assert loading.skipped().entries()[0] == (address, 'not a readable image (of no known format)')
    with pytest.raises(loading.UnreadableImage, match=r't-000000\.tar@\d+\+6/n00000000/im0002\.png: not a readable'):
        TarShards(str(tmp_path / 's'), pipeline=[LOAD])[2]
    report = Report()
    check_images(TarShards(str(tmp_path / 's'), pipeline=[LOAD]), 'train', report, None)
    assert 'train: 1 unfit' in report.problems[0][0]
    assert 't-000000.tar@' in report.problems[0][0]
    loading.skipped.cache_clear()


def test_other_projects_transforms_are_named_with_shard_and_member(made):
    data = TarShards(str(made / 'list'), pipeline=[dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=-1)])
    seed_samples(data)
    with pytest.raises(DataError, match=r'list/t-000001\.tar@\d+\+\d+/n00000000/im0024\.png in ResizeEdge'):
        data.__getitems__([8])


def test_preflight_looks_at_labels_and_classes(made):
    data, report = TarShards(str(made / 'list')), Report()
    check_names(data, 3, 'train', report)
    check_labels(data, 3, 'train', report)
    assert (report.problems, report.facts) == ([], [])
    check_labels(data, 2, 'train', report)
    assert 't-000004.tar@' in report.problems[0][0]


def test_verify(shards):
    assert verify(shards, 'shards').problems == []
    tar = bytearray((shards / 't-000002.tar').read_bytes())
    tar[600] ^= 1
    (shards / 't-000002.tar').write_bytes(tar)
    (shards / 't-000009.tar').write_bytes(b'')
    (shards / 't-000004.tar').unlink()
    found = [what for what, _ in verify(shards, 'shards', Scope(jobs=2)).problems]
    assert found[0].split('\n          ') == [
        't-000002.tar: was changed: its sha256 is another',
        't-000004.tar: is missing',
    ]
    assert found[1] == f'{shards}: not in the index: t-000009.tar (1)'
    np.save(shards / 'index/labels.npy', np.zeros(40, np.int64))
    ((what, _),) = verify(shards, 'shards').problems
    assert what == f'{shards}/index: sha256 differs: labels.npy'


def test_no_index_says_how_to_make_one(made, tmp_path):
    with pytest.raises(ShardError, match=r'no: there is no such folder of shards'):
        TarShards(str(tmp_path / 'no'))
    with pytest.raises(
        ShardError, match=r'the index of the shards is not there\. .*prepare_data\.py shards \S+ --index'
    ):
        TarShards(str(tmp_path))
    with pytest.raises(ShardError, match=r'is read from a copy: index=FOLDER'):
        TarShards('https://host/x')
    with pytest.raises(ShardError, match=r'pipe://cat: shards are read from folders, and by http, https, s3'):
        TarShards('pipe://cat', index=str(made / 'list/index'))


FORGED = {
    'path': lambda m: m['shards'][0].__setitem__(0, '../t-000000.tar'),
    'absolute': lambda m: m['shards'][0].__setitem__(0, '/etc/t.tar'),
    'hidden': lambda m: m['shards'][0].__setitem__(0, '.t.tar'),
    'long': lambda m: m['shards'][0].__setitem__(0, 'x' * 300 + '.tar'),
    'no_tar': lambda m: m['shards'][0].__setitem__(0, 'shadow'),
    'twice': lambda m: m['shards'][0].__setitem__(0, 't-000001.tar'),
    'bytes': lambda m: m['shards'][0].__setitem__(1, 2**60),
    'negative': lambda m: m['shards'][0].__setitem__(2, -1),
    'samples': lambda m: m['shards'][0].__setitem__(2, 10**9),
    'digest': lambda m: m['shards'][0].__setitem__(3, 'x'),
    'more': lambda m: m['shards'][0].__setitem__(2, 7),
    'none': lambda m: m.__setitem__('shards', []),
    'format': lambda m: m.__setitem__('format', 2),
    'classes': lambda m: m.__setitem__('classes', 'abc'),
    'array': lambda m: m['arrays'].__setitem__('../evil', m['arrays']['names']),
}


@pytest.mark.parametrize('what', FORGED)
def test_a_forged_manifest_is_refused(shards, what):
    manifest = json.loads((shards / 'index/shards.json').read_text())
    FORGED[what](manifest)
    (shards / 'index/shards.json').write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match=r'index(/shards\.json)?: damaged'):
        TarShards(str(shards))


@pytest.mark.parametrize(
    ('array', 'value'),
    [('offsets', -512), ('offsets', 0), ('offsets', 513), ('offsets', 1 << 40), ('sizes', -1), ('sizes', 1 << 50)],
)
def test_forged_places_are_refused(shards, array, value):
    path = shards / f'index/{array}.npy'
    values = np.load(path)
    values[4] = value
    np.save(path, values)
    data = TarShards(str(shards))
    data.get_data_info(3)
    with pytest.raises(
        ShardError, match=r'index: damaged: image 4 is -?\d+ bytes at -?\d+ of t-000000\.tar, which has'
    ):
        data.get_data_info(4)


def test_forged_names_and_types_are_refused(shards):
    ends = np.load(shards / 'index/name_ends.npy')
    for values in ([-1], [1 << 40], [0]):
        np.save(shards / 'index/name_ends.npy', np.r_[values, ends[1:]])
        with pytest.raises(ShardError, match=r'the name of image 0 is'):
            TarShards(str(shards)).get_data_info(0)
    np.save(shards / 'index/name_ends.npy', ends.astype(np.int32))
    with pytest.raises(ShardError, match=r'name_ends\.npy is int32 of shape \(40,\)'):
        TarShards(str(shards))
    np.save(shards / 'index/name_ends.npy', np.array([object()]), allow_pickle=True)
    with pytest.raises(ShardError, match=r'name_ends\.npy: cannot be read \(ValueError: Array can.t be memory-mapped'):
        TarShards(str(shards))


@pytest.mark.parametrize('address', ['tar://a.tar@0+5/x.png', 'tar://a.tar@512+9999999999/x.png', 'tar://a/x.png'])
def test_addresses(address):
    with pytest.raises(ShardError, match='tar://a'):
        TarBackend().get(address)


@examples(60)
@given(data=st.data())
def test_damaged_indexes(made, tmp_path_factory, data):
    """Whatever an index says: images that are in the shards, or a clean error that names it."""
    folder = tmp_path_factory.getbasetemp() / 'fuzzed'
    if not folder.exists():
        shutil.copytree(made / 'list', folder)
    files = {name: content for name, content in contents(made / 'list').items() if name.startswith('index/')}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    name = data.draw(st.sampled_from(sorted(name for name in files if name.endswith(('.npy', 'shards.json')))))
    if name.endswith('.json') and data.draw(st.booleans()):
        content = json.dumps(data.draw(changed(json.loads(files[name])))).encode()
    else:
        content = data.draw(damaged(files[name]))
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    with clean_errors(folder):
        found = TarShards(str(folder))
        for index in {0, len(found) - 1, len(found) // 2}:
            TarBackend().get(found.get_data_info(index)['img_path'])


def test_the_data_set_is_registered_and_lazy(made):
    data = DATASETS.build(dict(type='beit_mm.TarShards', data_root=str(made), split='list', lazy_init=True))
    assert not hasattr(data, 'index')
    assert len(data) == 40
    assert isinstance(data.index, ShardIndex)
    assert data.digest() == TarShards(str(made / 'list')).digest() != TarShards(str(made / 'mixed')).digest()
