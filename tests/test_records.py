"""Result records: what is compulsory, what a reader refuses, and that nothing is ever overwritten."""

import dataclasses
import json

import pytest

from beit_mm.benchmark import records

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
    seed=3,
    config='tiny',
    config_sha256='c' * 64,
    checkpoint='iter_300.pth',
    checkpoint_sha256='d' * 64,
    stages=[],
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
    again = dataclasses.replace(record, date='2031-01-01T00:00:00+00:00', value=42.0)
    assert records.write(again, tmp_path) != path
    assert sorted(r.value for r in records.read_all(tmp_path)) == [41.5, 42.0]
    assert record in records.read_all(tmp_path)
    assert not list(tmp_path.rglob('*.tmp'))


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        ({'checkpoint_sha256': ''}, 'checkpoint_sha256 must not be empty'),
        ({'protocol': ''}, 'protocol must not be empty'),
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
        (lambda content: content.update(schema=99), 'schema 99, this version reads 1'),
    ],
)
def test_reading_names_the_file_and_the_field(tmp_path, change, part):
    content = dataclasses.asdict(records.make(**FIELDS))
    change(content)
    path = tmp_path / 'odd.json'
    path.write_text(json.dumps(content))
    with pytest.raises(records.RecordError, match=part) as caught:
        records.read_all(tmp_path)
    assert str(path) in str(caught.value)


def test_reading_refuses_what_is_not_json(tmp_path):
    (tmp_path / 'cut.json').write_text('{"task": "segm')
    with pytest.raises(records.RecordError, match=r'cut\.json: not JSON'):
        records.read_all(tmp_path)
