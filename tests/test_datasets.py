"""data/datasets.py: what configs can ask of the embedded data, and CIFAR read without running its pickles."""

import hashlib
import pickle
import random

import numpy as np
import pytest

from beit_mm.data import embedded
from beit_mm.data.datasets import CIFAR10, CIFAR100, EmbeddedDigits, EmbeddedScenes


def test_scenes_are_those_of_the_generator():
    data = EmbeddedScenes(pipeline=[], split='val', length=7, size=48, grey=True, seed=2)
    assert len(data) == 7
    scene = embedded.scene(2, 'val', 4, 48, grey=True)
    np.testing.assert_array_equal(data[4]['img'], scene.image)
    np.testing.assert_array_equal(data[4]['gt_seg_map'], scene.mask)
    assert data[4]['gt_label'] == scene.label
    assert data.metainfo['classes'] == embedded.CLASSES


def test_the_pool_is_unlabelled():
    crops = EmbeddedScenes(pipeline=[], split='pool', length=3, size=64)
    mosaics = EmbeddedScenes(pipeline=[], split='pool', length=3, size=64, mosaic=True)
    for data in (crops, mosaics):
        assert not {'gt_label', 'gt_seg_map'} & set(data[0])
    np.testing.assert_array_equal(crops[1]['img'], embedded.pool_crop(0, 1, 64))
    np.testing.assert_array_equal(mosaics[1]['img'], embedded.scene(0, 'pool', 1, 64, fewest=1).image)


def test_few_labels_and_mistakes():
    assert len(EmbeddedScenes(pipeline=[], length=100, size=48, indices=10)) == 10
    with pytest.raises(ValueError, match="split='test' is none of train, val, pool"):
        EmbeddedScenes(pipeline=[], split='test')
    with pytest.raises(ValueError, match='at least one image'):
        EmbeddedScenes(pipeline=[], length=0)


def test_digits():
    train, val = (EmbeddedDigits(pipeline=[], split=s) for s in ('train', 'val'))
    assert (len(train), len(val)) == (1257, 540)
    images, labels = embedded.load_digits()
    np.testing.assert_array_equal(val[0]['img'], images[1257])
    assert val[0]['gt_label'] == labels[1257]
    assert images.max() == 255


def write_cifar100(root, payload=None):
    folder = root / 'cifar-100-python'
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (4, 3072)).astype(np.uint8)
    for name in ('train', 'test'):
        content = dict(data=pixels, fine_labels=[0, 1, 2, 1], coarse_labels=[0] * 4)
        (folder / name).write_bytes(pickle.dumps(content if payload is None else payload, protocol=2))
    (folder / 'meta').write_bytes(pickle.dumps(dict(fine_label_names=['a', 'b', 'c']), protocol=2))
    return pixels


def test_cifar100_fine_labels(tmp_path):
    pixels = write_cifar100(tmp_path)
    data = CIFAR100(str(tmp_path), pipeline=[], split='test', md5s={})
    assert [sample['gt_label'] for sample in data] == [0, 1, 2, 1]
    np.testing.assert_array_equal(data[2]['img'], pixels[2].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar_pickles_cannot_run_code(tmp_path):
    marker = tmp_path / 'ran'

    class Payload:
        def __reduce__(self):
            import os

            return os.system, (f'touch {marker}',)

    write_cifar100(tmp_path, Payload())
    with pytest.raises(ValueError, match=r'train: not a CIFAR file \(.*system is not an array\)'):
        CIFAR100(str(tmp_path), pipeline=[], md5s={})
    assert not marker.exists()


def test_damaged_cifar_files_are_named(tmp_path):
    write_cifar100(tmp_path)
    path, rng = tmp_path / 'cifar-100-python' / 'train', random.Random(0)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(whole[: rng.randrange(1, len(whole))])
        damaged[rng.randrange(min(300, len(damaged)))] = rng.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='train: not a CIFAR file'):
            CIFAR100(str(tmp_path), pipeline=[], md5s={})


def test_cifar10_batches_in_order(tmp_path):
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    md5s = {}

    def dump(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        md5s[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    pixels = np.random.default_rng(0).integers(0, 255, (6, 2, 3072)).astype(np.uint8)
    for i in range(5):
        dump(f'data_batch_{i + 1}', dict(data=pixels[i], labels=[i, 9 - i]))
    dump('test_batch', dict(data=pixels[5], labels=[7, 0]))
    dump('batches.meta', dict(label_names=[str(i) for i in range(10)]))
    train, test = (CIFAR10(str(tmp_path), pipeline=[], split=s, md5s=md5s) for s in ('train', 'test'))
    assert [train[i]['gt_label'] for i in range(10)] == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    np.testing.assert_array_equal(train[3]['img'], pixels[1, 1].reshape(3, 32, 32).transpose(1, 2, 0))
    np.testing.assert_array_equal(test[0]['img'][..., 2].ravel(), pixels[5, 0, 2048:])  # blue last: RGB
    assert train.metainfo['classes'] == tuple('0123456789')
    (folder / 'test_batch').write_bytes(b'x')
    with pytest.raises(ValueError, match=r'test_batch: md5 is 9dd4e461268c8034f5c8564e155c67a6, expected'):
        CIFAR10(str(tmp_path), pipeline=[], split='test', md5s=md5s)


def test_cifar_files_are_checked(tmp_path):
    write_cifar100(tmp_path)
    with pytest.raises(ValueError, match=r'meta: md5 is \w+, expected 7973b15100ade9c7d40fb424638fde48'):
        CIFAR100(str(tmp_path), pipeline=[])
    with pytest.raises(FileNotFoundError, match=r'batches\.meta: not found'):
        CIFAR10(str(tmp_path), pipeline=[])
