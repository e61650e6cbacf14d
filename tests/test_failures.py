"""data/failures.py, door.py: what a data set raises names its file, and leaves a data worker in a few lines."""

import pickle

import broken
import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmpretrain.datasets import CustomDataset
from mmseg.datasets import MultiImageMixDataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from beit_mm.data.failures import DataError, named
from beit_mm.data.images import ImageList
from beit_mm.data.loading import UnreadableImage
from beit_mm.door import shown

STEPS = [dict(type='mmpretrain.LoadImageFromFile'), dict(type='mmpretrain.Resize', scale=8)]


class Named(Dataset):
    """Any data set, whose errors are named."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except Exception as error:
            raise named(error, self.dataset, index) from error


def said(dataset) -> list[str]:
    """What is said of each sample that fails."""
    found = []
    for index in range(len(dataset)):
        try:
            Named(dataset)[index]
        except DataError as error:
            found.append(str(error))
    return found


@pytest.fixture
def root(tmp_path):
    return broken.class_folders(tmp_path, images=2, splits=('train',))


def stock(root, *steps):
    return CustomDataset(data_root=str(root), data_prefix='train', pipeline=[*STEPS, *steps])


@pytest.mark.parametrize(
    ('damage', 'reason'),
    [
        ('cut', 'not a readable image (image file is truncated)'),
        ('text', 'not a readable image (of no known format)'),
        ('empty', 'not a readable image (the file is empty)'),
        ('missing', 'there is no such file'),
        ('directory', 'is a folder, not a file'),
    ],
)
def test_a_stock_loader(root, damage, reason):
    dataset = stock(root)
    getattr(broken, damage)(root / 'train/b/1.png')
    (text,) = said(dataset)
    assert text == (
        f'{root}/train/b/1.png: {reason}. Replace or remove it; to train without such files: '
        f"dict(type='beit_mm.LoadImage', on_error='skip')"
    )


def test_the_file_is_found_below_wrappers(root):
    dataset = stock(root)
    broken.text(root / 'train/b/1.png')
    for wrapped in (RepeatDataset(dataset, 2), ConcatDataset([dataset, dataset])):
        texts = said(wrapped)
        assert len(texts) == 2
        assert all(text.startswith(f'{root}/train/b/1.png: not a readable image') for text in texts)


def test_a_mixed_image_that_is_not_the_one_that_was_asked_for(tmp_path):
    """Mosaic reads three more: it is one of them that fails, and that one is named."""
    root = broken.mask_folders(tmp_path, images=4, splits=('train',))
    steps = [dict(type='mmseg.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')]
    folders = dict(data_root=str(root), data_prefix=dict(img_path='images/train', seg_map_path='masks/train'))
    plain = dict(type='mmseg.BaseSegDataset', **folders, img_suffix='.png', metainfo=dict(classes=('a', 'b', 'c')))
    mixed = MultiImageMixDataset(
        dict(plain, pipeline=steps), [dict(type='mmseg.RandomMosaic', prob=1.0, img_scale=(16, 16))]
    )
    Image.open(root / 'masks/train/002.png').resize((30, 32)).save(root / 'masks/train/002.png')
    np.random.seed(0)
    texts = [text for _ in range(4) for text in said(mixed)]
    assert texts
    assert {text.partition(':')[0] for text in texts} == {f'{root}/masks/train/002.png'}


def test_another_step_than_loading(root):
    texts = said(stock(root, dict(type='mmpretrain.RandomCrop', crop_size=(64, 64), padding='wide')))
    assert len(texts) == 6
    assert texts[0].startswith(f'{root}/train/a/0.png in RandomCrop: ')
    assert texts[0].endswith('. Mend the file or that step of the pipeline')


def test_what_has_no_file():
    class Numbers(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return 1 / 0

    assert said(Numbers()) == ['image 0 of Numbers: ZeroDivisionError: division by zero. Mend the image or that step']


def test_errors_of_ours_stay_what_they_are(root):
    broken.text(root / 'train/b/1.png')
    dataset = ImageList(str(root), data_prefix='train', pipeline=[dict(type='beit_mm.LoadImage')])
    with pytest.raises(UnreadableImage, match=r'train/b/1\.png: not a readable image \(of no known format\)$'):
        Named(dataset)[3]


def test_the_original_is_the_cause_and_the_error_is_picklable(root):
    dataset = stock(root)
    broken.text(root / 'train/b/1.png')
    with pytest.raises(DataError) as caught:
        Named(dataset)[3]
    assert isinstance(caught.value.__cause__, AssertionError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (DataError, str(caught.value))


@pytest.mark.parametrize('ours', [True, False])
def test_an_error_of_a_data_worker_is_shown_without_its_traceback(root, ours):
    dataset = stock(root)
    broken.text(root / 'train/b/1.png')
    wanted = said(dataset)[0] if ours else f'failed to load image: {root}/train/b/1.png'
    with pytest.raises(DataError if ours else AssertionError) as caught:
        list(DataLoader(Named(dataset) if ours else dataset, num_workers=1, collate_fn=len))
    assert 'Original Traceback' in str(caught.value)
    assert shown(caught.value) == wanted


def test_what_is_shown_is_short():
    assert shown(ValueError('x' * 1000 + '\n' + 'y\n' * 20)).splitlines() == [
        f'{"x" * 600} ...', *'y' * 9, '... 11 lines more, in the log',
    ]  # fmt: skip
