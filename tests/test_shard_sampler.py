"""data/shard_sampler.py: one order for any number of ranks and workers, from any place, that keeps to few shards."""

import itertools

import injected  # noqa: F401  (registers Noise)
import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from shards import packed, write_images

from beit_mm.data import shard_reads, shard_sampler
from beit_mm.data.failures import DataError
from beit_mm.data.images import ImageList
from beit_mm.data.samples import seed_samples
from beit_mm.data.sampling import SeededInfiniteSampler, SeededSampler, keyed_sampler
from beit_mm.data.shard_sampler import ShardInfiniteSampler, ShardSampler
from beit_mm.data.shards import TarShards

LENGTHS = [7, 6, 0, 9, 1, 8, 7, 10]  # 48 samples, a shard without any among them


class Lengths(list):
    """A data set that is nothing but the lengths of its shards."""

    def __init__(self, lengths) -> None:
        super().__init__(range(sum(lengths)))
        self.shard_lengths = np.array(lengths)


DATA = Lengths(LENGTHS)


@pytest.fixture
def on(monkeypatch):
    """A sampler as one rank of several has it."""

    def make(rank=0, ranks=1, data=DATA, endless=False, **options):
        monkeypatch.setattr(shard_sampler, 'get_dist_info', lambda: (rank, ranks))
        kind = ShardInfiniteSampler if endless else ShardSampler
        return kind(data, seed=5, **{'window': 2, 'lanes': 4, **options})

    return make


def drawn(sampler, count=None):
    return [(int(draw), draw.key) for draw in itertools.islice(sampler, count)]


def test_a_pass_holds_each_sample_once_and_passes_differ(on):
    sampler = on()
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        draws = drawn(sampler)
        assert [key for _, key in draws] == [(5, epoch, index) for index, _ in draws]
        orders.append([index for index, _ in draws])
        assert sorted(orders[-1]) == list(range(48))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    sampler.set_epoch(0)
    assert [index for index, _ in drawn(sampler)] == orders[0]
    assert [index for index, _ in drawn(on(shuffle=False))] == list(range(48))


@pytest.mark.parametrize('endless', [False, True])
@pytest.mark.parametrize('ranks', [2, 3, 4, 8])
def test_batches_of_all_ranks_do_not_depend_on_their_number(on, ranks, endless):
    """Global batches of 24, in order, over two passes where they do not end."""
    count = 96 if endless else 48
    alone = drawn(on(endless=endless), count)
    apart = [drawn(on(rank, ranks, endless=endless), count // ranks) for rank in range(ranks)]
    for begin in range(0, count, 24):
        mine = slice(begin // ranks, (begin + 24) // ranks)
        assert sorted(draw for rank in apart for draw in rank[mine]) == sorted(alone[begin : begin + 24])


@pytest.mark.parametrize('endless', [False, True])
def test_it_begins_anywhere(on, endless):
    for rank, ranks in ((0, 1), (1, 3)):
        sampler = on(rank, ranks, endless=endless)
        whole = drawn(sampler, 60 if endless else None)
        for start in (1, 7, 15, 16):
            sampler.start = start
            assert drawn(sampler, len(whole) - start) == whole[start:]


def test_a_rank_reads_few_shards_at_a_time(on):
    """4 lanes on 2 ranks: two windows a rank, and no shard is left and taken up again."""
    data = Lengths([50] * 32)
    for rank in range(2):
        sampler = on(rank, 2, data=data)
        shards = [index // 50 for index, _ in drawn(sampler)]
        together = [len(set(shards[i : i + 20])) for i in range(0, 700, 20)]
        assert max(together) <= 2 * 2 * 2  # lanes x window, at the change of windows as many again
        spans = {shard: (shards.index(shard), len(shards) - shards[::-1].index(shard)) for shard in set(shards)}
        assert len(spans) == 16
        assert max(end - begin for begin, end in spans.values()) <= 200  # two shards in one of two lanes


def test_a_batch_is_mixed_well(on):
    """Two samples that are neighbours in one pass are not in the next."""
    data = Lengths([100] * 20)
    sampler = on(data=data, window=4, lanes=8)
    pairs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = [index for index, _ in drawn(sampler)]
        batches = [order[i : i + 50] for i in range(0, 2000, 50)]
        pairs.append({pair for batch in batches for pair in itertools.combinations(sorted(batch), 2)})
    kept = len(pairs[0] & pairs[1]) / len(pairs[0])
    by_chance = len(pairs[0]) / (2000 * 1999 / 2)
    assert kept < 6 * by_chance  # windows keep some together: 4 of 20 shards


def test_lengths_are_those_of_mmengines(on, monkeypatch):
    for rank, ranks in ((0, 5), (4, 5)):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank, ranks=ranks: (rank, ranks))
        for round_up in (True, False):
            sampler = on(rank, ranks, round_up=round_up)
            assert len(sampler) == len(DefaultSampler(DATA, seed=0, round_up=round_up)) == len(drawn(sampler))
    assert len(on(endless=True)) == 48
    rounded = [index for rank in range(5) for index, _ in drawn(on(rank, 5))]
    assert len(rounded) == 50
    assert set(rounded) == set(range(48))


def test_small_and_strange_ones(on):
    assert [index for index, _ in drawn(on(data=Lengths([1])))] == [0]
    assert sorted(index for index, _ in drawn(on(data=Lengths([3, 2]), window=9, lanes=64))) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r'window=0, lanes=8: both have to be 1 or more'):
        ShardSampler(DATA, window=0)
    with pytest.raises(DataError, match=r'list has no shards: it is for beit_mm\.TarShards'):
        ShardSampler([1, 2])


def test_it_is_what_a_config_builds():
    built = keyed_sampler(dict(type='beit_mm.ShardInfiniteSampler', window=3), DATA, 7)
    assert isinstance(built, ShardSampler)
    assert (built.seed, built.window, built.endless, built.start) == (7, 3, True, 0)


def test_our_versions_of_mmengines_samplers_still_have_their_order(monkeypatch):
    """They stay tensors until they are asked for: 14 million of Python's numbers are 570 MB."""
    for rank, ranks, round_up in ((0, 1, True), (1, 3, True), (2, 3, False), (6, 7, True)):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank, ranks=ranks: (rank, ranks))
        for shuffle in (True, False):
            options = dict(shuffle=shuffle, seed=3, round_up=round_up)
            ours, theirs = SeededSampler(range(50), **options), DefaultSampler(range(50), **options)
            for epoch in range(2):
                ours.set_epoch(epoch)
                theirs.set_epoch(epoch)
                assert [int(i) for i in ours] == list(theirs)
            ours.start = 3
            assert [int(i) for i in ours] == list(theirs)[3:]
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (0, 1))
    assert [int(i) for i in itertools.islice(SeededInfiniteSampler(range(3), shuffle=False), 7)] == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
    ]


def loaded(dataset, sampler, workers):
    seed_samples(dataset)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=5, sampler=sampler, num_workers=workers, collate_fn=pseudo_collate
    )
    return [image for batch in loader for image in batch['inputs']]


@pytest.mark.parametrize('ranks', [4, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2))])
def test_ranks_and_workers_load_the_same_batches(tmp_path, monkeypatch, on, ranks):
    """Bit by bit what a list of the same images gives for the same draws; going on reads nothing that came before."""
    write_images(tmp_path / 'src')
    packed(tmp_path / 'src', tmp_path / 's', order='list', per_shard=5)
    pipeline = [dict(type='beit_mm.LoadImage'), dict(type='Noise'), dict(type='PackInputs')]
    data = TarShards(str(tmp_path / 's'), pipeline=pipeline)
    files = ImageList(str(tmp_path / 'src'), split='train', pipeline=pipeline)
    seed_samples(files)
    whole = [sample['inputs'] for sample in files.__getitems__(list(on(data=data)))]
    for workers in (0, 2):
        apart = [loaded(data, on(rank, ranks, data=data), workers) for rank in range(ranks)]
        together = [apart[place % ranks][place // ranks] for place in range(40)]
        assert all(torch.equal(a, b) for a, b in zip(together, whole, strict=True))
    reads = []
    read = shard_reads.TarBackend.get
    monkeypatch.setattr(shard_reads.TarBackend, 'get', lambda self, path: reads.append(path) or read(self, path))
    sampler = on(ranks - 1, ranks, data=data)
    sampler.start = 5
    rest = loaded(data, sampler, 0)
    assert len(reads) == len(rest) == 40 // ranks - 5
    assert all(torch.equal(a, b) for a, b in zip(rest, apart[-1][5:], strict=True))


def test_the_order_of_14_million_takes_no_memory():
    """A row of 14,198,988 samples holds the windows in use and three numbers a shard."""
    row = shard_sampler.Row(np.full(5836, 2433), 4, 8, 0, 0)
    row[np.arange(4096) + 7_000_000]
    held = sum(one.nbytes for one in (row.shards, row.first, row.ends, *row.mixed.values()))
    assert len(row.mixed) == 8
    assert held < 1e6
