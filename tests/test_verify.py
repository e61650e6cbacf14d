"""data/verify.py and data/ilsvrc.py: good data sets pass, each fault is found, named, and has a remedy."""

import re
import subprocess

import numpy as np
import pytest
from PIL import Image
from processes import call

from beit_mm.data import ilsvrc, verify
from beit_mm.data.export import export
from beit_mm.data.ilsvrc import imagenet_synsets
from beit_mm.data.verify import Scope

SYNSETS = imagenet_synsets()


def picture(path, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(path)


def problems(root, form, **scope) -> list[str]:
    found = verify.verify(root, form, Scope(**scope)).problems
    assert all(remedy for _, remedy in found)
    return [what for what, _ in found]


def assert_one(found, said):
    assert len(found) == 1, found
    assert re.search(said, found[0]), found[0]


@pytest.fixture(scope='module')
def small_imagenet(tmp_path_factory):
    """2 images of each of 5 synsets to train, 1 to validate, as folders and with meta files of the same labels."""
    root = tmp_path_factory.mktemp('imagenet')
    for split, count in (('train', 2), ('val', 1)):
        for synset in SYNSETS[:5]:
            for i in range(count):
                picture(root / split / synset / f'{synset}_{i}.JPEG')
    return root


@pytest.fixture
def imagenet(small_imagenet, tmp_path):
    """A copy that a test may spoil."""
    root = tmp_path / 'imagenet'
    subprocess.run(['cp', '-r', small_imagenet, root], check=True)
    return root


def test_imagenets_counts(imagenet, monkeypatch):
    assert (ilsvrc.NUM_CLASSES, ilsvrc.NUM_TRAIN, ilsvrc.NUM_VAL) == (1000, 1_281_167, 50_000)
    assert problems(imagenet, 'imagenet', partial=True) == []
    report = verify.verify(imagenet, 'imagenet')
    assert 'train: 10 images in 5 classes, 2 to 2 a class' in report.facts
    assert {what for what, _ in report.problems} == {
        f'{split}: 995 class folders are missing: {", ".join(SYNSETS[5:10])} and 990 more' for split in ('train', 'val')
    } | {'train: 10 images, and ImageNet-1K has 1281167', 'val: 5 images, and ImageNet-1K has 50000'}
    monkeypatch.setattr(verify, 'imagenet_synsets', lambda: SYNSETS[:5])
    monkeypatch.setattr(ilsvrc, 'NUM_TRAIN', 10)
    monkeypatch.setattr(ilsvrc, 'NUM_VAL', 5)
    assert problems(imagenet, 'imagenet') == []
    first, second = (imagenet / 'val' / SYNSETS[i] for i in (0, 1))
    (first / f'{SYNSETS[0]}_0.JPEG').rename(second / 'moved.JPEG')
    found = problems(imagenet, 'imagenet')
    assert 'val: has not 50 images of every class' in found
    assert f'val: no image in the classes {SYNSETS[0]}' in found


def test_imagenets_folders(imagenet):
    (imagenet / 'val' / SYNSETS[1]).rename(imagenet / 'val' / 'n00000001')
    found = problems(imagenet, 'imagenet', partial=True)
    assert found == [
        'val: class folders are not of ImageNet-1K: n00000001',
        f'val and train have other class folders: only in train {SYNSETS[1]}; only in val n00000001',
    ]
    for number, folder in enumerate(sorted((imagenet / 'val').iterdir()), start=1):
        folder.rename(imagenet / 'val' / str(number))
    report = verify.verify(imagenet, 'imagenet', Scope(partial=True))
    assert 'val: class folders are no synset ids: 1, 2, 3, 4, 5' in [what for what, _ in report.problems]
    assert "the ILSVRC devkit's ids" in report.problems[-1][1]


def test_validation_images_that_were_not_sorted(imagenet):
    for i, image in enumerate(sorted((imagenet / 'val').rglob('*.JPEG')), start=1):
        image.rename(imagenet / 'val' / f'ILSVRC2012_val_{i:08d}.JPEG')
    for synset in SYNSETS[:5]:
        (imagenet / 'val' / synset).rmdir()
    assert_one(
        problems(imagenet, 'imagenet', partial=True), r'val: has images but no class folders, and .*val\.txt is not'
    )

    def with_labels(labels):
        (imagenet / 'meta').mkdir(exist_ok=True)
        lines = [f'ILSVRC2012_val_{i:08d}.JPEG {label}\n' for i, label in enumerate(labels, start=1)]
        (imagenet / 'meta' / 'val.txt').write_text(''.join(lines))
        return problems(imagenet, 'imagenet', partial=True)

    assert with_labels([65, 970, 230, 809, 516]) == []
    assert_one(with_labels([66, 971, 231, 810, 517]), 'sorted synsets, but counted from 1')
    assert_one(with_labels([490, 361, 171, 822, 297]), r"the ILSVRC devkit's own ids, 1\.\.1000")
    assert_one(with_labels([489, 360, 170, 821, 296]), "devkit's own order, counted from 0")
    assert_one(with_labels([1, 2, 3, 4, 5]), 'neither of sorted synsets nor of the ILSVRC devkit')
    found = with_labels([65, 970, 230, 809, 1000])
    assert any(re.search(r'val\.txt: labels outside 0\.\.999: line 5: 1000', what) for what in found)


@pytest.mark.parametrize('shift', [0, 1])
def test_the_devkits_order_by_synset(shift):
    """Of meta.mat: kit fox is 1, English setter 2, dumbbell 1000."""
    ids = [(f'{s}/x.JPEG', i - shift) for s, i in ilsvrc.DEVKIT_IDS.items()]
    assert ilsvrc.label_order(ids) == ('devkit from 0' if shift else 'devkit')
    sorted_ = 'sorted from 1' if shift else 'sorted'
    assert ilsvrc.label_order((f'{s}/x.JPEG', SYNSETS.index(s) + shift) for s in ilsvrc.DEVKIT_IDS) == sorted_
    others = ['n00000005', 'n00000001', 'n00000003']  # of ImageNet-22K: places among those that occur
    for some in (others, SYNSETS[500:503]):  # and of a part of ImageNet-1K with labels of its own
        assert ilsvrc.label_order((f'{s}/{s}_1.JPEG', sorted(some).index(s) + shift) for s in some) == sorted_
    assert ilsvrc.label_order([(f'{s}/x.JPEG', 3 * i) for i, s in enumerate(SYNSETS)]) == 'other'
    assert ilsvrc.label_order([('cat/x.png', 3)]) is None


def test_lists(imagenet, tmp_path):
    file = tmp_path / 'l.txt'
    names = sorted(str(path.relative_to(imagenet)) for path in imagenet.rglob('*.JPEG'))

    def lines(*text):
        file.write_text('\n'.join(text))
        return problems(imagenet, 'list', list_file=str(file), num_classes=5)

    good = [f'{name} {SYNSETS.index(name.split("/")[1])}' for name in names]
    assert lines(*good) == []
    assert_one(lines(names[0], *good[1:]), r'l\.txt: no label in line 1')
    assert_one(lines(*good, good[3]), 'listed more than once: train/n0')
    assert_one(lines(*good, f'no/{SYNSETS[2]}.JPEG 2'), r'1 files are not there: line 16: .*no/n01484850\.JPEG')
    wrong = lines(*good[:-1], f'{names[-1]} 0')
    assert_one(wrong, rf'line 15: {SYNSETS[4]} has label 0, in line 9 it has 4')
    (imagenet / 'train' / 'x.png').write_bytes(b'broken')
    assert_one(lines(*good, 'train/x.png 0'), r'1 images cannot be read: .*x\.png: not a readable image')
    file.write_text('\n'.join(names))
    assert problems(imagenet, 'list', list_file=str(file), unlabelled=True) == []
    with pytest.raises(ValueError, match='needs --list FILE'):
        verify.verify(imagenet, 'list')


def test_imagefolder(tmp_path):
    export(tmp_path / 'd', 'imagefolder', train=80, val=40, size=48)
    assert problems(tmp_path / 'd', 'imagefolder') == []
    assert problems(tmp_path / 'd' / 'train', 'imagefolder') == []
    assert problems(tmp_path / 'd', 'imagefolder', unlabelled=True) == []
    bad = next((tmp_path / 'd' / 'train').rglob('*.png'))
    bad.write_bytes(bad.read_bytes()[:100])
    (tmp_path / 'd' / 'val' / 'zebra').mkdir()
    picture(tmp_path / 'd' / 'val' / 'loose.png')
    for jobs in (1, 2):
        found = problems(tmp_path / 'd', 'imagefolder', jobs=jobs)
        assert [re.sub(r'/\S*/', '', what) for what in found] == [
            f'train: 1 images cannot be read: {bad.name}: not a readable image (image file is truncated)',
            'val: no image in the classes zebra',
            'val: 1 images are in no class folder: loose.png',
            'val and train have other class folders: only in train none; only in val zebra',
        ]
    report = verify.verify(tmp_path / 'd' / 'train', 'imagefolder', Scope(sample=7))
    assert any('of 7 good (80 there)' in fact for fact in report.facts)


def test_cifar(tmp_path):
    export(tmp_path / 'd', 'cifar', train=10, val=5, size=32)
    folder = tmp_path / 'd' / 'cifar-10-batches-py'
    report = verify.verify(tmp_path / 'd', 'cifar')
    assert not report.problems
    assert 'CIFAR10 test: 5 images, 12 classes, md5s good' in report.facts
    content = bytearray((folder / 'test_batch').read_bytes())
    content[2000] ^= 1
    (folder / 'test_batch').write_bytes(content)
    assert_one(problems(tmp_path / 'd', 'cifar'), r'test_batch: md5 is \w+, expected')
    (folder / 'md5s.json').unlink()  # then the published sums hold
    assert all('batches.meta: md5 is' in what for what in problems(tmp_path / 'd', 'cifar'))
    assert_one(problems(folder, 'cifar'), 'has neither cifar-10-batches-py nor cifar-100-python')


def test_ade20k(tmp_path):
    root = tmp_path / 'd'
    export(root, 'ade20k', train=5, val=4, size=48)
    assert problems(root, 'ade20k', partial=True) == []
    assert problems(root, 'ade20k') == [
        'training: 5 images, and ADE20K has 20210', 'validation: 4 images, and ADE20K has 2000'
    ]  # fmt: skip
    masks = sorted((root / 'annotations' / 'validation').iterdir())
    Image.fromarray(np.full((48, 48), 151, np.uint8)).save(masks[0])
    Image.fromarray(np.full((47, 48), 1, np.uint8)).save(masks[1])
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(masks[2])
    masks[3].unlink()
    found = problems(root, 'ade20k', partial=True)
    assert found[0] == f'validation: no mask for {masks[3].stem}'
    assert '3 pairs are unfit' in found[1]
    for said in (
        'holds id 151, ids are 0..150',
        '(48, 47) pixels (width, height), its image has (48, 48)',
        'has 3 bands',
    ):
        assert said in found[1]
    (root / 'images' / 'training').rename(root / 'images' / 'train')
    assert 'images/training: not there' in problems(root, 'ade20k', partial=True)[0]


def test_the_door(tmp_path, small_imagenet):
    (tmp_path / 'l.txt').write_text(f'train/{SYNSETS[0]}/{SYNSETS[0]}_0.JPEG 1\n')
    command = ['tools/prepare_data.py', 'verify', small_imagenet, '--format', 'list', '--list', tmp_path / 'l.txt']
    code, out, err = call(*command)
    assert code == 1, err
    said = r'PROBLEM  .*l\.txt: labels are in the order: sorted synsets, but counted from 1\n    do:  subtract 1'
    assert re.search(said, out), out


def test_releases_of_ade20k_that_are_another_data_set(tmp_path):
    """Index 251 and the like: the full ADE20K has the same folder names."""
    export(tmp_path / 'ADEChallengeData2016', 'ade20k', train=5, val=4, size=48)
    found = verify.verify(tmp_path, 'ade20k').problems
    assert found == [
        (
            f'{tmp_path}: the data set is the folder ADEChallengeData2016 in it',
            f'data_root={tmp_path / "ADEChallengeData2016"}',
        )
    ]
    full = tmp_path / 'ADE20K_2016_07_26'
    picture(full / 'images' / 'training' / 'a' / 'abbey' / 'ADE_train_1.jpg')
    picture(full / 'images' / 'training' / 'a' / 'abbey' / 'ADE_train_1_seg.png')
    assert_one(problems(full, 'ade20k'), r'is the full ADE20K \(it has images/training/a/abbey/ADE_train_1_seg\.png\)')
    (tmp_path / 'ADE20K_2021_17_01' / 'images' / 'ADE').mkdir(parents=True)
    assert_one(problems(tmp_path / 'ADE20K_2021_17_01', 'ade20k'), r'is the full ADE20K \(it has images/ADE\)')
