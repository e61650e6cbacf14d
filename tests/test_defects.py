"""The 18 known defects of mmpretrain's and mmseg's BEiT, one after the other.

Each test passes on ours and fails on theirs: a strict xfail, so that a mend upstream shows up here.
"""

import inspect
import math
import signal
from pathlib import Path

import mmpretrain
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from mmpretrain.datasets.transforms.processing import BEiTMaskGenerator, RandomResizedCropAndInterpolationWithTwoPic
from mmpretrain.models.backbones import BEiTViT as MMPretrainBEiT
from mmpretrain.models.backbones.beit import BEiTTransformerEncoderLayer as MMPretrainBlock
from mmpretrain.models.selfsup.beit import BEiTPretrainViT as MMPretrainMIM
from mmpretrain.models.utils.embed import resize_relative_position_bias_table
from mmseg.models.backbones import BEiT as MMSegBEiT
from mmseg.models.backbones.beit import BEiTTransformerEncoderLayer as MMSegBlock
from official import golden
from PIL import Image
from torch import nn

import beit_mm.models
from beit_mm.checkpoints.load import CheckpointError, fit, write
from beit_mm.data import embedded
from beit_mm.data.transforms import TwoViewCrop, random_resized_box
from beit_mm.engine.configs import load_config
from beit_mm.models import BEiTViT, MaskedImageModel
from beit_mm.models.block import Block
from beit_mm.ops.masking import blockwise_mask
from beit_mm.ops.relative_position import resize_table

ROOT = Path(__file__).parents[1]
ARCH = dict(embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=192)
SMALL = dict(arch=ARCH, img_size=64)
SHARED = dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
IN_MMSEG = dict(embed_dims=48, num_layers=3, num_heads=3, img_size=64, norm_cfg=dict(type='LN', eps=1e-6))


def theirs(name, raises=AssertionError):
    return pytest.param(name, marks=pytest.mark.xfail(strict=True, raises=raises))


MMPRETRAIN = pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain')])


def draw_masks(whose, number, count, min_block=16):
    if whose == 'beit_mm':
        rng = np.random.default_rng(0)
        return np.stack([blockwise_mask(rng, (14, 14), number, min_block) for _ in range(count)])
    np.random.seed(0)
    generator = BEiTMaskGenerator((14, 14), number, min_block)
    return np.stack([generator.transform({})['mask'] for _ in range(count)])


@MMPRETRAIN
def test_b01_last_row_and_column_are_masked(whose):
    """As often as the first: official 0.134. mmpretrain's offsets stop one short."""
    masks = draw_masks(whose, 75, 300)
    for edge in (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]):
        assert 0.10 < edge.mean() < 0.17


@MMPRETRAIN
def test_b02_a_mask_may_stop_short(whose):
    """At most 75, and exactly 75 in two thirds of them (official 66.6 %); mmpretrain goes on until it is 75."""
    counts = draw_masks(whose, 75, 300).sum(axis=(1, 2))
    assert counts.max() == 75
    assert 0.55 < (counts == 75).mean() < 0.78


class TooLong(Exception):
    pass


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', TooLong)])
def test_b02_a_mask_always_comes(whose):
    """190 of 196 patches: mmpretrain waits for ever for blocks that no longer fit."""

    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        assert draw_masks(whose, 190, 5).sum(axis=(1, 2)).max() <= 190
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@MMPRETRAIN
def test_b03_each_branch_is_dropped_once(whose):
    """At a rate of 0.5 the MLP branch survives in half the samples; mmpretrain drops it twice, a quarter survives."""
    if whose == 'beit_mm':
        block = Block(8, 2, 16, 'qv_bias', None, 0.0, 0.0, drop_path=0.5, layer_scale=0.0, eps=1e-6, fused=True)
    else:
        block = MMPretrainBlock(8, 2, 16, 0.0, (2, 2), False, drop_path_rate=0.5)
    block.attn.forward = lambda x, *args, **kwargs: torch.zeros_like(x)
    nn.init.ones_(block.ffn.layers[1].bias)
    survived = block.train()(torch.zeros(4000, 1, 8), None).abs().sum(dim=(1, 2)) > 0
    assert survived.float().mean().item() == pytest.approx(0.5, abs=0.04)


@MMPRETRAIN
def test_b04_pretraining_starts_within_one_sigma(whose):
    """Every matrix within +-0.02, qkv's standard deviation 0.0108; theirs, by its own config, two sigma and Xavier."""
    if whose == 'beit_mm':
        model = BEiTViT(**SMALL, **SHARED, with_mask_token=True, final_norm=True, out_type='raw')
    else:
        init = stock('mmpretrain', 'beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py').model.backbone.init_cfg
        model = MMPretrainMIM(**SMALL, init_cfg=init)
        model.init_weights()
    matrices = {n: p for n, p in model.named_parameters() if p.ndim > 1 and 'bias_table' not in n}
    assert len(matrices) == 3 * 4 + 3
    for name, matrix in matrices.items():
        assert matrix.abs().max().item() <= 0.02, name
    assert matrices['layers.1.attn.qkv.weight'].std().item() == pytest.approx(0.0108, rel=0.03)


@MMPRETRAIN
@pytest.mark.parametrize('part', ['tables', 'class token', 'qkv', 'second linear'])
def test_b05_fine_tuning_starts_officially(whose, part):
    """Tables 0, class token and Linear 0.02, the block's second linear divided by sqrt(2 l)."""
    model = BEiTViT(**SMALL) if whose == 'beit_mm' else MMPretrainBEiT(**SMALL)
    model.init_weights()
    block = model.layers[2]
    if part == 'tables':
        assert not block.attn.relative_position_bias_table.any()
    elif part == 'class token':
        assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.4)
    elif part == 'qkv':
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.04)
    else:
        assert block.ffn.layers[1].weight.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.04)


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain'), theirs('mmseg')])
def test_b06_attention_dropout_acts(whose):
    """Two passes in training differ. Theirs hand the rate to an argument that nobody has."""
    if whose == 'beit_mm':
        model = BEiTViT(**SMALL, attn_drop_rate=0.5)
    elif whose == 'mmpretrain':
        model = MMPretrainBEiT(**SMALL, layer_cfgs=dict(attn_drop_rate=0.5))
    else:
        model = MMSegBEiT(**IN_MMSEG, attn_drop_rate=0.5)
    model.train()
    image = torch.randn(1, 3, 64, 64)
    assert not torch.equal(model(image)[0], model(image)[0])


@MMPRETRAIN
def test_b07_the_shared_table_arrives_under_a_prefix(whose):
    """`load_from` a pre-training checkpoint into a classifier: every block's table is the shared one."""
    kind = 'beit_mm.BEiTViT' if whose == 'beit_mm' else 'BEiTViT'
    head = dict(type='LinearClsHead', num_classes=3, in_channels=48)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='ImageClassifier', backbone=dict(type=kind, **SMALL), head=head))
    pretrained = BEiTViT(**SMALL, **SHARED)
    table = nn.init.normal_(pretrained.rel_pos_bias.relative_position_bias_table)
    weights = {f'backbone.{key}': value for key, value in pretrained.state_dict().items()}
    if whose == 'beit_mm':
        weights, _ = fit(weights, model.state_dict(), model.backbone.own_grid)
    model.load_state_dict(weights, strict=False)
    for layer in model.backbone.layers:
        assert torch.equal(layer.attn.relative_position_bias_table, table)


@MMPRETRAIN
def test_b08_the_tokenizers_view_is_antialiased(whose):
    """As Pillow's Lanczos; theirs is OpenCV's, without antialiasing, several grey levels off."""
    photo = np.ascontiguousarray(embedded.load_photograph(5)[:180, :180])
    if whose == 'beit_mm':
        view = TwoViewCrop(64, 32, scale=(1, 1), ratio=(1, 1)).transform(dict(img=photo))['tokens_view']
    else:  # no box can be as large as the image, so the last resort is the whole of it
        crop = RandomResizedCropAndInterpolationWithTwoPic(64, 32, scale=(1, 1), ratio=(1, 1), interpolation='bicubic')
        view = crop.transform(dict(img=photo))['img'][1]
    right = np.asarray(Image.fromarray(photo).resize((32, 32), Image.Resampling.LANCZOS))
    assert np.abs(view.astype(float) - right).mean() < 0.5


@MMPRETRAIN
def test_b08_a_box_may_touch_the_border(whose):
    rng = np.random.default_rng(0)
    np.random.seed(0)
    if whose == 'beit_mm':
        boxes = [random_resized_box(rng, 20, 20, (0.3, 1), (3 / 4, 4 / 3)) for _ in range(500)]
    else:
        image = np.zeros((20, 20, 3))
        get = RandomResizedCropAndInterpolationWithTwoPic.get_params
        boxes = [get(image, (0.3, 1), (3 / 4, 4 / 3)) for _ in range(500)]
    smaller = [(top, h) for top, _, h, _ in boxes if h < 20]
    assert max(top + h for top, h in smaller) == 20


def stock(package, name):
    root = Path((mmpretrain if package == 'mmpretrain' else mmseg).__file__).parent
    return Config.fromfile(root / '.mim' / 'configs' / name)


def normalisation(config):
    of = config.model.get('data_preprocessor') or config.data_preprocessor
    return list(of['mean']), list(of['std'])


@MMPRETRAIN
def test_b09_fine_tuning_normalises_as_pre_training_did(whose):
    """Theirs pre-trains with ImageNet's mean and fine-tunes with 127.5."""
    if whose == 'beit_mm':
        pairs = [
            (load_config(pretrain), load_config(tuned))
            for task in ('classification', 'segmentation')
            for tuned in sorted(ROOT.glob(f'configs/{task}/*.py'))
            for pretrain in sorted(ROOT.glob(f'configs/pretrain/{tuned.stem.split("_")[0]}_*.py'))
        ]
        assert pairs
    else:
        names = ('beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py',
                 'beit/benchmarks/beit-base-p16_8xb128-coslr-100e_in1k.py')  # fmt: skip
        pairs = [[stock('mmpretrain', name) for name in names]]
    for pretrain, tuned in pairs:
        assert normalisation(pretrain) == normalisation(tuned)


@pytest.mark.parametrize(
    'whose', ['beit_mm', theirs('mmpretrain', NotImplementedError), theirs('mmseg', NotImplementedError)]
)
def test_b10_tables_are_resized_on_todays_scipy(whose):
    """scipy.interpolate.interp2d is gone."""
    _, _, io = golden('relpos_resize')
    table, right = io['src_14to24'], io['dst_14to24']
    if whose == 'beit_mm':
        resized = resize_table(table, (14, 14), (24, 24))[:-3]
    elif whose == 'mmpretrain':
        resized = resize_relative_position_bias_table(27, 47, table[:-3], table.shape[1])
    else:
        resized = MMSegBEiT._geometric_sequence_interpolation(MMSegBEiT(**IN_MMSEG), 27, 47, table[:-3], table.shape[1])
    torch.testing.assert_close(resized, right[:-3], atol=1e-5, rtol=0)


@MMPRETRAIN
@pytest.mark.parametrize('place', ['optimizer', 'checkpoint'])
def test_b11_the_tokenizer_is_nobodys_parameter(whose, place):
    """Theirs: 74 tensors, 53.8 M parameters (here 8 wide), learn, are reduced over ranks, and saved every time."""
    if whose == 'beit_mm':
        backbone = dict(type='beit_mm.BEiTViT', **SMALL, **SHARED, with_mask_token=True, out_type='raw')
        tokenizer = dict(type='beit_mm.DALLEEncoder', n_hid=8, vocab_size=16)
        model = MaskedImageModel(
            backbone, dict(type='beit_mm.TokenTarget', tokenizer=tokenizer), dict(
                type='beit_mm.TokenHead', embed_dims=48, vocab_size=16)
        )  # fmt: skip
    else:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(
                dict(
                    type='BEiT',
                    backbone=dict(type='BEiTPretrainViT', **SMALL),
                    head=dict(type='BEiTV1Head', embed_dims=48, num_embed=16, loss=dict(type='CrossEntropyLoss')),
                    target_generator=dict(type='DALL-E', n_hid=8, vocab_size=16),
                )
            )
    if place == 'optimizer':
        names = [name for name, p in model.named_parameters() if p.requires_grad]
    else:
        names = list(model.state_dict())
    assert [name for name in names if not name.startswith(('backbone.', 'head.', 'data_preprocessor'))] == []


@MMPRETRAIN
@pytest.mark.parametrize('part', ['train() returns self', 'frozen blocks stay in eval', 'the shared table is frozen'])
def test_b12_frozen_is_frozen(whose, part):
    kind = BEiTViT if whose == 'beit_mm' else MMPretrainBEiT
    model = kind(**SMALL, **SHARED, frozen_stages=2, drop_path_rate=0.5)
    returned = model.train()
    if part == 'train() returns self':
        assert returned is model
    elif part == 'frozen blocks stay in eval':
        assert not model.layers[1].training
        assert model.layers[2].training
    else:
        assert not model.rel_pos_bias.relative_position_bias_table.requires_grad


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', (AttributeError, TypeError))])
def test_b13_negative_block_numbers_in_a_tuple(whose):
    kind = BEiTViT if whose == 'beit_mm' else MMPretrainBEiT
    outputs = kind(**SMALL, out_indices=(0, -1), out_type='featmap')(torch.randn(1, 3, 64, 64))
    assert [tuple(output.shape) for output in outputs] == [(1, 48, 4, 4)] * 2


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmpretrain', RuntimeError)])
def test_b13_other_sizes_at_run_time(whose):
    """Both claim it; with a relative bias theirs adds tables of the old size."""
    kind = BEiTViT if whose == 'beit_mm' else MMPretrainBEiT
    torch.manual_seed(0)
    model = kind(**SMALL, out_type='featmap')
    assert model(torch.randn(1, 3, 96, 48))[0].shape == (1, 48, 6, 3)


def rates(config):
    """The learning rate over a run, in 100 steps, as mmengine's schedulers give it (lengths scaled down)."""
    train = config.train_cfg
    unit = (train.get('max_iters') or train.get('max_epochs')) / 100
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = []
    for cfg in config.param_scheduler:
        cfg = {key: value for key, value in cfg.items() if key not in ('convert_to_iter_based', 'T_max')}
        for key in ('begin', 'end'):
            if key in cfg:
                cfg[key] = max(0 if key == 'begin' else 1, round(cfg[key] / unit))
        schedulers.append(PARAM_SCHEDULERS.build(dict(cfg, optimizer=optimizer)))
    seen = []
    for _ in range(100):
        seen.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return seen


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmseg')])
def test_b14_no_run_learns_at_rate_0(whose):
    """mmseg's BEiT-L decays over 160,000 of its 320,000 iterations; tools/train.py refuses that (test_schedules.py)."""
    if whose == 'beit_mm':
        configs = [load_config(p) for p in sorted(ROOT.glob('configs/*/*.py')) if p.parent.name in (
            'tokenizer', 'pretrain', 'classification', 'segmentation')]  # fmt: skip
    else:
        configs = [stock('mmseg', 'beit/beit-large_upernet_8xb1-amp-160k_ade20k-640x640.py')]
    checked = 0
    for config in configs:
        if config.get('param_scheduler'):
            assert min(rates(config)[2:-1]) > 0
            checked += 1
    assert checked


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmseg', RuntimeError)])
def test_b15_an_image_smaller_than_the_crop(whose):
    """A segmentor for crops of 64 meets one of 32 x 48, as in multi-scale testing."""
    backbone = dict(type='beit_mm.BEiTViT' if whose == 'beit_mm' else 'BEiT', out_indices=(0, 1, 1, 2), **IN_MMSEG)
    head = dict(type='FCNHead', in_channels=48, in_index=-1, channels=8, num_convs=1, num_classes=3,
                norm_cfg=dict(type='BN'))  # fmt: skip
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(
            dict(type='EncoderDecoder', backbone=backbone, decode_head=head, test_cfg=dict(mode='whole'))
        )
    model.eval()
    logits = model.encode_decode(torch.randn(1, 3, 32, 48), [dict(img_shape=(32, 48))])
    assert logits.shape == (1, 3, 32, 48)


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmseg', KeyError)])
def test_b16_a_segmentor_starts_from_pre_training_alone(whose, tmp_path):
    """Its checkpoint has one table for all blocks (mmsegmentation#3287)."""
    pretrained = BEiTViT(**SMALL, **SHARED, with_mask_token=True, final_norm=True, out_type='raw')
    table = nn.init.normal_(pretrained.rel_pos_bias.relative_position_bias_table)
    write(dict(state_dict=pretrained.state_dict()), tmp_path / 'pretrained.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'pretrained.pth'))
    model = (BEiTViT if whose == 'beit_mm' else MMSegBEiT)(**IN_MMSEG, init_cfg=init)
    model.init_weights()
    for layer in model.layers:
        assert torch.equal(layer.attn.relative_position_bias_table, table)


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmseg', TypeError)])
def test_b16_no_layer_scale(whose):
    model = (BEiTViT if whose == 'beit_mm' else MMSegBEiT)(**IN_MMSEG, init_values=None)
    assert not any('gamma' in name for name, _ in model.named_parameters())


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmseg')])
def test_b17_an_official_file_is_loaded_or_refused(whose, tmp_path):
    """Never neither: theirs reads nothing of it and says nothing."""
    _, weights, _ = golden('seg_backbone_relpos')
    official = {key.replace('layers.', 'blocks.'): value for key, value in weights.items()}
    write(dict(model=official), tmp_path / 'beit.pth')
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'beit.pth'))
    model = (BEiTViT if whose == 'beit_mm' else MMSegBEiT)(**IN_MMSEG, init_cfg=init)
    try:
        model.init_weights()
    except CheckpointError as error:
        assert 'beit.pth' in str(error)  # noqa: PT017  (either way is right)
    else:
        assert torch.equal(model.cls_token, official['cls_token'])


def defaults(kind):
    return {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}


@pytest.mark.parametrize('whose', ['beit_mm', theirs('mmseg')])
def test_b18_building_a_layer_leaves_no_trace(whose):
    """mmseg writes the arguments of the last layer built into the default of the next."""
    if whose == 'mmseg':
        MMSegBlock(48, 3, 96, window_size=(2, 2), init_values=0.1)
        assert defaults(MMSegBlock)['attn_cfg'] == {}
        return
    checked = 0
    for module in vars(beit_mm.models).values():
        for kind in vars(module).values() if inspect.ismodule(module) else []:
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                assert not [n for n, value in defaults(kind).items() if isinstance(value, (dict, list, set))], kind
                checked += 1
    assert checked > 15
