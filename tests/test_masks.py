"""data/masks.py: what becomes of a mask's numbers, which files are pairs, and what is refused by name."""

import re
from pathlib import Path

import numpy as np
import pytest
from mmseg.datasets import ADE20KDataset
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image
from test_configs import tiny_segmentor

from beit_mm.apis import segment
from beit_mm.data.export import export
from beit_mm.data.loading import LoadImage, UnreadableImage
from beit_mm.data.masks import ADE20K, LoadMask, MaskError, MaskFolder, read_mask, to_classes
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import evaluate, run

ROOT = Path(__file__).parents[1]

PAIR = [LoadImage(), LoadMask()]


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **options)
    return str(path)


def pairs(root, masks: dict, size=(4, 6), suffix='.png'):
    """root/{images,masks}: an image of `size` for every mask."""
    for name, mask in masks.items():
        save(root / 'images' / f'{name}.jpg', np.zeros((*size, 3), np.uint8))
        save(root / 'masks' / f'{name}{suffix}', mask)
    return dict(data_root=str(root), data_prefix=dict(img_path='images', seg_map_path='masks'), pipeline=PAIR)


def loaded(root, masks, classes=('a', 'b', 'c'), **options):
    dataset = MaskFolder(**pairs(root, masks), metainfo=dict(classes=classes), **options)
    return [dataset[i]['gt_seg_map'] for i in range(len(dataset))]


def grid(*rows):
    return np.array(rows, np.uint8).repeat(2, axis=0).repeat(3, axis=1)  # (4, 6) of 2 x 2


def test_ids_are_classes_and_255_is_ignored(tmp_path):
    (mask,) = loaded(tmp_path, {'x': grid([0, 1], [2, 255])})
    np.testing.assert_array_equal(mask, grid([0, 1], [2, 255]))
    assert mask.dtype == np.uint8


def test_zero_is_reduced_in_one_place(tmp_path):
    (mask,) = loaded(tmp_path, {'x': grid([0, 1], [3, 255])}, reduce_zero_label=True)
    np.testing.assert_array_equal(mask, grid([255, 0], [2, 255]))


def test_a_choice_of_classes(tmp_path):
    """As mmseg's: the files' ids stay, what is not chosen is ignored."""
    ids = np.arange(24, dtype=np.uint8).reshape(4, 6)
    masks = dict(x=ids)
    chosen = ('car', 'wall', 'sky')
    dataset = ADE20K(**pairs(tmp_path, masks), metainfo=dict(classes=chosen))
    theirs = ADE20KDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        pipeline=[LoadAnnotations()],
        metainfo=dict(classes=chosen),
        reduce_zero_label=True,
    )
    mask = dataset[0]['gt_seg_map']
    np.testing.assert_array_equal(mask, theirs[0]['gt_seg_map'])
    assert set(np.unique(mask)) == {0, 1, 2, 255}
    assert dataset.metainfo['palette'] == theirs.metainfo['palette']


def test_ade20k_is_mmsegs(tmp_path):
    export(tmp_path, 'ade20k', train=6, val=2, size=32)
    options = dict(data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'))
    ours = ADE20K(data_root=str(tmp_path), pipeline=PAIR, **options)
    theirs = ADE20KDataset(data_root=str(tmp_path), pipeline=[LoadAnnotations()], img_suffix='.png', **options)
    assert len(ours) == len(theirs) == 6
    assert ours.metainfo['classes'] == theirs.metainfo['classes']
    for mine, other in zip(ours, theirs, strict=True):
        assert mine['img_path'] == other['img_path']
        np.testing.assert_array_equal(mine['gt_seg_map'], other['gt_seg_map'])


@pytest.mark.parametrize(
    ('stored', 'values'),
    [
        ([[0, 255], [255, 0]], (0, 255)),  # black and white
        ([[7, 3], [3, 7]], (7, 3)),
        ([[(0, 0, 0), (255, 0, 0)], [(255, 0, 0), (0, 0, 0)]], [(0, 0, 0), (255, 0, 0)]),
    ],
)
def test_files_that_number_or_colour_their_classes_otherwise(tmp_path, stored, values):
    stored = np.array(stored, np.uint8).repeat(2, axis=0).repeat(3, axis=1)
    (mask,) = loaded(tmp_path, {'x': stored}, classes=('ground', 'thing'), mask_values=values)
    np.testing.assert_array_equal(mask, grid([0, 1], [1, 0]))


def test_255_stays_ignored_beside_named_values():
    np.testing.assert_array_equal(to_classes(np.array([[7, 255, 3]]), (3, 7), 'x.png'), [[1, 255, 0]])


@pytest.mark.parametrize(
    ('array', 'values', 'said'),
    [
        (np.array([[0, 9]]), (0, 1), r'm\.png: holds 9, which mask_values=\[0, 1\] do not name'),
        (np.array([[0, 9]]), [(0, 0, 0)], r'm\.png: holds numbers \(0, 9\), and mask_values=.* are colours'),
        (
            np.zeros((1, 2, 3)),
            (0, 1),
            r'm\.png: holds colours \(\(0\.0, 0\.0, 0\.0\)\), and mask_values=.* are numbers',
        ),
        (np.array([[[1, 2, 3]]]), [(0, 0, 0), (9, 9, 9)], r'm\.png: holds \(1, 2, 3\), which mask_values'),
    ],
)
def test_values_that_nobody_named(array, values, said):
    with pytest.raises(MaskError, match=said):
        to_classes(array, values, 'm.png')


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('chosen', [None, {0: 1, 1: 255, 2: 0, 3: 2, 4: 255}, {0: 1, 1: -1, 2: 0, 3: 2, 4: -1}])
@pytest.mark.parametrize(('values', 'ignored'), [(None, ()), ((7, 3, 250), (9, 0))])
def test_the_table_is_the_arithmetic(tmp_path, monkeypatch, shifted, chosen, values, ignored):
    """Masks of 8 bits go through a table of 256 values: the same classes, and the same words for what is refused."""
    meaning = dict(label_map=chosen, reduce_zero_label=shifted, mask_values=values, ignored_values=ignored)
    rng = np.random.default_rng(0)
    refused = 0
    for pool in ([0, 1, 2, 255], [3, 7, 250, 9, 0, 255], [1, 2, 4, 5], [0, 6], list(range(256)), [255], [3]):
        path = save(tmp_path / 'm.png', rng.choice(pool, (11, 13)).astype(np.uint8))
        sample = dict(seg_map_path=path, num_classes=5, **meaning)
        found = []
        for transform in (LoadMask(), LoadMask()):
            try:
                found.append(transform(dict(sample))['gt_seg_map'])
            except MaskError as error:
                found.append(str(error))
            monkeypatch.setattr(LoadMask, '_by_table', lambda self, mask, results: None)
        monkeypatch.undo()
        refused += isinstance(found[0], str)
        assert type(found[0]) is type(found[1])
        np.testing.assert_array_equal(*found)
        if not isinstance(found[0], str):
            assert found[0].dtype == np.uint8
            assert found[0].flags.writeable
    assert 1 <= refused <= 5


def test_one_transform_reads_for_two_data_sets(tmp_path):
    """mmengine's ConcatDataset may share a pipeline: a table is of the data set's numbers, not of the first seen."""
    path, transform = save(tmp_path / 'm.png', grid([1, 2], [2, 1])), LoadMask()
    for shifted, expected in ((False, grid([1, 2], [2, 1])), (True, grid([0, 1], [1, 0]))):
        sample = dict(seg_map_path=path, reduce_zero_label=shifted, num_classes=3)
        np.testing.assert_array_equal(transform(sample)['gt_seg_map'], expected)
    with pytest.raises(MaskError, match='holds 2; 2 classes have ids 0 to 1'):
        transform(dict(seg_map_path=path, num_classes=2))


def test_kinds_of_files(tmp_path):
    ids = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    palette = Image.fromarray(ids, mode='P')
    palette.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200] + [99] * 9)
    palette.save(tmp_path / 'palette.png')
    save(tmp_path / 'deep.png', ids.astype(np.uint16) * 300)
    save(tmp_path / 'bits.png', ids > 2)
    np.save(tmp_path / 'array.npy', ids.astype(np.int32))
    save(tmp_path / 'mask.tif', ids)
    save(tmp_path / 'grey.png', ids)
    Image.fromarray(ids).save(tmp_path / 'clear.png', transparency=3)
    for name in ('palette.png', 'array.npy', 'mask.tif', 'grey.png', 'clear.png'):
        np.testing.assert_array_equal(read_mask(str(tmp_path / name)), ids)  # the index, not the colour
    np.testing.assert_array_equal(read_mask(str(tmp_path / 'deep.png')), ids.astype(int) * 300)
    np.testing.assert_array_equal(read_mask(str(tmp_path / 'bits.png')), ids > 2)
    np.save(tmp_path / 'half.npy', ids / 2)
    with pytest.raises(MaskError, match=r'half\.npy: holds fractions'):
        read_mask(str(tmp_path / 'half.npy'))
    with pytest.raises(MaskError, match=r'm\.jpg: a JPEG does not keep the ids'):
        read_mask(save(tmp_path / 'm.jpg', ids))
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'deep.png').read_bytes()[:40])
    with pytest.raises(UnreadableImage, match=r'cut\.png: not a readable mask'):
        read_mask(str(tmp_path / 'cut.png'))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    short = Path(save(tmp_path / 'short.png', noise))
    short.write_bytes(short.read_bytes()[:2000])
    with pytest.raises(UnreadableImage, match=r'short\.png: not a readable mask \(.*truncated'):
        read_mask(str(tmp_path / 'short.png'))
    with pytest.raises(FileNotFoundError):
        read_mask(str(tmp_path / 'none.png'))


@pytest.mark.parametrize(
    ('mask', 'options', 'said'),
    [
        (np.zeros((4, 5), np.uint8), {}, r'x\.png: the mask is 4 x 5 pixels .*x\.jpg 4 x 6: they must be of one size'),
        (
            np.full((4, 6, 3), (9, 8, 7), np.uint8),
            {},
            r'x\.png: is a picture of 3 bands.*Colours \(9, 8, 7\): .*mask_values=\[\(r, g, b\), \.\.\.\]',
        ),
        (grid([0, 1], [2, 7]), {}, r'x\.png: holds 7; 3 classes have ids 0 to 2, 255 being ignored\. If the files'),
        (grid([1, 1], [2, 3]), {}, r'x\.png: holds 3; .*If ids start at 1: reduce_zero_label=True'),
        (grid([0, 1], [2, 4]), dict(reduce_zero_label=True), r'x\.png: holds 4; 3 classes have ids 1 to 3, 255 and 0'),
        (np.full((4, 6), 251, np.uint16), {}, r'x\.png: holds 251'),  # the full ADE20K's
        (np.full((4, 6), 257, np.uint16), {}, r'x\.png: holds 257'),  # mmseg makes it 1
    ],
)
def test_masks_that_are_refused(tmp_path, mask, options, said):
    with pytest.raises(MaskError, match=said):
        loaded(tmp_path, {'x': mask}, **options)


def test_pairs_by_any_ending(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    for name in ('a/1', 'b/1', '2.v3'):
        save(tmp_path / 'images' / f'{name}.png', np.zeros((4, 6, 3), np.uint8))
        save(tmp_path / 'masks' / f'{name}_mask.png', mask)
    options = dict(data_root=str(tmp_path), data_prefix=dict(img_path='images', seg_map_path='masks'), pipeline=PAIR)
    found = MaskFolder(**options, seg_map_suffix='_mask.png', metainfo=dict(classes=('a', 'b')))
    names = [info['img_path'].removeprefix(f'{tmp_path}/images/') for info in map(found.get_data_info, range(3))]
    assert names == ['2.v3.png', 'a/1.png', 'b/1.png']
    assert [found.get_data_info(i)['seg_map_path'].endswith('_mask.png') for i in range(3)] == [True] * 3
    (tmp_path / 'list.txt').write_text('a/1\n\nb/1.png\n')
    some = MaskFolder(**options, seg_map_suffix='_mask.png', ann_file='list.txt')
    assert [some.get_data_info(i)['img_path'][-7:] for i in range(len(some))] == ['a/1.png', 'b/1.png']
    bare = MaskFolder(data_root=str(tmp_path), data_prefix=dict(img_path='images'), pipeline=PAIR[:1])
    assert len(bare) == 3
    assert 'seg_map_path' not in bare.get_data_info(0)  # to predict for
    (tmp_path / 'list.txt').write_text('a/1\nc/9\n')
    with pytest.raises(MaskError, match=r"list\.txt, line 2: 'c/9' is no image below"):
        MaskFolder(**options, seg_map_suffix='_mask.png', ann_file='list.txt')
    with pytest.raises(
        MaskError, match=r'3 of 3 images have no mask .*masks there are named 2.v3_mask.*seg_map_suffix'
    ):
        MaskFolder(**options)


def test_pairs_that_are_none(tmp_path):
    mask = np.zeros((4, 6), np.uint8)
    options = pairs(tmp_path, dict(a=mask, b=mask, c=mask))
    (tmp_path / 'masks' / 'b.png').unlink()
    with pytest.raises(MaskError, match=r'images: 1 of 3 images have no mask below .*masks: b;'):
        MaskFolder(**options)
    (tmp_path / 'images' / 'a.jpg').unlink()
    (tmp_path / 'images' / 'b.jpg').unlink()
    with pytest.raises(MaskError, match=r'masks: 1 of 2 masks have no image below .*images: a\.'):
        MaskFolder(**options)
    save(tmp_path / 'images' / 'c.png', mask)
    with pytest.raises(MaskError, match=r'two files of one name'):
        MaskFolder(**options)
    options['data_prefix'] = dict(img_path='pictures', seg_map_path='masks')
    with pytest.raises(MaskError, match=r'pictures: there is no such folder; images end in \.jpg'):
        MaskFolder(**options)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(mask_values=(1, 2), reduce_zero_label=True), 'nothing to reduce'),
        (dict(mask_values=(1, (2, 3, 4))), 'numbers only, or colours'),
        (dict(mask_values=(0, 1, 1)), 'each once'),
        (dict(mask_values={0: 1}), 'numbers only'),
        (dict(mask_values=((1, 2), (3, 4), (5, 6))), 'numbers only'),
        (dict(ignored_values=(7,)), 'ignored_values go with mask_values'),
        (dict(metainfo=dict(classes='abc')), 'must be a list of names'),
        (dict(mask_values=(1, 2)), '2 mask_values for 3 classes'),
        (dict(metainfo=dict(classes=[str(i) for i in range(256)])), '256 classes; at most 255'),
    ],
)
def test_wrong_settings(tmp_path, options, said):
    options = {'metainfo': dict(classes=('a', 'b', 'c')), **options}
    with pytest.raises(ValueError, match=said):
        MaskFolder(**pairs(tmp_path, dict(x=np.zeros((4, 6), np.uint8))), **options)


def test_many_bands(tmp_path):
    """Five bands beside a mask, as they are stored, through resizing and cropping."""
    from mmseg.datasets.transforms import PackSegInputs, RandomCrop

    rng = np.random.default_rng(0)
    bands = rng.integers(0, 4000, (20, 30, 5)).astype(np.uint16)
    (tmp_path / 'images').mkdir()
    np.save(tmp_path / 'images' / 'x.npy', bands)
    ids = rng.integers(0, 3, (20, 30)).astype(np.uint8)
    save(tmp_path / 'masks' / 'x.png', ids)
    dataset = MaskFolder(
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=('a', 'b', 'c')),
        pipeline=[LoadImage(color_type='unchanged'), LoadMask(), RandomCrop((16, 16)), PackSegInputs()],
    )
    sample = dataset[0]
    assert sample['inputs'].shape == (5, 16, 16)
    crop, mask = sample['inputs'].permute(1, 2, 0).numpy(), sample['data_samples'].gt_sem_seg.data[0].numpy()
    places = [
        (top, left)
        for top in range(5)
        for left in range(15)
        if np.array_equal(bands[top : top + 16, left : left + 16], crop)
    ]
    ((top, left),) = places
    np.testing.assert_array_equal(mask, ids[top : top + 16, left : left + 16])


def test_the_config_of_the_page(tmp_path, monkeypatch):
    """docs/segmentation.md, made small: black and white masks, two steps, an evaluation, a prediction."""
    page = (ROOT / 'docs' / 'segmentation.md').read_text()
    block = re.search(r'```python\n(_base_.*?)```', page, re.DOTALL)[1]
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        for i in range(count):
            save(tmp_path / f'data/mine/images/{split}/{i}.jpg', rng.integers(0, 256, (48, 40, 3), dtype=np.uint8))
            save(tmp_path / f'data/mine/masks/{split}/{i}.png', 255 * rng.integers(0, 2, (48, 40), dtype=np.uint8))
    (tmp_path / 'mine.py').write_text(block)
    options = tiny_segmentor(load_config(tmp_path / 'mine.py'))
    options.update({'load_from': None, 'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2})
    for name in ('train', 'val', 'test'):
        options.update({f'{name}_dataloader.num_workers': 0, f'{name}_dataloader.persistent_workers': False})
    monkeypatch.chdir(tmp_path)
    runner = run(load_config(tmp_path / 'mine.py', options), work_dir='w')
    assert runner.iter == 2
    assert runner.train_dataloader.dataset.metainfo['classes'] == ('ground', 'thing')
    log = next((tmp_path / 'w').glob('*/*.log')).read_text()
    shares = re.search(r'data: train: of 4 masks 0\.0 % of the pixels are ignored; of the rest: (.*)', log)[1]
    assert re.fullmatch(r'(ground|thing) 5\d\.\d %, (ground|thing) 4\d\.\d %', shares), shares
    rows = segment(load_config(tmp_path / 'mine.py', options), 'w/iter_2.pth', 'data/mine/images/val', tta=True)
    assert [row['mask'].shape for row in rows] == [(48, 40)] * 2


def test_five_bands_are_trained_on(tmp_path):
    """Through resizing, cropping and flipping to a step, an evaluation and a picture."""
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for i in range(4):
        np.save(tmp_path / 'images' / f'{i}.npy', rng.integers(0, 4000, (48, 40, 5)).astype(np.uint16))
        save(tmp_path / 'masks' / f'{i}.png', rng.integers(0, 3, (48, 40)).astype(np.uint8))
    leaf = ROOT / 'configs/segmentation/beit-base-p16_setr-pup-scratch_8xb2-160k_ade20k-512.py'
    files = dict(
        _delete_=True,
        type='beit_mm.MaskFolder',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='masks'),
        metainfo=dict(classes=('a', 'b', 'c')),
    )
    load = [dict(type='beit_mm.LoadImage', color_type='unchanged'), dict(type='beit_mm.LoadMask')]
    augment = [
        dict(type='RandomResize', scale=(64, 32), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
    ]
    resize, pack = [dict(type='Resize', scale=(64, 32), keep_ratio=True)], [dict(type='PackSegInputs')]
    options = tiny_segmentor(load_config(leaf))
    options = {key: value for key, value in options.items() if not re.match('(train|val|test)_dataloader|tta', key)}
    for name, steps in dict(train=load + augment, val=load[:1] + resize + load[1:]).items():
        options[f'{name}_dataloader.dataset'] = dict(files, pipeline=steps + pack)
        options.update({f'{name}_dataloader.num_workers': 0, f'{name}_dataloader.persistent_workers': False})
    options['test_dataloader'] = {
        'num_workers': 0,
        'persistent_workers': False,
        'dataset': options['val_dataloader.dataset'],
    }
    options.update({'data_preprocessor.mean': [2000.0] * 5, 'data_preprocessor.std': [1000.0] * 5})
    options.update({'model.backbone.in_channels': 5, 'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2})
    options['model.decode_head.num_classes'] = 3
    options.update({f'model.auxiliary_head.{i}.num_classes': 3 for i in range(3)})
    runner = run(load_config(leaf, options), work_dir=str(tmp_path / 'w'))
    assert runner.model.backbone.patch_embed.projection.weight.shape[1] == 5
    shown = tmp_path / 'shown'
    _, scores, _ = evaluate(
        load_config(leaf, options),
        str(tmp_path / 'w' / 'iter_2.pth'),
        work_dir=str(tmp_path / 'w'),
        show_dir=str(shown),
    )
    assert 0 < scores['mIoU'] < 100
    assert len(list(shown.glob('*.png'))) == 4


def test_values_of_chosen_classes_are_not_mapped_twice(tmp_path):
    """mask_values are in the order of the data set's own classes, whatever ADE20K's order is."""
    options = pairs(tmp_path, dict(x=grid([3, 1], [1, 255])))
    dataset = ADE20K(
        **options, reduce_zero_label=False, mask_values=(3, 1), metainfo=dict(classes=('building', 'wall'))
    )
    np.testing.assert_array_equal(dataset[0]['gt_seg_map'], grid([0, 1], [1, 255]))


def test_what_does_not_count_besides(tmp_path):
    border = (224, 224, 192)
    stored = np.array([[(0, 0, 0), (255, 0, 0)], [border, (0, 0, 0)]], np.uint8).repeat(2, axis=0).repeat(3, axis=1)
    options = dict(classes=('a', 'b'), mask_values=[(0, 0, 0), (255, 0, 0)])
    (mask,) = loaded(tmp_path / 'c', dict(x=stored), ignored_values=[border], **options)
    np.testing.assert_array_equal(mask, grid([0, 1], [255, 0]))
    with pytest.raises(MaskError, match=r'holds \(224, 224, 192\), which .*ignored_values'):
        loaded(tmp_path / 'd', dict(x=stored), **options)
    (mask,) = loaded(
        tmp_path / 'n', dict(x=grid([4, 9], [254, 4])), ('a', 'b'), mask_values=(4, 9), ignored_values=(254,)
    )
    np.testing.assert_array_equal(mask, grid([0, 1], [255, 0]))


def test_folders_behind_links_count(tmp_path):
    """And a link to where it is ends."""
    mask = np.zeros((4, 6), np.uint8)
    options = pairs(tmp_path / 'd', {'city1/a': mask})
    for kind, name in (('images', 'b.jpg'), ('masks', 'b.png')):
        save(tmp_path / 'far' / kind / name, np.zeros((4, 6, 3), np.uint8) if kind == 'images' else mask)
        (tmp_path / 'd' / kind / 'city0').symlink_to(tmp_path / 'far' / kind)
        (tmp_path / 'd' / kind / 'round').symlink_to(tmp_path / 'd' / kind)
    dataset = MaskFolder(**options)
    assert [dataset.get_data_info(i)['img_path'][-11:] for i in range(len(dataset))] == ['city0/b.jpg', 'city1/a.jpg']


def test_suffixes_in_capitals_and_lists_of_nothing(tmp_path):
    options = pairs(tmp_path, dict(a=np.zeros((4, 6), np.uint8)), suffix='_MASK.PNG')
    assert len(MaskFolder(**options, img_suffix='.JPG', seg_map_suffix='_mask.png')) == 1
    (tmp_path / 'l.txt').write_text('\n')
    with pytest.raises(MaskError, match=r'l\.txt: lists no image'):
        MaskFolder(**options, seg_map_suffix='_MASK.PNG', ann_file='l.txt')


def test_without_masks_there_is_something_to_predict_and_nothing_to_train_on(tmp_path):
    options = pairs(tmp_path, dict(a=np.zeros((4, 6), np.uint8)))
    options['data_prefix'] = dict(img_path='images')
    assert 'gt_seg_map' not in MaskFolder(**options, metainfo=dict(classes=('a', 'b')), test_mode=True)[0]
    with pytest.raises(MaskError, match=r'a\.jpg: the data set names no mask for it: data_prefix=dict\(.*seg_map_path'):
        MaskFolder(**options, metainfo=dict(classes=('a', 'b')))[0]
