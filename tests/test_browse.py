"""The sheet of a pipeline's images: its pixels are those that the model would read, before they are normalised."""

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from tiny import CLASSIFY, PRETRAIN, SEGMENT, tiny

from beit_mm.benchmark.analysis import AnalysisError, browse
from beit_mm.data import embedded
from beit_mm.data.sampling import Draw


def test_labels_and_pixels():
    config = tiny(CLASSIFY)
    rows = browse.rows_of(config, 'train', [3, 5], epochs=4)
    scene = embedded.scene(0, 'train', 5, 64, grey=True)
    original, *seen = rows[1]
    assert np.array_equal(original.picture, scene.image.repeat(3, axis=2))
    flips = [scene.image[::a, ::b].repeat(3, axis=2) for a in (1, -1) for b in (1, -1)]
    found = [[np.array_equal(cell.picture, flip) for flip in flips].index(True) for cell in seen]
    assert len(set(found)) > 1  # epochs differ
    assert {cell.caption.split(', ')[1] for cell in seen} == {embedded.CLASSES[scene.label]}
    again = browse.rows_of(config, 'train', [5], epochs=4)[0]
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(again, rows[1], strict=True))


def test_masks_lie_over_the_picture():
    (row,) = browse.rows_of(tiny(SEGMENT), 'val', [2])
    scene = embedded.scene(0, 'val', 2, 64, grey=True)
    wanted = (scene.image.astype(float) + np.array(embedded.PALETTE)[scene.mask]) / 2
    assert np.abs(row[1].picture - wanted).max() <= 0.5
    assert row[1].caption.split(', ')[1:] == [embedded.CLASSES[i] for i in np.unique(scene.mask)]


def test_views_and_mask_of_pretraining():
    config = tiny(PRETRAIN)
    (row,) = browse.rows_of(config, 'train', [1], epochs=2, seed=7)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        dataset = DATASETS.build(config.train_dataloader.dataset)
    sample = dataset[Draw(1, (7, 1, 1))]
    patches, masked, view = row[4:7]
    assert np.array_equal(patches.picture[..., 0], sample['patches'][0].numpy())
    assert np.array_equal(view.picture[..., 0], sample['tokens_view'][0].numpy())
    hidden = sample['mask'].numpy().repeat(8, 0).repeat(8, 1)
    assert (masked.picture[hidden] == browse.HIDDEN).all()
    assert np.array_equal(masked.picture[~hidden], patches.picture[~hidden])
    assert masked.caption == f'{int(sample["mask"].sum())} of 64 masked'


@pytest.mark.parametrize('place', ['data_preprocessor.batch_augments', 'model.train_cfg'])
def test_mixed_images_are_the_mixture_that_their_labels_say(place):
    config = tiny(CLASSIFY)
    config.merge_from_dict({place: dict(augments=[dict(type='Mixup', alpha=1.0)])})
    rows = browse.rows_of(config, 'train', [0, 1], epochs=1)
    scenes = [embedded.scene(0, 'train', i, 64, grey=True) for i in range(2)]
    assert scenes[0].label != scenes[1].label
    first, second = (row[1].picture.astype(float) for row in rows)
    shares = dict(part.rsplit(' ', 2)[:2] for part in rows[0][2].caption.split(': ')[1].split(' + '))
    share = float(shares[embedded.CLASSES[scenes[0].label]]) / 100
    assert 0.05 < share < 1
    wanted = share * first + (1 - share) * second
    assert np.abs(rows[0][2].picture - wanted).max() <= 255 * 0.005 + 1  # a share is told in whole percent


def test_bgr_and_sizes(tmp_path):
    """Pictures of mmpretrain's loaders are BGR, of any size; captions and page hold."""
    for i, colour in enumerate([(250, 10, 20), (10, 250, 20)]):
        (tmp_path / str(i)).mkdir()
        Image.new('RGB', (40 + 30 * i, 90), colour).save(tmp_path / str(i) / 'a.png')
    config = tiny(CLASSIFY)
    config.train_dataloader.dataset = dict(
        type='CustomDataset',
        data_root=str(tmp_path),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
    config.data_preprocessor = dict(
        type='ClsDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3, to_rgb=True, num_classes=2
    )
    rows = browse.rows_of(config, 'train', [0, 1], epochs=1)
    assert [row[1].picture[0, 0].tolist() for row in rows] == [[250, 10, 20], [10, 250, 20]]
    assert [row[0].caption for row in rows] == ['a.png, 40 x 90', 'a.png, 70 x 90']
    page = np.asarray(browse.sheet(rows))
    assert page.shape[1] == 2 * (browse.TILE + browse.GAP) + browse.GAP
    assert (page == (250, 10, 20)).all(-1).sum() > 2 * 80 * browse.TILE


def test_mistakes_are_named():
    with pytest.raises(AnalysisError, match='--indices 30: the train split has 30 images, 0 to 29'):
        browse.rows_of(tiny(CLASSIFY), 'train', [30])
    config = tiny(CLASSIFY)
    config.val_dataloader = None
    with pytest.raises(AnalysisError, match='val_dataloader is missing'):
        browse.rows_of(config, 'val', [0])
    with pytest.raises(AnalysisError, match='neither inputs nor patches'):
        browse._Show({}, False).cells(dict(other=torch.zeros(1)), '')
