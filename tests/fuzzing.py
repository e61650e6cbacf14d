"""What the fuzz tests share: how files are damaged, and what may come of it.

The property is always the same: a result, or an error of ours that names the file; no other exception, no crash, no
hang (10 s an example), no more than 2 GiB of memory on top, and nothing executed.

In `make test` and four times as many in `make test-slow`: always the same examples. For a long run with new ones, here
40 times those of the slow suite (about 15 minutes on one core):

    BEIT_MM_FUZZ=40 python -m pytest --hypothesis-show-statistics tests/test_fuzz_*.py
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get('BEIT_MM_FUZZ', '0'))
SAME = 'BEIT_MM_FUZZ_SAME' in os.environ
ROOM = 2 << 30  # bytes


def examples(number: int) -> settings:
    """A quarter of this many, always the same; BEIT_MM_FUZZ times as many, always others unless BEIT_MM_FUZZ_SAME."""
    return settings(
        max_examples=number * TIMES or number // 4,
        derandomize=not TIMES or SAME,
        deadline=10_000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(autouse=True)
def limited_memory() -> Iterator[None]:
    """To be imported by a module whose tests are to run so: ROOM more address space than there is in use now."""
    used = int(Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def clean_errors(*names: str | Path) -> Iterator[None]:
    """What is raised inside is ours, and says one of the names."""
    caught = None
    try:
        yield
    except ValueError as error:
        caught = error
    if caught is not None:
        if not type(caught).__module__.startswith('beit_mm'):
            raise caught
        assert not names or any(str(name) in str(caught) for name in names), str(caught)


NUMBERS = (0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


@st.composite
def damaged(draw, contents: bytes | list[bytes], most: int = 6) -> bytes:
    """Bytes of a sound file after a few accidents: changed, cut, inserted, repeated, moved, numbers made extreme."""
    content = bytearray(contents if isinstance(contents, bytes) else draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.one_of(st.integers(0, 16), st.integers(0, len(content)))))
        match draw(st.sampled_from(('byte', 'number', 'cut', 'remove', 'insert', 'repeat', 'move', 'zero'))):
            case 'byte':
                content[start : start + 1] = bytes([draw(st.integers(0, 255))])
            case 'number':
                size, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(('little', 'big')))
                number = draw(st.sampled_from(NUMBERS)) % 256**size
                content[start : start + size] = number.to_bytes(size, order)
            case 'cut':
                del content[start:]
            case 'remove':
                del content[start:end]
            case 'insert':
                content[start:start] = draw(st.binary(max_size=24))
            case 'repeat':
                content[start:start] = content[start:end]
            case 'move':
                part = content[start:end]
                del content[start:end]
                place = draw(st.integers(0, len(content)))
                content[place:place] = part
            case 'zero':
                content[start:end] = bytes(end - start)
    return bytes(content)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from(NUMBERS), st.floats(), st.text(max_size=12), st.just('..')
)
values = st.recursive(
    scalars,
    lambda inside: st.one_of(
        st.lists(inside, max_size=4), st.dictionaries(st.one_of(st.text(max_size=8), st.integers()), inside, max_size=4)
    ),
    max_leaves=8,
)
plain_values = st.recursive(  # of JSON
    scalars,
    lambda inside: st.one_of(st.lists(inside, max_size=4), st.dictionaries(st.text(max_size=8), inside, max_size=4)),
    max_leaves=8,
)


def damaged_kinds(files: dict[str, list[bytes]], **options) -> st.SearchStrategy[tuple[str, bytes]]:
    """(one of the kinds, a damaged file of it)."""
    return st.sampled_from(sorted(files)).flatmap(
        lambda kind: st.tuples(st.just(kind), damaged(files[kind], **options))
    )


@st.composite
def changed(draw, content, strange=plain_values):
    """A nested value of which a few places hold something else, or nothing."""

    def walk(node, places):
        inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in inside:
            places.append((node, key))
            walk(value, places)
        return places

    def copy(node):
        if isinstance(node, dict):
            return {key: copy(value) for key, value in node.items()}
        return [copy(value) for value in node] if isinstance(node, (list, tuple)) else node

    content = copy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = walk(content, [])
        if not places:
            return draw(strange)
        node, key = draw(st.sampled_from(places))
        if draw(st.integers(0, 4)) == 0:
            del node[key]
        else:
            node[key] = draw(strange)
    return content
