"""Plain vision transformers (DeiT, ViT, DINO, MoCo v3, MAE) in a BEiTViT: live against timm, out of their own files."""

import argparse

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from beit_mm.checkpoints import convert_state_dict
from beit_mm.checkpoints.load import CheckpointError, read, state_dict_of, write
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import run
from beit_mm.models import BEiTViT

pytestmark = pytest.mark.usefixtures('no_pretty_printing')
RECIPES = [
    'configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py',
    'configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py',
]
ARCH = dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=48)
PLAIN = dict(arch=ARCH, img_size=64, variant='beit', bias=True)  # what makes a BEiTViT a plain ViT


def theirs(global_pool='token', classes=5):
    model = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=24, depth=3, num_heads=2, mlp_ratio=2, num_classes=classes,
        global_pool=global_pool,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def deit(weights):
    return dict(model=weights)


def dino(weights):
    return {key: value for key, value in weights.items() if not key.startswith('head.')}


def dino_full(weights):
    backbone = {f'backbone.{key}': value for key, value in dino(weights).items()}
    projection = {'head.mlp.0.weight': torch.zeros(4, 24), 'head.last_layer.weight_g': torch.zeros(9, 1)}
    student = {f'module.{key}': value + 1 for key, value in {**backbone, **projection}.items()}
    args = argparse.Namespace(arch='vit_base')
    return dict(student=student, teacher={**backbone, **projection}, epoch=800, args=args)


def moco_v3(weights):
    backbone = {f'module.base_encoder.{key}': value for key, value in dino(weights).items()}
    momentum = {f'module.momentum_encoder.{key}': value + 1 for key, value in dino(weights).items()}
    others = ('module.base_encoder.head.0.weight', 'module.momentum_encoder.head.1.running_mean')
    others += ('module.predictor.0.weight',)
    weights = {**backbone, **momentum, **dict.fromkeys(others, torch.zeros(7))}
    return dict(epoch=300, arch='vit_base', state_dict=weights)


def mae(weights):
    decoder = ('mask_token', 'decoder_pos_embed', 'decoder_embed.weight', 'decoder_blocks.0.attn.qkv.bias')
    decoder += ('decoder_norm.weight', 'decoder_pred.bias')
    return dict(model={**dino(weights), **dict.fromkeys(decoder, torch.zeros(1, 1, 9))})


def mmpretrain(weights):
    return dict(state_dict=convert_state_dict(weights)[0])


def flax(weights, heads=2):
    """As vision_transformer writes them: heads apart, (in, out), and channels last."""
    dim = weights['cls_token'].shape[2]
    split, layers = (heads, dim // heads), {key.split('.')[1] for key in weights if key.startswith('blocks.')}
    arrays = dict(cls=weights['cls_token'])
    arrays['Transformer/posembed_input/pos_embedding'] = weights['pos_embed']
    arrays['embedding/kernel'] = weights['patch_embed.proj.weight'].permute(2, 3, 1, 0)
    arrays['embedding/bias'] = weights['patch_embed.proj.bias']
    arrays['head/kernel'], arrays['head/bias'] = weights['head.weight'].T, weights['head.bias']
    arrays['Transformer/encoder_norm/scale'] = weights['norm.weight']
    arrays['Transformer/encoder_norm/bias'] = weights['norm.bias']
    for i in layers:
        ours, block = f'blocks.{i}', f'Transformer/encoderblock_{i}'
        attention = f'{block}/MultiHeadDotProductAttention_1'
        for name, norm in (('norm1', 'LayerNorm_0'), ('norm2', 'LayerNorm_2')):
            arrays[f'{block}/{norm}/scale'] = weights[f'{ours}.{name}.weight']
            arrays[f'{block}/{norm}/bias'] = weights[f'{ours}.{name}.bias']
        for name, kernel, bias in zip(
            ('query', 'key', 'value'),
            weights[f'{ours}.attn.qkv.weight'].chunk(3),
            weights[f'{ours}.attn.qkv.bias'].chunk(3),
            strict=True,
        ):
            arrays[f'{attention}/{name}/kernel'] = kernel.T.reshape(dim, *split)
            arrays[f'{attention}/{name}/bias'] = bias.reshape(split)
        arrays[f'{attention}/out/kernel'] = weights[f'{ours}.attn.proj.weight'].T.reshape(*split, dim)
        arrays[f'{attention}/out/bias'] = weights[f'{ours}.attn.proj.bias']
        for fc, dense in (('fc1', 'Dense_0'), ('fc2', 'Dense_1')):
            arrays[f'{block}/MlpBlock_3/{dense}/kernel'] = weights[f'{ours}.mlp.{fc}.weight'].T
            arrays[f'{block}/MlpBlock_3/{dense}/bias'] = weights[f'{ours}.mlp.{fc}.bias']
    return {key: value.numpy() for key, value in arrays.items()}


def saved(make, weights, folder):
    if make is flax:
        path = folder / 'B_16.npz'
        np.savez(path, **make(weights))
    else:
        path = folder / f'{make.__name__}.pth'
        torch.save(make(weights), path)
    return path


FILES = [deit, dino, dino_full, moco_v3, mae, mmpretrain, flax]


@pytest.mark.parametrize('make', FILES)
def test_the_features_are_timms(tmp_path, make):
    """Every file, through `init_cfg`: equal outputs, and equal gradients of the image."""
    model = theirs()
    path = saved(make, model.state_dict(), tmp_path)
    start = dict(type='Pretrained', checkpoint=str(path))
    ours = BEiTViT(**PLAIN, out_type='raw', final_norm=True, init_cfg=start)
    ours.init_weights()
    image = torch.randn(2, 3, 64, 64, requires_grad=True)
    outputs = [ours.eval()(image)[0], model.forward_features(image)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(output.square().sum(), image)[0] for output in outputs]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_flaxs_layout_is_the_one_that_timm_reads(tmp_path):
    """The arrays of this test's `flax` through timm's own reader: the same model, so the same file format."""
    model, other = theirs(), theirs()
    other.load_pretrained(str(saved(flax, model.state_dict(), tmp_path)))
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(other(image), model(image), atol=1e-6, rtol=1e-6)
    found = read(tmp_path / 'B_16.npz')
    assert set(found) == set(model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('pool', ['token', 'avg'])
def test_classifiers_and_back(pool):
    """Class token through the final norm, or the mean through fc_norm (MAE's fine-tuned); bit-equal back to timm."""
    model = theirs(pool)
    weights, report = convert_state_dict(model.state_dict())
    assert report.source == 'vit'
    classifier = nn.Module()
    out_type = dict(token='cls_token', avg='avg_featmap')[pool]
    classifier.backbone = BEiTViT(**PLAIN, out_type=out_type, final_norm=pool == 'token').eval()
    classifier.head = nn.Module()
    classifier.head.fc = nn.Linear(24, 5)
    classifier.load_state_dict(weights)
    image = torch.randn(2, 3, 64, 64)
    logits = classifier.head.fc(classifier.backbone(image)[0])
    torch.testing.assert_close(logits, model(image), atol=1e-5, rtol=1e-5)
    back, _ = convert_state_dict(convert_state_dict(model.state_dict())[0], target='vit')
    assert set(back) == set(model.state_dict())
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


def test_another_size(tmp_path):
    """Positions are resized as timm resizes them without its antialiasing, whose cubic is another one."""
    model = theirs()
    path = saved(mae, model.state_dict(), tmp_path)
    start = dict(type='Pretrained', checkpoint=str(path))
    ours = BEiTViT(**{**PLAIN, 'img_size': 96}, out_type='raw', final_norm=True, init_cfg=start)
    ours.init_weights()
    positions = resample_abs_pos_embed(model.pos_embed.detach(), [6, 6], antialias=False)
    model.set_input_size((96, 96))
    model.pos_embed.data.copy_(positions)
    image = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(ours.eval()(image)[0], model.forward_features(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: {**w, 'dist_token': torch.zeros(1, 1, 24)}, r'the nearest is vit, which does not know dist_token'),
        (lambda w: {**w, 'blocks.0.ls1.gamma': torch.zeros(24)}, r'does not know blocks\.0\.ls1\.gamma'),
        (lambda w: {k: v for k, v in w.items() if 'blocks.2' not in k}, 'num_layers is 2 in the checkpoint and 3 here'),
    ],
)
def test_what_is_no_plain_vit_is_refused(tmp_path, change, message):
    write(dict(model=change(theirs().state_dict())), tmp_path / 'other.pth')
    start = dict(type='Pretrained', checkpoint=str(tmp_path / 'other.pth'))
    with pytest.raises(CheckpointError, match=message):
        BEiTViT(**PLAIN, final_norm=True, init_cfg=start).init_weights()


def test_a_beit_does_not_take_a_plain_vit_and_the_other_way_round(tmp_path):
    vit = dict(type='Pretrained', checkpoint=str(saved(deit, theirs().state_dict(), tmp_path)))
    with pytest.raises(CheckpointError, match=r'attn\.qkv\.bias is not in the model'):
        BEiTViT(arch=ARCH, img_size=64, variant='beit', init_cfg=vit).init_weights()
    write(BEiTViT(arch=ARCH, img_size=64, variant='beit').state_dict(), tmp_path / 'beit.pth')
    beit = dict(type='Pretrained', checkpoint=str(tmp_path / 'beit.pth'))
    with pytest.raises(CheckpointError, match=r'attn\.q_bias is not in the model'):
        BEiTViT(**PLAIN, init_cfg=beit).init_weights()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'PK\x03\x04 and no more', r'B_16\.npz: damaged or cut off \(BadZipFile'),
        (dict(conv_root=np.zeros(3)), 'conv_root is of no plain vision transformer'),
        (
            {'Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias': np.zeros((2, 2))},
            'key.bias is missing',
        ),
        (dict(cls=np.array([print], dtype=object)), r'not a readable \.npz file of arrays \(Object arrays cannot be'),
    ],
)
def test_bad_npz_files(tmp_path, content, message):
    path = tmp_path / 'B_16.npz'
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(path, **content)
    with pytest.raises(CheckpointError, match=message):
        read(path)


@pytest.mark.parametrize('make', [dino_full, flax])
@pytest.mark.parametrize('recipe', RECIPES)
def test_in_the_downstream_recipes(tmp_path, make, recipe):
    """The miniature's recipes with a plain ViT: only `bias=True` and the file differ. The rate is zero, to see it."""
    vit = VisionTransformer(
        img_size=64, patch_size=8, in_chans=1, embed_dim=96, depth=4, num_heads=3, mlp_ratio=4, num_classes=5
    )
    weights = vit.state_dict()
    path = saved(make, weights, tmp_path) if make is dino_full else tmp_path / 'S_8.npz'
    if make is flax:
        np.savez(path, **flax(weights, heads=3))
    options = {
        'model.backbone.bias': True,
        'optim_wrapper.optimizer.lr': 0.0,
        'train_cfg.max_iters': 1,
        'train_cfg.val_interval': 1,
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.length': 4,
        'val_dataloader.dataset.length': 2,
        'val_dataloader.batch_size': 2,
        'visualizer.vis_backends': [{'type': 'LocalVisBackend'}],
    }
    runner = run(load_config(recipe, options), work_dir=str(tmp_path / 'w'), load_from=str(path), seed=0)
    model = runner.model.state_dict()
    for key, value in convert_state_dict(dino(weights))[0].items():
        if not key.startswith('backbone.ln1'):  # mean pooling and segmentation have another norm, or none
            assert torch.equal(model[key], value), key


def test_timms_released_names_are_known():
    """Every plain ViT that timm has without extra tokens or scales: its state dict is of the format."""
    for name in ('vit_base_patch16_224', 'deit_small_patch16_224', 'vit_large_patch16_384', 'vit_base_patch8_224'):
        with torch.device('meta'):
            weights = timm.create_model(name).state_dict()
        converted, report = convert_state_dict(weights)
        assert report.source == 'vit'
        assert len(converted) == len(weights)
    assert set(state_dict_of(dict(teacher=dict(a=torch.ones(1)), student=dict(b=torch.ones(1))))) == {'a'}
