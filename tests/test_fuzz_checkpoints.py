"""Damaged and malicious checkpoints: read, or refused by name. See fuzzing.py."""

import functools
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from fuzzing import changed, clean_errors, damaged, damaged_kinds, examples, limited_memory, values  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from payload import Payload
from safetensors.torch import save as save_tensors
from tiny import CLASSIFY, tiny

from beit_mm.apis import build_model
from beit_mm.checkpoints.load import convert_file, of_beit_mm, read, state_dict_of
from beit_mm.engine.launch import load_whole

WEIGHTS = {
    'backbone.cls_token': torch.zeros(1, 1, 4),
    'backbone.pos_embed': torch.ones(1, 5, 4),
    'backbone.patch_embed.projection.weight': torch.ones(4, 3, 2, 2),
    'backbone.layers.0.attn.qkv.weight': torch.ones(12, 4),
    'backbone.layers.0.attn.relative_position_bias_table': torch.ones(12, 2),
    'head.fc.weight': torch.ones(3, 4),
}
CONTENT = dict(
    state_dict=WEIGHTS,
    meta=dict(
        iter=3, epoch=1, seed=0, experiment_name='x', cfg='a = 1',
        beit_mm=dict(stages=[], preprocessing=dict(mean=[0.5]))
    ),
    message_hub=dict(log_scalars={}, runtime_info=dict(iter=3)),
    optimizer=dict(state={0: dict(step=1)}, param_groups=[dict(lr=0.1, params=[0])]),
)  # fmt: skip


def written(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


ARRAYS = {key.removeprefix('backbone.'): value.numpy() for key, value in WEIGHTS.items()}
FILES = {
    '.pth': [written(CONTENT), written(WEIGHTS, _use_new_zipfile_serialization=False)],
    '.safetensors': [save_tensors(WEIGHTS, metadata=dict(format='pt', beit_mm='{"preprocessing": {}}'))],
    '.pdparams': [pickle.dumps(ARRAYS, protocol) for protocol in (2, 4, 5)],
    '.npz': [npz(**{'cls': np.zeros((1, 1, 4)), 'embedding/kernel': np.ones((2, 2, 3, 4)), 'head/bias': np.ones(3)})],
}


def used(path) -> None:
    """What the doors do with a checkpoint before a model sees it."""
    content = read(path, map_location='cpu')
    of_beit_mm(content)
    with clean_errors():  # those who ask add the name
        state_dict_of(content)


@examples(150)
@given(damaged_kinds(FILES))
def test_damaged_files(tmp_path_factory, case):
    suffix, content = case
    path = tmp_path_factory.getbasetemp() / f'damaged{suffix}'
    path.write_bytes(content)
    with clean_errors(path):
        used(path)


def with_records(edit) -> bytes:
    """torch's file, its records changed by `edit(records)`, in place."""
    file = io.BytesIO(written(CONTENT))
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    edit(records)
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return out.getvalue()


@examples(60)
@given(st.data())
def test_damaged_records(tmp_path_factory, data):
    """Of a zip file whose sums are right: swapped, lost, renamed, damaged inside."""

    def edit(records) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            one, other = (data.draw(st.sampled_from(sorted(records))) for _ in range(2))
            match data.draw(st.sampled_from(('swap', 'lose', 'rename', 'damage'))):
                case 'swap':
                    records[one], records[other] = records[other], records[one]
                case 'lose':
                    records.pop(one)
                    if not records:
                        return
                case 'rename':
                    records[data.draw(st.text('abc/.0', min_size=1, max_size=8))] = records.pop(one)
                case 'damage':
                    records[one] = data.draw(damaged(records[one] or b'x'))

    path = tmp_path_factory.getbasetemp() / 'records.pth'
    path.write_bytes(with_records(edit))
    with clean_errors(path):
        used(path)


def named(module: str, name: str) -> bytes:
    return f'c{module}\n{name}\n'.encode()


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, 'little')


NAMES = [
    named(module, name)
    for module, name in (
        ('torch._utils', '_rebuild_tensor_v2'), ('torch._utils', '_rebuild_parameter'), ('torch', 'FloatStorage'),
        ('torch', 'Size'), ('torch', 'float32'), ('torch', 'Tensor'), ('torch._tensor', '_rebuild_from_type_v2'),
        ('torch.storage', '_load_from_bytes'), ('collections', 'OrderedDict'), ('_codecs', 'encode'),
        ('argparse', 'Namespace'), ('mmengine.logging.history_buffer', 'HistoryBuffer'), ('builtins', 'getattr'),
        ('numpy', 'dtype'), ('numpy', 'ndarray'), ('numpy.core.multiarray', '_reconstruct'),
        ('numpy.core.multiarray', 'scalar'), ('numpy._core.numeric', '_frombuffer'), ('dall_e.encoder', 'Encoder'),
        ('torch.nn.modules.container', 'Sequential'), ('os', 'system'), ('builtins', 'eval'), ('builtins', 'set'),
    )
]  # fmt: skip
OPCODES = [
    *NAMES, b'}', b']', b')', b'(', b'(', b't', b'd', b'l', b'\x85', b'\x86', b'\x87', b'R', b'R', b'b', b's', b'u',
    b'a', b'e', b'0', b'2', b'1', b'N', b'\x88', b'\x89', b'q\x00', b'q\x01', b'h\x00', b'h\x01', b'\x81', b'\x92',
    b'Q', b'o', b'i' + b'os\nsystem\n', b'\x93', b'\x94', b'\x8f', b'\x90', b'\x91', b'.', b'r' + number(2**31 - 1, 4),
    b'K\x01', b'K\xff', b'M\xff\xff', b'J' + number(2**31 - 1, 4), b'J' + number(2**32 - 1, 4),
    b'\x8a\x08' + number(2**62, 8), b'\x8b' + number(2**31 - 1, 4), b'G' + bytes(8), b'X\x01\x00\x00\x00a',
    b'X\x07\x00\x00\x00storage', b'X\x02\x00\x00\x00f8', b'X\x03\x00\x00\x00cpu', b'X' + number(2**31, 4) + b'a',
    b'\x8d' + number(2**40, 8), b'\x96' + number(2**40, 8), b'\x8e' + number(2**40, 8), b'C\x08' + bytes(8), b'I1\n',
    b'L' + b'9' * 50 + b'L\n', b'S\'touch x\'\n', b'Vx\n', b'\x95' + number(2**40, 8), b'\x80\x05',
]  # fmt: skip


@examples(200)
@given(st.lists(st.sampled_from(OPCODES), max_size=24), st.sampled_from(['.pth', 'old.pth', '.pdparams']))
def test_made_up_pickles(tmp_path_factory, pieces, suffix):
    content = b'\x80\x02' + b''.join(pieces) + b'.'

    def edit(records) -> None:
        records['archive/data.pkl'] = content

    path = tmp_path_factory.getbasetemp() / f'pickle{suffix}'
    path.write_bytes(with_records(edit) if suffix == '.pth' else content)
    with clean_errors(path):
        used(path)


STRANGE = st.one_of(
    values,
    st.sampled_from([torch.zeros(0), torch.ones(3), torch.ones(2, 2).expand(3, 2, 2), torch.ones(2).to_sparse()]),
    st.sampled_from([torch.tensor(float('nan')), torch.ones(1).expand(10**12), torch.ones(1, dtype=torch.complex64)]),
)


@pytest.mark.parametrize('target', ['unilm', 'hf', 'passl'])
@examples(40)
@given(content=changed(CONTENT, STRANGE))
def test_strange_contents(tmp_path_factory, target, content):
    """Sound files that hold something else than they should: converted, or refused."""
    folder = tmp_path_factory.getbasetemp()
    path, out = folder / 'strange.pth', folder / ('out.pdparams' if target == 'passl' else 'out.pth')
    torch.save(content, path)
    out.unlink(missing_ok=True)
    with clean_errors(path):
        used(path)
        convert_file(path, out, None, target)


@functools.cache
def classifier():
    config = tiny(CLASSIFY)
    return config, build_model(config)


@examples(40)
@given(data=st.data())
def test_strange_contents_of_the_right_model(tmp_path_factory, data):
    """As `tools/test.py` loads it."""
    config, model = classifier()
    path = tmp_path_factory.getbasetemp() / 'own.pth'
    torch.save(data.draw(changed(dict(CONTENT, state_dict=dict(model.state_dict())), STRANGE)), path)
    with clean_errors(path):
        load_whole(model, config, str(path))


def test_payloads_in_every_place(tmp_path):
    marker = tmp_path / 'ran'
    for place in (('state_dict',), ('meta', 'beit_mm'), ('optimizer', 'state'), ('message_hub', 'log_scalars')):
        content = dict(CONTENT, **{place[0]: dict(CONTENT[place[0]])})
        content[place[0]][place[-1]] = Payload(marker)
        torch.save(content, tmp_path / 'bad.pth')
        with pytest.raises(ValueError, match='holds Python objects besides tensors'):
            read(tmp_path / 'bad.pth')
    assert not marker.exists()
