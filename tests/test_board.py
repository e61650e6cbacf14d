"""The leaderboard's HTML: what sorts and opens, and figures drawn at the right places."""

import re

import pytest
from test_leaderboard import DVAE, record, start

from beit_mm.benchmark import board, figures
from beit_mm.benchmark.leaderboard import BASELINE, rows

CLASSES = {'IoU.sky': 80.0, 'IoU.tree': 40.0}


@pytest.fixture
def found():
    scratch = [record(v, BASELINE, seed, metrics={'IoU.sky': 70.0}) for seed, v in enumerate((50.0, 52.0, 54.0))]
    tuned = enumerate((55.0, 55.0, 61.0))
    return rows([*scratch, *(record(v, seed=seed, stages=start(DVAE), metrics=CLASSES) for seed, v in tuned)])


def test_cells_carry_what_they_are_sorted_by(found):
    text = board.as_html(found)
    assert (
        '<td class="measured number" data-value="57.0"><strong>57.0 ± 3.5</strong></td>' not in text
    )  # first of group
    assert '<td class="measured number first" data-value="57.0"><strong>57.0 ± 3.5</strong></td>' in text
    assert 'data-value="5.0"><span class="better">+5.0 ± 2.0 (3 seeds)</span></td>' in text
    assert 'data-value="900000.0">0.9 M</td>' in text
    assert 'data-value="271.0">4.5 min</td>' in text
    assert text.count('<tr class="row records"') == 2
    assert len(re.findall(r'<tr class="row" data-badge="paper only">', text)) > 30


def test_a_row_opens_to_its_records(found):
    text = board.as_html(found)
    for row in found:
        digest = row.records[0].digest
        assert f'data-detail="records-{digest}"' in text
        detail = re.search(f'<template id="records-{digest}">(.*?)</template>', text, re.DOTALL)[1]
        for one in row.records:
            assert f'<summary>record {one.digest}, seed {one.seed}</summary>' in detail
            assert one.checkpoint_sha256 in detail
    tuned = re.search(f'<template id="records-{found[0].records[0].digest}">(.*?)</template>', text, re.DOTALL)[1]
    assert '<code>beit-mini-p8_mim_1xb96-1200_embedded-64</code> bbbbbbbb ← <code>dvae-512' in tuned
    assert '<td>+5.00</td>' in tuned


def test_what_users_wrote_is_escaped():
    text = board.as_html(rows([record(1.0, protocol='<b>', config='<i>')]))
    assert '&lt;b&gt;' in text
    assert '<b>' not in text.replace('<b>paper', '')
    assert '<i>' not in text


def test_differences_lie_where_they_should(found):
    """5, 3, 7: the axis goes from 0 to 7 in steps of 1."""
    svg = figures.differences(found)
    ticks = {float(text): float(x) for x, text in re.findall(r'<text x="([\d.]+)" y="32" .*?>([+\d]+)</text>', svg)}
    assert sorted(ticks) == list(range(8))
    per_point = ticks[1] - ticks[0]
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg)]
    assert [(dot - ticks[0]) / per_point for dot in dots] == pytest.approx([5, 3, 7], abs=0.01)
    bar = re.search(r'<line x1="([\d.]+)" x2="([\d.]+)" y1="(\d+)" y2="\3" stroke="var\(--good', svg)
    assert [(float(bar[i]) - ticks[0]) / per_point for i in (1, 2)] == pytest.approx([3, 7], abs=0.01)  # 5 ± 2
    assert figures.differences([found[1]]) == ''


@pytest.mark.parametrize(('span', 'step'), [(7, 1), (7.1, 2), (20, 5), (0.9, 0.2), (1, 0.2), (100, 20)])
def test_steps_of_an_axis(span, step):
    assert figures.nice_step(span) == pytest.approx(step)


def test_bars_of_classes(found):
    text = figures.class_bars(found[0], found[0].baseline)
    assert text.index('sky') < text.index('tree')
    assert '<i style="width:80.00%"></i><i class="base" style="width:70.00%"></i>' in text
    assert '80.0 <span class="note">+10.0</span>' in text
    assert '<i style="width:40.00%"></i></div>' in text  # nothing to compare with
    assert figures.class_bars(rows([record(1.0)])[0]) == ''


def test_cards(found):
    card = figures.card(found[0])
    assert card.startswith('<div class="card better"><b>+5.0 ± 2.0</b>mIoU points, fine-tune')
    assert '57.0 against 52.0 from scratch; 3 seeds, more than the spread' in card
    few = rows([record(50.0, BASELINE), record(52.0), record(53.0, seed=1)])
    assert 'stroke="var(--base)"' in figures.differences(few)  # of one seed nothing is known
    worse = rows([record(v, BASELINE, s) for s, v in enumerate((50.0, 52.0))] + [record(40.0), record(41.0, seed=1)])
    assert figures.card(worse[1]).startswith('<div class="card worse"><b>−10.5 ± 0.7</b>')
