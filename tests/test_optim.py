"""engine/optim.py against the official layer ids, scales, weight decay flags, and schedule."""

import copy
import json

import pytest
import timm
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from mmpretrain.engine.optimizers.layer_decay_optim_wrapper_constructor import LearningRateDecayOptimWrapperConstructor
from official import DATA, ours
from test_accumulation import MODEL, ragged
from test_pretrain import classifier, segmentor
from timm.optim import param_groups_layer_decay
from torch import nn

from beit_mm.engine.amp import AmpOptimWrapper
from beit_mm.engine.optim import build_optimizer, describe, layer_decay_table
from beit_mm.models import MaskedImageModel
from beit_mm.models.backbone import BEiTViT

GOLDEN = json.loads((DATA / 'layer_decay.json').read_text())


class Model(nn.Module):
    """A backbone under a prefix, with something behind it."""

    def __init__(self, depth):
        super().__init__()
        arch = dict(embed_dims=24, num_layers=depth, num_heads=2, feedforward_channels=48)
        self.backbone = BEiTViT(arch, img_size=32, use_abs_pos_emb=True)
        self.head = nn.Linear(24, 2)


def test_equals_official_classification():
    golden = GOLDEN['classification']
    depth = 1 + max(int(k.split('.')[1]) for k in golden if k.startswith('blocks.'))
    scales = {row['layer']: row['lr_scale'] for row in golden.values()}
    decay = scales[depth] / scales[depth + 1]
    table = layer_decay_table(Model(depth), decay, 0.05)
    compared = 0
    for key, row in golden.items():
        name = key if key.startswith('head.') else f'backbone.{ours(key)}'
        if name in table:
            assert table[name].layer == row['layer'], key
            assert table[name].lr_scale == pytest.approx(row['lr_scale'], rel=1e-12), key
            assert table[name].decays == row['weight_decay'], key
            compared += 1
    assert compared > 30
    assert not table['backbone.cls_token'].decays  # mmseg and the official segmentation code decay it
    assert not table['backbone.pos_embed'].decays


@pytest.mark.parametrize('quirk', [False, True])
def test_equals_official_segmentation(quirk):
    """There the official code decays cls_token and pos_embed, by a slip: a switch repeats it."""
    golden, decay, compared = GOLDEN['segmentation'], GOLDEN['layer_decay'], 0
    table = layer_decay_table(Model(GOLDEN['depth']), decay, 0.05, decay_class_token=quirk)
    for key, row in golden.items():
        name = f'backbone.{ours(key[len("backbone.") :])}' if key.startswith('backbone.') else key
        if name in table:
            slip = key in ('backbone.cls_token', 'backbone.pos_embed') and not quirk
            expected = (row['layer'], row['lr_scale'], row['weight_decay'] and not slip)
            assert table[name] == expected, key
            compared += 1
    assert compared > 60


def test_the_backbone_under_any_prefix_and_inside_ddp():
    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    plain = layer_decay_table(Model(3).backbone, 0.7, 0.05)
    for model, prefix in ((Model(3), 'backbone.'), (Wrapped(Model(3).backbone), 'module.')):
        table = layer_decay_table(model, 0.7, 0.05)
        for name, rates in plain.items():
            assert table[prefix + name] == rates


def test_mask_token_and_tables_decay_and_scales_rise_with_depth():
    backbone = BEiTViT(
        dict(embed_dims=24, num_layers=12, num_heads=2, feedforward_channels=48), img_size=32, with_mask_token=True
    )
    table = layer_decay_table(backbone, 0.65, 0.05)
    assert table['mask_token'] == (0, pytest.approx(0.65**13), True)
    assert table['layers.3.attn.relative_position_bias_table'].decays
    assert table['patch_embed.projection.weight'].lr_scale == pytest.approx(3.70e-3, rel=1e-3)
    assert table['ln2.weight'].lr_scale == 1.0
    by_layer = [table[f'layers.{i}.ln1.weight'].lr_scale for i in range(12)]
    assert by_layer == sorted(by_layer)


def test_masked_image_model():
    """Shared table and head learn at the full rate, the mask token as the stem; the tokenizer is not there."""
    model = MaskedImageModel(**MODEL)
    table = layer_decay_table(model, 0.5, 0.05)
    assert set(table) == {name for name, _ in model.named_parameters()}
    assert table['backbone.mask_token'] == (0, 0.5**3, True)
    assert table['backbone.cls_token'] == (0, 0.5**3, False)
    assert table['backbone.rel_pos_bias.relative_position_bias_table'] == (3, 1.0, True)
    assert table['backbone.layers.1.attn.q_bias'] == (2, 0.5, False)
    assert table['backbone.ln1.weight'] == (3, 1.0, False)
    assert table['head.cls_head.weight'] == (3, 1.0, True)


def test_segmentor_and_classifier():
    segmentation, _ = segmentor()
    table = layer_decay_table(segmentation, 0.5, 0.05)
    assert set(table) == {name for name, _ in segmentation.named_parameters()}
    for name, rates in table.items():
        if not name.startswith('backbone.'):
            assert rates[:2] == (5, 1.0), name
    assert table['neck.upsample_4x.0.weight'] == (5, 1.0, True)
    assert table['neck.upsample_4x.1.weight'] == (5, 1.0, False)  # BatchNorm
    assert table['decode_head.conv_seg.bias'] == (5, 1.0, False)
    assert table['backbone.layers.0.ffn.layers.1.weight'] == (1, 0.5**4, True)
    classification, _ = classifier()
    table = layer_decay_table(classification, 0.5, 0.05)
    assert table['head.fc.weight'] == (3, 1.0, True)
    assert table['backbone.ln2.weight'] == (3, 1.0, False)
    assert table['backbone.patch_embed.projection.weight'] == (0, 0.5**3, True)


def test_probe():
    """On a frozen backbone only the head is there, at the full rate."""
    model = Model(2)
    model.backbone.requires_grad_(False)
    assert layer_decay_table(model, 0.5, 0.1) == {'head.weight': (3, 1.0, True), 'head.bias': (3, 1.0, False)}


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'beit_base_patch16_224', 'convnext_atto'])
@pytest.mark.parametrize('place', ['alone', 'in mmpretrain'])
def test_timm(name, place):
    """Layers and scales are timm's own."""
    size = dict(img_size=32, embed_dim=24, num_heads=2, depth=3) if 'conv' not in name else {}
    theirs = timm.create_model(name, num_classes=2, **size)
    groups = param_groups_layer_decay(theirs, weight_decay=0.05, layer_decay=0.7)
    scales = {id(p): group['lr_scale'] for group in groups for p in group['params']}
    prefix, model = '', theirs
    if place == 'in mmpretrain':
        prefix, model = 'backbone.timm_model.', nn.Module()
        model.backbone = nn.Module()
        model.backbone.timm_model = theirs
        model.neck = nn.Linear(2, 2)
    table = layer_decay_table(model, 0.7, 0.05)
    for key, parameter in theirs.named_parameters():
        assert table[prefix + key].lr_scale == pytest.approx(scales[id(parameter)], rel=1e-12), key
    assert len({rates.layer for rates in table.values()}) > 4
    if prefix:
        assert table['neck.weight'].lr_scale == 1.0


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'])
def test_timm_without_a_head_of_its_own(name):
    """mmpretrain's TIMMBackbone, and our tasks, build timm models so: the head that follows is a layer further."""
    scales = []
    for num_classes in (0, 2):
        size = dict(img_size=32, embed_dim=24, num_heads=2, depth=3) if 'vit' in name else {}
        theirs = timm.create_model(name, num_classes=num_classes, **size)
        model = nn.Module()
        model.backbone, model.head = theirs, nn.Linear(2, 2)
        scales.append(layer_decay_table(model, 0.75, 0.05))
    assert scales[0]['head.weight'].lr_scale == 1.0
    shared = [key for key in scales[0] if 'blocks' in key]
    assert len(shared) > 20
    for key in shared:
        assert scales[0][key].lr_scale == pytest.approx(scales[1][key].lr_scale, rel=1e-12), key
    last = 'backbone.blocks.2.norm1.weight' if 'vit' in name else 'backbone.layers.3.blocks.1.norm1.weight'
    assert scales[0][last].lr_scale == 0.75


def test_mmpretrain():
    """Its ViT asks as its own constructor does, within a classifier or alone."""
    small = dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=48)
    backbone = dict(type='VisionTransformer', arch=small, img_size=32, patch_size=16)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=24)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
        wrapper = LearningRateDecayOptimWrapperConstructor(
            dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)), dict(layer_decay_rate=0.7)
        )(model)
    theirs = {id(p): group['lr'] for group in wrapper.optimizer.param_groups for p in group['params']}
    table, alone = layer_decay_table(model, 0.7, 0.05), layer_decay_table(model.backbone, 0.7, 0.05)
    for name, parameter in model.named_parameters():
        assert table[name].lr_scale == pytest.approx(theirs[id(parameter)], rel=1e-12), name
    for name, rates in alone.items():
        assert table['backbone.' + name] == rates


def build(cfg, model):
    """As the Runner does, with a constructor named in the config."""
    wrapped = dict(cfg)
    return OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(type=wrapped.pop('constructor'), paramwise_cfg=wrapped.pop('paramwise_cfg', None),
             optim_wrapper_cfg=wrapped)
    )(model)  # fmt: skip


CONFIG = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.5),
)


def test_constructor_groups_and_leaves_the_config_alone():
    cfg, model = copy.deepcopy(CONFIG), Model(2)
    model.backbone.cls_token.requires_grad_(False)
    for _ in range(2):  # mmseg's takes its rate out of the config, and the second time is a KeyError
        groups = build(cfg, model).optimizer.param_groups
        assert cfg == CONFIG
        grouped = [id(p) for group in groups for p in group['params']]
        learning = [id(p) for p in model.parameters() if p.requires_grad]
        assert sorted(grouped) == sorted(learning)
        assert groups[0]['lr'] == 1e-3
        assert min(g['lr'] for g in groups) == pytest.approx(1e-3 * 0.5**3)
        assert {g['weight_decay'] for g in groups} == {0.0, 0.05}


def test_the_table_is_printed():
    table = layer_decay_table(Model(2), 0.5, 0.05)
    lines = describe(table, 0.5, 1e-3, 0.05).splitlines()
    assert lines[0] == 'Layer decay 0.5 of the learning rate 0.001; weight decay 0.05 of the decayed tensors'
    assert lines[1].split() == ['layer', 'learning', 'rate', 'decayed', 'not', 'decayed']
    assert [line.split() for line in lines[2:]] == [
        ['0', '1.250e-04', '1', '3'],  # patch embedding; its bias, class token, positions
        ['1', '2.500e-04', '5', '11'],  # qkv, proj, two of the MLP, table; biases, norms, gammas
        ['2', '5.000e-04', '5', '11'],
        ['3', '1.000e-03', '1', '3'],  # head; its bias, ln2
    ]
    assert len({len(line) for line in lines[1:]}) == 1  # aligned
    even = describe(layer_decay_table(Model(2), 1.0, 0.05), 1.0, 1e-3, 0.05)
    assert even.startswith('No layer decay: learning rate 0.001; weight decay 0.05 of 12 tensors, none of 28 ')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(paramwise_cfg=dict(layer_decay=0.5)), "has no 'layer_decay'; did you mean 'layer_decay_rate'"),
        (dict(paramwise_cfg=dict(num_layers=12)), "has no 'num_layers'. It takes layer_decay_rate"),
        (dict(optimizer=dict(type='AdamW')), 'optimizer has no lr'),
    ],
)
def test_mistakes_in_the_config(changes, message):
    with pytest.raises(ValueError, match=message):
        build({**CONFIG, **changes}, Model(2))


def test_two_backbones_are_not_guessed_between():
    model = nn.Module()
    model.teacher, model.student = Model(2).backbone, Model(3).backbone
    with pytest.raises(ValueError, match='several parts that know their layers, teacher, student'):
        layer_decay_table(model, 0.5, 0.0)
    model.backbone = Model(1).backbone
    assert layer_decay_table(model, 0.5, 0.0)['teacher.cls_token'].lr_scale == 1.0


def test_needs_a_backbone_that_knows_its_layers():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        silent = MODELS.build(dict(type='ResNet', depth=18))  # its answer: NotImplementedError
    with pytest.raises(ValueError, match=r'ResNet does not say its layers; use beit_mm\.BEiTViT'):
        layer_decay_table(silent, 0.9, 0.0)
    with pytest.raises(ValueError, match='get_layer_depth'):
        layer_decay_table(nn.Linear(2, 2), 0.9, 0.0)
    assert layer_decay_table(nn.Linear(2, 2), 1.0, 0.1)['weight'].decays
    with pytest.raises(ValueError, match=r'must be in \(0, 1\]'):
        layer_decay_table(nn.Linear(2, 2), 1.5, 0.0)


@pytest.mark.parametrize('case', json.loads((DATA / 'cosine_schedule.json').read_text()))
def test_schedule_equals_official(case):
    """Per iteration: warm-up to the rate, cosine to a floor that layer decay scales too."""
    args = case['args']
    base = args['base_value']
    warmup, total = args.get('warmup_epochs', 0) * args['niter_per_ep'], args['epochs'] * args['niter_per_ep']
    scales = (1.0, 0.1)
    optimizer = torch.optim.SGD([dict(params=[nn.Parameter(torch.zeros(1))], lr=base * s) for s in scales], lr=base)
    schedulers = [
        CosineAnnealingLR(optimizer, eta_min_ratio=args['final_value'] / base, begin=warmup, end=total, by_epoch=False)
    ]
    if warmup:
        start = max(args.get('start_warmup_value', 0) / base, 1e-8)  # LinearLR divides by it: 0 is as good as 1e-8
        schedulers.insert(0, LinearLR(optimizer, start_factor=start, begin=0, end=warmup, by_epoch=False))
    for value in case['values']:
        for group, scale in zip(optimizer.param_groups, scales):
            assert group['lr'] == pytest.approx(scale * value, abs=1e-9)
        for scheduler in schedulers:
            scheduler.step()


def annealed(**floor):
    """The rates of two groups, 1 and 1e-4 of 1e-3, after a whole cosine."""
    groups = [dict(params=[nn.Parameter(torch.zeros(1))], lr=lr) for lr in (1e-3, 1e-7)]
    optimizer = torch.optim.SGD(groups, lr=1e-3)
    scheduler = CosineAnnealingLR(optimizer, begin=0, end=50, by_epoch=False, **floor)
    for _ in range(50):
        optimizer.step()
        scheduler.step()
    return [group['lr'] for group in optimizer.param_groups]


def test_the_floor_is_scaled_with_the_layer():
    """An absolute one *raises* the lowest layer's rate while the others fall, so configs may not have it."""
    top, low = annealed(eta_min_ratio=1e-3)
    assert 1e-6 < top < 2e-6
    assert low / top == pytest.approx(1e-4, rel=1e-9)
    top, low = annealed(eta_min=1e-6)
    assert 1e-6 < top < 2e-6
    assert low > 9e-7  # from 1e-7


SAME = 1e-6  # of a tensor's largest value: what a fused kernel may differ by


def assert_same(model, other, after):
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert (a - b).abs().max() <= SAME * a.abs().max(), f'{name}, {after}'


def in_both_forms(model):
    """The model and a copy of it, with wrappers that clip: one's AdamW is the loop, the other's what a config gets."""
    models = [model, copy.deepcopy(model)]
    clip = dict(clip_grad=dict(max_norm=0.5))
    wrappers = [
        build({**CONFIG, **clip, 'optimizer': {**CONFIG['optimizer'], **form}}, one)
        for one, form in zip(models, ({'fused': False}, {}), strict=True)
    ]
    forms = [{bool(group['fused']) for group in wrapper.optimizer.param_groups} for wrapper in wrappers]
    assert forms == [{False}, {True}]
    return models, wrappers


@pytest.mark.parametrize('variant', ['beit', 'beit_plus'])
@pytest.mark.parametrize('amp', [False, True])
def test_fused_adamw_is_the_loop(variant, amp):
    """Masked image modeling with ragged masks, clipped: thirty steps, and weights that are swapped in between, as EMA
    swaps them."""
    torch.manual_seed(0)
    models, wrappers = in_both_forms(
        MaskedImageModel(**{**MODEL, 'backbone': dict(MODEL['backbone'], variant=variant)})
    )
    if amp:
        wrappers = [AmpOptimWrapper(optimizer=w.optimizer, clip_grad=dict(max_norm=0.5)) for w in wrappers]
    steps = 1 if amp else 30  # a weight rounded to bfloat16 the other way is no longer the optimizer's
    for step in range(steps):
        batch = ragged([5, 5] if step % 2 else [3, 9, 1, 16])
        for model, wrapper in zip(models, wrappers, strict=True):
            with wrapper.optim_context(model):
                losses = model.loss(batch)
            wrapper.update_params(model.parse_losses(losses)[0])
            if step % 10 == 5:
                kept = [p.data for p in model.parameters()]
                for p in model.parameters():
                    p.data = torch.zeros_like(p)
                for p, data in zip(model.parameters(), kept, strict=True):
                    p.data = data.clone()
        assert_same(*models, step)
    assert wrappers[1].optimizer.state[models[1].head.cls_head.weight]['step'] == steps


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_fused_updates_with_gradients_that_come_and_go(dtype):
    """Given gradients of any size and zeros; a parameter without one is not touched, and its step does not count."""
    torch.manual_seed(0)
    models, wrappers = in_both_forms(Model(2).to(dtype))
    for step in range(40):
        size = 10.0 ** torch.randint(-6, 3, ()).item()
        for i, pair in enumerate(zip(*(m.parameters() for m in models), strict=True)):
            gradient = None if (i + step) % 5 == 0 else size * torch.randn_like(pair[0]) * (step % 7 > 0)
            for parameter in pair:
                parameter.grad = None if gradient is None else gradient.clone()
        for wrapper in wrappers:
            wrapper.step()
        assert_same(*models, step)


def test_fused_under_a_loss_scaler():
    """On CUDA fp16 has one; torch's own runs here too. Steps with infinite gradients are left out in both forms."""
    torch.manual_seed(0)
    models, wrappers = in_both_forms(Model(2))
    scalers = [torch.amp.GradScaler('cpu', init_scale=2.0**10, growth_interval=3) for _ in models]
    for step in range(12):
        images = torch.randn(2, 3, 32, 32)
        for model, wrapper, scaler in zip(models, wrappers, scalers, strict=True):
            wrapper.optimizer.zero_grad()
            scaler.scale(model.head(model.backbone(images)[0]).square().mean()).backward()
            if step % 4 == 3:
                model.head.weight.grad[0, 0] = float('inf')
            if step % 2:
                scaler.unscale_(wrapper.optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(wrapper.optimizer)
            scaler.update()
        assert_same(*models, step)
    assert scalers[0].get_scale() == scalers[1].get_scale() < 2.0**13


@pytest.mark.parametrize('saved', [0, 1], ids=['loop', 'fused'])
def test_a_state_goes_on_in_the_form_of_the_run_that_loads_it(saved):
    """Checkpoints hold the form: unless it is ours again, a resumed run is slow, or stops on another device."""
    torch.manual_seed(0)
    models, wrappers = in_both_forms(Model(2))

    def steps(count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            for pair in zip(*(m.parameters() for m in models), strict=True):
                gradient = torch.randn(pair[0].shape, generator=generator)
                for parameter in pair:
                    parameter.grad = gradient.clone()
            for wrapper in wrappers:
                wrapper.step()

    steps(5, 0)
    state = copy.deepcopy(wrappers[saved].state_dict())
    models[1 - saved].load_state_dict(models[saved].state_dict())
    wrappers[1 - saved].load_state_dict(state)
    assert [{bool(g['fused']) for g in w.optimizer.param_groups} for w in wrappers] == [{False}, {True}]
    steps(5, 1)
    assert_same(*models, 'resumed')
    assert wrappers[0].state_dict().keys() == wrappers[1].state_dict().keys()


def test_the_usual_form_where_there_is_no_other(monkeypatch):
    """A line says so. `meta` stands for a device that torch has no kernels for."""
    groups, lines = [dict(params=[nn.Parameter(torch.zeros(2, device='meta'))])], []
    monkeypatch.setattr('beit_mm.engine.optim.print_log', lambda text, **_: lines.append(text))
    for kind, form, said in (
        ('AdamW', dict(fused=True), 'AdamW has no fused form for torch.float32 on meta: its usual form is taken'),
        ('AdamW', {}, 'AdamW has no fused form for torch.float32 on meta: its usual form is taken'),
        ('Adamax', dict(fused=True), 'Adamax has no fused form: its usual form is taken'),
        ('Adamax', {}, ''),
    ):
        optimizer = build_optimizer(dict(type=kind, lr=1.0, **form), copy.deepcopy(groups))
        assert not optimizer.param_groups[0].get('fused')
        assert lines == ([said] if said else [])
        lines.clear()


def test_what_a_config_says_of_the_form_is_done():
    groups = [dict(params=[nn.Parameter(torch.zeros(2))])]
    for form in (dict(fused=False), dict(foreach=True), dict(foreach=False), dict(capturable=False)):
        optimizer = build_optimizer(dict(type='AdamW', lr=1.0, **form), copy.deepcopy(groups))
        assert not optimizer.param_groups[0]['fused']
        assert all(optimizer.param_groups[0][key] == value for key, value in form.items())
    assert build_optimizer(dict(type='SGD', lr=1.0, fused=True), copy.deepcopy(groups)).param_groups[0]['fused']
    assert not build_optimizer(dict(type='SGD', lr=1.0), copy.deepcopy(groups)).param_groups[0]['fused']
    with pytest.raises(KeyError, match='AdamX is not in'):
        build_optimizer(dict(type='AdamX', lr=1.0, fused=True), groups)
