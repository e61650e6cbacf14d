"""The leaderboard against numbers worked out by hand."""

import csv
import io
import runpy
import sys

import pytest

from beit_mm.benchmark import leaderboard
from beit_mm.benchmark.records import Record, RecordError, write

DVAE = dict(config='dvae-512_1xb64-400_embedded-32_20260101_000000', stages=[])
KMEANS = dict(config='kmeans-512_1xb64-20_embedded-32_20260101_000000', stages=[])


def start(tokenizer: dict) -> list[dict]:
    return [dict(config='beit-mini-p8_mim_1xb96-1200_embedded-64_20260101_000000', stages=[tokenizer])]


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
        config_sha256='c' * 64,
        checkpoint='iter_300.pth',
        checkpoint_sha256='d' * 64,
        stages=[],
        revision=dict(version='0.1.0', commit='abc', dirty=False),
        versions={},
        device='cpu',
        seconds=1.0,
        date='2026-01-01T00:00:00+00:00',
    )
    return Record(**{**fields, **changes})


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
    assert best.verdict == '+5.0 ± 2.0 (3 seeds)'
    assert scratch.delta is None
    assert scratch.verdict == ''
    assert best.extra == {'mAcc': 67.0, 'aAcc': 77.0}


def test_one_seed_has_no_spread():
    row, _ = leaderboard.rows([record(48.0, leaderboard.BASELINE), record(47.0)][::-1])[::-1]
    assert row.spread is None
    assert row.verdict == '-1.0 (1 seed)'


def test_only_seeds_of_both_are_paired(three_seeds):
    row = leaderboard.rows([r for r in three_seeds if (r.protocol, r.seed) != ('from scratch', 1)])[0]
    assert row.delta == pytest.approx((6.0, 2**0.5, 2))  # of 5 and 7
    assert len(row.values) == 3
    assert leaderboard.rows([record(1.0, leaderboard.BASELINE, seed=7), record(2.0)])[0].delta is None


def test_newest_evaluation_of_a_seed_counts():
    found = leaderboard.rows([record(9.0, date='2026-03-01T00:00:00+00:00'), record(5.0)])
    assert [row.values for row in found] == [{0: 9.0}]


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
    (table,) = leaderboard.tables(found)
    assert table.columns == ['tokenizer', 'seeds', 'error (MAE)', 'perplexity']
    assert table.cells == [['a', '1', '0.0856', '300.0'], ['b', '1', '0.0900', '300.0']]


def test_tokens_and_pixels_are_two_tables():
    """Table 4 has both kinds of pre-training, and their metrics have nothing to do with each other."""
    share = dict(task='pretrain', protocol='pre-train')
    tokens = record(3.0, metric='masked_accuracy', metrics={'masked_accuracy': 3.0}, **share)
    pixels = record(0.7, metric='masked_pixel_error', metrics={'masked_pixel_error': 0.7}, config='pixels', **share)
    tables = leaderboard.tables(leaderboard.rows([tokens, pixels]))
    assert sorted(len(table.cells) for table in tables) == [1, 1]
    assert {column for table in tables for column in table.columns} >= {'masked accuracy %'}


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
    (table,) = leaderboard.tables(found)
    assert table.columns == ['model', 'config', 'starts from', 'seeds', 'masked accuracy %', 'constant guess %']
    assert table.cells == [['beit D96 L4', 'mim', 'dvae-512', '1', '8.2', '1.5']]


def test_embedded_data_are_called_so_and_have_no_paper_column(three_seeds):
    real = record(44.0, 'SETR-PUP, fine-tune', dataset='ADE20K', embedded=False, preset='beit base')
    tables = {t.heading: t for t in leaderboard.tables(leaderboard.rows([*three_seeds, real]))}
    embedded = tables['Semantic segmentation on EmbeddedScenes, embedded data (1000 images)']
    assert 'paper' not in embedded.columns
    ade20k = tables['Semantic segmentation on ADE20K (1000 images)']
    cells = dict(zip(ade20k.columns, ade20k.cells[0], strict=True))
    assert cells['mIoU %'] == '44.0'  # the measured number and nothing else
    assert '45.6 (Table 3)' in cells['paper']
    assert '44.65 (Table 4, 300 epochs)' in cells['paper']
    assert '44.86' not in cells['paper']  # Table 5, UPerNet


@pytest.mark.parametrize(
    ('key', 'values'),
    [
        (('classification', 'ImageNet', 'beit base', 'fine-tune'), [83.2, 82.86, 83.19, 82.86]),
        (('classification', 'ImageNet', 'beit_plus base', 'fine-tune'), [83.22]),
        (('segmentation', 'ADE20K', 'beit base', 'SETR-PUP, fine-tune, pixels, random masks'), [37.09]),
        (('segmentation', 'ADE20K', 'beit base', 'UPerNet, fine-tune'), [44.86]),
        (
            (
                'segmentation',
                'ADE20K',
                'beit_plus base',
                'UPerNet, intermediate fine-tune, 640 px, multi-scale and flip',
            ),
            [54.2],
        ),
        (('segmentation', 'ADE20K', 'vit base', 'SETR-PUP, fine-tune after DINO'), [44.1, 44.08]),
        (('classification', 'CIFAR100', 'beit base', 'fine-tune'), [90.1]),
    ],
)
def test_paper_rows(key, values):
    assert [p.value for p in leaderboard.PAPER if p[:4] == key] == values


def test_text_fits_a_terminal(three_seeds):
    lines = leaderboard.as_text(leaderboard.rows(three_seeds)).splitlines()
    assert lines[2].split()[:3] == ['model', 'protocol', 'starts']
    assert '57.0 ± 3.5' in lines[3]
    assert lines[3].endswith('+5.0 ± 2.0 (3 seeds)')
    assert max(map(len, lines)) <= leaderboard.TEXT_WIDTH


def test_files(three_seeds, tmp_path, monkeypatch, capsys):
    for one in three_seeds:
        write(one, tmp_path / 'results')
    out = tmp_path / 'out'
    monkeypatch.setattr(sys, 'argv', ['leaderboard.py', str(tmp_path / 'results'), '--out', str(out)])
    runpy.run_path('tools/leaderboard.py', run_name='__main__')
    assert '+5.0 ± 2.0 (3 seeds)' in capsys.readouterr().out
    assert '| 57.0 ± 3.5 | 55.0 to 61.0 | 67.0 | 77.0 | +5.0 ± 2.0 (3 seeds) |' in (out / 'leaderboard.md').read_text()
    assert '<td>57.0 ± 3.5</td><td>55.0 to 61.0</td>' in (out / 'leaderboard.html').read_text()
    lines = list(csv.DictReader(io.StringIO((out / 'leaderboard.csv').read_text())))
    assert [float(line['value']) for line in lines] == [55.0, 55.0, 61.0, 50.0, 52.0, 54.0]
    assert lines[0]['start'] == 'beit-mini-p8_mim < dvae-512'
    assert lines[0]['commit'] == 'abc'


def test_html_escapes():
    found = leaderboard.rows([record(1.0, protocol='<b>')])
    assert '<td>&lt;b&gt;</td>' in leaderboard.as_html(found)


@pytest.mark.parametrize('exists', [True, False])
def test_nothing_to_rank_says_how_to_make_records(tmp_path, exists):
    folder = tmp_path / 'results'
    if exists:
        folder.mkdir()
    with pytest.raises(RecordError, match=r'tools/test\.py CONFIG CHECKPOINT --record') as caught:
        leaderboard.from_folder(folder)
    assert str(folder) in str(caught.value)
