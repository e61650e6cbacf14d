"""Damaged configs and odd overrides: a config, or ConfigError that names it. See fuzzing.py."""

import json
import string

import pytest
import yaml
from fuzzing import changed, clean_errors, damaged, damaged_kinds, examples, limited_memory, plain_values, values  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from tiny import CLASSIFY, SEGMENT, tiny

from beit_mm.closed import DataFileError, literal_config
from beit_mm.engine.configs import load_config, parse_overrides

CONFIGS = {name: json.loads(json.dumps(tiny(name).to_dict(), default=str)) for name in (CLASSIFY, SEGMENT)}
TEXTS = {
    '.json': [json.dumps(content).encode() for content in CONFIGS.values()],
    '.yaml': [yaml.safe_dump(content).encode() for content in CONFIGS.values()],
}


@examples(60)
@given(damaged_kinds(TEXTS, most=3))
def test_damaged_files(tmp_path_factory, case):
    suffix, content = case
    path = tmp_path_factory.getbasetemp() / f'damaged{suffix}'
    path.write_bytes(content)
    with clean_errors(path):
        load_config(path)


@examples(60)
@given(data=st.data())
def test_strange_values(tmp_path_factory, data):
    """In a config as data, and in one as Python."""
    content = data.draw(changed(CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))]))
    path = tmp_path_factory.getbasetemp() / data.draw(st.sampled_from(['strange.json', 'strange.py']))
    if path.suffix == '.py':
        items = content.items() if isinstance(content, dict) else ()
        lines = [f'{key} = {value!r}\n' for key, value in items if key.isidentifier()]
        path.write_text('inf = nan = 1e400\n' + ''.join(lines))
    else:
        path.write_text(json.dumps(content))
    with clean_errors(path):
        load_config(path)


def paths_of(node, before: str = '') -> list[str]:
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [before, *(path for key, value in inside for path in paths_of(value, f'{before}.{key}'.lstrip('.')))]


PATHS = sorted(set(paths_of(CONFIGS[CLASSIFY])) - {''})
WORDS = st.one_of(
    st.text(max_size=12),
    st.text(string.printable, max_size=12),
    st.sampled_from(['1', '-1', '1e400', 'None', '[', '[1,', '{}', '()', '"a', 'a.b', '__import__("os")', '9' * 5000]),
    st.sampled_from(['(' * 500, '[' * 500, '-' * 5000, '{"a":' * 200, '1+1j', "b'x'", '{1, 2}', '\x00', '1_0', '\\']),
    values.map(repr),
)
PAIRS = st.one_of(
    WORDS,
    st.tuples(st.sampled_from(PATHS), WORDS).map('='.join),
    st.tuples(st.sampled_from(PATHS), WORDS, WORDS).map(lambda parts: f'{parts[0]}.{parts[1]}={parts[2]}'),
)


@examples(100)
@given(st.lists(PAIRS, min_size=1, max_size=2))
def test_overrides(pairs):
    with clean_errors('--cfg-options', CLASSIFY):
        load_config(CLASSIFY, parse_overrides(pairs))


@examples(60)
@given(st.one_of(st.text(max_size=40), values.map(lambda value: f'a = {value!r}'), WORDS.map('a = {}'.format)))
def test_configs_inside_of_checkpoints(text):
    try:
        literal_config(text)
    except DataFileError:
        return
    except ValueError as error:
        pytest.fail(str(error))
