"""What fuzzing has found, one test each: files that ended in somebody else's exception, in a crash, or in gigabytes."""

import io
import json
import pickle
import resource
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg
import tifffile
import torch
from fuzzing import limited_memory  # noqa: F401
from PIL import Image
from test_fuzz_images import png_of
from test_fuzz_lists import STORED, WHOLE
from test_fuzz_records import TEXTS
from tiny import CLASSIFY, saved, tiny
from tiny_suite import tiny_suite

from beit_mm.apis import init_model
from beit_mm.benchmark.records import RecordError, check
from beit_mm.benchmark.state import finished, settings_of, states, write_json
from beit_mm.benchmark.suite import plan
from beit_mm.checkpoints.arrays import ArraysOnly
from beit_mm.checkpoints.load import CheckpointError, convert_file, read
from beit_mm.data.images import ListError, read_list
from beit_mm.data.loading import UnreadableImage, read_image
from beit_mm.data.masks import MaskError, read_mask
from beit_mm.data.tokens import MANIFEST, TOKENS, TokenCacheError, TokensFromCache
from beit_mm.engine.configs import ConfigError, load_config


def test_a_zip_that_unpacks_to_a_thousand_times_its_size(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.zeros(75_000_000, dtype=torch.uint8))), tmp_path / 'plain.pth')
    with (
        zipfile.ZipFile(tmp_path / 'plain.pth') as plain,
        zipfile.ZipFile(tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match=r'bomb\.pth: \d{5,6} bytes that say they are 75\d{6} when unpacked'):
        read(tmp_path / 'bomb.pth')


def test_a_tensor_of_one_number_a_million_million_times(tmp_path):
    torch.save(dict(state_dict=dict(a=torch.ones(1).expand(10**12))), tmp_path / 'wide.pth')
    with pytest.raises(CheckpointError, match=r'wide\.pth: \d+ bytes with a tensor of shape \(1000000000000,\)'):
        read(tmp_path / 'wide.pth')


def test_a_pickle_that_asks_for_a_table_of_two_thousand_million_places():
    """Python's unpickler in C makes it, 34 GB."""
    content = b'\x80\x02Nr' + (2**31 - 1).to_bytes(4, 'little') + b'.'
    assert ArraysOnly(io.BytesIO(content)).load() is None


def test_a_pickle_that_says_its_bytes_are_a_terabyte():
    with pytest.raises((EOFError, pickle.UnpicklingError)):
        ArraysOnly(io.BytesIO(b'\x80\x05\x96' + (2**40).to_bytes(8, 'little') + b'a.')).load()
    array = np.arange(5.0)
    assert (ArraysOnly(io.BytesIO(pickle.dumps(array, 5))).load() == array).all()  # with such bytes, as they should be


@pytest.mark.parametrize('preprocessing', [torch.zeros(0), torch.ones(3), dict(mean=torch.ones(3)), [1], 'x'])
def test_preprocessing_that_is_none(tmp_path, preprocessing):
    """RuntimeError: Boolean value of Tensor with no values is ambiguous."""
    weights = {'backbone.cls_token': torch.zeros(1, 1, 4)}
    meta = dict(beit_mm=dict(preprocessing=preprocessing))
    torch.save(dict(state_dict=weights, meta=meta), tmp_path / 'a.pth')
    convert_file(tmp_path / 'a.pth', tmp_path / 'b.safetensors', None, 'beit_mm')
    assert 'preprocessing' not in read(tmp_path / 'b.safetensors').get('meta', {}).get('beit_mm', {})


@pytest.mark.parametrize('meta', [torch.zeros(0), [1], dict(dataset_meta=torch.ones(2)), dict(CLASSES='MARKER')])
def test_meta_that_is_none(tmp_path, meta):
    """Also: where the names of the classes were one word, mmengine opened the file of that name."""
    (tmp_path / 'secret').write_text('a\nb\n')
    config = tiny(CLASSIFY)
    path = saved(config, tmp_path / 'a.pth')
    meta = dict(CLASSES=str(tmp_path / 'secret')) if isinstance(meta, dict) and 'CLASSES' in meta else meta
    torch.save(dict(read(path), meta=meta), path)
    assert 'a' not in (init_model(config, path).dataset_meta['classes'] or ())


def test_weights_that_are_none_are_named_with_their_file(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=dict(a=1)), path)
    with pytest.raises(CheckpointError, match=r'a\.pth: a is no weight but int'):
        init_model(tiny(CLASSIFY), str(path))


@pytest.mark.parametrize('line', ['a.jpg ²', 'a.jpg --1', 'a.jpg ' + '9' * 5000])
def test_labels_that_look_like_numbers(tmp_path, line):
    """'²'.isdigit() is true, and int('²') an error; more than 4300 digits are an error, too."""
    (tmp_path / 'list.txt').write_text(line)
    with pytest.raises(ListError, match=r'list\.txt, line 1: .* has no label'):
        list(read_list(tmp_path / 'list.txt'))
    assert [entry.path for entry in read_list(tmp_path / 'list.txt', with_label=False)] == [line]


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / 'list.txt').write_bytes(b'a.jpg\xff 1')
    with pytest.raises(ListError, match=r'list\.txt: not a list file'):
        list(read_list(tmp_path / 'list.txt'))


@pytest.mark.parametrize(
    ('stored', 'manifest', 'said'),
    [
        (STORED.replace(b'<u2', b'\x00u2'), {}, r'tokens\.npy: damaged \('),
        (STORED.replace(b"'descr'", b"'descr "), {}, r'tokens\.npy: damaged \('),
        (STORED.replace(b'<u2', b'<f2'), {}, r'tokens\.npy: damaged \(float16 of shape \(2, 5, 4, 4\)'),
        (STORED, dict(images=7), r'is of 5 images in 2 views, and manifest\.json says 7 in 2'),
        (STORED, dict(images=None), r'manifest\.json: damaged \(TypeError: images is None'),
        (STORED, dict(sha256=[]), r'manifest\.json: damaged \(TypeError: sha256 is \[\]'),
    ],
)
def test_a_token_cache_of_something_else(tmp_path, stored, manifest, said):
    (tmp_path / TOKENS).write_bytes(stored)
    (tmp_path / MANIFEST).write_text(json.dumps(dict(WHOLE, **manifest)))
    with pytest.raises(TokenCacheError, match=said):
        TokensFromCache(str(tmp_path), views=2).transform(dict(sample_idx=SimpleNamespace(key=(0, 0, 0))))


def test_a_mask_of_more_pixels_than_opencv_takes(tmp_path):
    """cv2.error, which is none of ours."""
    (tmp_path / 'huge.png').write_bytes(png_of(60_000, 60_000))
    with pytest.raises(UnreadableImage, match=r'huge\.png: not a readable mask \(60000 x 60000 pixels are more than'):
        read_mask(str(tmp_path / 'huge.png'))


def test_a_jpeg_of_four_thousand_million_pixels(tmp_path):
    """simplejpeg takes 12.9 GB for it."""
    content = bytearray(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    start = content.index(b'\xff\xc0') + 5
    content[start : start + 4] = b'\xff\xff\xff\xff'
    (tmp_path / 'huge.jpg').write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableImage, match=r'huge\.jpg'):
        read_image(str(tmp_path / 'huge.jpg'), decoder='simplejpeg')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_tiff_of_more_numbers_than_its_bytes_can_stand_for(tmp_path):
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((16, 16), np.uint8), compression='zlib')
    content = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as opened:
        for name in ('ImageWidth', 'ImageLength'):
            tag = opened.pages[0].tags[name]
            content[tag.valueoffset : tag.valueoffset + 2] = b'\xff\xff'
    (tmp_path / 'huge.tif').write_bytes(content)
    with pytest.raises(UnreadableImage, match=r'huge\.tif: .* bytes that say they are 4294836225 of shape'):
        read_image(str(tmp_path / 'huge.tif'))


def test_a_mask_of_fractions_by_another_name(tmp_path):
    """Pillow looks at the content, not at the name, and 1.5 was class 1."""
    for value, name in ((1.5, 'a.png'), (float('inf'), 'b.png'), (float('inf'), 'c.tif')):
        Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / name, 'TIFF')
        with pytest.raises(MaskError, match=f'{name}: holds fractions'):
            read_mask(str(tmp_path / name))


def test_pictures_of_a_usual_size_are_read(tmp_path):
    Image.new('RGB', (3000, 2000)).save(tmp_path / 'large.jpg')
    for decoder in ('pillow', 'opencv', 'simplejpeg'):
        assert read_image(str(tmp_path / 'large.jpg'), decoder=decoder).shape == (2000, 3000, 3)


@pytest.mark.parametrize('override', [{'optim_wrapper.paramwise_cfg.layer_decay_rate': None}, {'model': 1}])
def test_values_of_another_kind(override):
    """TypeError and AttributeError from the checks themselves."""
    with pytest.raises(ConfigError, match=r'beit-mini-p8_ft_.*py: '):
        load_config(CLASSIFY, override)


def test_a_scope_that_is_no_word(tmp_path):
    (tmp_path / 'a.py').write_text('default_scope = []\n')
    with pytest.raises(ConfigError, match=r'a\.py: a value is of another kind than it must be'):
        load_config(tmp_path / 'a.py')


@pytest.mark.parametrize(
    'wrong', [dict(value='x'), dict(seconds=None), dict(checkpoint=None), dict(settings=[]), dict(record=1)]
)
def test_a_done_json_of_other_kinds_is_not_believed(tmp_path, wrong):
    stage = plan(tiny_suite(tmp_path), root=tmp_path / 'root')[0]
    done = dict(
        checkpoint='iter_2.pth', sha256='0', record=None, seconds=60.0, metric='x', value=1.0, protocol='p',
        settings=settings_of(stage),
    )  # fmt: skip
    write_json(stage.work_dir / 'done.json', done)
    assert finished(stage) == done
    write_json(stage.work_dir / 'done.json', dict(done, **wrong))
    assert finished(stage) is None
    assert [state.name for state in states([stage]).values()] == ['pending']


STAGE = dict(config='c', checkpoint='x.pth', sha256='0', stages=[])


@pytest.mark.parametrize(
    'wrong',
    [
        dict(revision=dict(commit=None, version='0', dirty=False)),
        dict(supersedes=[[]]),
        dict(stages=[dict(STAGE, recipe_sha256=[])]),
    ],
)
def test_records_of_other_kinds(wrong):
    """TypeError from the leaderboard: 'NoneType' object is not subscriptable, unhashable type: 'list'."""
    with pytest.raises(RecordError, match=r'seed0: (revision|supersedes|stages)'):
        check(dict(json.loads(TEXTS[0]), **wrong), 'seed0')


@pytest.mark.parametrize('settings', [dict(starts=True), dict(files=True), dict(files=dict(a=1)), dict(options=3)])
def test_settings_of_other_kinds_are_stale(tmp_path, settings):
    stage = plan(tiny_suite(tmp_path), root=tmp_path / 'root')[0]
    write_json(stage.work_dir / 'stage.json', settings)
    (stage.work_dir / 'iter_2.pth').write_text('')
    assert [state.name for state in states([stage]).values()] == ['stale']
