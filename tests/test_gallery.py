"""tools/visualize.py as it is called: pictures and the page that it writes, and mistakes that are named."""

import base64
import importlib.util
import io
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from processes import ROOT, call

from beit_mm.apis import build_model
from beit_mm.benchmark.pictures.canvas import PictureError
from beit_mm.benchmark.pictures.gallery import KINDS
from beit_mm.checkpoints.load import CheckpointError
from beit_mm.engine.configs import load_config
from beit_mm.engine.errors import ConfigError

MIM = 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py'
SEGMENT = 'configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py'
SMALL = ('model.target.checkpoint=None', 'test_dataloader.dataset.length=12')


def visualize(*arguments) -> str:
    """What the tool prints; its errors are raised."""
    spec = importlib.util.spec_from_file_location('visualize', ROOT / 'tools/visualize.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, sys.stdout, sys.argv = (sys.stdout, sys.argv), io.StringIO(), ['visualize.py', *map(str, arguments)]
    try:
        module.main.__wrapped__()
        return sys.stdout.getvalue()
    finally:
        sys.stdout, sys.argv = before


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('gallery') / 'mim.pth'
    torch.manual_seed(0)
    model = build_model(load_config(MIM, {'model.target.checkpoint': None}))
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def test_all_that_a_pre_training_has(checkpoint, tmp_path):
    out = visualize('all', MIM, checkpoint, '--out', tmp_path / 'p', '--html', tmp_path / 'page.html',
                    '--plane', 'pca', '--draws', 99, '--cfg-options', *SMALL)  # fmt: skip
    made = [kind for kind in KINDS if kind != 'segmentation']
    assert sorted(path.stem for path in (tmp_path / 'p').iterdir()) == sorted(made)
    assert f'segmentation: not here. {MIM}: MaskedImageModel segments nothing' in out
    text = (tmp_path / 'page.html').read_text()
    inside = [base64.b64decode(data) for data in re.findall(r'data:image/png;base64,([\w+/=]+)', text)]
    assert inside == [(tmp_path / 'p' / f'{kind}.png').read_bytes() for kind in made]
    assert not re.search(r'(?:src|href)="(?!data:|#|")', text)
    for kind in made:
        assert f'{kind}: {tmp_path}' in out
        assert f'<h2 id="{kind}">{kind}</h2>' in text
    for name in ('attended', 'codes used', 'masked accuracy', '10-NN accuracy', 'cosine of neighbours'):
        assert name in out
        assert name in text


def test_files_of_any_shape(checkpoint, tmp_path):
    """Colour files for a grey model, a query by pixel, an earlier block; the picture keeps the files' shapes."""
    rng = np.random.default_rng(0)
    for name, size in (('a', (40, 90, 3)), ('b', (70, 40, 3))):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / f'{name}.png')
    options = (
        '--size',
        32,
        '--layer',
        1,
        '--query-pixel',
        '8,31',
        '--out',
        tmp_path / 'x.png',
        '--cfg-options',
        *SMALL,
    )
    out = visualize('attention', MIM, checkpoint, '--images', tmp_path / 'a.png', tmp_path / 'b.png', *options)
    assert 'attended' not in out
    assert 'effective patches, head 2' in out
    assert Image.open(tmp_path / 'x.png').width > 400
    with pytest.raises(PictureError, match='pixel 8,40 lies outside of an image of 56 x 32 pixels'):
        visualize('rollout', MIM, checkpoint, '--images', tmp_path / 'b.png', '--size', 32, '--query-pixel', '8,40',
                  '--cfg-options', *SMALL)  # fmt: skip


@pytest.mark.parametrize(
    ('arguments', 'error', 'said'),
    [
        (['attention', '--query', '8,0'], PictureError, 'row 8, column 0 lies outside of an image of 8 x 8 patches'),
        (['attention', '--layer', '4'], PictureError, '--layer 4: there are 4 blocks, 0 to 3, or -1 for the last'),
        (['attention', '--indices', '12'], PictureError, r'there is no image 12; they are numbered 0 to 11'),
        (['attention', '--images', 'no/such'], FileNotFoundError, 'no/such: no image there'),
        (['attention', '--voc', 'a', '--data', 'b'], PictureError, '--data and --voc are both said to be the images'),
        (['attention', '--voc', 'a'], PictureError, r'a/ImageSets/Segmentation/val\.txt: not there'),
        (['attention', '--query', '1,1', '--query-pixel', '1,1'], PictureError, 'give one of them'),
        (['relative-bias'], PictureError, 'no relative position bias; it has absolute positions: --absolute'),
        (['tokens', '--indices', '99'], PictureError, 'there is no image 99'),
        (['masks', '--draws', '0'], PictureError, '--draws 0: must be 1 or more'),
        (['masks', '--out', 'a.jpg'], PictureError, 'pictures are PNG'),
        (['segmentation'], PictureError, 'MaskedImageModel segments nothing'),
    ],
)
def test_mistakes_are_named(checkpoint, arguments, error, said):
    kind, *options = arguments
    with pytest.raises(error, match=said):
        visualize(kind, MIM, checkpoint, *options, '--cfg-options', *SMALL)


def test_what_does_not_go_together_is_named(checkpoint, tmp_path):
    with pytest.raises(PictureError, match='give CHECKPOINT after it'):
        visualize('reconstruction', MIM, '--cfg-options', *SMALL)
    with pytest.raises(ConfigError, match='EncoderDecoder predicts no masked patches'):
        visualize('reconstruction', SEGMENT, checkpoint)
    with pytest.raises(CheckpointError, match='does not fit the model of this config') as caught:
        visualize('segmentation', SEGMENT, checkpoint)
    assert len(str(caught.value)) < 1000
    with pytest.raises(CheckpointError, match='no such'):
        visualize('features', MIM, tmp_path / 'none.pth', '--cfg-options', *SMALL)
    with pytest.raises(SystemExit):
        visualize('relative-bias', MIM, checkpoint, '--layer', '1')  # an option that it does not read


@pytest.mark.slow
def test_a_mistake_ends_in_a_line(checkpoint):
    code, out, err = call('tools/visualize.py', 'attention', MIM, checkpoint, '--query', '9,9', '--cfg-options', *SMALL)
    assert code == 1
    assert 'Traceback' not in out + err
    assert 'error: the query row 9, column 9 lies outside of an image of 8 x 8 patches' in err
