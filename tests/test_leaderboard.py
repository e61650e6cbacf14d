"""The leaderboard against numbers worked out by hand."""

import csv
import hashlib
import io
import runpy
import sys

import pytest
import torch

from beit_mm.apis import build_model
from beit_mm.benchmark import leaderboard, readme, tables
from beit_mm.benchmark.evaluation import preset_of
from beit_mm.benchmark.records import CONVERTED, TRAINED, Record, RecordError, write
from beit_mm.benchmark.reference import REFERENCES
from beit_mm.engine.checkpointing import preprocessing_of
from beit_mm.engine.configs import load_config

FILE = dict(checkpoint='iter_300.pth', sha256='a' * 64)
DVAE, KMEANS = (
    dict(config=f'{name}_1xb64-400_embedded-32', recipe_sha256=name, train_seconds=30.0, stages=[], **FILE)
    for name in ('dvae-512', 'kmeans-512')
)


def start(tokenizer: dict) -> list[dict]:
    own = dict(config='beit-mini-p8_mim_1xb96-1200_embedded-64', checkpoint='iter_1200.pth', sha256='b' * 64)
    return [dict(**own, recipe_sha256='mim', train_seconds=200.0, stages=[tokenizer])]


def record(value: float, protocol: str = 'fine-tune', seed: int = 0, **changes) -> Record:
    fields = dict(
        task='segmentation',
        dataset='EmbeddedScenes',
        embedded=True,
        split='val',
        num_images=1000,
        metric='mIoU',
        value=value,
        metrics={'mIoU': value, 'mAcc': value + 10, 'aAcc': value + 20},
        protocol=protocol,
        preset='beit D96 L4',
        seed=seed,
        config='upernet-scratch' if protocol == leaderboard.BASELINE else 'upernet',
        origin=TRAINED,
        config_sha256='c' * 64,
        recipe_sha256='e' * 64,
        checkpoint='iter_300.pth',
        checkpoint_sha256=hashlib.sha256(f'{seed} {changes}'.encode()).hexdigest(),
        stages=[],
        revision=dict(version='0.1.0', commit='abc', dirty=False),
        versions={},
        cost=dict(parameters=900000, macs=2500000, images_per_second=50, memory_mb=700, train_seconds=40 + (seed or 0)),
        curves={'mIoU': [[150, 300], [value / 2, value]]},
        device='cpu',
        seconds=1.0,
        date='2026-01-01T00:00:00+00:00',
    )
    fields |= changes
    fields['metrics'] = {fields['metric']: fields['value'], **fields['metrics']}
    return Record(**fields)


def texts(table: tables.Table) -> list[list[str]]:
    """Heads and cells of what a terminal shows."""
    columns = [column for column in table.columns if column.group in ('', tables.MEASURED)]
    cells = [[line.cells.get(column.key, tables.EMPTY).text for column in columns] for line in table.lines]
    return [[column.label for column in columns], *cells]


@pytest.fixture
def three_seeds() -> list[Record]:
    scratch = [record(v, leaderboard.BASELINE, seed) for seed, v in enumerate((50.0, 52.0, 54.0))]
    return scratch + [record(v, seed=seed, stages=start(DVAE)) for seed, v in enumerate((55.0, 55.0, 61.0))]


def test_mean_spread_and_paired_difference(three_seeds):
    best, scratch = leaderboard.rows(three_seeds)
    assert (best.protocol, scratch.protocol) == ('fine-tune', 'from scratch')
    assert best.mean == 57.0
    assert best.spread == pytest.approx(12**0.5)  # (4 + 4 + 16) / (3 - 1)
    assert scratch.spread == pytest.approx(2.0)
    assert best.delta == pytest.approx((5.0, 2.0, 3))  # of 5, 3, 7
    assert tables.verdict(best) == '+5.0 ± 2.0 (3 seeds)'
    assert best.differences == {0: 5.0, 1: 3.0, 2: 7.0}
    assert scratch.delta is None
    assert tables.verdict(scratch) == ''
    assert (best.average('mAcc'), best.average('aAcc'), best.average('mDice')) == (67.0, 77.0, None)
    assert (best.cost('train_seconds'), best.cost('macs'), best.road_seconds) == (41.0, 2.5e6, 271.0)


def test_one_seed_has_no_spread():
    row, _ = leaderboard.rows([record(48.0, leaderboard.BASELINE), record(47.0)][::-1])[::-1]
    assert row.spread is None
    assert tables.verdict(row) == '-1.0 (1 seed)'


def test_only_seeds_of_both_are_paired(three_seeds):
    row = leaderboard.rows([r for r in three_seeds if (r.protocol, r.seed) != ('from scratch', 1)])[0]
    assert row.delta == pytest.approx((6.0, 2**0.5, 2))  # of 5 and 7
    assert len(row.values) == 3
    assert leaderboard.rows([record(1.0, leaderboard.BASELINE, seed=7), record(2.0)])[0].delta is None


def test_newest_evaluation_of_a_seed_counts():
    same = dict(checkpoint_sha256='7' * 64)
    found = leaderboard.board([record(9.0, date='2026-03-01T00:00:00+00:00', **same), record(5.0, **same)])
    assert [row.values for row in found.rows] == [{0: 9.0}]
    assert [record.value for record in found.rows[0].older] == [5.0]
    assert found.notes == []


def test_what_a_record_supersedes_is_older_whatever_the_clocks_say():
    same = dict(checkpoint_sha256='7' * 64)
    first = record(9.0, date='2026-03-01T00:00:00+00:00', **same)
    second = record(5.0, date='2026-02-01T00:00:00+00:00', supersedes=[first.digest], **same)
    for records in ([first, second], [second, first]):
        assert [row.values for row in leaderboard.rows(records)] == [{0: 5.0}]


def test_other_weights_of_one_seed_are_told():
    """A checkpoint of the middle of a training, tested after its last one, does not take that one's place."""
    last = record(50.0, checkpoint='iter_300.pth')
    middle = record(40.0, checkpoint='iter_100.pth', date='2026-03-01T00:00:00+00:00')
    found = leaderboard.board([last, middle])
    assert [row.values for row in found.rows] == [{0: 50.0}]
    assert (
        'seed 0: 2 different weights were tested, iter_100.pth of 2026-03-01T00:00 (40), iter_300.pth' in found.notes[0]
    )


def test_converted_weights_are_rows_of_their_own():
    share = dict(seed=None, origin=CONVERTED, dataset='ImageNet', embedded=False)
    found = leaderboard.board([record(85.2, checkpoint='a.pth', **share), record(70.0, checkpoint='b.pth', **share)])
    assert sorted(row.mean for row in found.rows) == [70.0, 85.2]
    assert len({row.recipe for row in found.rows}) == 2


def test_a_baseline_has_seeds_in_common():
    other = record(45.0, leaderboard.BASELINE, seed=5, config='better')
    found = leaderboard.rows([other, record(40.0, leaderboard.BASELINE), record(42.0)])
    (row,) = (row for row in found if row.protocol == 'fine-tune')
    assert row.differences == {0: 2.0}
    more = [record(value, seed=seed) for seed, value in enumerate((50.0, 60.0, 70.0))]
    (row,) = (row for row in leaderboard.rows([*more, record(40.0, leaderboard.BASELINE)]) if row.baseline)
    assert row.pair == (50.0, 40.0)
    assert leaderboard.baseline_of('fine-tune, 10 % of the labels') == 'from scratch, 10 % of the labels'


def test_other_models_are_no_baseline():
    others = [record(50.0, leaderboard.BASELINE, preset='beit base'), record(50.0, leaderboard.BASELINE, num_images=10)]
    assert all(row.delta is None for row in leaderboard.rows([*others, record(55.0)]))


def test_what_a_run_started_from_makes_another_row():
    found = leaderboard.rows([record(55.0, stages=start(DVAE)), record(53.0, stages=start(KMEANS))])
    assert [(row.start, row.mean) for row in found] == [
        ('beit-mini-p8_mim < dvae-512', 55.0),
        ('beit-mini-p8_mim < kmeans-512', 53.0),
    ]


def test_strongest_baseline_is_compared_with():
    weak, strong = (record(v, leaderboard.BASELINE, config=f's{v}') for v in (40.0, 50.0))
    assert leaderboard.rows([weak, strong, record(55.0)])[0].delta[0] == 5.0


def test_lower_error_ranks_first():
    names = dict(task='tokenizer', metric='reconstruction_error', metrics={'perplexity': 300.0}, protocol='tokenizer')
    found = leaderboard.rows([record(0.09, config='b_1xb1-1', **names), record(0.0856, config='a_1xb1-1', **names)])
    (table,) = tables.tables(found)
    assert texts(table)[0] == ['tokenizer', 'error (MAE)', 'seeds', 'perplexity']
    assert texts(table)[1:] == [['a', '0.0856', '1', '300.0'], ['b', '0.0900', '1', '300.0']]


def test_tokens_and_pixels_are_two_tables():
    """Table 4 has both kinds of pre-training, and their metrics have nothing to do with each other."""
    share = dict(task='pretrain', protocol='pre-train')
    tokens = record(3.0, metric='masked_accuracy', metrics={'masked_accuracy': 3.0}, **share)
    pixels = record(0.7, metric='masked_pixel_error', metrics={'masked_pixel_error': 0.7}, config='pixels', **share)
    found = tables.tables(leaderboard.rows([tokens, pixels]))
    assert [len(table.lines) for table in found] == [1, 1]
    assert {column.label for table in found for column in table.columns} >= {'masked accuracy %'}


def test_each_head_and_size_has_its_own_baseline():
    of = leaderboard.baseline_of
    assert of('fine-tune') == of('intermediate fine-tune') == 'from scratch'
    assert of('fine-tune, 384 px') == 'from scratch, 384 px'
    assert of('SETR-PUP, fine-tune after DINO') == 'SETR-PUP, from scratch'
    assert (
        of('UPerNet, fine-tune, 640 px, multi-scale and flip') == 'UPerNet, from scratch, 640 px, multi-scale and flip'
    )
    several = 'UPerNet, {}, multi-scale and flip'
    values = {'UPerNet, fine-tune': 20.0, 'UPerNet, from scratch': 10.0}
    values.update({several.format('fine-tune'): 22.0, several.format('from scratch'): 12.0})
    found = leaderboard.rows([record(value, protocol, config=protocol) for protocol, value in values.items()])
    assert {row.protocol: row.delta and row.delta[0] for row in found} == {
        **dict.fromkeys(values, None), 'UPerNet, fine-tune': 10.0, several.format('fine-tune'): 10.0
    }  # fmt: skip


def test_pretraining_says_what_a_constant_guess_gets():
    names = dict(task='pretrain', metric='masked_accuracy', protocol='pretrain', stages=[DVAE])
    found = leaderboard.rows([record(8.25, metrics={'most_frequent': 1.5}, config='mim_1xb96-9', **names)])
    (table,) = tables.tables(found)
    assert texts(table) == [
        ['model', 'config', 'masked accuracy %', 'seeds', 'constant guess %', 'starts from'],
        ['beit D96 L4', 'mim', '8.2', '1', '1.5', 'dvae-512'],
    ]


def test_embedded_data_are_called_so_and_have_no_references(three_seeds):
    real = record(44.0, 'SETR-PUP, fine-tune', dataset='ADE20K', embedded=False, preset='beit base', num_images=2000)
    found = {t.heading: t for t in tables.tables(leaderboard.rows([*three_seeds, real]), references=True)}
    embedded = found['Semantic segmentation on EmbeddedScenes, embedded data (1000 images)']
    assert not [column for column in embedded.columns if column.group == tables.REFERENCE]
    assert [line.badge for line in embedded.lines] == [TRAINED, TRAINED]
    ade20k = found['Semantic segmentation on ADE20K (2000 images)']
    assert ade20k.lines[0].cells['main'] == tables.Cell('44.0', 44.0)  # the measured number and nothing else
    assert ade20k.lines[0].cells['says'].text.split('\n') == ['45.6', '44.65', '45.58']
    sources = ['paper, Table 3', 'paper, Table 4, 300 epochs', 'paper, Table 4, 800 epochs']  # not UPerNet's 44.86
    assert ade20k.lines[0].cells['source'].text.split('\n') == sources
    alone = [line for line in ade20k.lines if line.row is None]
    assert len(alone) == len({one[2:4] for one in REFERENCES if one.dataset == 'ADE20K'}) - 1
    assert all('main' not in line.cells for line in alone)
    assert 'says' not in found['Semantic segmentation on EmbeddedScenes, embedded data (1000 images)'].lines[0].cells


def test_a_part_of_a_data_set_is_not_beside_the_whole():
    part = record(44.0, 'SETR-PUP, fine-tune', dataset='ADE20K', embedded=False, preset='beit base', num_images=100)
    (table,) = tables.tables(leaderboard.rows([part]))
    assert not [column for column in table.columns if column.group == tables.REFERENCE]
    assert table.heading.endswith('(100 images)')


@pytest.mark.parametrize(
    ('key', 'values'),
    [
        (('classification', 'ImageNet', 'beit base', 'fine-tune'), [83.2, 82.86, 83.19, 82.86]),
        (('classification', 'ImageNet', 'beit_plus base', 'fine-tune'), [83.22, 83.1]),
        (('segmentation', 'ADE20K', 'beit base', 'SETR-PUP, fine-tune, pixels, random masks'), [37.09]),
        (('segmentation', 'ADE20K', 'beit base', 'UPerNet, fine-tune'), [44.86]),
        (
            (
                'segmentation',
                'ADE20K',
                'beit_plus base',
                'UPerNet, intermediate fine-tune, 640 px, multi-scale and flip',
            ),
            [54.2, 54.26, 53.84],
        ),
        (('segmentation', 'ADE20K', 'vit base', 'SETR-PUP, fine-tune after DINO'), [44.1, 44.08]),
        (('classification', 'CIFAR100', 'beit base', 'fine-tune'), [90.1]),
    ],
)
def test_numbers_of_others(key, values):
    assert [float(one.value) for one in REFERENCES if one[:4] == key] == values


PORTED = {  # PASSL's five: leaf of ours that tests the same weights
    'beit-plus-base-p16_crop90_8xb64-30e_in1k-224': (85.21, 97.66, 0.9),
    'beit-plus-base-p16_ft22k-ft_8xb64-30e_in1k-384': (86.81, 98.14, 1.0),
    'beit-plus-large-p16_crop90_16xb32-30e_in1k-224': (87.48, 98.30, 0.9),
    'beit-plus-large-p16_ft22k-ft_16xb32-30e_in1k-384': (88.40, 98.60, 1.0),
    'beit-plus-large-p16_ft22k-ft_16xb32-30e_in1k-512': (88.60, 98.66, 1.0),
}


@pytest.mark.parametrize('name', PORTED)
def test_passls_models_are_those_of_our_leaves(name):
    """Same protocol, preset, crop ratio and parameters, as our configs have them."""
    config = load_config(f'configs/classification/{name}.py')
    (one,) = (
        one
        for one in REFERENCES
        if (one.source, one.preset, one.protocol) == ('PASSL', preset_of(config.model.backbone), config.protocol)
    )
    assert (float(one.value), float(one.top5), one.crop) == PORTED[name]
    assert preprocessing_of(config)['crop_ratio'] == pytest.approx(one.crop, abs=0.005)
    with torch.device('meta'):
        parameters = sum(p.numel() for p in build_model(config).parameters())
    assert round(parameters / 1e6, 1) == one.parameters


def test_text_fits_a_terminal(three_seeds):
    lines = leaderboard_text(three_seeds).splitlines()
    assert lines[2].split()[:3] == ['model', 'protocol', 'mIoU']
    assert '57.0 ± 3.5  +5.0 ± 2.0 (3 seeds)' in lines[3]
    assert max(map(len, lines)) <= tables.TEXT_WIDTH


def leaderboard_text(records) -> str:
    return tables.as_text(leaderboard.rows(records))


def test_files(three_seeds, tmp_path, monkeypatch, capsys):
    for one in three_seeds:
        write(one, tmp_path / 'results')
    out = tmp_path / 'out'
    monkeypatch.setattr(sys, 'argv', ['leaderboard.py', str(tmp_path / 'results'), '--out', str(out)])
    runpy.run_path('tools/leaderboard.py', run_name='__main__')
    said = capsys.readouterr().out
    assert 'mIoU, fine-tune: 57.0 against 52.0 from scratch, +5.0 ± 2.0 (3 seeds): more than the spread' in said
    text = (out / 'leaderboard.md').read_text()
    assert (
        '| 57.0 ± 3.5 | +5.0 ± 2.0 (3 seeds) | 3 | 55.0 to 61.0 | 67.0 | 77.0 | beit-mini-p8_mim < dvae-512 |' in text
    )
    lines = list(csv.DictReader(io.StringIO((out / 'leaderboard.csv').read_text())))
    measured = [line for line in lines if line['value']]
    assert [float(line['value']) for line in measured] == [55.0, 55.0, 61.0, 50.0, 52.0, 54.0]
    assert measured[0]['start'] == 'beit-mini-p8_mim < dvae-512'
    assert measured[0]['commit'] == 'abc'
    assert all(not line['reference_value'] for line in measured)
    others = [line for line in lines if not line['value']]
    assert [line['reference_value'] for line in others] == [one.value for one in REFERENCES]
    assert {'83.00', '80.50', '84.0', '88.600'} <= {one.value for one in REFERENCES}  # digits as published


def test_files_that_are_no_records_are_named(three_seeds, tmp_path):
    write(three_seeds[0], tmp_path)
    (tmp_path / 'half.json').write_text('{"task":')
    found = leaderboard.from_folder(tmp_path)
    assert [row.values for row in found.rows] == [{0: 50.0}]
    assert found.notes[0].startswith(f'left out: {tmp_path}/half.json: not JSON')


def test_one_checkpoint_is_one_seed():
    same = dict(checkpoint_sha256='7' * 64)
    found = leaderboard.board([record(50.0, seed=0, **same), record(50.0, seed=1, **same), record(52.0, seed=2)])
    assert [row.values for row in found.rows] == [{0: 50.0, 2: 52.0}]
    assert 'the records of seeds 0 and 1 are of one checkpoint' in found.notes[0]


def test_other_settings_are_another_row():
    odd = record(60.0, seed=2, recipe_sha256='f' * 64)
    found = leaderboard.board([record(50.0, seed=0), record(51.0, seed=1), odd])
    assert [(row.recipe, row.values) for row in found.rows] == [('f' * 8, {2: 60.0}), ('e' * 8, {0: 50.0, 1: 51.0})]
    assert 'are of 2 different settings or files' in found.notes[0]
    assert texts(tables.tables(found.rows)[0])[1][2] == 'ffffffff'


def test_other_settings_of_a_stage_before_are_another_row():
    """Two pre-trainings by one config with other options, then the same fine-tuning."""
    random = start(DVAE)
    random[0]['recipe_sha256'] = 'random masks'
    found = leaderboard.board([record(55.0, stages=start(DVAE)), record(53.0, stages=random)])
    assert [row.mean for row in found.rows] == [55.0, 53.0]
    assert len({row.recipe for row in found.rows}) == 2


def test_converted_weights_have_a_badge():
    one = record(53.6, 'UPerNet, intermediate fine-tune, 640 px', seed=None, origin=CONVERTED, cost={})
    (table,) = tables.tables(leaderboard.rows([one]))
    assert table.lines[0].badge == 'converted'
    assert not [column for column in table.columns if column.group == tables.COST]


def test_block_of_a_readme(three_seeds, tmp_path):
    path, rows = tmp_path / 'README.md', leaderboard.rows(three_seeds)
    path.write_text('before\n<!-- leaderboard: results -->\nold\n<!-- end of leaderboard -->\nafter\n')
    with pytest.raises(RecordError, match=r'README\.md: its leaderboard is not that of results; python tools'):
        readme.refresh(path, 'results', rows, check=True)
    assert 'old' in path.read_text()
    assert readme.refresh(path, 'results', rows).endswith('brought up to date')
    text = path.read_text()
    assert text.startswith(
        'before\n<!-- leaderboard: results -->\n### Semantic segmentation on EmbeddedScenes, embedded'
    )
    assert text.endswith('|\n<!-- end of leaderboard -->\nafter\n')
    assert '| 57.0 ± 3.5 | +5.0 ± 2.0 (3 seeds) | 3 | 67.0 | 77.0 | beit-mini-p8_mim < dvae-512 |' in text
    assert readme.refresh(path, 'results', rows, check=True).endswith('up to date')
    with pytest.raises(RecordError, match='has no block for elsewhere'):
        readme.refresh(path, 'elsewhere', rows)


@pytest.mark.parametrize('exists', [True, False])
def test_nothing_to_rank_says_how_to_make_records(tmp_path, exists):
    folder = tmp_path / 'results'
    if exists:
        folder.mkdir()
    with pytest.raises(RecordError, match=r'tools/test\.py CONFIG CHECKPOINT --record') as caught:
        leaderboard.from_folder(folder)
    assert str(folder) in str(caught.value)
