"""Result records: what is compulsory, what a reader refuses, and that nothing is ever overwritten."""

import dataclasses
import json

import pytest

from beit_mm.benchmark import records
from beit_mm.engine.configs import load_config
from beit_mm.engine.recipe import recipe_of

FIELDS = dict(
    task='segmentation',
    dataset='EmbeddedScenes',
    embedded=True,
    split='val',
    num_images=1000,
    metric='mIoU',
    value=41.5,
    metrics={'mIoU': 41.5, 'aAcc': 70.25},
    protocol='fine-tune',
    preset='beit D96 L4',
    origin=records.TRAINED,
    seed=3,
    config='tiny',
    config_sha256='c' * 64,
    recipe_sha256='e' * 64,
    checkpoint='iter_300.pth',
    checkpoint_sha256='d' * 64,
    stages=[],
    cost=dict(parameters=7, macs=None),
    curves={'loss': [[1, 2], [0.5, 0.25]]},
    seconds=1.25,
)


def test_make_fills_in_here_and_now():
    record = records.make(**FIELDS)
    assert record.value == 41.5
    assert record.schema == records.SCHEMA
    assert record.versions['torch'].startswith('2.')
    assert record.versions['mmengine'] == '0.10.7'
    assert record.revision['version']
    assert record.date.endswith('+00:00')


def test_round_trip_and_append_only(tmp_path):
    record = records.make(**FIELDS)
    path = records.write(record, tmp_path)
    assert path.parent == tmp_path / 'segmentation' / 'tiny'
    assert path.name.startswith('seed3_')
    again = dataclasses.replace(record, date='2031-01-01T00:00:00+00:00', value=42.0, metrics={'mIoU': 42.0})
    assert records.write(again, tmp_path) != path
    assert sorted(r.value for r in records.collect(tmp_path).records) == [41.5, 42.0]
    assert record in records.collect(tmp_path).records
    (new,) = (r for r in records.collect(tmp_path).records if r.value == 42.0)
    assert new.supersedes == [record.digest]
    other = records.write(dataclasses.replace(record, seed=4), tmp_path)
    assert records.read(other).supersedes == []
    assert not list(tmp_path.rglob('*.tmp'))


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'checkpoint_sha256': ''}, "checkpoint_sha256='' is not a sha256"),
        ({'config_sha256': 'abc'}, "config_sha256='abc' is not a sha256"),
        ({'seed': None}, 'seed=None: weights that were trained here have one'),
        ({'origin': 'found'}, "origin='found' is neither"),
        ({'value': 40.0}, r"value=40.0 is not metrics\['mIoU'\]"),
        ({'protocol': ''}, 'protocol must be words, and not empty'),
        ({'embedded': 'no'}, "embedded='no' is neither true nor false"),
        ({'config': '../up'}, 'is no name of a folder'),
        ({'curves': {'loss': [[1], []]}}, 'curves is not a table of pairs'),
        ({'cost': {'macs': 'many'}}, 'cost is not a table of numbers'),
        ({'stages': [{}]}, 'stages is not a list of tables'),
        ({'value': float('inf'), 'metrics': {'mIoU': float('inf')}}, 'metrics is not a table of numbers'),
        ({'num_images': 0}, 'num_images=0'),
    ],
)
def test_refuses_to_make_what_says_too_little(change, part):
    with pytest.raises(records.RecordError, match=part):
        records.make(**{**FIELDS, **change})


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        (lambda content: content.pop('seed'), 'missing: seed; unknown: -'),
        (lambda content: content.update(score=1), 'missing: -; unknown: score'),
        (lambda content: content.update(schema=1), 'schema 1, this version reads 2: evaluate the checkpoint again'),
        (lambda content: content.update(revision={}), 'revision={} must say commit, version and dirty'),
        (lambda content: content.update(num_images='9'), "num_images='9'"),
    ],
)
def test_reading_names_the_file_and_the_field(tmp_path, change, part):
    content = dataclasses.asdict(records.make(**FIELDS))
    change(content)
    path = tmp_path / 'odd.json'
    path.write_text(json.dumps(content))
    with pytest.raises(records.RecordError, match=part) as caught:
        records.read(path)
    assert str(path) in str(caught.value)


def test_reading_refuses_what_is_not_json(tmp_path):
    (tmp_path / 'cut.json').write_text('{"task": "segm')
    with pytest.raises(records.RecordError, match=r'cut\.json: not JSON'):
        records.read(tmp_path / 'cut.json')


def test_converted_weights_need_no_seed(tmp_path):
    path = records.write(records.make(**{**FIELDS, 'origin': records.CONVERTED, 'seed': None}), tmp_path)
    assert path.name.startswith('converted_')
    assert records.read(path).seed is None


def test_an_edited_record_is_refused(tmp_path):
    path = records.write(records.make(**FIELDS), tmp_path)
    path.write_text(path.read_text().replace('41.5', '44.5'))
    with pytest.raises(records.RecordError, match='was edited or renamed after it was written'):
        records.read(path)
    path = path.rename(path.with_name('seed3.json'))
    with pytest.raises(records.RecordError, match='was edited or renamed'):
        records.read(path)


def test_what_is_not_sound_is_named_and_the_rest_is_found(tmp_path):
    path = records.write(records.make(**FIELDS), tmp_path)
    (tmp_path / 'cut.json').write_text(path.read_text()[:100])
    (tmp_path / 'other.json').write_text('[]')
    (tmp_path / 'picture.json').write_bytes(b'\x89PNG\xff')
    for name, number in (('huge', '1' + '0' * 400), ('endless', 'Infinity')):
        (tmp_path / f'{name}.json').write_text(path.read_text().replace('41.5', number))
    (path.parent / 'seed9_0123456789ab.tmp').write_text('{')  # of a writer that was killed
    found = records.collect(tmp_path)
    assert [record.value for record in found.records] == [41.5]
    names = ('cut', 'endless', 'huge', 'other', 'picture')
    assert [reason.split(':')[0] for reason in found.refused] == [f'{tmp_path}/{name}.json' for name in names]
    assert 'written in part' in found.refused[0]


def test_the_same_recipe_on_another_machine():
    """Where things lie and which seed it is make no other recipe; a rate does."""
    config = load_config('configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py')
    moved = load_config(config.filename, {'train_dataloader.num_workers': 2, 'load_from': 'elsewhere.pth'})
    moved.randomness = dict(seed=7)
    moved.work_dir = 'elsewhere'
    assert recipe_of(moved) == recipe_of(config)
    assert recipe_of(load_config(config.filename, {'optim_wrapper.optimizer.lr': 7e-4})) != recipe_of(config)
