"""Damaged result records, and what a suite keeps about its stages: read, or refused by name. See fuzzing.py."""

import json
from pathlib import Path

import pytest
from fuzzing import changed, clean_errors, damaged, examples, limited_memory, plain_values  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from tiny_suite import tiny_suite

from beit_mm.benchmark.index import table
from beit_mm.benchmark.leaderboard import from_folder
from beit_mm.benchmark.records import RecordError, collect, digest_of, read
from beit_mm.benchmark.report import write_all
from beit_mm.benchmark.state import differences, finished, settings_of, states, write_json
from beit_mm.benchmark.suite import plan

RECORDS = sorted(Path('results').rglob('*.json'))
TEXTS = [path.read_bytes() for path in (RECORDS[0], RECORDS[-1])]


def put(folder: Path, text: str) -> Path:
    """A record under the name that its text asks for, alone in a folder."""
    for old in folder.glob('*.json'):
        old.unlink()
    path = folder / f'seed0_{digest_of(text)}.json'
    path.write_text(text)
    return path


@examples(100)
@given(damaged(TEXTS))
def test_damaged_records(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / f'seed0_{"0" * 12}.json'
    path.write_bytes(content)
    with pytest.raises(RecordError, match=str(path)):
        read(path)
    path.unlink()


@examples(60)
@given(data=st.data())
def test_strange_records(tmp_path_factory, data):
    """Their digest right: a page is made of what is accepted, and of the others it is said why not."""
    folder = tmp_path_factory.getbasetemp() / 'strange'
    folder.mkdir(exist_ok=True)
    content = data.draw(changed(json.loads(data.draw(st.sampled_from(TEXTS)))))
    path = put(folder, json.dumps(content))
    with clean_errors(path):
        read(path)
    found = collect(folder)
    assert len(found.records) + len(found.refused) == 1
    with clean_errors(folder):
        write_all(from_folder(folder), folder / 'page', 'title')


MARKUP = '</script><script>alert(1)</script>"\'><img src=x onerror=alert(1)>'


def test_markup_in_a_record_stays_text(tmp_path):
    """Whatever a record says, the page shows it as text."""

    def marked(node):
        if isinstance(node, dict):
            return {key: marked(value) for key, value in node.items()}
        return [marked(value) for value in node] if isinstance(node, list) else node

    content = json.loads(TEXTS[0])
    for name in ('dataset', 'split', 'protocol', 'preset', 'device', 'checkpoint'):
        content[name] += MARKUP
    content['stages'] = [dict(config=MARKUP, checkpoint=MARKUP, sha256=MARKUP, stages=[], seed=MARKUP)]
    content['versions'][MARKUP] = MARKUP
    content['curves'][MARKUP] = [[1], [2]]
    content['revision'] = dict(content['revision'], commit=MARKUP)
    put(tmp_path, json.dumps(content))
    found = from_folder(tmp_path)
    assert len(found.rows) == 1, found.notes
    write_all(found, tmp_path / 'page', 'title')
    for page in (tmp_path / 'page').glob('*.html'):
        text = page.read_text()
        assert '<img src=x' not in text
        assert 'alert(1)</script>' not in text


@pytest.fixture(scope='module')
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp('suite')
    return plan(tiny_suite(folder), root=folder / 'root')


@examples(60)
@given(data=st.data())
def test_what_stages_left(stages, data):
    """done.json, stage.json, failed.json, jobs.json and the lock, of strange contents or damaged: no exception."""
    stage = stages[0]
    record = stage.root / 'results' / 'record.json'
    write_json(record, dict(task='tokenizer', metric='x', value=1.0, checkpoint_sha256='0'))
    done = dict(
        checkpoint='iter_2.pth', sha256='0', record='../../results/record.json', seconds=60.0, metric='x', value=1.0,
        protocol='p', settings=settings_of(stage),
    )  # fmt: skip
    files = {
        stage.work_dir / 'done.json': done,
        stage.work_dir / 'stage.json': settings_of(stage),
        stage.work_dir / 'failed.json': dict(code=1, when='x'),
        stage.root / 'slurm' / 'jobs.json': {'seed0-tokenizer': '1'},
        record: dict(task='tokenizer', metric='x', value=1.0, checkpoint_sha256='0'),
    }
    for path, content in files.items():
        path.unlink(missing_ok=True)
        if data.draw(st.booleans()):
            text = json.dumps(data.draw(changed(content)), indent=1).encode()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.draw(damaged(text, most=1)) if data.draw(st.integers(0, 3)) == 0 else text)
    finished(stage)
    found = states(stages)
    table(found)
    differences(stage, done)
