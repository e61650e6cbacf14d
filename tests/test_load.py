"""checkpoints/load.py: nothing runs code, damage is named, and weights fit or are refused."""

import argparse
import functools
import http.server
import logging
import pickle
import random
import struct
import threading
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from payload import Payload
from safetensors.torch import save_file

from beit_mm.checkpoints import convert_state_dict, load
from beit_mm.checkpoints.fit import fit
from beit_mm.checkpoints.load import CheckpointError, read, sha256, state_dict_of, write
from beit_mm.models.backbone import BEiTViT
from beit_mm.models.targets import TokenTarget
from beit_mm.ops.relative_position import resize_positions, resize_table

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


@pytest.mark.parametrize('switch', [False, True])
@pytest.mark.parametrize('legacy', [False, True])
def test_code_in_a_checkpoint_never_runs(tmp_path, monkeypatch, switch, legacy):
    if switch:
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    marker, path = tmp_path / 'ran', tmp_path / 'bad.pth'
    content = dict(state_dict={}, payload=Payload(marker))
    if legacy:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r'bad\.pth'):
        read(path)
    with pytest.raises(CheckpointError):
        load_checkpoint(BEiTViT(ARCH, img_size=32), str(path))  # mmengine's own way in, and init_cfg's
    assert not marker.exists()


def test_code_never_runs_by_any_other_way_in(tmp_path, monkeypatch):
    """init_cfg of a backbone, a tokenizer's checkpoint, a conversion; see test_slow.py for the tools."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    marker, path = tmp_path / 'ran', tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, payload=Payload(marker)), path)
    start = dict(type='Pretrained', checkpoint=str(path))
    for way in (
        lambda: BEiTViT(ARCH, img_size=32, init_cfg=start).init_weights(),
        lambda: BEiTViT(ARCH, img_size=32, pretrained=str(path)).init_weights(),
        lambda: TokenTarget(dict(type='beit_mm.KMeansTokenizer', vocab_size=4), str(path)),
        lambda: load.convert_file(path, tmp_path / 'out.pth', None, 'unilm'),
    ):
        with pytest.raises(CheckpointError, match=r'bad\.pth: holds Python objects besides tensors'):
            way()
    assert not marker.exists()


def test_mmengines_own_training_checkpoints_are_read(tmp_path):
    """HistoryBuffers and NumPy's scalars, which torch's weights_only refuses; `getattr` does nothing else in them."""
    buffer = HistoryBuffer([0.5, 0.25], [1, 2])
    hub = dict(log_scalars={'train/loss': buffer}, runtime_info=dict(iter=np.int64(3), lr=np.float32(0.5)))
    torch.save(dict(state_dict=dict(a=torch.ones(2)), message_hub=hub), tmp_path / 'iter_3.pth')
    back = read(tmp_path / 'iter_3.pth')['message_hub']
    assert back['log_scalars']['train/loss'].mean() == pytest.approx(0.25)  # (0.5 + 0.25) over the counts, 3
    assert back['runtime_info'] == dict(iter=3, lr=0.5)

    class Reached:
        def __reduce__(self):
            return getattr, (argparse.Namespace, '__init__')

    torch.save(dict(payload=Reached()), tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=r'bad\.pth: holds Python objects besides tensors'):
        read(tmp_path / 'bad.pth')


TABLE = 'backbone.layers.0.attn.relative_position_bias_table'


def forged(kind: bytes, raw: bytes = b'A' * 8) -> bytes:
    """A pickle of an array of one number whose dtype is `kind`, a pickled object."""
    text = raw.decode('latin1').encode()
    data = b'c_codecs\nencode\n(X' + struct.pack('<I', len(text)) + text + b'X\x06\x00\x00\x00latin1tR'
    empty = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00btR'
    return empty + b'(K\x01K\x01\x85' + kind + b'\x89' + data + b'tb'


OBJECTS = b'cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR'
# Its object flags taken away by a state: NumPy would take the eight bytes for an address and go there
OBJECTS_WITHOUT_FLAGS = OBJECTS + b'(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
FLOATS = (
    b'cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x88tR(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
)


@pytest.mark.parametrize('suffix', ['.pdparams', '.pth'])
def test_arrays_are_numbers_and_no_addresses(tmp_path, suffix):
    def file(array: bytes) -> Path:
        content, path = b'\x80\x02}X\x01\x00\x00\x00a' + array + b's.', tmp_path / f'forged{suffix}'
        if suffix == '.pdparams':
            path.write_bytes(content)
        else:
            torch.save({}, tmp_path / 'empty.pth')
            with zipfile.ZipFile(tmp_path / 'empty.pth') as empty, zipfile.ZipFile(path, 'w') as whole:
                for name in empty.namelist():
                    whole.writestr(name, content if name.endswith('data.pkl') else empty.read(name))
        return path

    number = struct.pack('<d', 2.5)
    assert float(read(file(forged(FLOATS, number)))['a'][0]) == 2.5
    for array in (
        forged(OBJECTS),
        forged(OBJECTS_WITHOUT_FLAGS),
        forged(FLOATS, number * 2),
        forged(FLOATS, number[:4]),
    ):
        with pytest.raises(CheckpointError, match=rf'forged\{suffix}'):
            read(file(array))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (dict(model={'a': [1, 2]}), 'a is no weight but list'),
        (dict(state_dict={3: torch.ones(1)}), '3 is no name of a weight'),
        ({'a': torch.ones(2, 2).to_sparse()}, 'a is sparse'),
        ({'a': torch.ones(1, device='meta')}, 'a is without data'),
    ],
)
def test_what_is_no_weight_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / 'odd.pth')
    for way in (
        lambda: load.convert_file(tmp_path / 'odd.pth', tmp_path / 'out.pth', None, 'unilm'),
        lambda: BEiTViT(ARCH, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'odd.pth'))).init_weights(),
        lambda: TokenTarget(dict(type='beit_mm.KMeansTokenizer', vocab_size=4), str(tmp_path / 'odd.pth')),
    ):
        with pytest.raises(CheckpointError, match=rf'odd\.pth: {message}'):
            way()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'backbone.cls_token': torch.ones(32)}, r'backbone\.cls_token is \(32,\), and no cls_token looks like that'),
        (
            {TABLE: torch.ones(2, 2)},
            'and no relative_position_bias_table',
        ),
        (
            {'blocks.0.norm1.weight': torch.ones(32)},
            r'two formats are mixed: most are ours, but \w+ has blocks\.0',
        ),
        ({'beit.encoder.layer.0.lambda_1': torch.ones(32)}, 'two formats are mixed: most are ours, but hf has beit'),
    ],
)
def test_what_cannot_be_a_backbone_is_named(tmp_path, change, message):
    write(dict(state_dict={**prefixed(BEiTViT(ARCH, img_size=32)), **change}), tmp_path / 'mixed.pth')
    model = BEiTViT(ARCH, img_size=32, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'mixed.pth')))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf'mixed\.pth: .*{message}'):
        model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_name_that_all_keys_start_with_is_no_obstacle(tmp_path):
    source = BEiTViT(ARCH, img_size=32)
    for start in ('model.', 'encoder.backbone.', 'module.model.'):
        write(
            dict(state_dict={start + key: value for key, value in source.state_dict().items()}), tmp_path / 'deep.pth'
        )
        model = BEiTViT(ARCH, img_size=32, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'deep.pth')))
        model.init_weights()
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'deep.pth'), prefix='module.model')  # no dot at its end
    write(dict(state_dict={f'module.model.{k}': v for k, v in source.state_dict().items()} | {'x.y': torch.ones(1)}),
          tmp_path / 'deep.pth')  # fmt: skip
    model = BEiTViT(ARCH, img_size=32, init_cfg=start)
    model.init_weights()
    assert torch.equal(model.cls_token, source.cls_token)


@pytest.mark.parametrize('kind', ['tables', 'positions'])
@pytest.mark.parametrize('way', ['index buffers', 'our own meta'])
@pytest.mark.parametrize('sizes', [((64, 96), (96, 128)), ((64, 96), (96, 64))])
def test_rectangles_are_resized_on_loading(tmp_path, kind, way, sizes):
    """4 x 6 patches to 6 x 8, and to 6 x 4, for which there are as many rows: by the grid, not by their number."""
    if kind == 'positions' and way == 'index buffers':
        pytest.skip('positions have no index beside them')
    small, large = sizes
    arguments = dict(use_abs_pos_emb=kind == 'positions', use_rel_pos_bias=kind == 'tables')
    source = BEiTViT(ARCH, img_size=small, **arguments)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if 'table' in name or 'pos_embed' in name:
                parameter.normal_()
    grids = [(h // 16, w // 16) for h, w in sizes]
    if way == 'index buffers':
        weights = convert_state_dict(prefixed(source), target='unilm', source_grid=grids[0])[0]
        write(dict(model=weights), tmp_path / 'start.pth')
    else:
        carried = dict(backbone=dict(type='beit_mm.BEiTViT', img_size=small, patch_size=16))
        write(dict(state_dict=prefixed(source), meta=dict(beit_mm=carried)), tmp_path / 'start.pth')
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'start.pth'))
    model = BEiTViT(ARCH, img_size=large, **arguments, init_cfg=start)
    model.init_weights()
    if kind == 'positions':
        assert torch.equal(model.pos_embed, resize_positions(source.pos_embed, *grids))
    else:
        for block, before in zip(model.layers, source.layers, strict=True):
            expected = resize_table(before.attn.relative_position_bias_table, *grids)
            assert torch.equal(block.attn.relative_position_bias_table, expected)


def test_what_a_file_is_that_is_none_of_weights(tmp_path):
    for content, message in (
        (b'version https://git-lfs.github.com/spec/v1\noid', 'this is a pointer of Git LFS'),
        (b'{"metadata": {}, "weight_map": {}}', 'this is JSON, not weights'),
        (b'\xef\xbb\xbf <!-- x --><html>', 'this is a web page'),
        ('<!DOCTYPE html>'.encode('utf-16'), 'this is a web page'),
        (b'<Error><Code>AccessDenied', 'this is a web page'),
    ):
        (tmp_path / 'b.pth').write_bytes(content)
        with pytest.raises(CheckpointError, match=rf'b\.pth: {message}'):
            read(tmp_path / 'b.pth')
    save_file(dict(a=torch.ones(2)), tmp_path / 'b.bin')  # by its content, whatever it is called
    assert torch.equal(read(tmp_path / 'b.bin')['a'], torch.ones(2))


def test_a_trusted_file_is_read_whatever_it_holds(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(load, '_trusted', set())
    marker, path = tmp_path / 'ran', tmp_path / 'old.pth'
    torch.save(dict(state_dict=dict(a=torch.ones(2)), payload=Payload(marker)), path)
    with pytest.raises(CheckpointError, match=r'\((os|posix)\.system\).*If you know .*: --trust-checkpoint'):
        read(path)
    assert not marker.exists()
    with caplog.at_level(logging.WARNING):
        load.trust(path)
    assert torch.equal(read(path)['state_dict']['a'], torch.ones(2))
    assert marker.exists()
    other = tmp_path / 'other.pth'
    torch.save(dict(payload=Payload(tmp_path / 'other ran')), other)
    with pytest.raises(CheckpointError):
        read(other)  # one file is trusted, and no other


def test_files_with_an_address_are_read_closed_too(tmp_path, monkeypatch):
    """mmengine leaves those to torch's hub, which runs what they hold."""
    asked = []

    def answer(url, path, **_):
        asked.append(url)
        content = dict(state_dict={}, version=2) if 'v2' in url else dict(state_dict={})
        torch.save(dict(payload=Payload(tmp_path / 'ran')) if 'bad' in url else content, path)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', answer)
    for reader in (read, CheckpointLoader.load_checkpoint):
        assert reader('https://example.org/v1/good.pth') == dict(state_dict={})
        with pytest.raises(CheckpointError, match=r'bad\.pth: holds Python objects'):
            reader('http://example.org/bad.pth?download=1')
        assert reader('https://example.org/v2/good.pth') == dict(state_dict={}, version=2)  # another file of that name
    assert len(asked) == len(set(asked)) == 3  # once each
    assert not (tmp_path / 'ran').exists()
    monkeypatch.setattr(
        torch.hub, 'download_url_to_file', lambda *_, **__: (_ for _ in ()).throw(URLError('no network'))
    )
    with pytest.raises(CheckpointError, match=r'https://example\.org/x\.pth: not downloaded \(.*no network.*its path'):
        read('https://example.org/x.pth')


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(address of a folder, the folder), and an empty hub folder."""
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setenv('no_proxy', '*')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', folder
        server.shutdown()


def test_a_download_is_the_file_that_its_address_says(served, tmp_path):
    address, folder = served
    torch.save(dict(state_dict=dict(a=torch.ones(1))), folder / 'plain.pth')
    digest = sha256(folder / 'plain.pth')
    for name in (f'beit-{digest[:8]}.pth', 'beit-00c0ffee.pth', 'beit-20221114.pth'):
        (folder / name).write_bytes((folder / 'plain.pth').read_bytes())
    for good in (f'beit-{digest[:8]}.pth', f'plain.pth#sha256={digest.upper()}', 'beit-20221114.pth', 'plain.pth'):
        assert read(f'{address}/{good}')['state_dict']['a'] == 1
    kept = set((tmp_path / 'hub').rglob('*.pth'))
    for bad in ('beit-00c0ffee.pth', 'plain.pth#sha256=' + '0' * 64):
        with pytest.raises(CheckpointError, match=rf'{bad}: is another file than .*invalid hash value.*sha256'):
            read(f'{address}/{bad}')
    assert set((tmp_path / 'hub').rglob('*.pth')) == kept


def test_the_official_files_carry_their_command_line(tmp_path):
    """argparse.Namespace, which torch's weights_only refuses; anything that runs inside of it is refused as ever."""
    weights = dict(a=torch.ones(2))
    torch.save(dict(model=weights, args=argparse.Namespace(lr=1e-3, model='beit_base')), tmp_path / 'beit.pth')
    content = read(tmp_path / 'beit.pth')
    assert content['args'].lr == 1e-3
    assert torch.equal(state_dict_of(content)['a'], weights['a'])
    torch.save(dict(model=weights, args=argparse.Namespace(a=Payload(tmp_path / 'ran'))), tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=r'bad\.pth: holds Python objects besides tensors \((os|posix)\.system\)'):
        read(tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'# A page of text, which is no pickle either', 'not a checkpoint'),
        (b'', 'empty'),
        (b'<!DOCTYPE html><html>404</html>', 'web page'),
        (b'PK\x03\x04 cut off', 'damaged|not a checkpoint'),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    path = tmp_path / 'w.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('legacy', [False, True])
def test_any_damage_is_a_checkpoint_error(tmp_path, legacy):
    """Whatever bytes are flipped, cut or made up: the file is read, or CheckpointError names it."""
    path, rng = tmp_path / 'w.pth', random.Random(0)
    torch.save(
        dict(state_dict=dict(a=torch.randn(5, 5)), meta=[1, 2.5, 'x']), path, _use_new_zipfile_serialization=not legacy
    )
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        kind = rng.randrange(3)
        if kind == 0:
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        elif kind == 1:
            content = content[: rng.randrange(len(content))]
        else:
            content = rng.randbytes(rng.randint(1, 200))
        path.write_bytes(content)
        try:
            read(path)
        except CheckpointError as error:
            refused += str(path) in str(error)
    assert refused > 150


def test_what_is_no_dict_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'w\.pth: holds a list'):
        read(tmp_path / 'w.pth')


def test_truncated_and_missing(tmp_path):
    torch.save(dict(a=torch.randn(1000)), tmp_path / 'iter_1.pth')
    whole = (tmp_path / 'iter_1.pth').read_bytes()
    (tmp_path / 'iter_2.pth').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r'iter_2\.pth: damaged'):
        read(tmp_path / 'iter_2.pth')
    with pytest.raises(CheckpointError, match=r'no such checkpoint; that folder has iter_1\.pth'):
        read(tmp_path / 'iter_3.pth')


def test_write_read_and_safetensors(tmp_path):
    tensors = dict(a=torch.randn(3), b=torch.arange(4))
    write(dict(state_dict=tensors, meta=dict(note='x')), tmp_path / 'a.pth')
    assert [p.name for p in tmp_path.iterdir()] == ['a.pth']  # no temporary file is left
    assert torch.equal(state_dict_of(read(tmp_path / 'a.pth'))['a'], tensors['a'])
    save_file(tensors, tmp_path / 'a.safetensors')
    assert torch.equal(read(tmp_path / 'a.safetensors')['b'], tensors['b'])
    assert len(sha256(tmp_path / 'a.pth')) == 64

    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError('no')

    with pytest.raises(RuntimeError, match='no'):
        write(dict(state_dict=Unpicklable()), tmp_path / 'a.pth')
    assert torch.equal(read(tmp_path / 'a.pth')['state_dict']['a'], tensors['a'])  # the old file is whole


def prefixed(model):
    return {f'backbone.{k}': v for k, v in model.state_dict().items()}


def test_shared_table_is_expanded_and_resized():
    pretrained = BEiTViT(
        ARCH, img_size=64, use_rel_pos_bias=False, use_shared_rel_pos_bias=True, with_mask_token=True, out_type='raw',
        final_norm=True,
    )  # fmt: skip
    with torch.no_grad():
        pretrained.rel_pos_bias.relative_position_bias_table.normal_()
    tuned = BEiTViT(ARCH, img_size=96)
    weights = {**prefixed(pretrained), 'head.cls_head.weight': torch.zeros(9, 32)}
    fitted, report = fit(weights, prefixed(tuned), tuned.own_grid)
    expected = resize_table(pretrained.rel_pos_bias.relative_position_bias_table.detach(), (4, 4), (6, 6))
    for i in range(2):
        key = f'backbone.layers.{i}.attn.relative_position_bias_table'
        assert torch.equal(fitted[key], expected)
        assert key in report.expanded
    assert {'backbone.mask_token', 'backbone.ln1.weight', 'head.cls_head.weight'} <= set(report.dropped)
    assert set(report.missing) == {'backbone.ln2.weight', 'backbone.ln2.bias'}
    assert 'expanded' in str(report)
    tuned.load_state_dict({k[9:]: v for k, v in fitted.items()}, strict=False)


def test_positions_are_resized():
    kind = dict(use_abs_pos_emb=True, use_rel_pos_bias=False)
    small, large = BEiTViT(ARCH, img_size=64, **kind), BEiTViT(ARCH, img_size=(96, 64), **kind)
    fitted, report = fit(prefixed(small), prefixed(large), large.own_grid)
    assert report.resized == ['backbone.pos_embed']
    assert torch.equal(fitted['backbone.pos_embed'], resize_positions(small.pos_embed.detach(), (4, 4), (6, 4)))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(arch={**ARCH, 'embed_dims': 64}), r'is \(1, 1, 32\), the model has \(1, 1, 64\)'),
        (dict(arch={**ARCH, 'num_layers': 3}), 'layers.2.* is not in the checkpoint'),
        (dict(layer_scale_init_value=0), r'gamma_1 is not in the model'),
    ],
)
def test_another_architecture_is_refused(changes, message):
    other = BEiTViT(**{'arch': ARCH, 'img_size': 32, **changes})
    with pytest.raises(CheckpointError, match=message):
        fit(prefixed(BEiTViT(ARCH, img_size=32)), prefixed(other), other.own_grid)


def test_a_classifier_starts_a_segmentor():
    """Intermediate fine-tuning: the classifier's norm and head go, all blocks are kept."""
    tuned = BEiTViT(ARCH, img_size=64, final_norm=True)
    segmentor = BEiTViT(ARCH, img_size=64, out_type='featmap', out_indices=(0, 1))
    weights = {**prefixed(tuned), 'head.fc.weight': torch.zeros(5, 32)}
    fitted, report = fit(weights, prefixed(segmentor), (4, 4))
    assert set(fitted) == set(prefixed(segmentor))
    norms = {f'backbone.ln{i}.{part}' for i in (1, 2) for part in ('weight', 'bias')}
    assert set(report.dropped) == norms | {'head.fc.weight'}
    assert report.missing == []


def test_a_backbone_loads_its_init_cfg(tmp_path):
    """mmpretrain's way to fine-tune, `init_cfg=dict(type='Pretrained', ..., prefix='backbone.')`, fits too."""
    pretrained = BEiTViT(ARCH, img_size=64, use_rel_pos_bias=False, use_shared_rel_pos_bias=True, with_mask_token=True)
    torch.nn.init.normal_(pretrained.rel_pos_bias.relative_position_bias_table)
    path = str(tmp_path / 'pretrained.pth')
    write(dict(state_dict={**prefixed(pretrained), 'head.cls_head.bias': torch.zeros(9)}), path)
    start = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    tuned = BEiTViT(ARCH, img_size=96, init_cfg=start)
    tuned.init_weights()
    expected = resize_table(pretrained.rel_pos_bias.relative_position_bias_table.detach(), (4, 4), (6, 6))
    for block, before in zip(tuned.layers, pretrained.layers, strict=True):
        assert torch.equal(block.attn.relative_position_bias_table, expected)  # mmpretrain's stays as it started
        assert torch.equal(block.ffn.layers[1].weight, before.ffn.layers[1].weight)
    for spelt in ({**start, 'prefix': None}, [dict(type='Constant', layer='LayerNorm', val=3.0), start],
                  {**start, 'type': PretrainedInit}, {**start, 'type': 'mmengine.Pretrained'}):  # fmt: skip
        found = BEiTViT(ARCH, img_size=96, init_cfg=spelt)
        found.init_weights()
        assert all(torch.equal(value, tuned.state_dict()[key]) for key, value in found.state_dict().items())
    with pytest.raises(CheckpointError, match=r"no key starts with the prefix 'model\.'; they start with backbone"):
        BEiTViT(ARCH, img_size=96, init_cfg={**start, 'prefix': 'model.'}).init_weights()
    part = BEiTViT(dict(ARCH, num_layers=1), img_size=64, init_cfg={**start, 'partial': True})
    part.init_weights()
    assert torch.equal(part.layers[0].attn.qkv.weight, pretrained.layers[0].attn.qkv.weight)
    with pytest.raises(CheckpointError, match=r'the model has \(1, 1, 64\)'):
        BEiTViT(dict(ARCH, embed_dims=64), img_size=96, init_cfg=start).init_weights()


def test_a_backbone_loads_what_mmseg_calls_pretrained(tmp_path):
    tuned = BEiTViT(ARCH, img_size=64, out_type='featmap')
    write(dict(state_dict=tuned.state_dict()), tmp_path / 'tuned.pth')
    spelt = dict(embed_dims=32, num_layers=2, num_heads=2, mlp_ratio=2, pretrained=str(tmp_path / 'tuned.pth'))
    model = BEiTViT(**spelt, img_size=64)
    assert not torch.equal(model.cls_token, tuned.cls_token)
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, tuned.state_dict()[key]), key


def test_wrong_prefix_is_refused():
    model = BEiTViT(ARCH, img_size=32)
    with pytest.raises(CheckpointError, match=r'no key of the checkpoint starts with backbone\.layers\.; is'):
        fit(model.state_dict(), prefixed(model), model.own_grid)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(arch=dict(ARCH, embed_dims=64)), 'embed_dims is 32 in the checkpoint and 64 here'),
        (dict(arch=dict(ARCH, num_layers=3)), 'num_layers is 2 in the checkpoint and 3 here'),
        (dict(arch=dict(ARCH, num_heads=4)), 'num_heads is 2 in the checkpoint and 4 here'),
        (dict(arch=dict(ARCH, feedforward_channels=96)), 'feedforward_channels is 64 in the checkpoint and 96 here'),
        (dict(patch_size=8), 'patch_size is 16 in the checkpoint and 8 here'),
        (dict(layer_scale_init_value=0), 'LayerScale is yes in the checkpoint and no here'),
        (dict(variant='beit'), 'relative positions is yes .* absolute positions is no in the checkpoint and yes here'),
        (dict(bias=False), "some of its keys are another model's"),
    ],
)
def test_what_differs_is_said(changes, message):
    model = BEiTViT(**{'arch': ARCH, 'img_size': 32, **changes})
    with pytest.raises(CheckpointError, match=f'does not fit: .*{message}'):
        fit(prefixed(BEiTViT(ARCH, img_size=32)), prefixed(model), model.own_grid)


def test_heads_of_another_size_keep_their_start():
    own = {**prefixed(BEiTViT(ARCH, img_size=32)), 'head.fc.weight': torch.zeros(5, 32)}
    weights = {**own, 'head.fc.weight': torch.ones(7, 32)}
    fitted, report = fit(weights, own, (2, 2))
    assert 'head.fc.weight' not in fitted
    assert report.reinitialised == ['head.fc.weight']
    assert report.dropped == report.missing == []
    assert report.level == logging.WARNING
    assert str(report).endswith('1 reinitialised (head.fc.weight)')
