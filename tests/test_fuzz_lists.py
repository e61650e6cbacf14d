"""Damaged list files and token caches: read, or refused by name. See fuzzing.py."""

import io
import json
from types import SimpleNamespace

import numpy as np
from fuzzing import changed, clean_errors, damaged, examples, limited_memory  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st

from beit_mm.data.images import read_list
from beit_mm.data.tokens import MANIFEST, TOKENS, TokensFromCache

LIST = 'a.jpg 1\nb/ü c.png\t0\n\n  n01440764/x.JPEG 2  \nplain.png\n'
LINES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ['a ²', 'a --1', 'a -', 'a ' + '9' * 5000, 'a\x00b 1', 'a\u2028b 1', 'a 1_0', 'a ١', '\ufeffa 1', ' 1']
    ),
)


@examples(100)
@given(
    st.one_of(
        damaged(LIST.encode()), st.lists(LINES).map(lambda lines: '\n'.join(lines).encode(errors='surrogatepass'))
    ),
    st.booleans(),
    st.sampled_from([None, 3]),
)
def test_lists(tmp_path_factory, content, with_label, num_classes):
    path = tmp_path_factory.getbasetemp() / 'list.txt'
    path.write_bytes(content)
    with clean_errors(path):
        for entry in read_list(path, with_label, num_classes):
            assert entry.path
            assert not with_label or 0 <= entry.label < (num_classes or 2**64)


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


STORED = npy(np.arange(2 * 5 * 4 * 4, dtype=np.uint16).reshape(2, 5, 4, 4))
WHOLE = dict(
    format=1, bytes=len(STORED), sha256='0' * 64, views=2, images=5, seed=0, grid=[4, 4], dtype='uint16', vocab_size=512
)


@examples(100)
@given(data=st.data())
def test_token_caches(tmp_path_factory, data):
    """A manifest of strange contents or damaged, and tokens that are as long as they should be and something else."""
    folder = tmp_path_factory.getbasetemp() / 'cache'
    folder.mkdir(exist_ok=True)
    content = data.draw(damaged(STORED)) if data.draw(st.booleans()) else STORED
    (folder / TOKENS).unlink(missing_ok=True)
    (folder / TOKENS).write_bytes(content)
    manifest = dict(WHOLE, bytes=len(content), sha256=data.draw(st.text(max_size=8)))
    text = json.dumps(data.draw(changed(manifest)) if data.draw(st.booleans()) else manifest).encode()
    (folder / MANIFEST).write_bytes(data.draw(damaged(text, most=1)) if data.draw(st.integers(0, 4)) == 0 else text)
    with clean_errors(folder):
        step = TokensFromCache(str(folder), views=2)
        for epoch, index in ((0, 0), (1, 4), (7, 3)):
            found = step.transform(dict(sample_idx=SimpleNamespace(key=(step.seed, epoch, index))))
            assert found['tokens'].dtype == np.int64
