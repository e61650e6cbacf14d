"""ops/biased_attention.py: the gradient by hand is autograd's, and every other case goes elsewhere."""

import pytest
import torch

from beit_mm.models.block import Attention
from beit_mm.ops import biased_attention
from beit_mm.ops.biased_attention import attention, reference, takes

SHAPES = [(2, 5, 3, 4), (1, 7, 2, 8), (3, 17, 1, 16), (4, 50, 3, 64)]  # images, tokens, heads, width of a head


def case(images, tokens, heads, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(images, tokens, 3, heads, width, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(heads, tokens, tokens, generator=generator, dtype=dtype, requires_grad=True)
    return qkv, bias, width**-0.5


@pytest.fixture(params=['kept', 'computed again'])
def probabilities(request, monkeypatch):
    """Both ways to have them in the backward pass, whatever the size."""
    monkeypatch.setattr(biased_attention, 'KEPT_UP_TO', 512 if request.param == 'kept' else 0)
    return request.param


@pytest.mark.parametrize('shape', SHAPES)
def test_equals_plain_operations(shape, probabilities):
    """Output and gradients to 1e-6 of their scale."""
    qkv, bias, scale = case(*shape)
    results = []
    for function in (reference, attention):
        out = function(qkv, bias, scale)
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        results.append([out, *torch.autograd.grad((out * weights).sum(), (qkv, bias))])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6 * expected.abs().max().item(), rtol=0)


def test_gradient_is_that_of_differences(probabilities):
    qkv, bias, scale = case(2, 4, 2, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *inputs: attention(*inputs, scale), (qkv, bias))


def test_a_second_derivative_is_refused():
    qkv, bias, scale = case(2, 4, 2, 3)
    with pytest.raises(RuntimeError, match=r'cannot be differentiated twice.*fused_attention=False'):
        torch.autograd.grad(attention(qkv, bias, scale).sum(), qkv, create_graph=True)


def test_no_images(probabilities):
    """As when stochastic depth drops all: gradients are there, and zero."""
    qkv, bias, scale = case(0, 5, 2, 4)
    attention(qkv, bias, scale).sum().backward()
    assert qkv.grad.shape == qkv.shape
    assert not bias.grad.any()


def test_what_it_is_not_for():
    qkv, bias, _ = case(2, 5, 3, 4)
    assert takes(qkv, bias)
    assert not takes(qkv, None)
    assert not takes(qkv, bias.detach())
    assert not takes(qkv.bfloat16(), bias)
    assert not takes(qkv.to('meta'), bias.to('meta'))
    with torch.no_grad():
        assert not takes(qkv, bias)


@pytest.mark.parametrize('case_of', ['dropout', 'reduced precision', 'plain asked for'])
def test_other_cases_go_elsewhere(case_of, monkeypatch):
    monkeypatch.setattr(biased_attention, 'attention', None)  # to call it would be an error
    drop = 0.5 if case_of == 'dropout' else 0.0
    module = Attention(48, 3, 'qv_bias', None, drop, 0.0, fused=case_of != 'plain asked for').train()
    bias = torch.randn(3, 7, 7, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16, enabled=case_of == 'reduced precision'):
        module(torch.randn(2, 7, 48), bias).sum().backward()
    assert bias.grad.abs().sum() > 0
