"""engine/optim.py against the official layer ids, scales, weight decay flags, and schedule."""

import json

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from official import DATA, ours
from torch import nn

from beit_mm.engine.optim import layer_decay_table
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


def test_equals_official_segmentation():
    """Layer and scale; there the official code decays cls_token and pos_embed, by a slip that is not repeated."""
    golden, decay, compared = GOLDEN['segmentation'], GOLDEN['layer_decay'], 0
    table = layer_decay_table(Model(GOLDEN['depth']), decay, 0.05)
    for key, row in golden.items():
        name = f'backbone.{ours(key[len("backbone.") :])}' if key.startswith('backbone.') else key
        if name in table:
            assert table[name].layer == row['layer'], key
            assert table[name].lr_scale == row['lr_scale'], key
            slip = key in ('backbone.cls_token', 'backbone.pos_embed')
            assert table[name].decays == (row['weight_decay'] and not slip), key
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


def test_constructor_groups_and_builds_twice():
    cfg = dict(
        type='OptimWrapper',
        constructor='beit_mm.LayerDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    model = Model(2)
    for _ in range(2):
        wrapped = dict(cfg)
        constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
            dict(type=wrapped.pop('constructor'), paramwise_cfg=wrapped.pop('paramwise_cfg'), optim_wrapper_cfg=wrapped)
        )
        groups = constructor(model).optimizer.param_groups
        assert sum(len(g['params']) for g in groups) == len(list(model.parameters()))
        assert groups[0]['lr'] == 1e-3
        assert min(g['lr'] for g in groups) == pytest.approx(1e-3 * 0.5**3)
        assert {g['weight_decay'] for g in groups} == {0.0, 0.05}


def test_needs_a_backbone_that_knows_its_layers():
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
