"""Damaged and malicious folders of several ranks: read, or refused by name. See fuzzing.py."""

import hashlib
import json
from pathlib import Path

import torch
from fuzzing import changed, clean_errors, damaged, examples, limited_memory, plain_values  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors
from test_fuzz_checkpoints import CONTENT, STRANGE, used, written

from beit_mm.checkpoints.load import read
from beit_mm.checkpoints.sharded import _digest, check_digests, read_shards

WHOLE = {'head.fc.weight': torch.ones(4, 3), 'head.fc.bias': torch.ones(2), 'table': torch.ones(2, 2, 2)}
PARTS = [{f'state_dict.{key}': value.chunk(2)[rank].clone() for key, value in WHOLE.items()} for rank in range(2)]
PLACES = [
    {key: dict(saved_offsets=[rank * len(value), *[0] * (value.ndim - 1)]) for key, value in PARTS[rank].items()}
    for rank in range(2)
]
REST = dict(CONTENT, state_dict={key: torch.empty_like(value, device='meta') for key, value in WHOLE.items()})
WITHOUT_DATA = st.builds(
    lambda shape, dtype: torch.empty((), dtype=dtype, device='meta').expand(shape),
    st.lists(st.sampled_from((0, 1, 2, 4, 2**20, 2**31)), max_size=3).filter(lambda shape: 2**31 not in shape[1:]),
    st.sampled_from((torch.float32, torch.int64, torch.complex128, torch.float8_e5m2, torch.bool)),
)


def shard(rank: int, places) -> bytes:
    return save_tensors(PARTS[rank], metadata=dict(DCP_SHARDING_INFO=json.dumps(places)))


FILES = {
    'rest-a.pth': written(REST),
    'shard-00001-a.safetensors': shard(0, PLACES[0]),
    'shard-00002-a.safetensors': shard(1, PLACES[1]),
}


def listing(files: dict[str, bytes]) -> bytes:
    listed = {name: dict(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in files.items()}
    return json.dumps(dict(files=listed, sha256=_digest(listed))).encode()


def folder_of(factory, files: dict[str, bytes], listed: bytes | None = None) -> Path:
    """A folder whose listing is right, unless another is given."""
    folder = factory.getbasetemp() / 'fuzzed.dcp'
    folder.mkdir(exist_ok=True)
    for name, data in {**files, 'files.json': listing(files) if listed is None else listed}.items():
        (folder / name).write_bytes(data)
    return folder


def looked_at(folder: Path) -> None:
    """As the doors do, each by itself."""
    for look in (check_digests, used, lambda path: read(path, lazy=True), lambda path: read_shards(path, {})):
        with clean_errors(folder):
            look(folder)


def test_the_sound_one(tmp_path_factory):
    folder = folder_of(tmp_path_factory, FILES)
    check_digests(folder)
    assert all(torch.equal(value, WHOLE[key]) for key, value in read(folder)['state_dict'].items())


@examples(60)
@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_damaged_files(tmp_path_factory, name, data):
    """Whose digests are right."""
    looked_at(folder_of(tmp_path_factory, {**FILES, name: data.draw(damaged(FILES[name]))}))


@examples(60)
@given(data=st.data())
def test_damaged_listings(tmp_path_factory, data):
    whole = listing(FILES)
    strange = changed(json.loads(whole)).map(lambda content: json.dumps(content).encode())
    signed = changed(json.loads(whole)['files']).map(
        lambda files: json.dumps(dict(files=files, sha256=_digest(files))).encode()
    )
    looked_at(folder_of(tmp_path_factory, FILES, data.draw(st.one_of(damaged(whole), strange, signed))))


@examples(60)
@given(places=changed(PLACES[1]))
def test_strange_places(tmp_path_factory, places):
    looked_at(folder_of(tmp_path_factory, {**FILES, 'shard-00002-a.safetensors': shard(1, places)}))


@examples(80)
@given(content=changed(REST, st.one_of(STRANGE, WITHOUT_DATA)))
def test_strange_rests(tmp_path_factory, content):
    looked_at(folder_of(tmp_path_factory, {**FILES, 'rest-a.pth': written(content)}))
