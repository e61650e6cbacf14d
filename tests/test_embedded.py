"""data/embedded.py: frozen pixels, no overlap of train and val, exact masks and labels."""

import hashlib

import numpy as np
import pytest

from beit_mm.data import embedded

# sha256 over the first 100 samples of each kind. Whoever changes one of these makes another data set, on which
# results cannot be compared with earlier ones. `python tests/test_embedded.py` prints them.
DIGESTS = {
    'train-colour': 'c8f7cbff1c1b182e',
    'train-grey': '79046fb0952a57f8',
    'val-colour': '24a8deae92000ac7',
    'val-grey': '15dd03ded4b0b2c1',
    'pool-colour': '167b6f472ff27e25',
    'pool-grey': 'e2541032c3c3579c',
    'digits': '8aa17de8f845515c',
}


def digest(kind: str) -> str:
    total = hashlib.sha256()
    for i in range(100):
        if kind.startswith('pool'):
            arrays = [embedded.pool_crop(0, i, 64, kind.endswith('grey'))]
        elif kind.startswith('digits'):
            images, labels = embedded.digits_split('train')
            arrays = [images[i], labels[i : i + 1]]
        else:
            scene = embedded.scene(0, kind.split('-')[0], i, 64, kind.endswith('grey'))
            arrays = [scene.image, scene.mask, np.array([scene.label])]
        for array in arrays:
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


KINDS = ('train-colour', 'train-grey', 'val-colour', 'val-grey', 'pool-colour', 'pool-grey', 'digits')


@pytest.mark.parametrize('kind', KINDS)
def test_frozen(kind):
    assert digest(kind) == DIGESTS[kind]


def test_every_photograph_is_licensed_credited_and_verified(monkeypatch):
    for photograph in embedded.PHOTOGRAPHS:
        assert photograph.licence in ('CC0 1.0', 'public domain', 'CC BY 2.0')
        assert photograph.credit
        assert len(photograph.sha256) == 64
    assert len(embedded.CLASSES) == len(set(embedded.CLASSES)) == len(embedded.PALETTE) == 12
    wrong = embedded.PHOTOGRAPHS[0]._replace(sha256='0' * 64)
    monkeypatch.setattr(embedded, 'PHOTOGRAPHS', (wrong, *embedded.PHOTOGRAPHS[1:]))
    embedded.load_photograph.cache_clear()
    with pytest.raises(ValueError, match=r'brick\.png: sha256 is 7966caf324f6'):
        embedded.load_photograph(0)
    embedded.load_photograph.cache_clear()


def test_train_and_val_share_no_column():
    for i in range(len(embedded.CLASSES)):
        whole = embedded.load_photograph(i)
        left, right = embedded._half(i, 'train'), embedded._half(i, 'val')
        assert left.shape[1] + right.shape[1] == whole.shape[1]
        np.testing.assert_array_equal(np.concatenate([left, right], axis=1), whole)
        assert embedded._half(i, 'pool') is embedded._half(i, 'pool')
        np.testing.assert_array_equal(embedded._half(i, 'pool'), left)


def test_mask_and_label():
    for i in range(50):
        scene = embedded.scene(0, 'val', i, 48)
        counts = np.bincount(scene.mask.ravel(), minlength=12)
        assert scene.label == counts.argmax() or counts[scene.label] == counts.max()
        assert 1 <= np.count_nonzero(counts) <= 4
    assert (embedded.scene(0, 'val', 1).image == embedded.scene(0, 'val', 1).image).all()
    assert (embedded.scene(0, 'val', 1).image != embedded.scene(1, 'val', 1).image).any()


def test_pixels_come_from_the_material_that_the_mask_names():
    scene = embedded.scene(0, 'train', 3, 48)
    for material in np.unique(scene.mask):
        colours = {tuple(c) for c in embedded._half(int(material), 'train').reshape(-1, 3)}
        assert {tuple(c) for c in scene.image[scene.mask == material]} <= colours


def test_contrast_is_normalised():
    crop = np.random.default_rng(0).integers(80, 100, (32, 32, 3)).astype(np.uint8)
    grey = embedded.normalise_contrast(crop)
    assert grey.shape == (32, 32, 1)
    assert grey.mean() == pytest.approx(127.5, abs=1)
    assert grey.std() == pytest.approx(50, abs=2)
    flat = np.full((8, 8, 3), 77, np.uint8)
    assert (embedded.normalise_contrast(flat) == 128).all()


def test_a_crop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='size=500 does not fit the pool part of'):
        embedded.pool_crop(0, 0, 500)


if __name__ == '__main__':
    print('\n'.join(f"    '{kind}': '{digest(kind)}'," for kind in KINDS))
