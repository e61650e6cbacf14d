"""models/backbone.py against the official code (goldens), timm and mmpretrain, and its own promises."""

import pytest
import torch
from mmpretrain.models.backbones import BEiTViT as MMPretrainBEiT
from official import backbone_arguments, golden
from timm.models.beit import Beit

from beit_mm.models.backbone import BEiTViT, DropPath
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


def test_keys_and_outputs_equal_mmpretrain():
    ours = randomised(BEiTViT(**PLUS))
    theirs = MMPretrainBEiT(arch=TINY, img_size=64)
    theirs.eval()  # returns None, against nn.Module's contract
    keys = {key for key in theirs.state_dict() if not key.endswith('relative_position_index')}
    assert set(ours.state_dict()) == keys
    theirs.load_state_dict(ours.state_dict(), strict=False)
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(image)[0], theirs(image)[0], atol=1e-5, rtol=1e-5)
    ours.load_state_dict(theirs.state_dict())  # their index buffers are tolerated


def test_equals_timm():
    ours = randomised(BEiTViT(**PLUS))
    theirs = Beit(
        img_size=64,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=0,
        init_values=0.1,
        use_rel_pos_bias=True,
        use_abs_pos_emb=False,
    ).eval()
    renames = [('ffn.layers.0.0', 'mlp.fc1'), ('ffn.layers.1', 'mlp.fc2'), ('layers.', 'blocks.'), ('.ln', '.norm')]
    state = {}
    for key, value in ours.state_dict().items():
        for own, other in renames:
            key = key.replace(own, other)
        key = key.replace('patch_embed.projection', 'patch_embed.proj')
        state[key.replace('ln2.', 'fc_norm.') if key.startswith('ln2.') else key] = value
    theirs.load_state_dict(state)
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(image)[0], theirs(image), atol=1e-5, rtol=1e-5)


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


def test_official_initialisation():
    arch = dict(embed_dims=192, num_layers=3, num_heads=3, feedforward_channels=768)
    pretrain = BEiTViT(arch, img_size=64, with_mask_token=True, use_abs_pos_emb=True, use_rel_pos_bias=False)
    tuned = BEiTViT(arch, img_size=64)
    qkv = pretrain.layers[1].attn.qkv.weight
    assert qkv.abs().max() <= 0.02
    assert qkv.std().item() == pytest.approx(0.0108, abs=2e-4)
    assert pretrain.patch_embed.projection.weight.std().item() == pytest.approx(0.0108, abs=2e-4)
    assert pretrain.pos_embed.std().item() == pytest.approx(0.0108, abs=6e-4)
    assert tuned.layers[1].attn.qkv.weight.std().item() == pytest.approx(0.02, abs=3e-4)
    assert tuned.patch_embed.projection.weight.std().item() == pytest.approx((3 * 256) ** -0.5 / 3**0.5, abs=5e-4)
    for depth, (one, two) in enumerate(zip(pretrain.layers, tuned.layers), start=1):
        for block, std in ((one, 0.0108), (two, 0.02)):
            assert block.attn.proj.weight.std().item() == pytest.approx(std / (2 * depth) ** 0.5, rel=0.03)
            assert block.ffn.layers[1].weight.std().item() == pytest.approx(std / (2 * depth) ** 0.5, rel=0.03)
            assert block.gamma_1.eq(0.1).all()
            assert block.ffn.layers[1].bias.eq(0).all()
    assert tuned.layers[0].attn.relative_position_bias_table.eq(0).all()


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


def test_fused_equals_plain_attention():
    fused, plain = BEiTViT(**PLUS), BEiTViT(**PLUS, fused_attention=False)
    randomised(fused)
    plain.load_state_dict(fused.state_dict())
    plain.eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fused(image)[0], plain(image)[0], atol=1e-5, rtol=1e-5)


def test_each_branch_is_dropped_at_the_stated_rate():
    drop = DropPath(0.3).train()
    out = drop(torch.ones(20_000, 2, 2))
    dropped = out[:, 0, 0].eq(0).float().mean().item()
    assert dropped == pytest.approx(0.3, abs=0.015)
    torch.testing.assert_close(out.max(), torch.tensor(1 / 0.7))
    assert out.flatten(1).std(dim=1).max() == 0  # whole samples
    model = BEiTViT(**PLUS, drop_path_rate=0.5)
    assert [block.drop_path.rate for block in model.layers] == [0.0, 0.25, 0.5]
    # a block whose branches each add one: 0, 1 or 2 of them survive, scaled by 1 / keep
    block = model.layers[2].train()
    block.attn.forward = lambda x, bias: torch.ones_like(x)
    block.ffn.forward = lambda x: torch.ones_like(x)
    block.gamma_1 = block.gamma_2 = None
    added = block(torch.zeros(8000, 1, 48), None)[:, 0, 0]
    shares = [added.eq(value).float().mean().item() for value in (0.0, 2.0, 4.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)  # mmpretrain's FFN branch survives 0.25, not 0.5


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


def test_outputs_and_attention_maps_agree():
    model = randomised(BEiTViT(**PLUS, out_type='featmap', out_indices=(0, -1)))
    raw = randomised(BEiTViT(**PLUS, out_type='raw', out_indices=[0, 2]))
    raw.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 64, 32)
    for a, b in zip(model(image), raw(image), strict=True):
        torch.testing.assert_close(a.flatten(2).transpose(1, 2), b[:, 1:])
    maps = raw.attention_maps(image)
    assert maps.shape == (2, 3, 9, 9)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3, 9))


# As in mmseg's configs/_base_/models/upernet_beit.py, every argument of it
MMSEG = dict(
    img_size=(64, 64), patch_size=16, in_channels=3, embed_dims=48, num_layers=4, num_heads=3, mlp_ratio=4,
    out_indices=(0, 1, 2, 3), qv_bias=True, attn_drop_rate=0.0, drop_path_rate=0.1,
    norm_cfg=dict(type='LN', eps=1e-6), act_cfg=dict(type='GELU'), norm_eval=False, init_values=0.1,
)  # fmt: skip


def test_a_prefix_is_enough_for_mmseg():
    """mmseg's arguments as they are give mmseg's keys and feature maps."""
    from mmseg.models.backbones import BEiT as MMSegBEiT

    ours, theirs = randomised(BEiTViT(**MMSEG)), MMSegBEiT(**MMSEG)
    theirs.eval()
    assert set(ours.state_dict()) == {k for k in theirs.state_dict() if not k.endswith('relative_position_index')}
    theirs.load_state_dict(ours.state_dict(), strict=False)
    image = torch.randn(2, 3, 64, 64)
    for a, b in zip(ours(image), theirs(image), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_spellings_of_mmseg():
    spelt = BEiTViT(embed_dims=48, num_layers=3, num_heads=3, mlp_ratio=2, init_values=0, qv_bias=False, img_size=64)
    same = BEiTViT(
        dict(TINY, feedforward_channels=96), img_size=64, layer_scale_init_value=0, bias=False, out_type='featmap'
    )
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (spelt, same)]
    assert shapes[0] == shapes[1]
    with pytest.raises(ValueError, match='patch_norm=True: every BEiT has patch_norm=False'):
        BEiTViT(**{**MMSEG, 'patch_norm': True})


def test_constants_do_not_remember_who_asked_first():
    """An index made in inference mode, or on the meta device, would break every later training step."""
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
        (dict(out_indices=12), 'block 12'),
        (dict(img_size=230), 'does not divide into patches of 16'),
    ],
)
def test_mistakes_are_named(arguments, message):
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        BEiTViT(**arguments)


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


@pytest.mark.parametrize('fused', [True, False])
def test_attention_dropout_is_applied(fused):
    """mmpretrain and mmseg take `attn_drop_rate` and lose it."""
    model = randomised(BEiTViT(**PLUS, fused_attention=fused, use_rel_pos_bias=False, attn_drop_rate=0.5))
    attention, x = model.layers[0].attn, torch.randn(1, 5, 48)
    with torch.no_grad():
        exact = attention(x, None)
        draws = torch.stack([attention.train()(x, None) for _ in range(2000)])
    spread = draws.std(dim=0)
    assert spread.min() > 0.01
    assert ((draws.mean(dim=0) - exact).abs() / (spread / 2000**0.5)).max() < 5  # right on average


def test_wrong_argument_and_size():
    with pytest.raises(TypeError, match="unexpected argument 'drop_path_rat'; did you mean 'drop_path_rate'"):
        BEiTViT(drop_path_rat=0.1)
    with pytest.raises(ValueError, match='build with with_mask_token=True'):
        BEiTViT(**PLUS)(torch.zeros(1, 3, 64, 64), torch.zeros(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match='60 x 64 pixels does not divide into patches of 16'):
        BEiTViT(**PLUS)(torch.zeros(1, 3, 60, 64))
