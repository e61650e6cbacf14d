"""engine/device.py: what needs CUDA is replaced where there is none, and said once."""

import pytest
import torch
from mmengine.config import Config

from beit_mm.engine import device
from beit_mm.engine.amp import with_amp
from beit_mm.engine.configs import load_config
from beit_mm.engine.device import suit_device

STOCK = 'configs/segmentation/beit-base-p16_upernet-in-mmseg_8xb2-160k_ade20k-640.py'


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(device, 'print_log', lambda text, **_: lines.append(text))
    return lines


def norms(config) -> set[str]:
    heads = [config.model.decode_head, config.model.auxiliary_head]
    return {head.norm_cfg.type for head in heads}


def on(monkeypatch, cuda: bool) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)


@pytest.mark.parametrize(
    ('cuda', 'distributed', 'kind'), [(True, True, 'SyncBN'), (True, False, 'SyncBN'), (False, True, 'BN')]
)
def test_norms_are_synchronised_on_cuda_alone(monkeypatch, said, cuda, distributed, kind):
    on(monkeypatch, cuda)
    config = load_config(STOCK)
    config.sync_bn = 'torch'
    suit_device(config, distributed)
    assert norms(config) == {kind}
    assert ('sync_bn' in config) == (kind == 'SyncBN')
    assert len(said) == (kind == 'BN')


@pytest.mark.parametrize(
    ('wrapper', 'expected', 'lines'),
    [
        (dict(type='OptimWrapper'), dict(type='OptimWrapper'), 0),
        (
            dict(type='AmpOptimWrapper', loss_scale='dynamic', accumulative_counts=2),
            dict(type='beit_mm.OptimWrapper', accumulative_counts=2),
            1,
        ),
        (dict(type='AmpOptimWrapper', dtype='bfloat16'), dict(type='beit_mm.AmpOptimWrapper'), 0),
        (with_amp(dict(type='OptimWrapper'), 'fp16'), dict(type='beit_mm.OptimWrapper'), 1),
        (with_amp(dict(type='OptimWrapper'), 'bf16'), dict(type='beit_mm.AmpOptimWrapper'), 0),
    ],
)
def test_fp16_on_a_cpu_is_float32_and_said(monkeypatch, said, wrapper, expected, lines):
    on(monkeypatch, False)
    config = Config(dict(optim_wrapper=wrapper))
    suit_device(config, distributed=False)
    assert config.optim_wrapper == expected
    assert len(said) == lines
    assert all('--amp bf16' in line for line in said)


def test_nothing_is_changed_where_there_is_cuda(monkeypatch, said):
    on(monkeypatch, True)
    config = Config(dict(optim_wrapper=with_amp(dict(type='OptimWrapper', loss_scale=512.0), 'fp16')))
    suit_device(config, distributed=True)
    assert config.optim_wrapper == dict(type='beit_mm.Fp16OptimWrapper', loss_scale=512.0)
    assert not said
