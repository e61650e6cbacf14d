"""ops/gelu_linear.py: the numbers of GELU and a linear layer, with less kept for the gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beit_mm.models import BEiTViT
from beit_mm.ops.gelu_linear import gelu_linear, takes

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128)


@pytest.mark.parametrize('bias', [True, False])
def test_equals_the_plain_form(bias):
    linear, x = nn.Linear(24, 7, bias=bias), torch.randn(3, 5, 24, requires_grad=True)
    weight = torch.randn(3, 5, 7)
    out, plain = gelu_linear(x, linear), linear(F.gelu(x))
    assert torch.equal(out, plain)
    inputs = [x, *linear.parameters()]
    ours, theirs = (torch.autograd.grad((y * weight).sum(), inputs) for y in (out, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_gradients_by_differences():
    linear, x = nn.Linear(4, 3).double(), torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    inputs = (x, *linear.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: gelu_linear(x, linear), inputs)
    assert torch.autograd.gradgradcheck(lambda x, *_: gelu_linear(x, linear), inputs)


def test_frozen_weights_have_no_gradient():
    linear, x = nn.Linear(4, 3).requires_grad_(False), torch.randn(2, 4, requires_grad=True)
    gelu_linear(x, linear).sum().backward()
    assert x.grad is not None
    assert linear.weight.grad is linear.bias.grad is None


def test_only_for_training_in_full_precision():
    linear, x = nn.Linear(4, 3), torch.randn(2, 4, requires_grad=True)
    assert takes(x, linear)
    assert not takes(x.detach(), linear)
    assert not takes(x.bfloat16(), linear)
    assert not takes(x, nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    with torch.no_grad():
        assert not takes(x, linear)
    with torch.autocast('cpu', torch.bfloat16):
        assert not takes(x, linear)


def test_a_block_keeps_a_fifth_less():
    """Units are tensors (images, tokens, width): 17.x of 21.x, with four times the width inside the MLP."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def kept_by(model: BEiTViT, image: torch.Tensor) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = model(image)[0]
        del features
        return sum(kept.values())

    image = torch.randn(2, 3, 64, 64)
    model = BEiTViT(arch=ARCH, img_size=64, patch_size=8, variant='beit_plus', out_type='raw').train()
    ours = kept_by(model, image)
    unit = 2 * 65 * 32 * 4
    for block in model.layers:  # a subclass of Linear takes the plain road
        block.ffn.layers[1].__class__ = type('Plain', (nn.Linear,), {})
    plain = kept_by(model, image)
    assert (plain - ours) / unit == pytest.approx(2 * 4, abs=0.1)
