"""data/images.py: folders and lists, the order of classes, mistakes in them by name, and unreadable images skipped."""

import time

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmpretrain.datasets import CustomDataset, ImageNet
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from PIL import Image

from beit_mm.data import images, loading
from beit_mm.data.ilsvrc import DEVKIT_VAL, imagenet_synsets
from beit_mm.data.images import ImageList, ListError, read_list
from beit_mm.data.sampling import Draw
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import run

CLASSIFY = 'configs/classification/beit-mini-p8_scratch_1xb64-100_embedded-64.py'
LOAD = dict(type='beit_mm.LoadImage', on_error='skip')


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64), value, np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    """train/{b,a,c}/ with 2, 3 and 1 images, of the values 10, 11, 20, ..."""
    for folder, count in dict(b=2, a=3, c=1).items():
        for i in range(count):
            picture(tmp_path / 'train' / folder / f'{i}.png', 10 * 'abc'.index(folder) + i)
    return tmp_path


def test_folders_are_mmpretrains(folders):
    ours = ImageList(str(folders), data_prefix='train', pipeline=[])
    theirs = CustomDataset(str(folders), data_prefix='train', pipeline=[])
    assert [ours[i] for i in range(6)] == [theirs[i] for i in range(6)]
    assert [ours[i]['gt_label'] for i in range(6)] == [0, 0, 0, 1, 1, 2]
    assert ours.metainfo['classes'] == ('a', 'b', 'c')


def test_meta_files_are_mmpretrains(folders):
    (folders / 'meta').mkdir()
    (folders / 'meta' / 'train.txt').write_text('b/1.png 7\na/0.png 3\n')
    ours = ImageList(str(folders), split='train', pipeline=[])
    theirs = ImageNet(str(folders), split='train', pipeline=[])
    assert [dict(ours[i]) for i in range(2)] == [dict(theirs[i]) for i in range(2)]
    unlabelled = ImageList(str(folders), split='train', with_label=False, pipeline=[])
    assert [sorted(unlabelled[i]) for i in range(2)] == [['img_path', 'sample_idx']] * 2
    assert unlabelled[0]['img_path'] == theirs[0]['img_path']


def test_images_without_labels(folders):
    picture(folders / 'train' / 'loose.png')
    data = ImageList(str(folders / 'train'), with_label=False, pipeline=[])
    assert len(data) == 7
    assert 'gt_label' not in data[0]


def test_a_validation_set_that_lacks_a_class_keeps_its_labels(folders):
    picture(folders / 'val' / 'a' / '0.png')
    picture(folders / 'val' / 'c' / '0.png')
    val = ImageList(str(folders), data_prefix='val', classes=['a', 'b', 'c'], pipeline=[])
    assert [val[i]['gt_label'] for i in range(2)] == [0, 2]
    named = ImageList(str(folders), data_prefix='val', classes=['ape', 'cat'], pipeline=[])
    assert [named[i]['gt_label'] for i in range(2)] == [0, 1]
    with pytest.raises(ValueError, match=r'val: has 2 class folders, and 3 classes were given; c is none of them'):
        ImageList(str(folders), data_prefix='val', classes=['a', 'b', 'd'], pipeline=[])


def test_imagenets_synsets_are_sorted_and_have_their_names(tmp_path):
    synsets = imagenet_synsets()
    assert synsets == sorted(synsets)
    assert (len(synsets), synsets[0], synsets[-1]) == (1000, 'n01440764', 'n15075141')
    for name in synsets:
        (tmp_path / name).mkdir()
    picture(tmp_path / synsets[207] / 'x.png')
    data = ImageList(str(tmp_path), allow_empty=True, pipeline=[])
    assert data[0]['gt_label'] == 207
    assert data.metainfo['classes'] == tuple(IMAGENET_CATEGORIES)
    assert 'golden retriever' in data.metainfo['classes'][207]


def test_lists(tmp_path):
    file = tmp_path / 'l.txt'
    file.write_text('a b/c d.png 3\n\nx.png\t0\n')
    assert [tuple(e) for e in read_list(file)] == [(1, 'a b/c d.png', 3), (3, 'x.png', 0)]
    file.write_text('a b/c d.png\nx.png 12\n')
    assert [e.path for e in read_list(file, with_label=False)] == ['a b/c d.png', 'x.png']


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('a.png 0\nb.png\n', r"l\.txt, line 2: 'b\.png' has no label"),
        ('a.png 0\nb.png x\n', r"line 2: 'b\.png x' has no label"),
        ('a.png 0\nb.png 10\n', r'line 2: label 10 is outside 0\.\.9: do they start at 1\?'),
        ('a.png -1\n', r'line 1: label -1 is outside 0\.\.9'),
    ],
)
def test_mistakes_in_lists_are_named(tmp_path, text, said):
    (tmp_path / 'l.txt').write_text(text)
    with pytest.raises(ListError, match=said):
        ImageList(str(tmp_path), ann_file='l.txt', num_classes=10, pipeline=[])


def test_the_devkits_order_is_named_when_a_list_is_loaded(tmp_path, monkeypatch):
    def load(labels):
        lines = [f'ILSVRC2012_val_{i:08d}.JPEG {label}\n' for i, label in labels.items()]
        (tmp_path / 'val.txt').write_text(''.join(lines))
        return ImageList(str(tmp_path), ann_file='val.txt', num_classes=1000, pipeline=[])

    with pytest.raises(
        ListError, match=r"line 6: label 1000 is outside .* order: the ILSVRC devkit's own ids, 1\.\.1000"
    ):
        load({**DEVKIT_VAL, 6: 1000})
    said = []
    monkeypatch.setattr(images, 'print_log', lambda text, **_: said.append(text))
    load({i: label - 1 for i, label in DEVKIT_VAL.items()})  # in range, and all wrong
    assert "val.txt: its labels are in the order: the ILSVRC devkit's own order, counted from 0" in said[0]


def test_mistakes_in_folders_are_named(folders):
    with pytest.raises(FileNotFoundError, match=r'trian: there is no such folder of images .*prepare_data\.py verify'):
        ImageList(str(folders), data_prefix='trian', pipeline=[])
    with pytest.raises(FileNotFoundError, match=r'no\.txt: there is no such list'):
        ImageList(str(folders), ann_file='no.txt', pipeline=[])
    with pytest.raises(FileNotFoundError, match=r'train/a/?: has no class folders'):
        ImageList(str(folders / 'train' / 'a'), pipeline=[])
    (folders / 'train' / 'empty').mkdir()
    with pytest.raises(ValueError, match=r'train: no image in the class folder empty; .*allow_empty=True'):
        ImageList(str(folders), data_prefix='train', pipeline=[])
    with pytest.raises(FileNotFoundError, match=r'train/empty/?: no image in it'):
        ImageList(str(folders / 'train' / 'empty'), with_label=False, pipeline=[])
    with pytest.raises(ValueError, match=r'has 4 class folders, num_classes=1000'):
        ImageList(str(folders), data_prefix='train', num_classes=1000, pipeline=[])
    with pytest.raises(ValueError, match='say where the images are'):
        ImageList(pipeline=[])


@pytest.mark.parametrize('with_label', [True, False])
def test_a_list_takes_its_paths_and_8_bytes_a_label(tmp_path, with_label):
    """14 million dicts, or their pickles, are gigabytes on each rank."""
    names = [f'n{i % 10:08d}/ü{i}.JPEG' for i in range(100)]
    (tmp_path / 'l.txt').write_text('\r\n'.join(f'{name} {i % 10}' for i, name in enumerate(names)))
    options = dict(data_root=str(tmp_path), ann_file='l.txt', with_label=with_label, pipeline=[])
    data = ImageList(**options)
    assert data.data_bytes.nbytes == sum(len(name.encode()) + 8 * with_label for name in names)
    assert data.data_list == []
    infos = [dict(img_path=f'{tmp_path}/{name}', sample_idx=i) for i, name in enumerate(names)]
    if with_label:
        infos = [dict(info, gt_label=i % 10) for i, info in enumerate(infos)]
    assert [data.get_data_info(i) for i in range(100)] == infos
    assert data.get_data_info(-1) == infos[99]
    assert [ImageList(serialize_data=False, **options).get_data_info(i) for i in range(100)] == infos
    for indices, chosen in ((7, range(7)), (-3, range(97, 100)), ([5, 50, 2], [5, 50, 2])):
        for part in (ImageList(indices=indices, **options), data.get_subset(indices)):
            assert [part.get_data_info(i) for i in range(len(part))] == [
                dict(infos[j], sample_idx=i) for i, j in enumerate(chosen)
            ]
    with pytest.raises(IndexError):
        data.get_data_info(100)


def test_a_long_list_takes_time_in_proportion(tmp_path):
    seconds = []
    for count in (10_000, 80_000):
        (tmp_path / 'l.txt').write_text(''.join(f'n{i % 1000:08d}/{i}.JPEG {i % 1000}\n' for i in range(count)))
        begin = time.process_time()
        assert len(ImageList(str(tmp_path), ann_file='l.txt', num_classes=1000, pipeline=[])) == count
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 24 * seconds[0]  # 8 times the lines; quadratic is 64 times


@pytest.fixture
def own_skips():
    """A list of skipped files for one test."""
    loading.skipped.cache_clear()
    yield
    loading.skipped.cache_clear()


@pytest.mark.usefixtures('own_skips')
def test_the_next_readable_image_takes_the_place(folders):
    for name in ('a/1.png', 'a/2.png', 'c/0.png'):
        (folders / 'train' / name).write_bytes(b'broken')
    data = ImageList(str(folders), data_prefix='train', pipeline=[LOAD])
    got = [(int(data[i]['img'][0, 0, 0]), data[i]['gt_label']) for i in range(6)]
    assert got == [(0, 0), (10, 1), (10, 1), (10, 1), (11, 1), (0, 0)]  # after the last comes the first
    draw = Draw(1, (5, 6, 1))
    assert data[draw]['sample_idx'].key == (5, 6, 1)  # other transforms draw as for the place in the run
    test = ImageList(str(folders), data_prefix='train', pipeline=[LOAD], test_mode=True)
    with pytest.raises(ValueError, match=r'a/1\.png: cannot be read .* a test leaves no image out'):
        test[1]
    stop = ImageList(str(folders), data_prefix='train', pipeline=[dict(LOAD, on_error='stop')])
    with pytest.raises(loading.UnreadableImage, match=r'a/1\.png: not a readable image'):
        stop[1]


def test_nothing_readable_ends(folders):
    for path in (folders / 'train').rglob('*.png'):
        path.write_bytes(b'broken')
    data = ImageList(str(folders), data_prefix='train', pipeline=[LOAD])
    with pytest.raises(ValueError, match=r'a/0\.png: cannot be read, nor the 5 images after it'):
        data[0]


@pytest.mark.usefixtures('own_skips')
def test_workers_skip_alike_and_all_is_counted(folders):
    (folders / 'train' / 'a' / '1.png').write_bytes(b'broken')

    def values(workers):
        data = ImageList(str(folders), data_prefix='train', pipeline=[LOAD])
        loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=workers, collate_fn=pseudo_collate)
        return [int(image[0, 0, 0]) for batch in loader for image in batch['img']]

    assert values(0) == values(2) == [0, 2, 2, 10, 11, 20]
    assert [path for path, _ in loading.skipped().entries()] == [str(folders / 'train' / 'a' / '1.png')] * 2


@pytest.mark.usefixtures('own_skips', 'no_pretty_printing')
def test_a_run_says_what_it_skipped(folders):
    bad = folders / 'train' / 'a' / '1.png'
    bad.write_bytes(b'broken')
    pipeline = [dict(LOAD, color_type='grayscale'), dict(type='PackInputs')]
    few = {'train_cfg.max_iters': 3, 'train_dataloader.batch_size': 6, 'model.head.num_classes': 3}
    config = load_config(CLASSIFY, few)
    config.train_dataloader.dataset = dict(
        type='beit_mm.ImageList', data_root=str(folders), data_prefix='train', pipeline=pipeline
    )
    runner = run(config, work_dir=str(folders / 'w'), no_validate=True, seed=0)
    log = next((folders / 'w').glob('*/*.log')).read_text()
    assert log.count('1 images cannot be read and were skipped, 3 times in all') == 1
    assert (folders / 'w' / 'unreadable_images.txt').read_text().startswith(f'{bad}\tnot a readable image')
    assert runner.train_dataloader.dataset.metainfo['classes'] == ('a', 'b', 'c')
