"""engine/schedules.py: schedules that do something else than they seem to are refused; stock ones are not."""

import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config

from beit_mm.engine.errors import ConfigError
from beit_mm.engine.schedules import check_schedules

DECAYED = dict(
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.65),
    optimizer=dict(type='AdamW', lr=4e-3),
)
ITERS = dict(type='IterBasedTrainLoop', max_iters=320_000)


def check(**fields):
    check_schedules(Config(fields), 'some.py')


def test_an_absolute_floor_under_layer_decay():
    floor = dict(type='CosineAnnealingLR', eta_min=1e-6)
    with pytest.raises(ConfigError, match=r'some.py: param_scheduler\[0\].eta_min=1e-06.* eta_min_ratio=0.00025'):
        check(optim_wrapper=DECAYED, param_scheduler=floor)
    check(optim_wrapper=dict(DECAYED, paramwise_cfg=dict(layer_decay_rate=1.0)), param_scheduler=floor)
    check(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=4e-3)), param_scheduler=[floor])
    check(optim_wrapper=DECAYED, param_scheduler=dict(type='CosineAnnealingLR', eta_min_ratio=1e-3))


def test_a_run_that_goes_on_at_rate_0():
    poly = dict(type='PolyLR', eta_min=0.0, begin=1500, end=160_000, by_epoch=False)
    with pytest.raises(ConfigError, match=r'param_scheduler\[1\].end=160000: .*max_iters=320000: 160000 of them'):
        check(train_cfg=ITERS, param_scheduler=[dict(type='LinearLR', end=1500, by_epoch=False), poly])
    check(train_cfg=dict(ITERS, max_iters=160_000), param_scheduler=[poly])
    check(train_cfg=ITERS, param_scheduler=[dict(poly, eta_min=1e-6)])
    check(train_cfg=ITERS, param_scheduler=[poly, dict(poly, begin=160_000, end=320_000)])
    cosine = dict(type='CosineAnnealingLR', T_max=95, begin=5, end=100, by_epoch=True, convert_to_iter_based=True)
    check(train_cfg=dict(by_epoch=True, max_epochs=100), param_scheduler=[cosine])
    with pytest.raises(ConfigError, match=r'max_epochs=300: 200 of them would learn nothing. Set end=300'):
        check(train_cfg=dict(by_epoch=True, max_epochs=300), param_scheduler=[cosine])


def test_accumulation_of_masked_image_modeling():
    model = dict(type='beit_mm.MaskedImageModel')
    with pytest.raises(ConfigError, match=r"type='OptimWrapper' with accumulative_counts=4 .* beit_mm.OptimWrapper"):
        check(model=model, optim_wrapper=dict(type='OptimWrapper', accumulative_counts=4))
    check(model=model, optim_wrapper=dict(type='beit_mm.OptimWrapper', accumulative_counts=4))
    check(model=model, optim_wrapper=dict(type='OptimWrapper'))
    check(model=dict(type='ImageClassifier'), optim_wrapper=dict(type='OptimWrapper', accumulative_counts=4))


# The one stock config that really trains on at a rate of 0, for 160,000 iterations of 320,000
DEAD = {'mmpretrain': set(), 'mmseg': {'beit-large_upernet_8xb1-amp-160k_ade20k-640x640.py'}}


@pytest.mark.parametrize('package', [pytest.param('mmpretrain', marks=pytest.mark.slow), 'mmseg'])
def test_no_false_alarm_on_any_stock_config(package):
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0]) / '.mim' / 'configs'
    refused, checked = set(), 0
    for path in sorted(root.rglob('*.py')):
        if '_base_' in path.parts or 'param_scheduler' not in path.read_text():
            continue
        try:
            config = Config.fromfile(path)
        except Exception:  # needs a package that is not here
            continue
        checked += 1
        try:
            check_schedules(config, path.name)
        except ConfigError:
            refused.add(path.name)
    assert checked > 50
    assert refused == DEAD[package]
