"""ops/masking.py against statistics of 20,000 masks of the official generator."""

import json
import math

import numpy as np
import pytest
from official import DATA

from beit_mm.ops import masking
from beit_mm.ops.masking import blockwise_mask, random_mask

STATS = json.loads((DATA / 'blockwise_mask_stats.json').read_text())
DRAWS = 4000


@pytest.mark.parametrize('stats', STATS, ids=[f'{s["grid"]}-{s["num_masking_patches"]}' for s in STATS])
def test_law_of_the_official_generator(stats):
    rng = np.random.default_rng(0)
    wanted = stats['num_masking_patches']
    masks = np.stack(
        [
            blockwise_mask(
                rng,
                tuple(stats['grid']),
                wanted,
                min_block=stats['min_num_patches'],
                max_block=stats['max_num_patches'],
                min_aspect=stats['min_aspect'],
            )
            for _ in range(DRAWS)
        ]
    )
    counts = masks.sum(axis=(1, 2))
    assert counts.max() <= wanted
    theirs = np.repeat([int(k) for k in stats['count_hist']], list(stats['count_hist'].values()))
    error = counts.std() * math.sqrt(1 / DRAWS + 1 / stats['samples'])
    assert abs(counts.mean() - theirs.mean()) < 3 * error
    exact, share = (counts == wanted).mean(), (theirs == wanted).mean()
    assert abs(exact - share) < 3 * math.sqrt(share * (1 - share) * (1 / DRAWS + 1 / stats['samples']))
    ours, official = masks.mean(axis=0), np.array(stats['position_mean'])
    error = np.sqrt(official * (1 - official) * (1 / DRAWS + 1 / stats['samples']))
    assert (np.abs(ours - official) < 5 * np.maximum(error, 1e-3)).all()
    for key, here, there in (
        ('right_neighbour_masked', masks[:, :, :-1], masks[:, :, 1:]),
        ('lower_neighbour_masked', masks[:, :-1], masks[:, 1:]),
    ):
        both, of = (here & there).sum(axis=(1, 2)), here.sum(axis=(1, 2))
        error = (both / of).std() * math.sqrt(1 / DRAWS + 1 / stats['samples'])
        assert abs(both.sum() / of.sum() - stats[key]) < 3 * error, key


def test_the_border_is_masked_too():
    """mmpretrain's port never masks the last row and column."""
    rng = np.random.default_rng(1)
    masks = np.stack([blockwise_mask(rng, (14, 14), 75) for _ in range(500)])
    for edge in (masks[:, -1], masks[:, :, -1], masks[:, 0], masks[:, :, 0]):
        assert 0.10 < edge.mean() < 0.17  # official: 0.134


def test_no_block_is_as_long_as_the_grid():
    """The official test is strict: 16 patches fit no shape within a 4 x 4 grid, so none is masked."""
    rng = np.random.default_rng(0)
    assert not any(blockwise_mask(rng, (4, 4), 16, min_block=16).any() for _ in range(50))
    square = dict(num_masked=4, min_block=4, max_block=4, min_aspect=0.99)  # 2 x 2
    assert all(blockwise_mask(rng, (3, 14), **square).sum() == 4 for _ in range(50))
    assert not any(blockwise_mask(rng, (2, 14), **square).any() for _ in range(50))


@pytest.mark.parametrize(('grid', 'wanted'), [((8, 8), 26), ((7, 21), 60), ((24, 24), 230), ((3, 14), 12)])
def test_every_patch_of_any_grid_can_be_masked(grid, wanted):
    """The law is symmetric: opposite borders are masked equally often."""
    rng = np.random.default_rng(0)
    masks = np.stack([blockwise_mask(rng, grid, wanted, min_block=2) for _ in range(1500)])
    share = masks.mean(axis=0)
    assert masks.sum(axis=(1, 2)).max() <= wanted
    assert share.min() > 0
    np.testing.assert_allclose(share[0].mean(), share[-1].mean(), rtol=0.2)
    np.testing.assert_allclose(share[:, 0].mean(), share[:, -1].mean(), rtol=0.2)


def test_same_generator_same_mask_and_no_endless_loop():
    one, two = (blockwise_mask(np.random.default_rng(5), (14, 14), 75) for _ in range(2))
    assert (one == two).all()
    full = blockwise_mask(np.random.default_rng(0), (14, 14), 196)  # mmpretrain's loops for ever here
    assert full.sum() <= 196
    with pytest.raises(ValueError, match=r'num_masked=200 must be in 1\.\.196'):
        blockwise_mask(np.random.default_rng(0), (14, 14), 200)


@pytest.mark.parametrize(
    ('grid', 'wanted', 'options'),
    [
        ((14, 14), 75, {}),
        ((14, 14), 75, dict(max_block=20, min_aspect=0.5)),
        ((14, 14), 196, {}),  # mostly more words than are fetched
        ((8, 8), 26, dict(min_block=4)),
        ((7, 21), 60, {}),
        ((32, 32), 410, {}),
        ((3, 14), 12, dict(min_block=2)),
        ((4, 4), 16, {}),  # nothing fits
    ],
)
def test_bits_are_the_algorithm_call_by_call(grid, wanted, options, monkeypatch):
    """Same masks from the same generator, which is left as it would be: seeds mean what they meant."""
    law = (wanted, options.get('min_block', 16), options.get('max_block', wanted))
    slope = math.log(options.get('min_aspect', 0.3))
    calls = []
    plain = masking._from_calls
    monkeypatch.setattr(masking, '_from_calls', lambda *args: calls.append(1) or plain(*args))
    ours, theirs = np.random.default_rng(1), np.random.default_rng(1)
    for draw in range(300):
        mask = blockwise_mask(ours, grid, wanted, **options)
        assert mask.dtype == bool
        assert mask.flags.writeable
        np.testing.assert_array_equal(mask, plain(theirs, grid, *law, slope))
        assert ours.random() == theirs.random()
        if draw in (100, 200):  # half a word is left over, and taken first by what is drawn next
            assert ours.integers(10) == theirs.integers(10)
    assert len(calls) >= 100
    assert (len(calls) < 110) == (wanted != 196)


def test_other_generators_and_integers_to_be_drawn_again():
    """numpy's Lemire draws an integer again where the product's lower half is tiny: left to numpy itself."""
    ours, theirs = (np.random.Generator(np.random.MT19937(3)) for _ in range(2))
    for _ in range(20):
        expected = masking._from_calls(theirs, (14, 14), 75, 16, 75, math.log(0.3))
        np.testing.assert_array_equal(blockwise_mask(ours, (14, 14), 75), expected)
    law = ((14, 14), 20, 16, 20, math.log(0.3))
    words = [2**63, 2**63, 3 << 61 | 2**20] * 30  # 4 x 4 patches, then 3 x 3, more than the 4 still wanted
    bits, used = masking._from_words(words, *law)
    assert (bits.bit_count(), used) == (16, 33)
    assert masking._from_words([2**63, 2**63, 3 << 61, *words], *law) == (0, 0)  # its lower half is 0
    assert masking._from_words(words[:32], *law) == (0, 0)


def test_random_mask_is_exact_and_uniform():
    rng = np.random.default_rng(0)
    masks = np.stack([random_mask(rng, (4, 5), 7) for _ in range(4000)])
    assert (masks.sum(axis=(1, 2)) == 7).all()
    np.testing.assert_allclose(masks.mean(axis=0), 7 / 20, atol=0.04)
