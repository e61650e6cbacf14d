"""checkpoints/convert.py: live against timm, mmpretrain, mmseg and Hugging Face, and bit-equal there and back."""

import copy
import logging
import pickle
from types import SimpleNamespace

import mmseg.models  # noqa: F401  (registers)
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from official import DATA, backbone_arguments, golden
from payload import Payload
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models.beit import Beit as TimmBeit
from torch import nn

from beit_mm.checkpoints import convert_state_dict
from beit_mm.checkpoints.convert import grid_of_index
from beit_mm.checkpoints.errors import CheckpointError
from beit_mm.checkpoints.formats import FORMATS
from beit_mm.checkpoints.load import convert_file, of_beit_mm, read, state_dict_of, write
from beit_mm.engine.checkpointing import FitWeightsHook
from beit_mm.models import BEiTViT, MaskedImageModel, ViTPyramid
from beit_mm.ops.relative_position import resize_positions, resize_table

ARCH = dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=96)
SMALL = dict(arch=ARCH, img_size=64, patch_size=16)
IMAGE = torch.linspace(-2, 2, 2 * 3 * 64 * 64).sin().view(2, 3, 64, 64)
BEITS = [name for name in FORMATS if name != 'vit']  # see test_vit.py
KINDS = ('classifier', 'classifier, absolute', 'masked', 'masked, absolute', 'segmentor')
HEADS = dict(
    decode_head=dict(
        type='UPerHead', in_channels=[24] * 4, in_index=[0, 1, 2, 3], channels=24, num_classes=3, pool_scales=(1, 2),
        norm_cfg=dict(type='BN'), align_corners=False,
    ),
    auxiliary_head=dict(
        type='FCNHead', in_channels=24, in_index=2, channels=8, num_convs=1, concat_input=False, num_classes=3,
        norm_cfg=dict(type='BN'), align_corners=False,
    ),
)  # fmt: skip


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator).abs() * 0.3)
    model.eval()
    return model


def ours(kind: str) -> nn.Module:
    """A small model of ours with weights in every place."""
    task, _, positions = kind.partition(', ')
    variant = 'beit' if positions else 'beit_plus'
    if task == 'masked':
        backbone = dict(type='beit_mm.BEiTViT', **SMALL, variant=variant, out_type='raw', final_norm=True)
        model = MaskedImageModel(
            dict(backbone, with_mask_token=True),
            dict(type='beit_mm.TokenTarget', tokenizer=dict(type='beit_mm.DALLEEncoder', n_hid=8, vocab_size=16)),
            dict(type='beit_mm.TokenHead', embed_dims=24, vocab_size=16),
        )  # fmt: skip
    elif task == 'classifier':
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            backbone = dict(type='beit_mm.BEiTViT', **SMALL, variant=variant)
            if positions:
                backbone.update(out_type='cls_token', final_norm=True)
            head = dict(type='LinearClsHead', num_classes=3, in_channels=24)
            model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
    else:
        backbone = dict(type='beit_mm.BEiTViT', **SMALL, out_type='featmap', out_indices=(0, 1, 2, 3))
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = MODELS.build(
                dict(
                    type='EncoderDecoder',
                    backbone=backbone,
                    neck=dict(type='beit_mm.ViTPyramid', embed_dim=24),
                    test_cfg=dict(mode='whole'),
                    **copy.deepcopy(HEADS),
                )
            )
    return randomised(model)


def output(model: nn.Module, kind: str) -> torch.Tensor:
    """Logits of ours: classes, tokens of every patch, or both heads' maps."""
    with torch.no_grad():
        if kind.startswith('masked'):
            return model.head(model.backbone(IMAGE, MASK)[0][:, 1:])
        if kind.startswith('classifier'):
            return model(IMAGE, mode='tensor') if model.with_head is None else model.head(model.extract_feat(IMAGE))
        features = model.extract_feat(IMAGE)
        return torch.cat([model.decode_head(features).flatten(), model.auxiliary_head(features).flatten()])


MASK = torch.arange(32).view(2, 4, 4) % 3 == 0


def same(one: dict, two: dict) -> None:
    assert set(one) == set(two)
    for key, value in one.items():
        assert value.dtype == two[key].dtype
        assert torch.equal(value, two[key]), key


def reloaded(kind: str, weights: dict) -> torch.Tensor:
    """What a fresh model of ours says with these weights, all of which must fit."""
    fresh = ours(kind)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(weights)
    return output(fresh, kind)


@pytest.mark.parametrize('target', BEITS)
@pytest.mark.parametrize('kind', KINDS)
def test_there_and_back_is_bit_equal(kind, target):
    weights = ours(kind).state_dict()
    if target == 'mmseg' and 'absolute' in kind:
        with pytest.raises(CheckpointError, match=r'mmseg has no place for backbone\.pos_embed'):
            convert_state_dict(weights, target=target)
        return
    if kind == 'segmentor' and target in ('timm', 'passl'):
        with pytest.raises(CheckpointError, match=f'{target} has no name for auxiliary_head'):
            convert_state_dict(weights, target=target)
        return
    there, report = convert_state_dict(weights, target=target)
    lost = {'backbone.mask_token', 'head.cls_head.weight', 'head.cls_head.bias'}
    lost = lost if kind.startswith('masked') and target in ('mmseg', 'timm') else set()
    assert set(report.dropped) == lost
    back, _ = convert_state_dict(there, source=target)
    if kind == 'masked' and target == 'mmseg':
        weights, _ = convert_state_dict(weights, tables='expand')
    same(back, {key: value for key, value in weights.items() if key not in lost})
    again, _ = convert_state_dict(back, target=target)
    same(again, there)


@pytest.mark.parametrize('target', ['unilm', 'mmpretrain', 'timm', 'hf', 'hf5'])
@pytest.mark.parametrize('kind', KINDS)
def test_the_format_is_found_out(kind, target):
    if (kind, target) == ('segmentor', 'timm'):
        return
    there, _ = convert_state_dict(ours(kind).state_dict(), target=target)
    back, report = convert_state_dict({f'module.{key}': value for key, value in there.items()})
    twins = {'timm': 'unilm', 'mmpretrain': 'beit_mm'} if 'absolute' in kind else {}  # without tables no difference
    expected = 'mmseg' if (kind, target) == ('segmentor', 'mmpretrain') else twins.get(target, target)
    assert report.source == expected
    assert all(key.startswith(('backbone.', 'head.', 'neck.', 'decode_head.', 'auxiliary_head.')) for key in back)


OFFICIAL = ['finetune_relpos_meanpool', 'finetune_shared_relpos', 'finetune_abs_cls', 'pretrain_shared_relpos',
            'pretrain_abs_pos', 'seg_backbone_relpos']  # fmt: skip


def official_weights(name: str) -> tuple[dict, dict]:
    with safe_open(DATA / f'{name}.safetensors', 'pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {key.removeprefix('model.'): value for key, value in tensors.items() if key.startswith('model.')}
    return weights, {key: value for key, value in tensors.items() if not key.startswith('model.')}


@pytest.mark.parametrize('name', OFFICIAL)
def test_official_weights_and_logits(name):
    """The official state dicts as they are, index buffers and all: their logits or features, and back bit-equal."""
    meta, _, _ = golden(name)
    weights, io = official_weights(name)
    segmentation, masked = name.startswith('seg'), name.startswith('pretrain')
    if segmentation:
        weights = {f'backbone.{key}': value for key, value in weights.items()}
    converted, report = convert_state_dict(weights)
    assert report.source == ('unilm' if any('index' in key for key in weights) else report.source)
    back, _ = convert_state_dict(converted, target='unilm')
    same({k: v for k, v in back.items() if not k.endswith('index')},
         {k: v for k, v in weights.items() if not k.endswith('index')})  # fmt: skip
    for key in weights:
        if key.endswith('index'):
            assert torch.equal(back[key], weights[key])
    pooled = meta.get('use_mean_pooling', False)
    out_type = 'featmap' if segmentation else 'raw' if masked else 'avg_featmap' if pooled else 'cls_token'
    backbone = BEiTViT(
        **backbone_arguments(meta),
        layer_scale_init_value=0.1 if any('gamma' in key for key in converted) else 0.0,
        out_type=out_type,
        out_indices=meta['out_indices'] if segmentation else -1,
        final_norm=not segmentation and not pooled,
        with_mask_token=masked,
    ).eval()
    backbone.load_state_dict({k[9:]: v for k, v in converted.items() if k.startswith('backbone.')})
    if segmentation:
        neck = ViTPyramid(meta['embed_dim']).eval()
        neck.load_state_dict({k[5:]: v for k, v in converted.items() if k.startswith('neck.')})
        for i, feature in enumerate(neck(backbone(io['image']))):
            torch.testing.assert_close(feature, io[f'feature_{i}'], atol=1e-5, rtol=1e-6)  # of up to 10
        return
    head = 'head.cls_head' if masked else 'head.fc'
    side = meta['img_size'] // meta['patch_size']
    features = backbone(io['image'], io['mask'].view(-1, side, side))[0][:, 1:] if masked else backbone(io['image'])[0]
    logits = features @ converted[f'{head}.weight'].T + converted[f'{head}.bias']
    torch.testing.assert_close(logits, io['logits_all' if masked else 'logits'], atol=1e-5, rtol=0)


@pytest.mark.parametrize('kind', ['classifier', 'classifier, absolute'])
def test_timm(kind):
    model = ours(kind)
    plus = kind == 'classifier'
    theirs = TimmBeit(
        img_size=64, patch_size=16, embed_dim=24, depth=4, num_heads=2, num_classes=3,
        init_values=0.1 if plus else None,
        use_rel_pos_bias=plus, use_abs_pos_emb=not plus, global_pool='avg' if plus else 'token',
    ).eval()  # fmt: skip
    weights, _ = convert_state_dict(model.state_dict(), target='timm')
    theirs.load_state_dict(weights)
    torch.testing.assert_close(theirs(IMAGE), output(model, kind), atol=1e-5, rtol=1e-5)
    randomised(theirs)
    weights, _ = convert_state_dict(theirs.state_dict())
    torch.testing.assert_close(theirs(IMAGE), reloaded(kind, weights), atol=1e-5, rtol=1e-5)


def in_mmpretrain(kind: str) -> nn.Module:
    absolute = 'absolute' in kind
    backbone = dict(**SMALL, use_abs_pos_emb=absolute, layer_scale_init_value=0.0 if absolute else 0.1)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        if kind.startswith('classifier'):
            backbone.update(type='BEiTViT', use_rel_pos_bias=not absolute, final_norm=absolute)
            backbone.update(out_type='cls_token' if absolute else 'avg_featmap')
            head = dict(type='LinearClsHead', num_classes=3, in_channels=24)
            return MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
        backbone.update(type='BEiTPretrainViT', use_shared_rel_pos_bias=not absolute)
        head = dict(type='BEiTV1Head', embed_dims=24, num_embed=16, loss=dict(type='CrossEntropyLoss'))
        return MODELS.build(
            dict(
                type='BEiT', backbone=backbone, head=head, target_generator=dict(type='DALL-E', n_hid=8, vocab_size=16)
            )
        )


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'segmentor'])
def test_mmpretrain(kind):
    """Both ways, with its tokenizer in its checkpoint."""
    model, theirs = ours(kind), in_mmpretrain(kind)

    def run(module):
        with torch.no_grad():
            if kind.startswith('classifier'):
                return module.head(module.extract_feat(IMAGE))
            return module.head.cls_head(module.backbone(IMAGE, MASK.flatten(1))[0][:, 1:])

    weights, _ = convert_state_dict(model.state_dict(), target='mmpretrain')
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.startswith('target_generator.') for key in missing)
    theirs.eval()
    torch.testing.assert_close(run(theirs), output(model, kind), atol=1e-5, rtol=1e-5)
    randomised(theirs)
    weights, report = convert_state_dict(theirs.state_dict(), source='mmpretrain')
    assert all(key.startswith('target_generator.') for key in report.dropped)
    torch.testing.assert_close(run(theirs), reloaded(kind, weights), atol=1e-5, rtol=1e-5)


def test_mmseg():
    model = ours('segmentor')
    backbone = dict(type='BEiT', img_size=(64, 64), embed_dims=24, num_layers=4, num_heads=2, mlp_ratio=4,
                    out_indices=(0, 1, 2, 3), norm_cfg=dict(type='LN', eps=1e-6))  # fmt: skip
    neck = dict(type='Feature2Pyramid', embed_dim=24, norm_cfg=dict(type='BN'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        theirs = MODELS.build(
            dict(
                type='EncoderDecoder', backbone=backbone, neck=neck, test_cfg=dict(mode='whole'), **copy.deepcopy(HEADS)
            )
        )
    weights, _ = convert_state_dict(model.state_dict(), target='mmseg')
    theirs.load_state_dict(weights)
    theirs.eval()
    torch.testing.assert_close(output(theirs, 'segmentor'), output(model, 'segmentor'), atol=1e-5, rtol=1e-5)
    randomised(theirs)
    weights, report = convert_state_dict(theirs.state_dict())
    assert report.source == 'mmseg'
    torch.testing.assert_close(output(theirs, 'segmentor'), reloaded('segmentor', weights), atol=1e-5, rtol=1e-5)


def hugging_face(kind: str):
    transformers = pytest.importorskip('transformers', reason='pip install transformers, to compare with Hugging Face')
    plus = 'absolute' not in kind
    config = dict(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=96, image_size=64, patch_size=16,
        layer_norm_eps=1e-6, num_labels=3, vocab_size=16, use_absolute_position_embeddings=not plus,
        layer_scale_init_value=0.1 if plus else 0.0, use_mean_pooling=kind != 'classifier, absolute',
    )  # fmt: skip
    if kind.startswith('masked'):
        config.update(use_mask_token=True, use_shared_relative_position_bias=plus)
        return transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**config))
    config.update(use_relative_position_bias=plus)
    if kind.startswith('classifier'):
        return transformers.BeitForImageClassification(transformers.BeitConfig(**config))
    config.update(out_indices=[1, 2, 3, 4], pool_scales=[1, 2], auxiliary_channels=8)
    return transformers.BeitForSemanticSegmentation(transformers.BeitConfig(**config))


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'segmentor'])
def test_hugging_face(kind, tmp_path):
    """Through its own files, and by the names it has in memory; both ways."""
    model, theirs = ours(kind), hugging_face(kind)

    def run(module):
        module.eval()
        with torch.no_grad():
            return module(IMAGE, **(dict(bool_masked_pos=MASK.flatten(1)) if kind.startswith('masked') else {})).logits

    weights, _ = convert_state_dict(model.state_dict(), target='hf5')
    theirs.load_state_dict(weights)
    torch.testing.assert_close(run(theirs), output(model, kind), atol=1e-5, rtol=1e-5)
    randomised(theirs)
    weights, report = convert_state_dict(theirs.state_dict())
    assert report.source == 'hf5'
    torch.testing.assert_close(run(theirs), reloaded(kind, weights), atol=1e-5, rtol=1e-5)

    theirs.save_pretrained(tmp_path)
    stored = load_file(tmp_path / 'model.safetensors')
    from_file, report = convert_state_dict(stored)
    assert report.source == 'hf'
    same(from_file, weights)
    back, _ = convert_state_dict(from_file, target='hf')
    same(back, stored)


def test_hugging_face_segmentor(tmp_path):
    """Every key of its files has its place; the features of the backbone and the pyramid are equal."""
    theirs = randomised(hugging_face('segmentor'))
    theirs.save_pretrained(tmp_path)
    stored = load_file(tmp_path / 'model.safetensors')
    weights, report = convert_state_dict(stored)
    assert report.source == 'hf'
    in_memory, _ = convert_state_dict(theirs.state_dict(), source='hf5')
    same({k: v for k, v in in_memory.items() if k in weights}, weights)
    model = ours('segmentor')
    pooled = [key for key in weights if key.startswith('backbone.ln')]  # its classifier's norms, unused here
    model.load_state_dict({key: value for key, value in weights.items() if key not in pooled}, strict=False)
    back, _ = convert_state_dict(weights, target='hf')
    same(back, stored)
    with torch.no_grad():
        maps = model.backbone(IMAGE)
        hidden = theirs.beit(IMAGE).last_hidden_state[:, 1:]
        torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), hidden, atol=1e-5, rtol=1e-5)
        scales = model.neck(maps)
        logits = theirs.decode_head(list(scales))
        torch.testing.assert_close(model.decode_head(scales), logits, atol=1e-4, rtol=1e-4)


def test_paddle_stores_its_matrices_the_other_way():
    """(in, out): linear weights are transposed, the convolution and the tables are not."""
    weights = ours('classifier').state_dict()
    paddle, _ = convert_state_dict(weights, target='passl')
    assert torch.equal(paddle['backbone.blocks.1.attn.qkv.weight'], weights['backbone.layers.1.attn.qkv.weight'].T)
    assert torch.equal(paddle['head.fc_cls.weight'], weights['head.fc.weight'].T)
    for theirs, own in (('patch_embed.proj.weight', 'patch_embed.projection.weight'),
                        ('blocks.0.attn.relative_position_bias_table', 'layers.0.attn.relative_position_bias_table'),
                        ('fc_norm.weight', 'ln2.weight')):  # fmt: skip
        assert torch.equal(paddle[f'backbone.{theirs}'], weights[f'backbone.{own}'])
    paddle['head.head.weight'], paddle['head.head.bias'] = (
        paddle.pop('head.fc_cls.weight'),
        paddle.pop('head.fc_cls.bias'),
    )
    same(convert_state_dict(paddle, source='passl')[0], weights)


def test_tables_are_expanded_and_shared_again():
    weights = ours('masked').state_dict()
    expanded, report = convert_state_dict(weights, tables='expand')
    table = weights['backbone.rel_pos_bias.relative_position_bias_table']
    assert report.expanded == [f'backbone.layers.{i}.attn.relative_position_bias_table' for i in range(4)]
    assert all(torch.equal(expanded[name], table) for name in report.expanded)
    same(convert_state_dict(expanded, tables='share')[0], weights)
    expanded[report.expanded[2]] = table + 1
    with pytest.raises(CheckpointError, match=r'layers\.2\.attn\.\S+ differs from backbone\.layers\.0'):
        convert_state_dict(expanded, tables='share')


@pytest.mark.parametrize('interpolation', ['geometric', 'bicubic', 'bilinear'])
def test_tables_and_positions_for_another_grid(interpolation):
    """Also to a rectangle, and from one to where its index buffer says it came from."""
    name = 'backbone.layers.1.attn.relative_position_bias_table'
    weights = ours('classifier').state_dict()
    resized, report = convert_state_dict(weights, grid=(6, 5), interpolation=interpolation, target='mmpretrain')
    expected = resize_table(weights[name], (4, 4), (6, 5), interpolation)
    assert torch.equal(resized[name], expected)
    assert len(report.resized) == 4
    index = resized[name.replace('table', 'index').replace('bias_index', 'index')]
    assert index.shape == (31, 31)
    back, _ = convert_state_dict(resized, grid=(4, 4), interpolation=interpolation)
    assert torch.equal(back[name], resize_table(expected, (6, 5), (4, 4), interpolation))
    absolute = ours('classifier, absolute').state_dict()
    resized, _ = convert_state_dict(absolute, grid=(6, 5), interpolation=interpolation)
    mode = 'bicubic' if interpolation == 'geometric' else interpolation
    expected = resize_positions(absolute['backbone.pos_embed'], (4, 4), (6, 5), mode)
    assert torch.equal(resized['backbone.pos_embed'], expected)


def test_heads_are_dropped_by_name():
    weights, report = convert_state_dict(ours('segmentor').state_dict(), target='unilm', drop=('decode_head.conv_seg',))
    assert report.dropped == ['decode_head.conv_seg.weight', 'decode_head.conv_seg.bias']
    assert 'decode_head.conv_seg.weight' not in weights
    assert 'auxiliary_head.conv_seg.weight' in weights


def test_patch_8_upsamples_once():
    """The official fpn1 is then our upsample_2x."""
    weights = {k: v for k, v in ours('segmentor').state_dict().items() if 'upsample_4x' not in k}
    official, _ = convert_state_dict(weights, target='unilm')
    assert torch.equal(official['backbone.fpn1.0.weight'], weights['neck.upsample_2x.0.weight'])
    assert not any('fpn2' in key for key in official)
    same(convert_state_dict(official)[0], weights)


def mixed():
    weights = ours('classifier').state_dict()
    official, _ = convert_state_dict(weights, target='unilm')
    return {**official, 'beit.encoder.layer.3.lambda_1': weights['backbone.layers.3.gamma_1']}


def no_key():
    weights, _ = convert_state_dict(ours('classifier').state_dict(), target='hf')
    del weights['beit.encoder.layer.2.attention.attention.key.weight']
    return weights


MISTAKES = [
    (lambda: {}, {}, 'there are no weights in it'),
    (
        lambda: {'conv1.weight': torch.zeros(1), 'fc.weight': torch.zeros(1)},
        {},
        'no BEiT in a known format.*conv1.weight',
    ),
    (lambda: ours('classifier').state_dict(), dict(source='unilm'), r'not names of unilm but of beit_mm: backbone\.'),
    (lambda: ours('classifier').state_dict(), dict(target='onnx'), "no format 'onnx'; there are beit_mm, unilm"),
    (lambda: ours('classifier').state_dict(), dict(source='onnx'), "no format 'onnx'"),
    (lambda: ours('classifier').state_dict(), dict(tables='merge'), "tables='merge' is none of keep"),
    (mixed, {}, r'two formats are mixed: most are unilm, but hf has beit\.encoder\.layer\.3\.lambda_1'),
    (no_key, {}, r'layers\.2\.attn\.qkv\.weight is made of query\.weight, .* key\.weight is not there'),
]


@pytest.mark.parametrize(('make', 'arguments', 'message'), MISTAKES)
def test_mistakes_are_named(make, arguments, message):
    with pytest.raises(CheckpointError, match=message):
        convert_state_dict(make(), **arguments)


FILES = {'unilm': '.pth', 'mmpretrain': '.pth', 'timm': '.safetensors', 'hf': '.safetensors', 'passl': '.pdparams',
         'beit_mm': '.safetensors'}  # fmt: skip


def written(tmp_path, kind, target):
    """A file of the target's, by the door's function, and the model that it is of."""
    model = ours(kind)
    write(dict(state_dict=model.state_dict()), tmp_path / 'ours.pth')
    path = tmp_path / f'{target}{FILES[target]}'
    convert_file(tmp_path / 'ours.pth', path, None, target)
    return model, path


@pytest.mark.parametrize('target', FILES)
def test_files_of_every_format_are_converted_and_loaded(tmp_path, target):
    """Converted back by the door, loaded by a backbone's init_cfg, by `load_from`, and for a test: the same weights."""
    model, path = written(tmp_path, 'classifier', target)
    convert_file(path, tmp_path / 'back.pth', None, 'beit_mm')
    same(state_dict_of(read(tmp_path / 'back.pth')), dict(model.state_dict()))

    backbone = BEiTViT(**SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    backbone.init_weights()
    same(backbone.state_dict(), dict(model.backbone.state_dict()))

    fresh = ours('classifier')
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    runner = SimpleNamespace(
        model=fresh, cfg=Config(), logger=logging.getLogger('test'), _resume=False, _load_from=str(path)
    )
    checkpoint = read(path)
    FitWeightsHook().after_load_checkpoint(runner, checkpoint)
    fresh.load_state_dict(checkpoint['state_dict'])
    torch.testing.assert_close(output(fresh, 'classifier'), output(model, 'classifier'), atol=0, rtol=0)


def test_an_official_file_fine_tunes_at_another_size(tmp_path):
    """As run_class_finetuning.py: shared table to every block, resized; the head of another task dropped."""
    model, path = written(tmp_path, 'masked', 'unilm')
    tuned = BEiTViT(arch=ARCH, img_size=96, patch_size=16, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    tuned.init_weights()
    table = model.backbone.rel_pos_bias.relative_position_bias_table.detach()
    for layer, before in zip(tuned.layers, model.backbone.layers, strict=True):
        assert torch.equal(layer.attn.relative_position_bias_table, resize_table(table, (4, 4), (6, 6)))
        assert torch.equal(layer.attn.qkv.weight, before.attn.qkv.weight)


def test_a_file_of_beit2mmseg_is_loaded(tmp_path):
    """Bare, with index buffers, and with the patch embedding under its official name too."""
    model = ours('classifier')
    weights = dict(convert_state_dict(model.backbone.state_dict(), target='mmseg')[0])
    weights = {key.removeprefix('backbone.'): value for key, value in weights.items()}
    weights['patch_embed.proj.weight'] = weights['patch_embed.projection.weight'].clone()
    write(dict(state_dict=weights), tmp_path / 'mmseg.pth')
    assert convert_state_dict(weights, source='mmseg')[1].dropped == ['patch_embed.proj.weight']
    backbone = BEiTViT(**SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'mmseg.pth')))
    backbone.init_weights()
    same(backbone.state_dict(), dict(model.backbone.state_dict()))


def test_files_that_cannot_be_converted(tmp_path):
    _, path = written(tmp_path, 'classifier', 'unilm')
    write(dict(state_dict=ours('classifier, absolute').state_dict()), tmp_path / 'ours.pth')
    with pytest.raises(CheckpointError, match=r'ours\.pth: mmseg has no place'):
        convert_file(tmp_path / 'ours.pth', tmp_path / 'new.pth', None, 'mmseg')
    with pytest.raises(CheckpointError, match=r'unilm\.pth: is there already'):
        convert_file(tmp_path / 'ours.pth', path, None, 'unilm')
    with pytest.raises(CheckpointError, match=r'new\.onnx: hf is written to a file that ends in \.pth or'):
        convert_file(path, tmp_path / 'new.onnx', None, 'hf')
    with pytest.raises(CheckpointError, match='there is no such checkpoint'):
        convert_file(tmp_path / 'none.pth', tmp_path / 'new.pth', None, 'hf')
    assert not (tmp_path / 'new.pth').exists()


def test_code_in_a_file_of_paddle_never_runs(tmp_path):
    path, marker = tmp_path / 'bad.pdparams', tmp_path / 'ran'
    path.write_bytes(pickle.dumps({'backbone.cls_token': Payload(marker)}))
    with pytest.raises(CheckpointError, match=r'bad\.pdparams: not a file of Paddle parameters .*is not an array'):
        convert_file(path, tmp_path / 'new.pth', None, 'beit_mm')
    path.write_bytes(b'\x80\x04 cut off')
    with pytest.raises(CheckpointError, match=r'bad\.pdparams: not a file of Paddle parameters'):
        read(path)
    assert not marker.exists()


def test_the_source_is_not_touched():
    weights = ours('masked').state_dict()
    before = {key: value.clone() for key, value in weights.items()}
    for target in ('mmseg', 'hf', 'passl'):
        convert_state_dict(weights, target=target, grid=(6, 6))
    same(weights, before)


@pytest.mark.parametrize('kind', ['classifier', 'masked', 'segmentor'])
def test_paddles_weights_without_a_head_are_no_official_ones(kind):
    """The names are the same then; the matrices lie the other way."""
    weights = {key: value for key, value in ours(kind).state_dict().items() if key.startswith('backbone.')}
    theirs, _ = convert_state_dict(weights, target='passl')
    back, report = convert_state_dict(theirs)
    assert report.source == 'passl'
    assert set(back) == set(weights)
    assert all(torch.equal(back[key], value) for key, value in weights.items())


def test_a_table_for_all_blocks_and_one_for_each_are_added():
    """timm's BEiT may have both; its own outputs say what they mean together."""
    theirs = TimmBeit(
        img_size=64, embed_dim=24, depth=2, num_heads=2, num_classes=3, use_rel_pos_bias=True,
        use_shared_rel_pos_bias=True, use_abs_pos_emb=False,
    ).eval()  # fmt: skip
    randomised(theirs)
    weights, report = convert_state_dict(theirs.state_dict(), tables='expand')
    assert len(report.expanded) == 2
    arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=96)
    model = BEiTViT(arch, img_size=64, layer_scale_init_value=0).eval()
    own = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    model.load_state_dict(own)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGE)[0] @ theirs.head.weight.T + theirs.head.bias, theirs(IMAGE))
    with pytest.raises(CheckpointError, match='there is a table for all blocks and'):
        convert_state_dict(theirs.state_dict(), tables='share')


def test_positions_of_a_rectangle_are_not_guessed():
    """4 x 9 patches are as many as 6 x 6."""
    model = BEiTViT(ARCH, img_size=(64, 144), variant='beit')
    weights = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    randomised(model)
    with pytest.raises(CheckpointError, match=r'fit 4 x 9 as well as 6 x 6 patches: .* \(--from-grid\)'):
        convert_state_dict(weights, grid=(4, 9))
    for grid in ((4, 9), (8, 8), (6, 6)):
        resized, _ = convert_state_dict(weights, grid=grid, source_grid=(4, 9))
        expected = resize_positions(model.pos_embed.detach(), (4, 9), grid)
        assert torch.equal(resized['backbone.pos_embed'], expected)
    with pytest.raises(CheckpointError, match='are not for 5 x 7 patches'):
        convert_state_dict(weights, source_grid=(5, 7))
    oblong = BEiTViT(ARCH, img_size=(64, 96), variant='beit').state_dict()
    with pytest.raises(CheckpointError, match='of no square grid, so it cannot be resized'):
        convert_state_dict(oblong, grid=(8, 8))


@pytest.mark.parametrize('grid', [(1, 5), (4, 6), (6, 4), (2, 2)])
def test_an_index_tells_every_grid(grid):
    model = BEiTViT(ARCH, img_size=(16 * grid[0], 16 * grid[1]))
    official, _ = convert_state_dict(model.state_dict(), target='unilm', source_grid=grid)
    assert grid_of_index(official) == grid
    back, _ = convert_state_dict(official)
    assert all(torch.equal(back[f'backbone.{key}'], value) for key, value in model.state_dict().items())


def test_slips_of_the_pen_are_named():
    weights = ours('classifier').state_dict()
    with pytest.raises(CheckpointError, match=r"drop='haed\.': no name starts so; there are backbone\., head\."):
        convert_state_dict(weights, drop=('haed.',))
    with pytest.raises(CheckpointError, match="interpolation='cubic' is none of geometric, bicubic, bilinear"):
        convert_state_dict(weights, interpolation='cubic')
    for grid in ((0, 4), (-3, 4), (4,)):
        with pytest.raises(CheckpointError, match='a grid is two positive numbers'):
            convert_state_dict(weights, grid=grid)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_preprocessing_travels_through_a_conversion(tmp_path, suffix):
    carried = dict(mean=[127.5], std=[3.0], pooling='mean')
    meta = dict(beit_mm=dict(preprocessing=carried, backbone=dict(type='beit_mm.BEiTViT')))
    write(dict(state_dict=ours('classifier').state_dict(), meta=meta), tmp_path / 'ours.pth')
    for target in ('beit_mm', 'mmpretrain', 'unilm'):
        path = tmp_path / f'{target}{suffix}'
        convert_file(tmp_path / 'ours.pth', path, None, target)
        assert of_beit_mm(read(path)) == dict(preprocessing=carried)


def test_half_precision_is_kept_and_resized_in_float(tmp_path):
    weights = {key: value.bfloat16() for key, value in ours('classifier').state_dict().items()}
    resized, _ = convert_state_dict(weights, grid=(6, 6))
    name = 'backbone.layers.0.attn.relative_position_bias_table'
    expected = resize_table(weights[name].float(), (4, 4), (6, 6)).bfloat16()
    assert torch.equal(resized[name], expected)
    assert {value.dtype for value in resized.values()} == {torch.bfloat16}
    write(dict(state_dict=weights), tmp_path / 'half.pth')
    convert_file(tmp_path / 'half.pth', tmp_path / 'half.pdparams', None, 'passl')  # NumPy has no bfloat16
    assert torch.equal(read(tmp_path / 'half.pdparams')['backbone.cls_token'], weights['backbone.cls_token'].float())
