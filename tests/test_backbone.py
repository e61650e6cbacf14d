"""models/backbone.py against the official code (goldens), and its own promises; see also test_parity.py."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from official import backbone_arguments, golden
from timm.models import adapt_input_conv
from torch.utils.flop_counter import FlopCounterMode

from beit_mm.checkpoints.fit import fit
from beit_mm.checkpoints.load import CheckpointError
from beit_mm.models.backbone import BEiTViT
from beit_mm.ops.pixels import inflate_bands
from beit_mm.ops.relative_position import resize_positions, resize_table

TINY = dict(embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=192)
PLUS = dict(arch=TINY, img_size=64)


def randomised(model):
    """Weights that matter: tables, gammas and biases away from zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.mark.parametrize('name', ['finetune_relpos_meanpool', 'finetune_shared_relpos', 'finetune_abs_cls'])
def test_equals_official_classifier(name):
    meta, weights, io = golden(name)
    layer_scale = 0.1 if any('gamma' in key for key in weights) else 0.0
    pooled = meta['use_mean_pooling']
    model = BEiTViT(
        **backbone_arguments(meta),
        layer_scale_init_value=layer_scale,
        out_type='avg_featmap' if pooled else 'cls_token',
        final_norm=not pooled,
    ).eval()
    head = {key: weights.pop(f'head.{key}') for key in ('weight', 'bias')}
    model.load_state_dict(weights)
    logits = torch.nn.functional.linear(model(io['image'])[0], head['weight'], head['bias'])
    torch.testing.assert_close(logits, io['logits'], atol=1e-5, rtol=0)


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('name', ['pretrain_shared_relpos', 'pretrain_abs_pos'])
def test_equals_official_pretraining(name, fused):
    meta, weights, io = golden(name)
    model = BEiTViT(
        **backbone_arguments(meta),
        layer_scale_init_value=0.1 if any('gamma' in key for key in weights) else 0.0,
        out_type='raw',
        final_norm=True,
        with_mask_token=True,
        fused_attention=fused,
    ).eval()
    head = {key: weights.pop(f'lm_head.{key}') for key in ('weight', 'bias')}
    model.load_state_dict(weights)
    side = meta['img_size'] // meta['patch_size']
    features = model(io['image'], io['mask'].view(-1, side, side))[0][:, 1:]
    logits = torch.nn.functional.linear(features, head['weight'], head['bias'])
    torch.testing.assert_close(logits, io['logits_all'], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[io['mask']], io['logits_masked'], atol=1e-5, rtol=0)


def test_parameter_counts():
    with torch.device('meta'):
        base, large = BEiTViT('base'), BEiTViT('large')
        pretrain = BEiTViT(
            'base',
            use_rel_pos_bias=False,
            use_shared_rel_pos_bias=True,
            with_mask_token=True,
            out_type='raw',
            final_norm=True,
        )

    def count(model):
        return sum(p.numel() for p in model.parameters())

    assert count(base) + 769 * 1000 == 86_530_984
    assert count(large) + 1025 * 1000 == 304_430_568
    assert count(pretrain) + 769 * 8192 == 91_965_776


ONE_SIGMA = 0.02 * 0.539562  # standard deviation of a normal of 0.02 cut off at +-0.02


def expect(weight, std, limit=math.inf):
    """Mean 0 and `std`, within four standard errors; nothing beyond `limit`."""
    count = weight.numel()
    assert weight.abs().max().item() <= limit
    assert abs(weight.mean().item()) < 4 * std / count**0.5
    assert weight.std().item() == pytest.approx(std, rel=4 / (2 * count) ** 0.5)


@pytest.mark.parametrize('pretraining', [True, False])
@pytest.mark.parametrize('variant', ['beit', 'beit_plus'])
def test_official_initialisation(variant, pretraining):
    """To the letter: modeling_pretrain.py cuts off at one sigma, modeling_finetune.py leaves the convolution alone."""
    arch = dict(embed_dims=192, num_layers=5, num_heads=3, feedforward_channels=768)
    model = BEiTViT(arch, img_size=112, variant=variant, with_mask_token=pretraining, final_norm=pretraining)
    std, limit = (ONE_SIGMA, 0.02) if pretraining else (0.02, 0.12)
    expect(model.cls_token, std, limit)
    if pretraining:
        expect(model.mask_token, std, limit)
        expect(model.patch_embed.projection.weight, std, limit)
        assert not model.patch_embed.projection.bias.any()
    else:
        bound = (3 * 16 * 16) ** -0.5  # torch's own start, uniform
        expect(model.patch_embed.projection.weight, bound / 3**0.5, bound)
        assert model.patch_embed.projection.bias.any()
    if variant == 'beit':
        expect(model.pos_embed, std, limit)
    for depth, block in enumerate(model.layers, start=1):
        expect(block.attn.qkv.weight, std, limit)
        expect(block.ffn.layers[0][0].weight, std, limit)
        expect(block.attn.proj.weight, std / (2 * depth) ** 0.5, limit / (2 * depth) ** 0.5)
        expect(block.ffn.layers[1].weight, std / (2 * depth) ** 0.5, limit / (2 * depth) ** 0.5)
        zeros = [block.attn.q_bias, block.attn.v_bias, block.attn.proj.bias, block.ffn.layers[0][0].bias]
        zeros += [block.ffn.layers[1].bias, block.ln1.bias, block.ln2.bias]
        if variant == 'beit_plus' and not pretraining:
            zeros.append(block.attn.relative_position_bias_table)
        assert not any(tensor.any() for tensor in zeros)
        assert block.ln1.weight.eq(1).all()
        assert block.ln2.weight.eq(1).all()
        if variant == 'beit_plus':
            assert block.gamma_1.eq(0.1).all()
            assert block.gamma_2.eq(0.1).all()
    if variant == 'beit_plus' and pretraining:
        assert not model.rel_pos_bias.relative_position_bias_table.any()


def test_a_classifier_starts_officially_when_mmengine_has_been_over_it():
    """The shipped head: 0.02 x 0.001. mmengine's init_weights leaves the backbone as it was built."""
    config = Config.fromfile(Path(__file__).parents[1] / 'configs/_base_/models/beit_mini_cls.py').model
    config.head.num_classes = 1000
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model.init_weights()
    expect(model.head.fc.weight, 2e-5)
    assert not model.head.fc.bias.any()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


def parameters_of(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_variants():
    """`beit` has positions and nothing else; `beit_plus` shares one table in pre-training only."""
    with torch.device('meta'):
        plain, plus = BEiTViT('base', variant='beit'), BEiTViT('large', variant='beit_plus')
        pretrained = BEiTViT('base', variant='beit_plus', with_mask_token=True, final_norm=True, out_type='raw')
        vanilla = BEiTViT('base', variant='beit', with_mask_token=True, final_norm=True, out_type='raw')
        spelt_out = BEiTViT('large', layer_scale_init_value=1e-5)
    names = parameters_of(plain)
    assert 'pos_embed' in names
    assert not any('gamma' in name or 'bias_table' in name for name in names)
    assert parameters_of(plus) == parameters_of(spelt_out)
    assert BEiTViT(dict(TINY, num_layers=24), img_size=32, variant='beit_plus').layers[0].gamma_1[0].item() == (
        pytest.approx(1e-5)
    )
    assert BEiTViT(**PLUS, variant='beit_plus').layers[0].gamma_1[0].item() == pytest.approx(0.1)
    tables = [name for name in parameters_of(pretrained) if name.endswith('bias_table')]
    assert tables == ['rel_pos_bias.relative_position_bias_table']
    head = 769 * 8192
    assert sum(p.numel() for p in vanilla.parameters()) + head == 92_089_856
    assert sum(p.numel() for p in pretrained.parameters()) + head == 91_965_776


def test_layer_norm_has_the_official_eps():
    """1e-6; mmseg's class says 1e-5 unless told, Hugging Face's 1e-12."""
    model = BEiTViT(**PLUS, final_norm=True)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-6] * (2 * 3 + 2)
    assert BEiTViT(**PLUS, norm_cfg=dict(type='LN', eps=1e-5)).layers[0].ln1.eps == 1e-5


def test_official_sizes():
    """Tables grow with the image: parameters of the official 384 and 512 models."""
    for arch, side, expected in (('base', 384, 86_744_104), ('large', 384, 304_998_888), ('large', 512, 305_674_728)):
        with torch.device('meta'):
            model = BEiTViT(arch, img_size=side)
        head = 1000 * (model.embed_dims + 1)
        assert sum(p.numel() for p in model.parameters()) + head == expected


def test_flops_are_counted_with_plain_attention():
    """17.56 G multiply-adds for BEiT-B at 224: by hand, and by torch's counter."""
    with torch.device('meta'):
        model = BEiTViT('base', fused_attention=False).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 224, 224))
    tokens, dim = 197, 768
    linear = 12 * tokens * 12 * dim**2 + 196 * dim * 768
    by_hand = linear + 12 * 2 * tokens**2 * dim
    assert counter.get_total_flops() / 2 == by_hand
    assert by_hand / 1e9 == pytest.approx(17.56, abs=0.01)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore:.*torch.jit.trace.*:DeprecationWarning')
@pytest.mark.slow
@pytest.mark.parametrize(('size', 'fused'), [((64, 96), True), ((64, 64), True), ((64, 96), False)])
def test_export_keeps_the_numbers(size, fused):
    """By torch.export, by a trace, and compiled (without a break in the graph at the table's own size)."""
    torch._dynamo.reset()
    model = randomised(BEiTViT(**PLUS, fused_attention=fused, use_abs_pos_emb=True))
    image = torch.randn(2, 3, *size)
    exported = torch.export.export(model.eval(), (image,)).module()
    traced = torch.jit.trace(model, image)
    compiled = torch.compile(model, fullgraph=size == (64, 64), backend='aot_eager')
    expected = model(image)[0]
    for other in (exported, traced, compiled):
        torch.testing.assert_close(other(image)[0], expected, atol=1e-6, rtol=1e-6)
    table = model.layers[1].attn.relative_position_bias_table
    (by_hand,) = torch.autograd.grad(expected.square().sum(), table)
    (of_graph,) = torch.autograd.grad(compiled(image)[0].square().sum(), table)
    torch.testing.assert_close(of_graph, by_hand, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('kind', ['beit', 'beit_plus', 'shared'])
def test_gradient_checkpointing_changes_no_gradient(kind):
    """Nor what is dropped: the random state is that of the first pass. Every block runs twice."""
    arguments = dict(variant=kind) if kind != 'shared' else dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    arguments.update(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.5)
    image, results, runs = torch.randn(4, 3, 64, 96), [], []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = BEiTViT(**PLUS, **arguments, with_cp=with_cp).train()
        runs.append(0)

        def count(*_):
            runs[-1] += 1

        model.layers[1].attn.register_forward_hook(count)
        torch.manual_seed(1)
        out = model(image)[0]
        out.square().mean().backward()
        results.append([out, *(p.grad for p in model.parameters())])
    assert runs == [1, 2]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('channels', [1, 3, 4, 12])
def test_any_number_of_bands_from_rgb_weights(channels):
    """Repeated bands give what RGB gave; the inflation is timm's, and is reported."""
    rgb, model = randomised(BEiTViT(**PLUS)), BEiTViT(**PLUS, in_channels=channels).eval()
    fitted, report = fit(rgb.state_dict(), model.state_dict(), model.own_grid, prefix='')
    model.load_state_dict(fitted)
    weight = rgb.patch_embed.projection.weight
    torch.testing.assert_close(model.patch_embed.projection.weight, adapt_input_conv(channels, weight))
    assert report.expanded == ([] if channels == 3 else ['patch_embed.projection.weight'])
    assert not report.missing
    image = torch.randn(2, 3, 64, 64)
    if channels == 1:
        grey = image[:, :1]
        image = grey.expand(-1, 3, -1, -1)
        torch.testing.assert_close(model(grey)[0], rgb(image)[0], atol=1e-5, rtol=1e-5)
    elif channels != 4:
        repeated = image.repeat(1, channels // 3, 1, 1)
        torch.testing.assert_close(model(repeated)[0], rgb(image)[0], atol=1e-5, rtol=1e-5)


def test_fewer_bands_are_refused():
    with pytest.raises(ValueError, match='of 12 bands cannot be cut down to 3'):
        inflate_bands(torch.zeros(2, 12, 4, 4), 3)
    wide, model = BEiTViT(**PLUS, in_channels=12), BEiTViT(**PLUS)
    with pytest.raises(CheckpointError, match=r'projection.weight is \(48, 12, 16, 16\), the model has \(48, 3'):
        fit(wide.state_dict(), model.state_dict(), model.own_grid, prefix='')


@pytest.mark.parametrize('loaded', [False, True])
def test_a_start_given_to_the_whole_model_is_not_the_backbones(loaded):
    """mmpretrain's stock config initialises every Linear of the model, ours loses its scaled output layers by that;
    weights that were loaded by hand before stay."""
    init = [dict(type='TruncNormal', layer='Linear', std=0.02), dict(type='Constant', layer='LayerNorm', val=0.5)]
    backbone = dict(type='beit_mm.BEiTViT', arch=dict(TINY, embed_dims=192), img_size=64)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=192)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(type='ImageClassifier', backbone=backbone, head=head, init_cfg=None if loaded else init)
        )
    if loaded:
        before = {key: value.clone() for key, value in randomised(model.backbone).state_dict().items()}
    model.init_weights()
    if loaded:
        assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
        return
    for depth, block in enumerate(model.backbone.layers, start=1):
        expect(block.attn.proj.weight, 0.02 / (2 * depth) ** 0.5)
        assert block.ln1.weight.eq(1).all()
        assert block.gamma_1.eq(0.1).all()


@pytest.mark.parametrize('positions', [False, True])
def test_any_size_equals_a_model_built_for_it(positions):
    kind = dict(use_abs_pos_emb=positions, use_rel_pos_bias=not positions, out_type='raw')
    model = randomised(BEiTViT(**PLUS, **kind))
    other = BEiTViT(arch=TINY, img_size=(96, 48), **kind).eval()
    state = model.state_dict()
    for key, value in state.items():
        if key.endswith('bias_table'):
            state[key] = resize_table(value, (4, 4), (6, 3))
        elif key == 'pos_embed':
            state[key] = resize_positions(value, (4, 4), (6, 3))
    other.load_state_dict(state)
    image = torch.randn(1, 3, 96, 48)
    torch.testing.assert_close(model(image)[0], other(image)[0], atol=1e-5, rtol=1e-5)


def test_frozen_stages_stay_frozen_and_in_eval():
    model = BEiTViT(**PLUS, frozen_stages=1, drop_path_rate=0.5, drop_rate=0.1)
    assert model.train() is model
    assert model.eval() is model
    model.train()
    assert not model.layers[0].training
    assert not model.patch_embed.training
    assert model.layers[1].training
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(n.startswith(('patch_embed', 'cls_token', 'layers.0.')) for n in learning)
    assert 'layers.1.ln1.weight' in learning


def test_masked_patches_are_hidden():
    model = randomised(BEiTViT(**PLUS, with_mask_token=True, out_type='raw'))
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1:3, 2] = True
    image = torch.randn(1, 3, 64, 64)
    other = image.clone()
    other[:, :, 16:48, 32:48] = torch.randn(3, 32, 16)
    assert torch.equal(model(image, mask)[0], model(other, mask)[0])
    assert not torch.equal(model(image)[0], model(other)[0])


def test_features_of_any_blocks():
    """Raw features are the blocks' own outputs, in the order asked for; only the last is normalised."""
    model = randomised(BEiTViT(**PLUS, out_type='raw', final_norm=True, out_indices=(2, 0, -2)))
    seen = []
    for block in model.layers:
        block.register_forward_hook(lambda module, args, output: seen.append(output))
    last, first, middle = model(torch.randn(1, 3, 64, 64))
    assert torch.equal(first, seen[0])
    assert torch.equal(middle, seen[1])
    assert torch.equal(last, model.ln1(seen[2]))


def test_outputs_and_attention_maps_agree():
    model = randomised(BEiTViT(**PLUS, out_type='featmap', out_indices=(0, -1)))
    raw = randomised(BEiTViT(**PLUS, out_type='raw', out_indices=[0, 2]))
    raw.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 64, 32)
    for a, b in zip(model(image), raw(image), strict=True):
        torch.testing.assert_close(a.flatten(2).transpose(1, 2), b[:, 1:])
    (maps,) = raw.attention_maps(image)
    assert maps.shape == (2, 3, 9, 9)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3, 9))


def test_spellings_of_mmseg():
    spelt = BEiTViT(embed_dims=48, num_layers=3, num_heads=3, mlp_ratio=2, init_values=0, qv_bias=False, img_size=64)
    same = BEiTViT(
        dict(TINY, feedforward_channels=96), img_size=64, layer_scale_init_value=0, bias=False, out_type='featmap'
    )
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (spelt, same)]
    assert shapes[0] == shapes[1]


def test_constants_do_not_remember_who_asked_first():
    """An index made in inference mode, on the meta device or in an export would break every later step."""
    sizes = [(16 * rows, 16 * 7) for rows in (5, 6)]  # grids that no other test uses
    model = BEiTViT(**PLUS, use_abs_pos_emb=False)
    with torch.inference_mode():
        model(torch.zeros(1, 3, *sizes[0]))
    with torch.device('meta'):
        BEiTViT(**PLUS)(torch.zeros(1, 3, *sizes[1]))
    for size in sizes:
        model.train()(torch.randn(1, 3, *size))[0].square().sum().backward()
        table = model.layers[0].attn.relative_position_bias_table
        assert table.grad.abs().sum() > 0
        table.grad = None


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='bsae'), "did you mean 'base'"),
        (dict(arch=dict(embed_dims=3)), 'feedforward_channels'),
        (dict(out_type='avg'), "out_type='avg' is none of raw"),
        (dict(use_shared_rel_pos_bias=True), 'exclude each other'),
        (dict(out_indices=12), 'block 12, but there are 12'),
        (dict(out_indices=(3, -13)), 'block -13, but there are 12'),
        (dict(arch=dict(TINY, num_heads=5)), 'num_heads=5 does not divide embed_dims=48'),
        (dict(drop_path_rate=1.0), r'drop_path_rate=1.0 must be in \[0, 1\)'),
        (dict(frozen_stages=13), r'frozen_stages=13 must be in -1..12'),
        (dict(norm_cfg=dict(type='BN')), 'every BEiT has LayerNorm'),
        (dict(variant='beit+'), "variant='beit\\+' is none of beit, beit_plus"),
        (dict(variant='beit', layer_scale_init_value=0.5), 'decides layer_scale_init_value'),
        (dict(img_size=230), 'does not divide into patches of 16'),
        (dict(img_size=(224, 224, 3)), 'a positive integer, or two'),
        (dict(img_size=224.0), 'img_size=224.0 must be a positive integer'),
        (dict(patch_size=0), 'patch_size=0 must be one positive integer'),
        (dict(patch_size=(16, 8)), 'patches are square'),
        (dict(out_indices=[]), 'must name at least one block'),
        (dict(bias='qkv'), "bias='qkv' is none of"),
        (dict(interpolate_mode='area'), 'neither bicubic nor bilinear'),
        (dict(norm_cfg=dict(type='LN', epsilon=1e-5)), 'norm_cfg has type and eps, not epsilon'),
    ],
)
def test_mistakes_are_named(arguments, message):
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        BEiTViT(**arguments)


def test_masks_and_images_that_do_not_fit():
    model = BEiTViT(**PLUS, with_mask_token=True)
    image = torch.zeros(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r'mask is for 2 x 5 x 5 .* the batch has 2 images of 4 x 4 patches'):
        model(image, torch.zeros(2, 5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'mask is for 2 x 2 x 8 .* 2 images of 4 x 4 patches'):
        model(image, torch.zeros(2, 2, 8, dtype=torch.bool))  # as many patches, another shape
    with pytest.raises(ValueError, match=r'mask is for 1 x 4 x 4'):
        model(image, torch.zeros(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'mask is for 16 \(images x patches\)'):
        model(image, torch.zeros(16, dtype=torch.bool))
    with pytest.raises(ValueError, match='there is no block 7; there are 3'):
        model.attention_maps(image, layers=[7])
    with pytest.raises(ValueError, match='images have 4 channels, the patch embedding takes in_channels=3'):
        model(torch.zeros(1, 4, 64, 64))


def test_frozen_stem_and_frozen_whole():
    stem = BEiTViT(**PLUS, frozen_stages=0, use_abs_pos_emb=True).train()
    frozen = {name for name, p in stem.named_parameters() if not p.requires_grad}
    assert frozen == {'cls_token', 'pos_embed', 'patch_embed.projection.weight', 'patch_embed.projection.bias'}
    whole = BEiTViT(**PLUS, frozen_stages=3, drop_path_rate=0.9, drop_rate=0.5).train()
    assert not any(p.requires_grad for p in whole.parameters())
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(whole(image)[0], whole.eval()(image)[0])  # nothing is dropped in a linear probe
    shared = BEiTViT(**PLUS, use_rel_pos_bias=False, use_shared_rel_pos_bias=True, frozen_stages=1)
    assert not shared.rel_pos_bias.relative_position_bias_table.requires_grad  # mmpretrain forgets this one


def test_wrong_argument_and_size():
    with pytest.raises(TypeError, match="unexpected argument 'drop_path_rat'; did you mean 'drop_path_rate'"):
        BEiTViT(drop_path_rat=0.1)
    with pytest.raises(ValueError, match='build with with_mask_token=True'):
        BEiTViT(**PLUS)(torch.zeros(1, 3, 64, 64), torch.zeros(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match='60 x 64 pixels does not divide into patches of 16'):
        BEiTViT(**PLUS)(torch.zeros(1, 3, 60, 64))
