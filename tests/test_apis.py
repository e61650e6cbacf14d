"""apis.py: what is predicted for images is what a test says of them; files, arrays and every kind of result."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from beit_mm.apis import classify, find_images, init_model, overlay_of, segment, tokenize, write_predictions
from beit_mm.checkpoints.load import CheckpointError
from beit_mm.data import embedded
from beit_mm.data.export import export
from beit_mm.engine.configs import load_config
from beit_mm.engine.errors import ConfigError
from beit_mm.engine.launch import evaluate

CLASSIFY = 'configs/classification/beit-mini-p8_scratch_1xb64-100_embedded-64.py'
SEGMENT = 'configs/segmentation/beit-mini-p8_upernet-scratch_1xb32-150_embedded-64.py'
TOKENIZE = 'configs/tokenizer/dvae-512_1xb64-300_embedded-32.py'
FILES = 'configs/segmentation/beit-mini-p8_setr-pup-scratch_1xb32-60_scenes-64.py'
PRETRAIN = 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py'
COUNT = 14


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """The first validation scenes of the configs' data set, as files in order; masks beside them."""
    root = tmp_path_factory.mktemp('scenes')
    export(root / 'd', 'ade20k', train=5, val=COUNT, size=64, grey=True)
    return root / 'd' / 'images' / 'validation'


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """{config: a checkpoint of random weights that predict something}."""
    root = tmp_path_factory.mktemp('weights')

    def of(path):
        config = Config.fromfile(path)
        torch.manual_seed(1)
        with DefaultScope.overwrite_default_scope(config.default_scope):
            model = MODELS.build(config.model)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        file = root / f'{len(list(root.iterdir()))}.pth'
        meta = dict(dataset_meta=dict(classes=embedded.CLASSES))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), file)
        return str(file)

    return {path: of(path) for path in (CLASSIFY, SEGMENT, TOKENIZE, FILES)}


def dumped(path, checkpoint, folder, **options) -> list[dict]:
    """What the test loop has as predictions."""
    options.update({'test_dataloader.dataset.length': COUNT, 'test_dataloader.batch_size': 5})
    config = load_config(path, options)
    out = dict(type='DumpResults', out_file_path=str(folder / 'out.pkl'))
    config.test_evaluator = [config.test_evaluator, out]
    evaluate(config, checkpoint, work_dir=str(folder))
    return pickle.loads((folder / 'out.pkl').read_bytes())


@pytest.mark.usefixtures('no_pretty_printing')
def test_scores_are_those_of_a_test(scenes, weights, tmp_path):
    tested = dumped(CLASSIFY, weights[CLASSIFY], tmp_path)
    rows = classify(CLASSIFY, weights[CLASSIFY], scenes, batch_size=5)
    assert np.ptp([row['scores'] for row in rows], axis=0).max() > 0.01  # images are told apart
    for row, sample in zip(rows, tested, strict=True):
        np.testing.assert_array_equal(row['scores'], sample['pred_score'].numpy())
        assert row['label'] == int(sample['pred_label'])
        assert row['name'] == embedded.CLASSES[row['label']]
        assert [t['score'] for t in row['top']] == sorted(row['scores'].tolist(), reverse=True)[:5]
    model = init_model(CLASSIFY, weights[CLASSIFY])
    arrays = [np.asarray(Image.open(path)) for path in find_images(scenes)]
    for alone, row in zip(classify(model, None, arrays, batch_size=1), rows, strict=True):
        np.testing.assert_allclose(alone['scores'], row['scores'], atol=1e-6)
    assert [row['image'] for row in classify(model, None, arrays[:2])] == [0, 1]


@pytest.mark.usefixtures('no_pretty_printing')
def test_masks_are_those_of_a_test(scenes, weights, tmp_path):
    tested = dumped(SEGMENT, weights[SEGMENT], tmp_path)
    rows = segment(SEGMENT, weights[SEGMENT], scenes, batch_size=5)
    for row, sample in zip(rows, tested, strict=True):
        assert row['mask'].dtype == np.uint8
        np.testing.assert_array_equal(row['mask'], sample['pred_sem_seg']['data'][0].numpy())
    assert len(np.unique([row['mask'] for row in rows])) > 1


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Scenes in colour as files of three sizes, smaller and larger than the config's window, with masks."""
    root = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for i, size in enumerate(((64, 64), (40, 70), (90, 61))):
        for kind, bands in (('images', (3,)), ('annotations', ())):
            folder = root / kind / 'validation'
            folder.mkdir(parents=True, exist_ok=True)
            array = rng.integers(1, 12 if kind == 'annotations' else 255, (*size, *bands), dtype=np.uint8)
            Image.fromarray(array).save(folder / f'{i}.png')
    return root


@pytest.mark.usefixtures('no_pretty_printing')
@pytest.mark.parametrize('tta', [False, True])
def test_masks_of_images_of_any_size_are_those_of_a_test(pictures, weights, tmp_path, tta):
    config = load_config(FILES, {'test_dataloader.dataset.data_root': str(pictures), 'test_dataloader.batch_size': 1})
    dump = dict(type='DumpResults', out_file_path=str(tmp_path / 'out.pkl'))
    config.test_evaluator = [config.test_evaluator, dump]
    evaluate(config, weights[FILES], work_dir=str(tmp_path), tta=tta, show_dir=str(tmp_path / 'test'))
    tested = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    images = pictures / 'images' / 'validation'
    rows = segment(FILES, weights[FILES], images, tta=tta)
    assert [row['mask'].shape for row in rows] == [(64, 64), (40, 70), (90, 61)]
    for row, sample in zip(rows, tested, strict=True):
        np.testing.assert_array_equal(row['mask'], sample['pred_sem_seg']['data'][0].numpy())
    assert len(np.unique(np.concatenate([row['mask'].ravel() for row in rows]))) > 1
    alone = segment(FILES, weights[FILES], [np.asarray(Image.open(path)) for path in find_images(images)], tta=tta)
    for one, row in zip(alone, rows, strict=True):
        np.testing.assert_array_equal(one['mask'], row['mask'])
    model = init_model(FILES, weights[FILES])
    said = write_predictions(model, str(images), tmp_path / 'masks', tta=tta, show_dir=tmp_path / 'shown')
    assert said == f'3 masks of class indices below {tmp_path / "masks"}, pictures: {tmp_path / "shown"}'
    for row in rows:
        name = Path(row['image']).name
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'masks' / name)), row['mask'])
        page = Image.open(tmp_path / 'shown' / name)
        assert page.tobytes() == overlay_of(model, row['image'], row['mask']).tobytes()
        with_truth = Image.open(tmp_path / 'test' / name)
        assert with_truth.width > page.width  # the truth is the third


def test_what_does_not_segment_is_not_shown(weights, scenes, tmp_path):
    model = init_model(CLASSIFY, weights[CLASSIFY])
    with pytest.raises(ConfigError, match='--tta and --show-dir are for segmentation, this is for classification'):
        write_predictions(model, scenes, tmp_path / 'a.csv', tta=True)
    with pytest.raises(ConfigError, match=r'--tta needs tta_model and tta_pipeline in it'):
        segment(SEGMENT, weights[SEGMENT], scenes, tta=True)
    with pytest.raises(ValueError, match=r'masks\.png: masks are written as PNG into a folder'):
        write_predictions(init_model(SEGMENT, weights[SEGMENT]), scenes, tmp_path / 'masks.png')


@pytest.mark.usefixtures('no_pretty_printing')
def test_tokens_are_those_of_a_test(scenes, weights, tmp_path):
    tested = dumped(TOKENIZE, weights[TOKENIZE], tmp_path)
    rows = tokenize(TOKENIZE, weights[TOKENIZE], scenes, batch_size=5)
    assert len(np.unique([row['tokens'] for row in rows])) > 10
    for row, sample in zip(rows, tested, strict=True):
        np.testing.assert_array_equal(row['tokens'], sample['tokens'].numpy())
    config = load_config(PRETRAIN, {'model.target.checkpoint': weights[TOKENIZE]})
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model).eval()
    model.cfg = config
    for asked, row in zip(tokenize(model, None, scenes), rows, strict=True):
        np.testing.assert_array_equal(asked['tokens'], row['tokens'])


def test_a_pipeline_that_loads_files(weights, tmp_path):
    """mmcv's loader, which gives BGR, and ours: the same scores for files, and for RGB arrays of them."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((80, 70, 3), (66, 90, 3))]
    files = []
    for i, image in enumerate(images):
        files.append(str(tmp_path / f'{i}.png'))
        Image.fromarray(image).save(files[-1])
    rgb = dict(type='ClsDataPreprocessor', mean=[120.0, 110, 100], std=[50.0, 60, 70])

    def config(loader, to_rgb):
        options = load_config(CLASSIFY, {'model.backbone.in_channels': 3})
        options.data_preprocessor = options.model.data_preprocessor = dict(rgb, to_rgb=to_rgb, num_classes=12)
        options.test_dataloader.dataset.pipeline = [
            *([loader] if loader else []),
            dict(type='ResizeEdge', scale=64, edge='short'),
            dict(type='CenterCrop', crop_size=64),
            dict(type='PackInputs'),
        ]
        return options

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config(None, False).model)
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    found = []
    for loader, to_rgb in (
        (dict(type='LoadImageFromFile'), True),
        (dict(type='beit_mm.LoadImage'), False),
        (dict(type='beit_mm.LoadImage', channel_order='bgr'), True),
        (None, False),
        (None, True),
    ):
        model = init_model(config(loader, to_rgb), str(tmp_path / 'w.pth'))
        assert model.dataset_meta['classes'] == embedded.CLASSES  # the config's data set's
        found += [[row['scores'] for row in classify(model, None, given)] for given in (files, images)]
    for scores in found[1:]:
        np.testing.assert_array_equal(scores, found[0])


def test_written_predictions(scenes, weights, tmp_path):
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    for i, path in enumerate(find_images(scenes)[:3]):
        (folder / ('sub' if i else '') / f'{i}.png').write_bytes(Path(path).read_bytes())
    (folder / 'bad.png').write_bytes(b'nothing')
    model = init_model(CLASSIFY, weights[CLASSIFY])
    with pytest.raises(ValueError, match=r'bad\.png: not a readable image'):
        write_predictions(model, folder, tmp_path / 'p.json')
    assert not (tmp_path / 'p.json').exists()
    said = write_predictions(model, folder, tmp_path / 'p.json', skip=True)
    assert said.startswith(f'3 images classified: {tmp_path / "p.json"}\n1 images could not be read')
    written = json.loads((tmp_path / 'p.json').read_text())
    rows = classify(model, None, folder, on_error='skip')
    assert [row['image'] for row in rows if 'error' in row] == [row['image'] for row in written['unreadable']]
    good = [row for row in rows if 'error' not in row]
    for row, line in zip(good, written['predictions'], strict=True):
        assert (row['image'], row['name']) == (line['image'], line['class'])
        assert line['score'] == pytest.approx(row['score'], abs=1e-6)
        assert len(line['top5']) == 5
    write_predictions(model, folder, tmp_path / 'p.csv', skip=True)
    with open(tmp_path / 'p.csv', newline='') as file:
        table = list(csv.DictReader(file))
    assert [(line['image'], line['class_1']) for line in table[:3]] == [(row['image'], row['name']) for row in good]
    assert 'not a readable image' in table[3]['error']
    segmentor = init_model(SEGMENT, weights[SEGMENT])
    assert '3 masks' in write_predictions(segmentor, folder, tmp_path / 'masks', skip=True)
    for row in segment(segmentor, None, [folder / '0.png', folder / 'sub' / '2.png']):
        path = tmp_path / 'masks' / f'{row["image"].removeprefix(str(folder)).removeprefix("/")}'
        np.testing.assert_array_equal(np.asarray(Image.open(path)), row['mask'])
    for predictor, out, error in (
        (model, 'folder', r'folder: .* ends in \.json or \.csv'),
        (segmentor, 'm.json', r'm\.json: masks are written as PNG into a folder'),
    ):
        with pytest.raises(ValueError, match=error):
            write_predictions(predictor, folder, tmp_path / out)


def test_mistakes_are_named(scenes, weights, tmp_path):
    with pytest.raises(CheckpointError, match=r'\.pth: no BEiT in a known format'):
        init_model(CLASSIFY, weights[TOKENIZE])
    with pytest.raises(ConfigError, match='EncoderDecoder is for segmentation, not for classification'):
        classify(SEGMENT, weights[SEGMENT], scenes)
    with pytest.raises(FileNotFoundError, match='nowhere: no image there'):
        classify(CLASSIFY, weights[CLASSIFY], tmp_path / 'nowhere')
    model = init_model(CLASSIFY, weights[CLASSIFY])
    model.dataset_meta = dict(classes=('a', 'b'))
    with pytest.raises(ConfigError, match=r'tells 12 classes apart, and checkpoint or config name 2: set metainfo'):
        classify(model, None, scenes)
    with pytest.raises(ConfigError, match=r'for tokens: beit_mm\.apis\.tokenize'):
        write_predictions(init_model(TOKENIZE, weights[TOKENIZE]), scenes, tmp_path / 'o.json')


def test_lists_of_images(scenes, tmp_path):
    names = find_images(scenes)
    (scenes / 'l.txt').write_text('ADE_val_00000003.png 5\nADE_val_00000001.png\n')
    assert find_images(scenes / 'l.txt') == [names[3], names[1]]
    assert find_images(names[2]) == [names[2]]
