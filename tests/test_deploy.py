"""Exported models, read back from their files, against the models; and what is refused."""

import importlib.util
import json

import pytest
import torch
from tiny import CLASSIFY, PRETRAIN, SEGMENT, saved, tiny

from beit_mm.apis import init_model
from beit_mm.benchmark import deploy
from beit_mm.benchmark.deploy import ExportError, Request, export
from beit_mm.engine.configs import load_config

PLUS = {'model.backbone.use_abs_pos_emb': False, 'model.backbone.use_rel_pos_bias': True}
KNN = 'configs/classification/beit-mini-p8_knn_1xb64-0e_embedded-64.py'
lacks_onnx = importlib.util.find_spec('onnx') is None or importlib.util.find_spec('onnxscript') is None
needs_onnx = pytest.mark.skipif(lacks_onnx, reason='pip install onnx onnxscript (and onnxruntime) to test this')


def loaded(path):
    extra = {deploy.META: ''}
    with open(path, 'rb') as file:
        program = torch.export.load(file, extra_files=extra).module()
    return program, json.loads(extra[deploy.META])


@torch.no_grad()
@pytest.mark.parametrize(
    'variant', [pytest.param({}, id='beit', marks=pytest.mark.slow), pytest.param(PLUS, id='plus')]
)
def test_classifier_of_raw_images_at_another_size(tmp_path, variant):
    config = tiny(CLASSIFY, **variant)
    checkpoint = saved(config, tmp_path / 'a.pth', dataset_meta=dict(classes=list('abcdefghijkl')))
    out = str(tmp_path / 'a.pt2')
    lines = export(config, checkpoint, out, Request(size=(48, 80), dynamic='batch', with_normalisation=True))
    assert [line.split(':')[0] for line in lines[:2]] == ['the file, 2 random images', 'the file, 4 test images']
    program, about = loaded(out)
    assert (about['classes'][0], about['shape'], about['normalisation']['inside']) == ('a', [1, 48, 80], True)
    raw = 255 * torch.rand(5, 1, 48, 80)
    wanted = init_model(config, checkpoint)((raw - 127.5) / 50.0, mode='tensor')
    assert torch.allclose(program(raw), wanted, atol=1e-5)
    assert wanted.abs().max() > 0.5


@pytest.mark.slow
@torch.no_grad()
def test_segmentor_gives_logits_of_the_images_size(tmp_path):
    config = tiny(SEGMENT)
    checkpoint, out = saved(config, tmp_path / 'a.pth'), str(tmp_path / 'a.pt2')
    export(config, checkpoint, out, Request())
    images = torch.randn(1, 1, 64, 64)
    wanted = init_model(config, checkpoint).encode_decode(images, [dict(img_shape=(64, 64))])
    found = loaded(out)[0](images)
    assert found.shape == (1, 12, 64, 64)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_any_size_where_positions_are_absolute(tmp_path):
    config = tiny(CLASSIFY)
    checkpoint, out = saved(config, tmp_path / 'a.pth'), str(tmp_path / 'a.pt2')
    lines = export(config, checkpoint, out, Request(dynamic='size'))
    assert 'of another size' in lines[2]
    program, model = loaded(out)[0], init_model(config, checkpoint)
    for size in ((64, 64), (64, 96), (128, 40)):
        images = torch.randn(3, 1, *size)
        assert torch.allclose(program(images), model(images, mode='tensor'), atol=1e-5), size
    plus = tiny(CLASSIFY, **PLUS)
    with pytest.raises(ExportError, match='one file per size: --size H W'):
        export(plus, saved(plus, tmp_path / 'b.pth'), out, Request(dynamic='size'))


@torch.no_grad()
def test_features_of_a_pretrained_model(tmp_path):
    config = tiny(PRETRAIN)
    checkpoint, out = saved(config, tmp_path / 'a.pth'), str(tmp_path / 'a.pt2')
    with pytest.raises(ExportError, match='--features, or fine-tune it'):
        export(config, checkpoint, out, Request())
    export(config, checkpoint, out, Request(features=True))
    images = torch.randn(1, 1, 64, 64)
    (found,) = loaded(out)[0](images)
    assert torch.allclose(found, init_model(config, checkpoint).backbone(images)[0], atol=1e-5)


def test_a_file_that_differs_is_refused(tmp_path, monkeypatch):
    config = tiny(CLASSIFY)
    checkpoint, out = saved(config, tmp_path / 'a.pth'), tmp_path / 'a.pt2'
    right = deploy.Deployed.forward
    monkeypatch.setattr(deploy.Deployed, 'forward', lambda self, images: right(self, images) * 1.01)
    with pytest.raises(ExportError, match='nothing is written'):
        export(config, checkpoint, str(out), Request())
    assert [path.name for path in tmp_path.iterdir()] == ['a.pth']


@torch.no_grad()
def test_why_only_another_size_differs(tmp_path):
    config = tiny(CLASSIFY)
    model = init_model(config, saved(config, tmp_path / 'a.pth'))
    request = Request(to='onnx', dynamic='size')

    def run(images):  # a graph in which the size of the export is a constant
        return (model(images, mode='tensor') + 0.2 * (images.shape[2:] != (64, 64)),)

    with pytest.raises(ExportError) as error:
        deploy._compare(config, model, 'classification', run, torch.randn(2, 1, 64, 64), request)
    for part in (config.filename, 'one file per size: --size H W', 'of another size: largest difference 2.00e-01'):
        assert part in str(error.value)


def test_the_place_is_looked_at_first(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, 'load', lambda *_: pytest.fail('work before the place was looked at'))
    with pytest.raises(PermissionError, match=r'^/proc cannot be written .* by --out'):
        export(tiny(CLASSIFY), 'a.pth', '/proc/e.pt2', Request())
    (tmp_path / 'a.pt2').mkdir()
    with pytest.raises(IsADirectoryError, match=r'--out .*a\.pt2: is a folder'):
        export(tiny(CLASSIFY), 'a.pth', str(tmp_path / 'a.pt2'), Request())


def test_mistakes_are_named(tmp_path, monkeypatch):
    knn = load_config(KNN)
    with pytest.raises(ExportError, match=r'bank of images.*--features'):
        export(knn, saved(knn, tmp_path / 'k.pth'), str(tmp_path / 'a.pt2'), Request())
    config = tiny(CLASSIFY)
    checkpoint = saved(config, tmp_path / 'a.pth')
    with pytest.raises(ExportError, match=r'ends in \.pt2'):
        export(config, checkpoint, 'a.onnx', Request())
    with pytest.raises(ExportError, match=r'60 x 64.*patches of 8'):
        export(config, checkpoint, str(tmp_path / 'a.pt2'), Request(size=(60, 64)))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ExportError, match='pip install onnx onnxscript'):
        export(config, checkpoint, str(tmp_path / 'a.onnx'), Request(to='onnx'))


@pytest.mark.slow
@needs_onnx
@torch.no_grad()
@pytest.mark.parametrize('path', [CLASSIFY, SEGMENT])
def test_onnx(tmp_path, path):
    runtime = pytest.importorskip('onnxruntime')
    import onnx

    config = tiny(path)
    checkpoint, out = saved(config, tmp_path / 'a.pth'), str(tmp_path / 'a.onnx')
    lines = export(config, checkpoint, out, Request(to='onnx', dynamic='batch'))
    assert lines[0].startswith('onnxruntime, 2 random images')
    session = runtime.InferenceSession(out, providers=['CPUExecutionProvider'])
    images, model = torch.randn(3, 1, 64, 64), init_model(config, checkpoint)
    (found,) = session.run(['logits'], dict(images=images.numpy()))
    if path == SEGMENT:
        wanted = model.encode_decode(images, [dict(img_shape=(64, 64))] * 3)
    else:
        wanted = model(images, mode='tensor')
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-4)
    about = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(about['classes'])[0] == 'brick'
