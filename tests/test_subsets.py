"""data/subsets.py: shares are balanced, seeded, nested, and have a rest; lists of file names; what is refused."""

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, ConcatDataset

from beit_mm.data.datasets import EmbeddedDigits, EmbeddedScenes
from beit_mm.data.sampling import Draw, generator_of
from beit_mm.data.subsets import LabelledShare, balanced_order

DIGITS = dict(type='beit_mm.EmbeddedDigits', pipeline=[], split='train')
SCENES = dict(type='beit_mm.EmbeddedScenes', pipeline=[], split='train', length=48, size=16)


class Listed(BaseDataset):
    """Paths and labels as they are given."""

    def __init__(self, names, labels):
        self.given = [dict(img_path=f'data/{name}', gt_label=label) for name, label in zip(names, labels, strict=True)]
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return self.given


def labels_of(share):
    return np.array([share.get_data_info(i)['gt_label'] for i in range(len(share))])


def paths_of(share):
    return [share.get_data_info(i)['img_path'] for i in range(len(share))]


@pytest.mark.parametrize('seed', [0, 1, 7])
def test_every_start_is_balanced(seed):
    labels = np.random.default_rng(seed).choice(5, size=200, p=[0.02, 0.08, 0.2, 0.3, 0.4])
    order = balanced_order(labels, seed)
    assert sorted(order) == list(range(200))
    have = np.bincount(labels)
    for length in range(1, 201):
        counts = np.bincount(labels[order[:length]], minlength=5)
        most = counts.max()
        assert all(count >= min(most - 1, whole) for count, whole in zip(counts, have, strict=True)), length


def test_one_five_and_ten_percent_are_nested():
    one, five, ten = (LabelledShare(DIGITS, percent=percent) for percent in (1, 5, 10))
    assert [len(share) for share in (one, five, ten)] == [13, 63, 126]  # of 1,257
    assert set(paths_of(one)) < set(paths_of(five)) < set(paths_of(ten))
    for share, fewest in ((one, 1), (five, 6), (ten, 12)):
        assert set(np.bincount(labels_of(share))) == {fewest, fewest + 1}


def test_the_seed_decides():
    assert paths_of(LabelledShare(DIGITS, percent=5)) == paths_of(LabelledShare(DIGITS, percent=5))
    assert paths_of(LabelledShare(DIGITS, percent=5)) != paths_of(LabelledShare(DIGITS, percent=5, seed=1))


def test_share_and_rest_are_the_whole():
    share, rest = (LabelledShare(SCENES, percent=40, rest=rest) for rest in (False, True))
    whole = EmbeddedScenes(**{k: v for k, v in SCENES.items() if k != 'type'})
    assert not set(paths_of(share)) & set(paths_of(rest))
    assert sorted(paths_of(share) + paths_of(rest)) == sorted(paths_of(whole))
    assert share.metainfo == whole.metainfo
    np.testing.assert_array_equal(rest[3]['img'], whole[int(rest.indices[3])]['img'])


def test_any_labelled_data_set_inside():
    both = ConcatDataset([EmbeddedDigits([], 'train'), EmbeddedDigits([], 'val')])
    share = LabelledShare(both, percent=2)
    assert len(share) == 36  # of 1,797
    assert {path.split('/')[3] for path in paths_of(share)} == {'train', 'val'}


def test_a_draw_stays_a_draw():
    """The randomness of a sample depends on what it was drawn for, also through a share of the data."""
    share = LabelledShare(DIGITS, percent=5)
    drawn = share[Draw(4, (3, 2, 4))]
    assert drawn['sample_idx'].key == (3, 2, 4)
    assert int(drawn['sample_idx']) == share.indices[4]
    expected = generator_of(dict(sample_idx=Draw(9, (3, 2, 4))), 'x').random()
    assert generator_of(drawn, 'x').random() == expected


NAMES = ['n01/n01_1.JPEG', 'n01/n01_2.JPEG', 'n02/n02_1.JPEG', 'n02/same.JPEG', 'n01/same.JPEG']


def of_list(tmp_path, text, **kwargs):
    (tmp_path / 'list.txt').write_text(text)
    return LabelledShare(Listed(NAMES, [0, 0, 1, 1, 0]), file=str(tmp_path / 'list.txt'), **kwargs)


def test_a_list_of_file_names(tmp_path):
    """As SimCLR's: names without folders, in any order."""
    share = of_list(tmp_path, 'n02_1.JPEG\nn01_2.JPEG\n\n')
    assert paths_of(share) == ['data/n01/n01_2.JPEG', 'data/n02/n02_1.JPEG']
    assert paths_of(of_list(tmp_path, 'n01/same.JPEG\n')) == ['data/n01/same.JPEG']
    assert len(of_list(tmp_path, 'n01/same.JPEG\n', rest=True)) == 4


def test_mistakes_in_a_list(tmp_path):
    with pytest.raises(ValueError, match=r"list.txt, line 2: the data set has no image 'n03_1.JPEG'"):
        of_list(tmp_path, 'n01_1.JPEG\nn03_1.JPEG\n')
    with pytest.raises(ValueError, match=r"line 1: 'same.JPEG' names several images; write class/image"):
        of_list(tmp_path, 'same.JPEG\n')
    with pytest.raises(ValueError, match=r'it names 1 images twice'):
        of_list(tmp_path, 'n01_1.JPEG\nn01/n01_1.JPEG\n')


@pytest.mark.parametrize('percent', [0, 100, -1, 250])
def test_percent_out_of_range(percent):
    with pytest.raises(ValueError, match=rf'percent={percent} must be between 0 and 100'):
        LabelledShare(DIGITS, percent=percent)


def test_mistakes():
    with pytest.raises(ValueError, match=r'0.5 of 1257 images are 6, fewer than their 10 classes; .*percent=0.7955'):
        LabelledShare(DIGITS, percent=0.5)
    with pytest.raises(ValueError, match='percent=None, file=None: give one of the two'):
        LabelledShare(DIGITS)
    with pytest.raises(ValueError, match='outside of 5 of 5 images there is none'):
        LabelledShare(Listed(NAMES, [0, 0, 1, 1, 0]), percent=99, rest=True)
