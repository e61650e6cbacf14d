"""engine/device.py: what needs CUDA is replaced where there is none, and said once."""

import pytest
import torch
from mmengine.config import Config
from mmseg.models.necks import Feature2Pyramid
from torch import nn

from beit_mm.engine import device
from beit_mm.engine.amp import with_amp
from beit_mm.engine.device import plain_norms, suit_device


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(device, 'print_log', lambda text, **_: lines.append(text))
    return lines


def on(monkeypatch, cuda: bool) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)


def test_norms_are_plain_wherever_they_come_from():
    """mmseg's Feature2Pyramid has a SyncBN by default, which no config names; parameters stay the same objects."""
    torch.manual_seed(0)
    neck = Feature2Pyramid(8, [4, 2, 1, 0.5])
    assert any(isinstance(module, nn.SyncBatchNorm) for module in neck.modules())
    optimizer = torch.optim.SGD(neck.parameters(), lr=0.1)
    names = dict(neck.named_parameters())
    maps = [torch.randn(2, 8, 4, 4) for _ in range(4)]
    before = [one.detach() for one in neck(maps)]  # one process: torch's falls back by itself
    state = {key: value.clone() for key, value in neck.state_dict().items()}
    assert plain_norms(neck) == 1
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in neck.modules())
    assert plain_norms(neck) == 0
    assert dict(neck.named_parameters()) == names
    assert neck.state_dict().keys() == state.keys()
    for one, other in zip(neck(maps), before, strict=True):
        torch.testing.assert_close(one, other)
    sum(one.square().sum() for one in neck(maps)).backward()
    optimizer.step()
    assert not torch.equal(neck.state_dict()['upsample_4x.1.weight'], state['upsample_4x.1.weight'])


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
    suit_device(config)
    assert config.optim_wrapper == expected
    assert len(said) == lines
    assert all('--amp bf16' in line for line in said)


def test_nothing_is_changed_where_there_is_cuda(monkeypatch, said):
    on(monkeypatch, True)
    config = Config(dict(optim_wrapper=with_amp(dict(type='OptimWrapper', loss_scale=512.0), 'fp16')))
    suit_device(config)
    assert config.optim_wrapper == dict(type='beit_mm.Fp16OptimWrapper', loss_scale=512.0)
    assert not said
