"""closed.py: files of data run nothing, whatever reads them (A27 to A30, in one process; test_closed_doors.py goes
through the tools)."""

import importlib
import io
import pickle
import tarfile
import zipfile

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, load_checkpoint
from payload import FORMS, SUFFIXES, WITH_SWITCH, Payload, by_pickle, by_torch

from beit_mm.checkpoints.load import CheckpointError, read
from beit_mm.closed import DataFileError, check_archive, literal_config
from beit_mm.engine.configs import ConfigError, load_config


@pytest.fixture(params=[{}, WITH_SWITCH], ids=['default', 'switch'])
def _switch(request, monkeypatch):
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures('_switch')
@pytest.mark.parametrize('form', FORMS, ids=lambda form: form.__name__)
def test_a27_no_reader_runs_a_checkpoint(tmp_path, form):
    """Whatever its format and its extension say: ours, and every way in that mmengine has."""
    marker = tmp_path / 'ran'
    model = torch.nn.Linear(1, 1)
    for suffix in SUFFIXES:
        path = form(tmp_path / f'bad{suffix}', marker)
        for opened in (read, CheckpointLoader.load_checkpoint, lambda path: load_checkpoint(model, path)):
            with pytest.raises(CheckpointError, match=r'/bad'):
                opened(str(path))
    assert not marker.exists()


def theirs(module: str, name: str):
    return getattr(importlib.import_module(module), name)


@pytest.mark.usefixtures('_switch')
@pytest.mark.parametrize(
    'opened',
    [
        lambda path: theirs('mmengine.utils.dl_utils', 'load_url')(str(path)),
        lambda path: theirs('mmengine.runner.checkpoint', 'load_url')(str(path)),
        lambda path: theirs('mmengine.runner.checkpoint', 'load_from_local')(str(path), 'cpu'),
        lambda path: theirs('mmengine.runner.checkpoint', 'torch').load(path.open('rb')),
        lambda path: theirs('mmpretrain.models.utils.vector_quantizer', 'torch').load(str(path)),
        lambda path: theirs('mmpretrain.models.retrievers.image2image', 'torch').load(str(path)),
        lambda path: theirs('mmpretrain.engine.hooks.swav_hook', 'torch').load(str(path)),
        lambda path: theirs('mmpretrain.apis.multimodal_retrieval', 'torch').load(str(path)),
        lambda path: theirs('mmpretrain.datasets.cifar', 'pickle').loads(path.read_bytes(), encoding='latin1'),
        lambda path: theirs('mmseg.utils.io', 'datafrombytes')(path.read_bytes(), backend='pickle'),
        lambda path: theirs('timm', 'create_model')('test_vit', checkpoint_path=str(path)),
        lambda path: theirs('mmengine', 'load')(str(path), file_format='pkl'),
        lambda path: theirs('mmengine', 'load')(path.open('rb'), file_format='pickle'),
    ],
)
def test_a27_nothing_of_openmmlab_runs_a_pickle(tmp_path, opened):
    marker = tmp_path / 'ran'
    for form in (by_torch, by_pickle):
        with pytest.raises((ValueError, pickle.UnpicklingError, RuntimeError)):  # the last is timm's
            opened(form(tmp_path / 'bad.pth', marker))
    assert not marker.exists()


def test_a27_openmmlabs_modules_still_read_what_they_should(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    torch.save(torch.ones(2, 3), tmp_path / 'book.pth')
    quantizer = theirs('mmpretrain.models.utils.vector_quantizer', 'EmbeddingEMA')(
        2, 3, codebook_init_path=str(tmp_path / 'book.pth')
    )
    assert quantizer.weight.sum() == 6
    assert (theirs('mmseg.utils.io', 'datafrombytes')(pickle.dumps(array), backend='pickle') == array).all()


def stock_cifar(root, monkeypatch, content) -> list[dict]:
    """mmpretrain's CIFAR-10 over one test batch of ours."""
    from mmpretrain.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(exist_ok=True)
    (folder / 'test_batch').write_bytes(pickle.dumps(content, protocol=2))
    (folder / 'batches.meta').write_bytes(pickle.dumps(dict(label_names=['cat', 'dog']), protocol=2))
    monkeypatch.setattr(CIFAR10, 'train_list', [])
    monkeypatch.setattr(CIFAR10, 'test_list', [('test_batch', None)])
    monkeypatch.setattr(CIFAR10, 'meta', dict(CIFAR10.meta, md5=None))
    return CIFAR10(split='test', data_root=str(root), pipeline=[]).load_data_list()


def test_a29_mmpretrains_cifar_reads_arrays_alone(tmp_path, monkeypatch):
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    samples = stock_cifar(tmp_path, monkeypatch, dict(data=pixels, labels=[1, 0]))
    assert [sample['gt_label'] for sample in samples] == [1, 0]
    assert (samples[1]['img'].transpose(2, 0, 1).ravel() == pixels[1]).all()
    with pytest.raises(DataFileError, match=r'cifar-10-batches-py: not a pickle of arrays alone \((os|posix)\.system'):
        stock_cifar(tmp_path, monkeypatch, dict(data=Payload(tmp_path / 'ran'), labels=[1, 0]))
    assert not (tmp_path / 'ran').exists()


# A28: text in a checkpoint


def evil(marker) -> str:
    return f'import os\nos.system("touch {marker}")\nmodel = dict(type="Linear")\n'


def test_a28_the_text_of_a_config_is_left_out_of_what_mmengine_gets(tmp_path):
    path = tmp_path / 'iter_1.pth'
    torch.save(dict(state_dict={}, meta=dict(config=evil(tmp_path / 'ran'), cfg='kept', iter=1)), path)
    assert CheckpointLoader.load_checkpoint(str(path))['meta'] == dict(cfg='kept', iter=1)


def test_a28_mmengines_inferencer_reads_a_config_as_data(tmp_path):
    from mmengine.infer import BaseInferencer

    class Inferencer(BaseInferencer):
        def _load_weights_to_model(self, model, checkpoint, cfg):
            pass

        _init_pipeline = preprocess = visualize = postprocess = lambda *args, **kwargs: None

    path = tmp_path / 'model.pth'
    marker = tmp_path / 'ran'
    torch.save(dict(state_dict={}, meta=dict(cfg=evil(marker)), message_hub=dict(runtime_info={})), path)
    with pytest.raises(DataFileError, match=r'the config in it is no list of plain values \(line 1 is no assignment'):
        Inferencer.__new__(Inferencer)._init_model(Config(), str(path), 'cpu')
    assert not marker.exists()
    text = Config(dict(model=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=(5)))).pretty_text
    torch.save(dict(state_dict={}, meta=dict(cfg=text)), path)
    assert Inferencer.__new__(Inferencer)._init_model(Config(), str(path), 'cpu').fc.weight.shape == (3, 5)


def test_a28_a_config_as_text_is_its_values():
    config = Config(dict(a=(1, 2.5), b=dict(type='x', c=[dict(d=None), -1e-3], e={'1': True}), f='im\'port "os"'))
    assert literal_config(config.pretty_text) == config.to_dict()
    for text in ('import os', 'a = open("x")', 'a = b', 'a = dict(**{})', 'a.b = 1', 'a = {[]: 1}', 'a = ' + '(' * 999):
        with pytest.raises(DataFileError, match='and is not executed'):
            literal_config(text)


# A29: YAML, pickles, configs of data


PYTHON_TAGS = (
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/new:os.system ['touch {}']",
    '!!python/name:os.system',
    '!!python/module:antigravity',
    "!!python/object:subprocess.Popen {{args: ['touch', '{}']}}",
)


@pytest.mark.parametrize('tag', PYTHON_TAGS)
def test_a29_yaml_makes_no_objects(tmp_path, tag):
    marker, path = tmp_path / 'ran', tmp_path / 'ann.yaml'
    path.write_text(f'metainfo: {{}}\ndata_list: {tag.format(marker)}\n')
    with pytest.raises(DataFileError, match=r'ann\.yaml: line 2: .*!!python/.*nothing in them is run'):
        mmengine.load(path)
    with pytest.raises(DataFileError, match=r'ann\.yaml: line 2'):
        mmengine.dataset.BaseDataset(ann_file=str(path))
    with pytest.raises(ConfigError, match=r'ann\.yaml: line 2'):
        load_config(path)
    assert not marker.exists()


def test_a29_pickles_of_annotations_are_refused_with_a_way_out(tmp_path):
    path, marker = by_pickle(tmp_path / 'ann.pkl', tmp_path / 'ran'), tmp_path / 'ran'
    with pytest.raises(DataFileError, match=r'ann\.pkl: a pickle, and .* write it as JSON: python -c "import json'):
        mmengine.dataset.BaseDataset(ann_file=str(path))
    assert not marker.exists()


def test_a29_plain_data_is_read_as_before(tmp_path):
    content = dict(a=[1, 2.5, None, True], b=dict(c='x'), d=[1, 2])
    for suffix in ('json', 'yaml', 'yml'):
        mmengine.dump(content, tmp_path / f'a.{suffix}')
        assert mmengine.load(tmp_path / f'a.{suffix}') == content
    Config(dict(model=dict(scale=(4, 4)))).dump(tmp_path / 'c.yaml')  # as !!python/tuple
    assert Config.fromfile(tmp_path / 'c.yaml').model.scale == (4, 4)


BOMB = 'b0: &b0 [1, 1]\n' + '\n'.join(f'b{i}: &b{i} [*b{i - 1}, *b{i - 1}]' for i in range(1, 40))


@pytest.mark.parametrize(
    ('name', 'text', 'said'),
    [
        ('bomb.yaml', BOMB, 'aliases stand for more than'),
        ('inside.yaml', 'a: &a [*a]', 'aliases stand for more than'),
        ('deep.json', '[' * 100_000, 'recursion'),
        ('deep.yaml', '[' * 100_000, 'more than 200 values inside of each other'),
        ('cut.json', '{"a": ', 'Expecting value'),
        ('cut.yaml', 'a: [', 'not valid YAML'),
    ],
)  # fmt: skip
def test_a29_what_is_no_data_says_so_by_name(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataFileError, match=f'{path}: .*{said}'):
        mmengine.load(path)
    with pytest.raises(ConfigError, match=str(path)):
        load_config(path)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('custom_imports: {imports: [evil]}', "custom_imports runs what it imports, 'evil'"),
        ('custom_imports: {imports: evil}', "custom_imports runs what it imports, 'evil'"),
        ('custom_imports: [evil]', "custom_imports runs what it imports, 'evil'"),
        ('_base_: evil.py', r"_base_='evil.py': a config of data inherits from YAML"),
        ('_base_: "beit_mm::../../../evil.py"', 'inherits from YAML'),
        ('_base_: "mmpretrain::/evil.py"', 'inherits from YAML'),
        ('_base_: other.yaml', r"_base_='evil.py': a config of data inherits from YAML"),
        ('"{{$NOT_SET:_base_}}": evil.py', r"_base_='evil.py'"),
        ('model: {type: os.system, command: "touch MARKER"}', r"model.type='os.system' is not registered"),
        ('model: {"{{$NOT_SET:type}}": os.system}', r"model.type='os.system' is not registered"),
        ('a: [{type: mmengine.call_command, cmd: [touch, MARKER]}]', r"a\[0\].type='mmengine.call_command'"),
        ('optim_wrapper: {constructor: subprocess.Popen}', r"optim_wrapper.constructor='subprocess.Popen'"),
    ],
)
def test_a29_configs_of_data_name_what_is_registered_and_nothing_else(tmp_path, monkeypatch, content, said):
    marker = tmp_path / 'ran'
    for name in ('evil.py', 'ev.py'):
        (tmp_path / name).write_text(f'open({str(marker)!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'other.yaml').write_text('_base_: evil.py')
    path = tmp_path / 'config.yaml'
    path.write_text(content.replace('MARKER', str(marker)))
    with pytest.raises(ConfigError, match=f'(?s)config.yaml: .*{said}'):
        load_config(path)
    assert not marker.exists()


def test_a29_a_dtype_is_a_name_and_no_expression(tmp_path):
    to_dtype = theirs('mmpretrain.datasets.transforms.processing', '_str_to_torch_dtype')
    assert to_dtype('float32') is torch.float32
    with pytest.raises(DataFileError, match='is no dtype of torch'):
        to_dtype(f'float32 if open({str(tmp_path / "ran")!r}, "w") else 0')
    assert not (tmp_path / 'ran').exists()


# A30: archives


def tar_of(path, *members: tuple[str, str, bytes]):
    """(name, kind or what a link points to, content) each."""
    with tarfile.open(path, 'w:gz' if path.name.endswith('gz') else 'w') as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            if kind.startswith('->'):
                member.type, member.linkname = tarfile.SYMTYPE, kind[2:]
            elif kind.startswith('=>'):
                member.type, member.linkname = tarfile.LNKTYPE, kind[2:]
            elif kind == 'device':
                member.type = tarfile.CHRTYPE
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    'members',
    [
        [('../out/x', '', b'x')],
        [('a/../../out/x', '', b'x')],
        [('link', '->../out', b''), ('link/x', '', b'x')],
        [('link', '->/tmp', b'')],
        [('hard', '=>../out/secret', b'')],
        [('null', 'device', b'')],
        [('good', '', b'x'), ('../out/x', '', b'x')],
    ],
)
@pytest.mark.parametrize('suffix', ['.tar', '.tar.gz', '.tgz'])
def test_a30_a_tar_stays_inside(tmp_path, members, suffix):
    from mmpretrain.datasets import utils

    (tmp_path / 'out').mkdir()
    (tmp_path / 'in').mkdir()
    archive = tar_of(tmp_path / f'bad{suffix}', *members)
    with pytest.raises(DataFileError, match=r'bad\.(tar|tgz).*nothing of it is unpacked'):
        utils.extract_archive(str(archive), str(tmp_path / 'in'))
    assert list((tmp_path / 'out').iterdir()) == list((tmp_path / 'in').iterdir()) == []


def test_a30_a_tar_in_a_zips_clothes_stays_inside(tmp_path):
    """Where the first look is deceived, the second one, while unpacking, is not."""
    from mmpretrain.datasets import utils

    (tmp_path / 'in').mkdir()
    archive = tar_of(tmp_path / 'bad.tar', ('../x', '', b'x'))
    with zipfile.ZipFile(archive, 'a') as both:
        both.writestr('harmless', 'x')
    with pytest.raises((DataFileError, tarfile.FilterError)):
        utils.extract_archive(str(archive), str(tmp_path / 'in'))
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('name', ['../x', '/tmp/x', 'a/../../x', '..\\x'])
def test_a30_a_zip_stays_inside(tmp_path, name):
    from mmpretrain.datasets import utils

    with zipfile.ZipFile(tmp_path / 'bad.zip', 'w') as archive:
        archive.writestr('good', 'x')
        archive.writestr(zipfile.ZipInfo(name), 'x')
    with pytest.raises(DataFileError, match=r'bad\.zip: .* would be written outside of'):
        utils.extract_archive(str(tmp_path / 'bad.zip'), str(tmp_path / 'in'))
    assert not (tmp_path / 'in').exists()


def test_a30_honest_archives_are_unpacked(tmp_path):
    from mmpretrain.datasets import utils

    tar_of(tmp_path / 'good.tar.gz', ('a/b', '', b'tar'), ('a/link', '->b', b''))
    with zipfile.ZipFile(tmp_path / 'good.zip', 'w') as archive:
        archive.writestr('c/d', 'zip')
    for name in ('good.tar.gz', 'good.zip'):
        utils.extract_archive(str(tmp_path / name), str(tmp_path / 'in'))
    assert [(tmp_path / 'in' / name).read_text() for name in ('a/b', 'a/link', 'c/d')] == ['tar', 'tar', 'zip']
    (tmp_path / 'cut.tar').write_bytes((tmp_path / 'good.tar.gz').read_bytes()[:50])
    with pytest.raises(DataFileError, match=r'cut\.tar: '):
        check_archive(tmp_path / 'cut.tar', tmp_path)
