"""The page of a suite: its numbers, its pictures pixel by pixel, and that it needs nothing from outside."""

import base64
import contextlib
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_leaderboard import DVAE, record

from beit_mm.apis import build_model
from beit_mm.benchmark import report, suite_page
from beit_mm.benchmark.leaderboard import BASELINE, rows
from beit_mm.benchmark.pictures.canvas import GAP, TILE
from beit_mm.benchmark.records import RecordError, write
from beit_mm.data import embedded
from beit_mm.engine.configs import load_config

TINY = {
    'model.backbone.arch': dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=96),
    'test_dataloader.dataset.length': 8,
}
ROOT = Path(__file__).parents[1]
MIM, SEGMENT, SCRATCH = (
    str(next(ROOT.glob(f'configs/{name}_*_embedded-*.py')))
    for name in (
        'pretrain/beit-mini-p8_dvae',
        'segmentation/beit-mini-p8_upernet',
        'segmentation/beit-mini-p8_upernet-scratch',
    )
)
OPTIONS = {'tokens': {**TINY, 'model.target.checkpoint': None}, 'segmentation': TINY}


def test_a_stage_is_drawn_by_the_config_that_it_ran_with(tmp_path):
    """The copy in its work_dir, although the config has been changed or is gone since."""
    config = load_config(MIM, OPTIONS['tokens'])
    config.dump(tmp_path / 'gone.py')
    torch.save(dict(state_dict=build_model(config).state_dict()), tmp_path / 'iter_2.pth')
    stage = dict(config='configs/pretrain/gone.py', work_dir=str(tmp_path), checkpoint=str(tmp_path / 'iter_2.pth'))
    backbone = suite_page.wishes_of(stage).backbone
    assert backbone.arch_settings['feedforward_channels'] == 96  # the option's; the config says 384


def test_conclusions_say_whether_the_difference_exceeds_the_spread():
    scratch = [record(v, BASELINE, seed) for seed, v in enumerate((50.0, 52.0))]
    better = rows([*scratch, record(54.0, seed=0), record(58.0, seed=1)])
    assert report.conclusions(better) == [
        'mIoU, fine-tune: 56.0 against 51.0 from scratch, +5.0 ± 1.4 (2 seeds): more than the spread'
    ]
    unclear = rows([*scratch, record(49.0, seed=0), record(56.0, seed=1)])
    assert report.conclusions(unclear)[0].endswith('+1.5 ± 3.5 (2 seeds): within the spread')
    assert report.conclusions(rows([scratch[0], record(54.0)]))[0].endswith('+4.0 (1 seed): no spread')
    assert report.conclusions(rows(scratch)) == ['No pair of runs to compare yet.']


@pytest.fixture(scope='module')
def suite(tmp_path_factory):
    """A suite of untrained models whose tokenizer stage did not finish."""
    root = tmp_path_factory.mktemp('suite')
    stages = [dict(name='tokenizer', kind='tokenizer', protocol='tokenizer', config='x.py', checkpoint=None)]
    for name, kind, protocol, config in (
        ('pretrain', 'pretrain', 'pretrain', MIM),
        ('segment', 'segmentation', 'fine-tune', SEGMENT),
        ('segment-scratch', 'segmentation', BASELINE, SCRATCH),
    ):
        options = OPTIONS['tokens' if kind == 'pretrain' else kind]
        work_dir = root / 'seed0' / name
        (work_dir / '20260101_000000' / 'vis_data').mkdir(parents=True)
        lines = [{'loss': 5.5, 'iter': 50, 'step': 50}, {'loss': 5.0, 'iter': 100, 'step': 100}]
        (work_dir / '20260101_000000' / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
        loaded = load_config(config, options)
        loaded.dump(work_dir / Path(config).name)
        model = build_model(loaded)
        torch.save(dict(state_dict=model.state_dict()), work_dir / 'iter_2.pth')
        stages.append(
            dict(
                name=name,
                kind=kind,
                protocol=protocol,
                config=config,
                options=options,
                checkpoint=str(work_dir / 'iter_2.pth'),
                seconds=12.0,
            )
        )
    stages = [dict(seed=0, work_dir=str(root / 'seed0' / s['name']), **s) for s in stages]
    content = dict(title='A suite & its page', note='Embedded data.', stages=stages)
    (root / 'suite.json').write_text(json.dumps(content))
    for one in (record(54.5, stages=[DVAE]), record(50.25, BASELINE)):
        write(dataclasses.replace(one, versions={'torch': '2.13.0'}), root / 'results')
    return root


@pytest.fixture(scope='module')
def page(suite) -> tuple[str, str]:
    """The page's text, and what was printed while it was made."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        path = suite_page.suite_page(suite, suite / 'report.html')
    return path.read_text(), printed.getvalue()


def test_page(suite, page):
    text, printed = page
    assert '<b>+4.2</b>mIoU points, fine-tune<span>54.5 against 50.2 from scratch; 1 seed, one seed: no spread' in text
    assert '+4.2 (1 seed)' in text
    assert '+4.2 (1 seed)' in printed
    assert 'A suite &amp; its page' in text
    assert 'Not finished: tokenizer (seed 0).' in text
    assert 'could not be made' not in text
    for photograph in embedded.PHOTOGRAPHS:
        assert photograph.sha256[:16] in text
        assert photograph.credit in text
    for name in (*embedded.CLASSES, 'torch 2.13.0', 'commit abc', MIM, 'beit-mini-p8_upernet'):
        assert name in text
    pictures = [base64.b64decode(data) for data in re.findall(r'data:image/png;base64,([\w+/=]+)', text)]
    assert len(pictures) == len(suite_page.LESSONS) + 1  # and the segmentors
    four_tiles = GAP + 4 * (TILE + GAP)
    assert [Image.open(io.BytesIO(png)).width for png in (pictures[2], pictures[-1])] == [four_tiles, four_tiles]
    assert re.findall(r'<h3>(.*?)</h3>(?:<p>.*?</p>)?<figure><img', text)[:2] == ['What is hidden', 'Visual tokens']
    assert text.count('<svg') == 2  # differences, and mIoU against steps
    assert (suite / 'leaderboard.md').is_file()


def test_page_needs_nothing_from_outside(page):
    text = re.sub(r'data:image/png;base64,[\w+/=]+', '', page[0])
    assert not re.search(r'(?:src|href)="(?!#|data:|")', text)
    assert set(re.findall(r'https?://[^\s"<]+', text)) <= {'http://www.w3.org/2000/svg', 'http://www.w3.org/1999/xlink'}
    assert '@import' not in text
    assert text.count('<script>') == 1
    assert not re.search(r'fetch\(|XMLHttpRequest|import\(', text)
    assert 'prefers-color-scheme: dark' in text


def test_a_broken_part_costs_a_note_and_not_the_page(suite):
    index = json.loads((suite / 'suite.json').read_text())
    index['stages'] = [s for s in index['stages'] if s['kind'] != 'segmentation']
    index['stages'][1]['checkpoint'] = str(suite / 'gone.pth')
    (suite / 'broken').mkdir()
    (suite / 'broken' / 'suite.json').write_text(json.dumps(index))
    (suite / 'broken' / 'results').symlink_to(suite / 'results')
    text = suite_page.suite_page(suite / 'broken', suite / 'broken' / 'report.html').read_text()
    assert text.count('This part could not be made: CheckpointError') == 4  # what is drawn of the weights
    assert '<h3>Segmentation</h3>' not in text
    assert '+4.2 (1 seed)' in text


def test_a_folder_without_a_suite(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'tools/benchmark\.py'):
        suite_page.suite_page(tmp_path, tmp_path / 'report.html')
    (tmp_path / 'suite.json').write_text('{"title": "t", "stages": []}')
    with pytest.raises(RecordError, match=r'tools/test\.py'):
        suite_page.suite_page(tmp_path, tmp_path / 'report.html')
