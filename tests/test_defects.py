"""The 18 known defects (B1..B18) of mmpretrain 1.2.0's and mmsegmentation 1.2.2's BEiT: ours is right, theirs is not.

One assertion serves all: it passes on ours and is a strict xfail on theirs, so the day one of them is mended upstream
this file fails and says so. A name without the mark (mmseg in B3, say) does not have that defect and is the control.
What compat.py mends (imports, closed checkpoint files, kills while writing) touches no assertion here: it does not
bring back SciPy's interp2d (B10), and the files written below hold tensors alone, which every reader takes.
"""

import copy
import functools
import importlib
import inspect
import math
import pkgutil
import re
import signal
from pathlib import Path

import mmpretrain
import mmseg
import numpy as np
import pytest
import scipy.interpolate
import torch
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import load_checkpoint
from mmpretrain.datasets.transforms import BEiTMaskGenerator, RandomResizedCropAndInterpolationWithTwoPic
from mmpretrain.models.backbones import BEiTViT as MMPretrainBEiT
from mmpretrain.models.backbones import beit as mmpretrain_beit
from mmpretrain.models.heads import BEiTV1Head
from mmpretrain.models.selfsup.beit import BEiT as MMPretrainMIM
from mmpretrain.models.selfsup.beit import BEiTPretrainViT
from mmpretrain.structures import DataSample
from mmseg.models.backbones import BEiT as MMSegBEiT
from mmseg.models.backbones import beit as mmseg_beit
from official import DATA, backbone_arguments, golden
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import beit_mm.models
from beit_mm.checkpoints.fit import fit
from beit_mm.checkpoints.load import CheckpointError, write
from beit_mm.data import embedded
from beit_mm.data.transforms import TwoViewCrop, random_resized_box
from beit_mm.engine.configs import ConfigError, check_config, load_config
from beit_mm.models import BEiTViT, MaskedImageModel, TokenHead
from beit_mm.ops.masking import blockwise_mask
from beit_mm.ops.relative_position import resize_table

ROOT = Path(__file__).parents[1]
MMPRETRAIN_CONFIGS = Path(mmpretrain.__file__).parent / '.mim/configs/beit'
MMSEG_CONFIGS = Path(mmseg.__file__).parent / '.mim/configs/beit'
MMPRETRAIN_PRETRAINING = MMPRETRAIN_CONFIGS / 'beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py'
MMPRETRAIN_SCRATCH = MMPRETRAIN_CONFIGS / 'benchmarks/beit-base-p16_8xb64_in1k.py'
TINY = dict(embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=192)


def theirs(name, defect, raises=AssertionError):
    """Their implementation as a parameter: the assertion fails, in this way and no other, or the suite does."""
    return pytest.param(name, marks=pytest.mark.xfail(strict=True, raises=raises, reason=defect))


def build(whose, arch=TINY, img_size=64, **arguments):
    """A backbone that gives feature maps of patches, in whichever project's spelling."""
    if whose == 'mmseg':
        arch = dict(arch, mlp_ratio=arch['feedforward_channels'] // arch['embed_dims'])
        del arch['feedforward_channels']
        return MMSegBEiT(img_size=img_size, **arch, **arguments)
    backbone = {'beit_mm': BEiTViT, 'mmpretrain': MMPretrainBEiT}[whose]
    return backbone(arch, img_size=img_size, **dict(dict(out_type='featmap'), **arguments))


def randomised(model):
    """Weights that matter: tables, gammas and biases away from zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.eval()
    return model


def fill(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value).expand_as(parameter))


def loaded(whose, path, weights, **arguments):
    """A backbone whose `init_cfg` names a file of these weights."""
    write(dict(state_dict=weights), path)
    model = build(whose, **arguments, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    model.eval()
    return model


def expect(weight, std, limit=math.inf):
    """Mean 0 and `std`, within four standard errors; nothing beyond `limit`."""
    count = weight.numel()
    assert weight.std().item() == pytest.approx(std, rel=4 / (2 * count) ** 0.5)
    assert abs(weight.mean().item()) < 4 * std / count**0.5
    assert weight.abs().max().item() <= limit


# Masks


class Endless(Exception):
    """Twenty masks have taken half a second of computing, a hundred times what they need."""


def masks(whose, count, num_masked=75):
    """(count, 14, 14) bool, as each project's pre-training config asks for them."""
    rng = np.random.default_rng(0)
    np.random.seed(0)
    generator = BEiTMaskGenerator((14, 14), num_masked, min_num_patches=16)
    draw = {
        'beit_mm': lambda: blockwise_mask(rng, (14, 14), num_masked),
        'mmpretrain': lambda: generator.transform({})['mask'].astype(bool),
    }[whose]
    return np.stack([draw() for _ in range(count)])


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B1')])
def test_b1_last_row_and_column(whose):
    """B1: the last row and column are masked as often as in the official generator, 0.134 (theirs: never)."""
    drawn = masks(whose, 600)
    for border in (drawn[:, -1], drawn[:, :, -1]):
        assert border.mean() == pytest.approx(0.134, abs=0.04)


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B2')])
def test_b2_at_most_75(whose):
    """B2: of the masks 0.666 have exactly 75 patches and none more, as officially (theirs: all have 75)."""
    counts = masks(whose, 600).sum(axis=(1, 2))
    assert counts.max() == 75
    assert (counts == 75).mean() == pytest.approx(0.666, abs=0.08)


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B2', raises=Endless)])
def test_b2_always_ends(whose):
    """B2: 180 of 196 patches wanted: the mask stops short of them (theirs, which cannot exceed 169, never stops)."""

    def stop(*_):
        raise Endless

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.5)  # of this process's own computing time
    try:
        counts = masks(whose, 20, num_masked=180).sum(axis=(1, 2))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert counts.min() > 150
    assert counts.max() <= 180


# The block


@pytest.mark.parametrize('whose', ['beit_mm', 'mmseg', theirs('mmpretrain', 'B3')])
def test_b3_ffn_branch_is_dropped_once(whose):
    """B3: with rate 0.5 half of the samples keep their FFN branch, doubled (theirs: a quarter, four times)."""
    model = build(whose, img_size=16, drop_path_rate=0.5)
    model.train()
    block = model.layers[-1]
    fill(block.attn.proj.weight, 0.0)  # the attention branch adds nothing
    fill(block.attn.proj.bias, 0.0)
    fill(block.ffn.layers[1].weight, 0.0)  # the FFN branch adds gamma * 1
    fill(block.ffn.layers[1].bias, 1.0)
    fill(block.gamma_2, 1.0)
    x = torch.zeros(2000, 2, 48)
    with torch.no_grad():
        added = (block(x) if whose == 'mmseg' else block(x, None))[:, 0, 0]
    assert (added != 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert set(added.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B6'), theirs('mmseg', 'B6')])
def test_b6_attention_dropout(whose):
    """B6: attention dropout 0.5 drops half of the probabilities: variance p / (1 - p) / tokens (theirs: 0)."""
    by_layer = dict(layer_cfgs=dict(attn_drop_rate=0.5)) if whose == 'mmpretrain' else dict(attn_drop_rate=0.5)
    model = build(whose, **by_layer)
    model.train()
    attention = model.layers[0].attn
    fill(attention.qkv.weight, 0.0)  # every token attends to all alike,
    fill(attention.v_bias, 1.0)  # and every value is one: the output is the sum of what is left
    fill(attention.proj.weight, torch.eye(48))
    fill(attention.proj.bias, 0.0)
    x = torch.zeros(500, 17, 48)
    with torch.no_grad():
        total = (attention(x, None) if whose == 'beit_mm' else attention(x))[..., ::16]  # one number per head
    assert total.mean().item() == pytest.approx(1.0, abs=0.01)
    assert total.var().item() == pytest.approx(1 / 17, rel=0.05)


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B6')])
def test_b6_projection_dropout(whose):
    """B6: drop_rate 0.25 drops a quarter of what attention puts out (theirs: nothing; mmseg has no such argument)."""
    model = build(whose, drop_rate=0.25)
    model.train()
    attention = model.layers[0].attn
    fill(attention.proj.weight, 0.0)
    fill(attention.proj.bias, 3.0)
    x = torch.zeros(100, 17, 48)
    with torch.no_grad():
        out = attention(x, None) if whose == 'beit_mm' else attention(x)
    assert out.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert out.max().item() == pytest.approx(4.0)


# Initialisation

WIDE = dict(embed_dims=192, num_layers=3, num_heads=3, feedforward_channels=768)
ONE_SIGMA = 0.02 * 0.539562  # standard deviation of a normal of 0.02 cut off at +-0.02


@functools.cache
def pretraining_parts(whose):
    """{name: weight} at the start of pre-training; the two output layers without their 1 / sqrt(2 l)."""
    torch.manual_seed(0)
    if whose == 'beit_mm':
        backbone = BEiTViT(WIDE, img_size=64, variant='beit_plus', with_mask_token=True, final_norm=True)
        head = TokenHead(192, 512)
    else:
        shipped = Config.fromfile(MMPRETRAIN_PRETRAINING).model
        backbone = BEiTPretrainViT(WIDE, img_size=64, init_cfg=shipped.backbone.init_cfg)
        head = BEiTV1Head(192, 512, loss=dict(type='CrossEntropyLoss'))
        head.init_weights()
    backbone.init_weights()
    depth = 2
    block = backbone.layers[depth - 1]
    return dict(
        qkv=block.attn.qkv.weight,
        proj=block.attn.proj.weight * (2 * depth) ** 0.5,
        fc1=block.ffn.layers[0][0].weight,
        fc2=block.ffn.layers[1].weight * (2 * depth) ** 0.5,
        fc_biases=torch.cat([block.ffn.layers[0][0].bias, block.ffn.layers[1].bias]),
        conv=backbone.patch_embed.projection.weight,
        head=head.cls_head.weight,
        tokens=torch.cat([backbone.cls_token, backbone.mask_token]),
    )


@pytest.mark.parametrize('part', ['qkv', 'proj', 'fc1', 'fc2', 'conv', 'head', 'tokens'])
@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B4')])
def test_b4_start_of_pretraining(whose, part):
    """B4: cut off at one sigma, so std 0.0108 and |w| <= 0.02 (theirs, by their own config: 0.02, the FFN Xavier)."""
    expect(pretraining_parts(whose)[part].detach(), ONE_SIGMA, limit=0.02 + 1e-6)


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B4')])
def test_b4_biases_start_at_zero(whose):
    """B4: the FFN's biases start at zero (theirs: noise of 1e-6)."""
    assert pretraining_parts(whose)['fc_biases'].eq(0).all()


@functools.cache
def classifier(whose):
    """A small classifier by each project's from-scratch config, after mmengine has initialised it."""
    if whose == 'beit_mm':
        config = load_config(ROOT / 'configs/classification/beit-mini-p8_scratch_1xb64-100_embedded-64.py').model
        config.backbone.update(use_rel_pos_bias=True)
    else:
        config = Config.fromfile(MMPRETRAIN_SCRATCH).model
        arch = dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384)
        config.backbone.update(arch=arch, img_size=64)
        config.head.update(in_channels=96)
        config.pop('train_cfg')
    config.head.update(num_classes=1000)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config)
    model.init_weights()
    return model


@pytest.mark.parametrize(
    ('whose', 'part'),
    [
        *[('beit_mm', part) for part in ('qkv', 'fc1', 'tables', 'cls_token', 'proj', 'fc2', 'head')],
        ('mmpretrain', 'qkv'),  # by the config's own init_cfg
        *[
            pytest.param('mmpretrain', part, marks=theirs('', 'B5').marks)
            for part in ('fc1', 'tables', 'cls_token', 'proj', 'fc2', 'head')
        ],
    ],
)
def test_b5_start_of_finetuning(whose, part):
    """B5: linear 0.02, tables 0, class token 0.02, output layers / sqrt(2 l), head 2e-5 (theirs: of these only qkv)."""
    model = classifier(whose)
    for depth, block in enumerate(model.backbone.layers, start=1):
        scale = (2 * depth) ** 0.5
        if part == 'qkv':
            expect(block.attn.qkv.weight, 0.02)
        elif part == 'fc1':
            expect(block.ffn.layers[0][0].weight, 0.02)
        elif part == 'tables':
            assert block.attn.relative_position_bias_table.eq(0).all()
        elif part == 'proj':
            expect(block.attn.proj.weight, 0.02 / scale)
        elif part == 'fc2':
            expect(block.ffn.layers[1].weight, 0.02 / scale)
    if part == 'cls_token':
        expect(model.backbone.cls_token, 0.02)
    elif part == 'head':
        expect(model.head.fc.weight, 2e-5)


# Loading


def pretrained_weights(index=True, prefix='backbone.'):
    """mmpretrain's own pre-training checkpoint, small, with one table for all blocks. index: its index buffer too."""
    weights = randomised(BEiTPretrainViT(TINY, img_size=64)).state_dict()
    return {prefix + key: value for key, value in weights.items() if index or not key.endswith('position_index')}


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B7')])
def test_b7_shared_table_reaches_a_classifier(whose, tmp_path):
    """B7: a pre-trained shared table becomes the table of every block of a classifier (theirs: silently of none)."""
    weights = pretrained_weights()
    backbone = dict(type='BEiTViT' if whose == 'mmpretrain' else 'beit_mm.BEiTViT', arch=TINY, img_size=64)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        head = dict(type='LinearClsHead', num_classes=3, in_channels=48)
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
    if whose == 'beit_mm':
        fitted, report = fit(weights, model.state_dict(), model.backbone.own_grid, 'backbone.')
        model.load_state_dict(fitted, strict=False)
        assert len(report.expanded) == 3
    else:
        write(dict(state_dict=weights), tmp_path / 'pretrained.pth')
        load_checkpoint(model, str(tmp_path / 'pretrained.pth'), map_location='cpu')  # what load_from does
    torch.testing.assert_close(model.backbone.cls_token, weights['backbone.cls_token'])
    for block in model.backbone.layers:
        table = block.attn.relative_position_bias_table
        assert torch.equal(table, weights['backbone.rel_pos_bias.relative_position_bias_table'])


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B7', raises=KeyError)])
def test_b7_index_buffer_is_not_needed(whose, tmp_path):
    """B7: a file without the index buffer, which is no weight, loads as one with it (theirs: KeyError)."""
    weights = pretrained_weights(index=False, prefix='')
    model = loaded(whose, tmp_path / 'pretrained.pth', weights)
    for block in model.layers:
        assert torch.equal(
            block.attn.relative_position_bias_table, weights['rel_pos_bias.relative_position_bias_table']
        )


# Images

PHOTO = np.ascontiguousarray(embedded.load_photograph(5)[:150, :150])


@pytest.mark.parametrize('view', [0, 1])
@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B8')])
def test_b8_views_are_antialiased(whose, view):
    """B8: both views are Pillow's, bicubic and Lanczos, to half a grey level (theirs: OpenCV's, aliased)."""
    if whose == 'beit_mm':
        results = TwoViewCrop(64, 32, scale=(1, 1), ratio=(1, 1)).transform(dict(img=PHOTO))
        views = results['patches'], results['tokens_view']
    else:
        crop = RandomResizedCropAndInterpolationWithTwoPic(64, 32, (1, 1), (1, 1), interpolation='bicubic')
        views = crop.transform(dict(img=PHOTO))['img']
    size, kernel = ((64, Image.Resampling.BICUBIC), (32, Image.Resampling.LANCZOS))[view]
    expected = np.asarray(Image.fromarray(PHOTO).resize((size, size), kernel))
    assert np.abs(views[view].astype(float) - expected).mean() < 0.5


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B8')])
def test_b8_last_offset_of_a_crop(whose):
    """B8: a box of 7 x 7 in 8 x 8 pixels stands at 0 or 1, each half of the time (theirs: always at 0)."""
    rng = np.random.default_rng(0)
    np.random.seed(0)
    scale, ratio, image = (49 / 64, 49 / 64), (1, 1), np.zeros((8, 8, 3), np.uint8)
    draw = {
        'beit_mm': lambda: random_resized_box(rng, 8, 8, scale, ratio),
        'mmpretrain': lambda: RandomResizedCropAndInterpolationWithTwoPic.get_params(image, scale, ratio),
    }[whose]
    boxes = np.array([draw() for _ in range(500)])
    assert (boxes[:, 2:] == 7).all()
    assert boxes[:, 0].mean() == pytest.approx(0.5, abs=0.1)
    assert boxes[:, 1].mean() == pytest.approx(0.5, abs=0.1)


def normalisation(path):
    config = Config.fromfile(path)
    settings = dict(config.get('data_preprocessor') or {}, **(config.model.get('data_preprocessor') or {}))
    return settings['mean'], settings['std']


def finetuning_pairs(whose):
    """(pre-training config, config that starts from it): by load_from, or by the command in the file's own text."""
    if whose == 'mmpretrain':
        return [(MMPRETRAIN_PRETRAINING, path) for path in sorted((MMPRETRAIN_CONFIGS / 'benchmarks').glob('*.py'))]
    stages = {path.stem: path for path in (ROOT / 'configs/pretrain').glob('*.py')}
    pairs = []
    for task in ('classification', 'segmentation'):
        for path in sorted((ROOT / 'configs' / task).glob('*.py')):
            named = re.findall(r'work_dirs/([^/\s]+)/', f'{Config.fromfile(path).get("load_from")} {path.read_text()}')
            pairs += [(stages[name], path) for name in named if name in stages]
    return pairs


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B9')])
def test_b9_same_normalisation(whose):
    """B9: images are normalised in fine-tuning as in the pre-training that it starts from (theirs: otherwise)."""
    pairs = finetuning_pairs(whose)
    if whose == 'beit_mm' and {path.parent.name for _, path in pairs} != {'classification', 'segmentation'}:
        raise RuntimeError(f'no config of one task names its pre-training: {pairs}')
    for before, after in pairs:
        assert normalisation(after) == normalisation(before), after.name


# Resizing

TABLE = 'layers.0.attn.relative_position_bias_table'
ONE_BLOCK = dict(embed_dims=48, num_layers=1, num_heads=3, feedforward_channels=192)


@pytest.mark.parametrize(
    'whose',
    [
        'beit_mm',
        theirs('mmpretrain', 'B10', raises=NotImplementedError),
        theirs('mmseg', 'B10', raises=NotImplementedError),
    ],
)
def test_b10_resizing_on_todays_scipy(whose, tmp_path):
    """B10: a table for 224 pixels loads at 384 as the official code resizes it (theirs: interp2d is gone)."""
    _, _, io = golden('relpos_resize')
    table, expected = io['src_14to24'], io['dst_14to24']
    arch = dict(ONE_BLOCK, num_heads=table.shape[1], embed_dims=8 * table.shape[1])
    arch.update(feedforward_channels=4 * arch['embed_dims'])
    weights = {**build('beit_mm', arch, 224).state_dict(), TABLE: table}
    model = loaded(whose, tmp_path / 'w.pth', weights, arch=arch, img_size=384)
    torch.testing.assert_close(model.state_dict()[TABLE], expected, atol=1e-5, rtol=0)


def official_resize(table, src, dst):
    """The official method with one ratio per axis: geometric progression and bicubic spline, (h, w) -> (h', w')."""
    axes, wanted = [], []
    for half_src, half_dst in zip([s - 1 for s in src], [d - 1 for d in dst]):
        low, high = 1.01, 1.5
        while high - low > 1e-6:
            q = (low + high) / 2
            low, high = (low, q) if (1 - q**half_src) / (1 - q) > half_dst else (q, high)
        distances = np.cumsum([q**i for i in range(half_src)])
        axes.append(np.concatenate([-distances[::-1], [0], distances]))
        wanted.append(np.arange(-half_dst, half_dst + 1))
    columns = []
    for z in table[:-3].double().T.numpy():
        spline = scipy.interpolate.RectBivariateSpline(*axes, z.reshape(2 * src[0] - 1, 2 * src[1] - 1))
        columns.append(torch.from_numpy(spline(*wanted).reshape(-1)))
    return torch.cat([torch.stack(columns, dim=1).float(), table[-3:]])


@pytest.mark.parametrize(
    'whose',
    ['beit_mm', theirs('mmpretrain', 'B10'), theirs('mmseg', 'B10', raises=NotImplementedError)],
)
def test_b10_resizing_to_a_rectangle(whose, tmp_path, monkeypatch):
    """B10: 64 x 64 pixels to 96 x 128, each axis by its own ratio (with interp2d given back, theirs do squares only).

    mmpretrain's resized table has the rows of a square, and mmengine leaves out what does not fit, with a warning.
    """

    def interp2d(x, y, z, kind):
        return lambda dx, dy: scipy.interpolate.RectBivariateSpline(y, x, z)(dy, dx)

    monkeypatch.setattr(scipy.interpolate, 'interp2d', interp2d)
    weights = randomised(build('beit_mm', ONE_BLOCK, 64)).state_dict()
    model = loaded(whose, tmp_path / 'w.pth', weights, arch=ONE_BLOCK, img_size=(96, 128))
    expected = official_resize(weights[TABLE], (4, 4), (6, 8))
    torch.testing.assert_close(model.state_dict()[TABLE], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('whose', ['beit_mm', 'mmpretrain', 'mmseg'])
def test_b10_is_about_interp2d_alone(whose, tmp_path, monkeypatch):
    """B10, the control: with interp2d given back all three resize a square table alike."""

    def interp2d(x, y, z, kind):
        return lambda dx, dy: scipy.interpolate.RectBivariateSpline(y, x, z)(dy, dx)

    monkeypatch.setattr(scipy.interpolate, 'interp2d', interp2d)
    weights = randomised(build('beit_mm', ONE_BLOCK, 64)).state_dict()
    model = loaded(whose, tmp_path / 'w.pth', weights, arch=ONE_BLOCK, img_size=96)
    expected = official_resize(weights[TABLE], (4, 4), (6, 6))
    torch.testing.assert_close(model.state_dict()[TABLE], expected, atol=1e-5, rtol=0)


# The tokenizer


def masked_image_model(whose):
    """(model, its tokenizer, a function that returns the targets of a training step's loss)."""
    torch.manual_seed(0)
    patches, view, mask = torch.randn(8, 3, 64, 64), torch.rand(8, 3, 32, 32), torch.ones(8, 4, 4, dtype=torch.bool)
    seen = []
    if whose == 'beit_mm':
        backbone = dict(
            type='beit_mm.BEiTViT', arch=TINY, img_size=64, variant='beit_plus', with_mask_token=True, out_type='raw',
            final_norm=True,
        )  # fmt: skip
        tokenizer = dict(type='beit_mm.DALLEEncoder', n_hid=8, vocab_size=64)
        model = MaskedImageModel(
            backbone, dict(type='beit_mm.TokenTarget', tokenizer=tokenizer),
            dict(type='beit_mm.TokenHead', embed_dims=48, vocab_size=64),
        )  # fmt: skip
        model.head.loss = lambda features, tokens: seen.append(tokens)
        step = lambda: model.loss(dict(patches=patches, tokens_view=view, mask=mask))  # noqa: E731
        tokenizer = model.target.tokenizer
    else:
        model = MMPretrainMIM(
            backbone=dict(type='BEiTPretrainViT', arch=TINY, img_size=64),
            head=dict(type='BEiTV1Head', embed_dims=48, num_embed=64, loss=dict(type='CrossEntropyLoss')),
            target_generator=dict(type='DALL-E', n_hid=8, vocab_size=64),
        )
        model.head.loss = lambda features, target, mask: seen.append(target.argmax(dim=1).flatten())
        step = lambda: model.loss([patches, view], [DataSample(mask=m) for m in mask])  # noqa: E731
        tokenizer = model.target_generator
    model.train()
    with torch.no_grad():  # a random tokenizer knows one token; without the mean of its logits it knows many
        tokenizer.blocks.output.conv.b -= tokenizer.blocks(view).mean(dim=(0, 2, 3))

    def targets():
        step()
        return seen.pop()

    return model, tokenizer, targets


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B11')])
def test_b11_the_tokenizer_does_not_learn(whose):
    """B11: none of the tokenizer's tensors wants a gradient (theirs: nn.Parameter makes all of them want one)."""
    _, tokenizer, _ = masked_image_model(whose)
    assert len(list(tokenizer.parameters())) == 74
    assert sum(p.requires_grad for p in tokenizer.parameters()) == 0


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B11')])
def test_b11_the_tokenizer_is_not_optimised(whose):
    """B11: none of them is in the optimizer of the pre-training config, weight decay and all (theirs: 74)."""
    model, tokenizer, _ = masked_image_model(whose)
    if whose == 'beit_mm':
        config = load_config(ROOT / 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py').optim_wrapper
    else:
        config = Config.fromfile(MMPRETRAIN_PRETRAINING).optim_wrapper
        config = dict(type='OptimWrapper', optimizer=config.optimizer, paramwise_cfg=config.paramwise_cfg)
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    optimised = {id(p) for group in groups for p in group['params']}
    assert {id(p) for p in model.backbone.parameters()} <= optimised
    assert sum(id(p) in optimised for p in tokenizer.parameters()) == 0


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B11')])
def test_b11_the_tokenizer_is_in_no_checkpoint(whose):
    """B11: a checkpoint holds the backbone and the head, not the tokenizer (theirs: 74 tensors of it)."""
    model, _, _ = masked_image_model(whose)
    assert {key.partition('.')[0] for key in model.state_dict()} == {'backbone', 'head'}


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B11')])
def test_b11_targets_are_computed_outside_autocast(whose):
    """B11: in mixed precision the targets are those of float32, every one (theirs: some are others)."""
    _, _, targets = masked_image_model(whose)
    expected = targets()
    assert len(expected.unique()) > 20
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(targets(), expected)


# Freezing and modes


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B12')])
def test_b12_the_shared_table_is_frozen(whose):
    """B12: a backbone that is frozen whole has nothing left to learn (theirs: the shared table learns on)."""
    model = build(whose, use_rel_pos_bias=False, use_shared_rel_pos_bias=True, frozen_stages=3)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == []


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B12')])
def test_b12_frozen_blocks_stay_in_eval(whose):
    """B12: a frozen backbone gives the same features in a linear probe's training (theirs: with blocks dropped)."""
    model = build(whose, frozen_stages=3, drop_path_rate=0.9, drop_rate=0.5)
    image = torch.randn(2, 3, 64, 64)
    model.eval()
    expected = model(image)[0]
    model.train()
    assert torch.equal(model(image)[0], expected)


@pytest.mark.parametrize(
    'whose',
    ['beit_mm', theirs('mmpretrain', 'B12'), theirs('mmseg', 'B12')],
)
def test_b12_train_returns_the_module(whose):
    """B12: train() and eval() return the module, as nn.Module promises (theirs: None)."""
    model = build(whose)
    assert (model.train(), model.eval()) == (model, model)


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', 'B12')])
def test_b12_frozen_stages_0_freezes_the_stem(whose):
    """B12: frozen_stages=0 freezes patches, class token and positions, and nothing else (theirs: nothing)."""
    model = build(whose, use_abs_pos_emb=True, frozen_stages=0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {'cls_token', 'pos_embed', 'patch_embed.projection.weight', 'patch_embed.projection.bias'}


# Sizes and indices


@pytest.mark.parametrize(
    'whose',
    ['beit_mm', theirs('mmpretrain', 'B13', raises=TypeError), theirs('mmseg', 'B13', raises=ValueError)],
)
def test_b13_negative_indices_in_a_tuple(whose):
    """B13: out_indices=(0, -1) are the first and the last block (theirs: crashes; mmseg: one map instead of two)."""
    model = randomised(build(whose, out_indices=(0, -1)))
    image, seen = torch.randn(1, 3, 64, 64), []
    for i in (0, 2):
        model.layers[i].register_forward_hook(lambda module, args, output: seen.append(output))
    for given, block in zip(model(image), seen, strict=True):
        assert torch.equal(given.flatten(2).transpose(1, 2), block[:, 1:])


def at_size(model, whose, size):
    """The same weights in a backbone that was built for another size."""
    other = build(whose, img_size=size)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith('position_index')}
    for key, value in state.items():
        if key.endswith('bias_table'):
            state[key] = resize_table(value, (4, 4), (size[0] // 16, size[1] // 16))
    other.load_state_dict(state, strict=False)
    other.eval()
    return other


@pytest.mark.parametrize(
    'whose', ['beit_mm', theirs('mmpretrain', 'B13', raises=RuntimeError), theirs('mmseg', 'B13', raises=RuntimeError)]
)
def test_b13_other_sizes_at_run_time(whose):
    """B13: with relative positions, 96 x 48 pixels give what a backbone built for them gives (theirs: crashes).

    Not tested: mmpretrain's RelativePositionBias(with_cls_token=False), which crashes; every BEiT has a class token,
    and ours refuses the argument.
    """
    model = randomised(build(whose))
    image = torch.randn(1, 3, 96, 48)
    expected = at_size(model, whose, (96, 48))(image)[0]
    torch.testing.assert_close(model(image)[0], expected, atol=1e-5, rtol=1e-5)


# Schedules


def rates(path, steps=320):
    """The learning rate over a whole run, which is scaled to so many steps."""
    config = Config.fromfile(path)
    by_epoch = 'max_epochs' in config.train_cfg
    unit = config.train_cfg['max_epochs' if by_epoch else 'max_iters'] / steps
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = []
    for scheduler in copy.deepcopy(config.param_scheduler):
        if scheduler.get('by_epoch', True) != by_epoch:
            raise NotImplementedError(f'{path}: iterations and epochs mixed')
        scheduler.pop('convert_to_iter_based', None)
        span = dict(begin=round(scheduler.get('begin', 0) / unit), by_epoch=False)
        if 'end' in scheduler:
            span['end'] = round(scheduler.end / unit)
        schedulers.append(PARAM_SCHEDULERS.build({**scheduler, **span, 'optimizer': optimizer}))
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return seen


OUR_RECIPES = [
    path
    for task in ('classification', 'segmentation')
    for path in sorted((ROOT / 'configs' / task).glob('*.py'))
    if '_knn_' not in path.stem  # nothing is trained
]
MMSEG_LARGE = sorted(MMSEG_CONFIGS.glob('beit-large*.py'))


@pytest.mark.parametrize(
    'path',
    [
        *[pytest.param(path, id=path.stem) for path in OUR_RECIPES],
        *[pytest.param(path, id=f'mmseg-{path.stem}') for path in sorted(MMSEG_CONFIGS.glob('beit-base*.py'))],
        *[pytest.param(path, id=f'mmseg-{path.stem}', marks=theirs('', 'B14').marks) for path in MMSEG_LARGE],
    ],
)
def test_b14_learns_to_the_end(path):
    """B14: the rate is above 0 until the last step (mmseg's BEiT-L: 0 from 160,000 of 320,000 on; its base: right)."""
    seen = rates(path)
    assert min(seen[160:-1]) > 0


@pytest.mark.parametrize('path', MMSEG_LARGE, ids=lambda path: path.stem)
def test_b14_is_refused(path):
    """B14: a config that would learn nothing for half of the run is an error before its first step."""
    config = Config.fromfile(path)
    with pytest.raises(ConfigError, match=r'param_scheduler\[1\]\.end=160000: .* train_cfg\.max_iters=320000'):
        check_config(config, path.name)


# Segmentors


def segmentor(whose, mode, size=64):
    """mmseg's UPerNet on a tiny backbone made for `size` pixels, which are also the crop of sliding windows."""
    arch = dict(TINY, num_layers=4)
    norm = dict(type='BN')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(
            dict(
                type='EncoderDecoder',
                backbone=dict(
                    type='BEiT' if whose == 'mmseg' else 'beit_mm.BEiTViT', img_size=size, embed_dims=48, num_layers=4,
                    num_heads=3, mlp_ratio=arch['feedforward_channels'] // 48, out_indices=(0, 1, 2, 3),
                ),
                neck=dict(type='Feature2Pyramid', embed_dim=48, rescales=[4, 2, 1, 0.5], norm_cfg=norm),
                decode_head=dict(
                    type='UPerHead', in_channels=[48] * 4, in_index=[0, 1, 2, 3], pool_scales=(1, 2), channels=8,
                    num_classes=3, norm_cfg=norm, align_corners=False,
                ),
                test_cfg=ConfigDict(mode=mode, crop_size=(64, 64), stride=(42, 42)),
            )
        )  # fmt: skip
    return randomised(model)


@pytest.mark.parametrize('mode', ['whole', 'slide'])
@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmseg', 'B15', raises=RuntimeError)])
def test_b15_images_smaller_than_the_crop(whose, mode):
    """B15: 32 x 48 pixels are segmented as by a backbone made for them (mmseg: the fixed window crashes).

    mmseg's `*_ms` configs have one scale only; ours: test_official_scales.py.
    """
    model, image = segmentor(whose, mode), torch.randn(1, 3, 32, 48)
    metas = [dict(img_shape=(32, 48), ori_shape=(32, 48))]
    other = segmentor(whose, mode, size=(32, 48))
    state = model.state_dict()
    for key in [k for k in state if k.endswith('bias_table')]:
        state[key] = resize_table(state[key], (4, 4), (2, 3))
    other.load_state_dict({k: v for k, v in state.items() if not k.endswith('position_index')}, strict=False)
    with torch.no_grad():
        expected = other.inference(image, metas)
        torch.testing.assert_close(model.inference(image, metas), expected, atol=1e-4, rtol=1e-4)


SELF_SUPERVISED = {  # what a pre-training checkpoint can be, and the segmentor that it should start
    'shared table': (dict(variant='beit_plus'), {}, KeyError),
    'absolute positions': (
        dict(use_abs_pos_emb=True, use_rel_pos_bias=False),
        dict(use_abs_pos_emb=True, use_rel_pos_bias=False),
        TypeError,  # no such argument
    ),
    'no LayerScale': (
        dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True, layer_scale_init_value=0.0),
        dict(init_values=None),
        TypeError,
    ),
}


@pytest.mark.parametrize(
    ('whose', 'kind'),
    [
        *[('beit_mm', kind) for kind in SELF_SUPERVISED],
        *[
            pytest.param('mmseg', kind, marks=theirs('', 'B16', raises=raises).marks)
            for kind, (_, _, raises) in SELF_SUPERVISED.items()
        ],
    ],
)
def test_b16_segmentor_from_self_supervised_weights(whose, kind, tmp_path):
    """B16: a segmentor's backbone starts with the features of the pre-training alone (mmseg: cannot be loaded)."""
    pretraining, arguments, _ = SELF_SUPERVISED[kind]
    source = BEiTViT(
        TINY, img_size=64, with_mask_token=True, final_norm=True, out_type='featmap', out_indices=(0, 1), **pretraining
    )
    randomised(source)
    model = loaded(whose, tmp_path / 'w.pth', source.state_dict(), out_indices=(0, 1), **arguments)
    image = torch.randn(2, 3, 64, 64)
    for given, expected in zip(model(image), source(image), strict=True):
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmseg', 'B17')])
def test_b17_official_file_as_it_is(whose, tmp_path):
    """B17: of `{'model': ...}` the weights arrive, or CheckpointError says why not (mmseg: nothing, silently)."""
    meta, _, _ = golden('finetune_relpos_meanpool')
    tensors = load_file(DATA / 'finetune_relpos_meanpool.safetensors')
    official = {key[len('model.') :]: value for key, value in tensors.items() if key.startswith('model.')}
    write(dict(model=official), tmp_path / 'beit.pth')
    arguments = backbone_arguments(meta)
    start = dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'beit.pth')))
    if whose == 'mmseg':
        model = build(whose, arguments['arch'], arguments['img_size'], patch_size=arguments['patch_size'], **start)
    else:
        model = BEiTViT(**arguments, **start)
    try:
        model.init_weights()
    except CheckpointError:
        return
    assert torch.equal(model.cls_token, official['cls_token'])
    assert torch.equal(model.layers[-1].attn.proj.weight, official[f'blocks.{meta["depth"] - 1}.attn.proj.weight'])


# Defaults


def defaults(classes):
    """{(class, argument): default} of every constructor."""
    return {
        (cls.__name__, name): parameter.default
        for cls in classes
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def classes_of(module):
    return [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]


@pytest.mark.parametrize('whose', ['beit_mm', 'mmpretrain', theirs('mmseg', 'B18')])
def test_b18_building_a_model_changes_no_default(whose):
    """B18: what a class takes by default is the same after a model was built (mmseg: the last layer's arguments)."""
    module = {
        'beit_mm': importlib.import_module('beit_mm.models.block'),
        'mmpretrain': mmpretrain_beit,
        'mmseg': mmseg_beit,
    }[whose]
    build(whose)
    before = copy.deepcopy(defaults(classes_of(module)))
    build(whose, dict(embed_dims=24, num_layers=1, num_heads=2, feedforward_channels=48), img_size=32)
    assert defaults(classes_of(module)) == before


def test_b18_no_default_can_be_changed():
    """B18: no class of beit_mm.models has a list, dict or set as a default."""
    names = [f'beit_mm.models.{found.name}' for found in pkgutil.iter_modules(beit_mm.models.__path__)]
    classes = [cls for name in names for cls in classes_of(importlib.import_module(name))]
    assert set(beit_mm.models.__all__) - {'dalle'} <= {cls.__name__ for cls in classes}
    mutable = {key: value for key, value in defaults(classes).items() if isinstance(value, (dict, list, set))}
    assert mutable == {}
