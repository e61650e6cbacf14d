"""Training curves: how the logs of a resumed run merge, and where the mean of the seeds is drawn."""

import json
import re
from xml.etree import ElementTree

import pytest

from beit_mm.benchmark import curves


def log(work_dir, stamp, lines, tail=''):
    folder = work_dir / stamp / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n' + tail)


def test_of_training_and_validation_one_is_a_curve(tmp_path):
    """Masked accuracy is logged in both."""
    train = [{'acc': float(step), 'iter': step, 'step': step} for step in (50, 100, 150)]
    log(
        tmp_path,
        '20260101_000000',
        [train[0], train[1], {'acc': 7.0, 'step': 100}, train[2], {'acc': 8.0, 'step': 150}],
    )
    assert curves.read_scalars(tmp_path) == {'acc': ([100, 150], [7.0, 8.0])}


def test_resumed_run_merges_by_step(tmp_path):
    log(
        tmp_path,
        '20260101_000000',
        [
            {'loss': 3.0, 'lr': 0.1, 'iter': 50, 'step': 50, 'time': 1.0},
            {'loss': 2.0, 'lr': 0.1, 'iter': 100, 'step': 100, 'time': 1.0},
            {'mIoU': 20.0, 'step': 100},
            {'loss': 9.0, 'lr': 0.1, 'iter': 150, 'step': 150, 'time': 1.0},
        ],
        tail='{"loss": 8.0, "it',  # killed while writing
    )
    log(
        tmp_path,
        '20260102_000000',
        [
            {'loss': 1.5, 'lr': 0.1, 'iter': 150, 'step': 150},
            {'loss': 1.0, 'lr': 0.1, 'iter': 200, 'step': 200},
            {'mIoU': 30.0, 'step': 200},
        ],
    )
    log(tmp_path, '20260103_000000', [{'mIoU': 77.0, 'step': 0}])  # a test of the finished run
    found = curves.read_scalars(tmp_path)
    assert found['loss'] == ([50, 100, 150, 200], [3.0, 2.0, 1.5, 1.0])
    assert found['mIoU'] == ([100, 200], [20.0, 30.0])
    assert set(found) == {'loss', 'lr', 'mIoU'}


def test_no_log_is_no_curve(tmp_path):
    assert curves.read_scalars(tmp_path / 'missing') == {}


def test_mean_is_over_common_steps():
    a, b = ([1, 2, 3], [1.0, 2.0, 3.0]), ([2, 3, 4], [4.0, 8.0, 9.0])
    assert curves.mean_curve([a, b]) == ([2, 3], [3.0, 5.5])
    assert curves.mean_curve([a]) == a


@pytest.fixture(scope='module')
def svg() -> str:
    tuned = [([0, 10], [10.0, 30.0]), ([0, 10], [20.0, 50.0])]
    return curves.draw([('segmentation', 'mIoU, %', {'fine-tune': tuned, 'from scratch': [([0, 10], [5.0, 15.0])]})])


def test_mean_is_drawn_between_the_seeds(svg):
    """Three lines in the colour of fine-tuning: two seeds, then their mean halfway; from scratch below them."""
    heights = {}
    for path in ElementTree.fromstring(svg).iter('{http://www.w3.org/2000/svg}path'):
        colour = re.search(r'stroke: (#\w+)', path.get('style', ''))
        points = re.findall(r'[ML] ([\d.]+) ([\d.]+)', path.get('d', ''))
        if colour and colour[1] in curves.COLOURS.values() and len(points) == 2 and points[0][1] != points[1][1]:
            heights.setdefault(colour[1], []).append([float(y) for _, y in points])
    first, second, mean = heights[curves.COLOURS['fine-tune']]
    assert mean == pytest.approx([(a + b) / 2 for a, b in zip(first, second)], abs=1e-4)
    (scratch,) = heights[curves.COLOURS['from scratch']]
    assert scratch[0] > max(first[0], second[0])  # SVG's y grows downwards: 5 lies below 10 and 20


def test_svg_is_of_the_page(svg):
    texts = re.findall(r'<text[^>]*>([^<]*)</text>', svg)
    assert {'segmentation', 'mIoU, %', 'step', 'fine-tune (2 seeds)', 'from scratch'} <= set(texts)
    assert svg.startswith('<svg fill="currentColor"')
    assert curves.INK not in svg
    assert not re.search(r'(?:src|href)="(?!#)', svg)
    assert 'metadata' not in svg
