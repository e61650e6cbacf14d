"""engine/compiling.py: the same numbers, the same names, and a way back."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_compiler

from beit_mm.engine import compiling
from beit_mm.engine.compiling import compile_backbone, uncompile
from beit_mm.engine.errors import ConfigError
from beit_mm.models import BEiTViT

ARCH = dict(embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=64)
TOLERANCE = 1e-5  # of the largest value


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(compiling, 'print_log', lambda text, **_: lines.append(text))
    return lines


class Model(nn.Module):
    def __init__(self, variant: str = 'beit_plus', **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = BEiTViT(
            arch=ARCH, img_size=32, patch_size=8, variant=variant, out_type='featmap', out_indices=(0,), **options
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, images):
        return self.backbone(images)


def close(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE * float(b.abs().max()))


def failing(graph, inputs):
    raise RuntimeError('no compiler here\nand more lines')


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(said):
    model, images = Model().eval(), torch.randn(2, 3, 32, 32)
    expected = model(images)
    compile_backbone(model, backend=failing)
    for _ in range(3):
        close(model(images), expected)
    assert len(said) == 1
    assert said[0].startswith('--compile: BEiTViT could not be compiled and runs as it is. ')
    assert 'no compiler here' in said[0]
    assert '\n' not in said[0]
    assert model.backbone._compiled_call_impl is None


def test_a_backward_pass_that_cannot_be_compiled(said):
    """It is compiled with the forward, so that the step as a whole runs as it is."""
    model, plain, images = Model().train(), Model().train(), torch.randn(2, 3, 32, 32)
    of_forward = make_boxed_compiler(lambda graph, inputs: graph)
    compile_backbone(model, backend=aot_autograd(fw_compiler=of_forward, bw_compiler=failing))
    for one in (model, plain):
        one(images)[0].square().sum().backward()
    for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad)
    assert len(said) == 1
    assert 'no compiler here' in said[0]


def test_a_backend_that_is_not_there(said):
    model, images = Model().eval(), torch.randn(2, 3, 32, 32)
    compile_backbone(model, backend='nothing_of_this_name')
    close(model(images), Model().eval()(images))
    assert len(said) == 1
    assert 'nothing_of_this_name' in said[0]


def test_a_mistake_of_the_caller_is_raised_as_ever(said):
    model = Model().eval()
    with pytest.raises(ValueError, match='33') as plain:
        model(torch.randn(2, 3, 33, 32))
    compile_backbone(model, backend='eager')
    with pytest.raises(type(plain.value)) as raised:
        model(torch.randn(2, 3, 33, 32))
    assert str(raised.value) == str(plain.value)
    assert said == []


def test_names_copies_and_pickles_are_those_of_the_plain_model():
    model, images = Model().eval(), torch.randn(1, 3, 32, 32)
    names, expected = list(model.state_dict()), model(images)
    compile_backbone(model, backend='eager')
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_modules()] == [name for name, _ in Model().named_modules()]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.zeros_(copied.backbone.layers[0].ln1.weight)
        assert copied.backbone._compiled_call_impl is None
        assert not torch.equal(copied(images)[0], expected[0])  # of its own weights, not of the original's
    close(model(images), expected)


def test_weights_that_are_swapped_are_seen():
    """mmengine's EMA exchanges `.data`; optimizers and loading write in place."""
    model, other, images = Model().eval(), Model('beit').eval(), torch.randn(1, 3, 32, 32)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.3)
    compile_backbone(model, backend='aot_eager')
    before = model(images)
    expected = other(images)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        mine.data, its.data = its.data, mine.data
    model.eval()
    close(model(images), expected)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        mine.data.copy_(its.data)
    model.eval()
    close(model(images), before)
    uncompile(model)
    close(model(images), before)


def test_a_model_without_a_backbone():
    with pytest.raises(ConfigError, match=r'--compile compiles `model\.backbone`, and Linear has none'):
        compile_backbone(nn.Linear(2, 2))


@pytest.mark.slow
def test_compiled_numbers_are_those_of_eager(said):
    """Training, then validating with the same weights; gradients too."""
    eager = Model(drop_path_rate=0.0)
    compiled = copy.deepcopy(eager)
    compile_backbone(compiled)
    images = torch.randn(2, 3, 48, 48)
    outputs = [model.train()(images) for model in (eager, compiled)]
    close(*reversed(outputs))
    for model, output in zip((eager, compiled), outputs, strict=True):
        model.zero_grad()
        sum(map_.square().mean() for map_ in output).backward()
    close([p.grad for p in compiled.parameters() if p.grad is not None],
          [p.grad for p in eager.parameters() if p.grad is not None])  # fmt: skip
    with torch.no_grad():
        close(compiled.eval()(images), eager.eval()(images))
    assert said == []
    assert compiled.backbone._compiled_call_impl is not None


@pytest.mark.slow
def test_frozen_numbers_are_those_of_eager(said):
    """Sizes vary, as in segmentation."""
    model, plain = Model().eval(), Model().eval()
    compile_backbone(model, frozen=True)
    for size in ((32, 32), (48, 32), (40, 64)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            close(model(images), plain(images))
    assert said == []
    assert model.backbone._compiled_call_impl is not None
