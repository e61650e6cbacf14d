"""models/heads.py: the losses by hand, their mean over ranks, and the start."""

import math

import pytest
import torch
from mmengine import dist

from beit_mm.models.heads import PixelHead, TokenHead, over_ranks


def test_token_loss_by_hand():
    head = TokenHead(4, 3)
    features, tokens = torch.randn(5, 4), torch.tensor([0, 2, 1, 1, 0])
    logits = features @ head.cls_head.weight.T + head.cls_head.bias
    by_hand = -sum(math.log(logits[i].softmax(0)[t]) for i, t in enumerate(tokens)) / 5
    losses = head.loss(features, tokens)
    assert losses['loss_mim'].item() == pytest.approx(by_hand, rel=1e-5)
    assert losses['masked_accuracy'].item() == pytest.approx((logits.argmax(1) == tokens).float().mean().item())


def test_pixel_loss_by_hand():
    head = PixelHead(4, 6)
    features, pixels = torch.randn(5, 4), torch.randn(5, 6)
    by_hand = ((features @ head.to_pixels.weight.T + head.to_pixels.bias - pixels) ** 2).mean()
    assert head.loss(features, pixels)['loss_mim'].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_pixels_of_another_patch():
    with pytest.raises(ValueError, match='num_pixels=6, and a patch of the target has 12'):
        PixelHead(4, 6).loss(torch.randn(5, 4), torch.randn(5, 12))


def test_heads_start_at_one_sigma():
    for weight in (TokenHead(256, 512).cls_head.weight, PixelHead(256, 512).to_pixels.weight):
        assert weight.abs().max() <= 0.02
        assert weight.std().item() == pytest.approx(0.0108, abs=1e-4)  # official modeling_pretrain.py
    assert TokenHead(8, 4).cls_head.bias.eq(0).all()


def test_loss_in_bf16_is_computed_in_float32():
    head, features, tokens = TokenHead(64, 8192), torch.randn(32, 64), torch.arange(32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = head.loss(features, tokens)['loss_mim']
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(math.log(8192), abs=0.1)


def test_ragged_masks_over_ranks(monkeypatch):
    """DDP's average of the ranks' gradients is the gradient of the mean over all masked patches of the step."""
    head = TokenHead(8, 16)
    features, tokens = torch.randn(10, 8), torch.randint(16, (10,))
    head.loss(features, tokens)['loss_mim'].backward()
    expected = head.cls_head.weight.grad.clone()

    monkeypatch.setattr(dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(dist, 'all_reduce', lambda counts: counts.fill_(10.0))  # 3 + 7
    gradients = []
    for part in (slice(0, 3), slice(3, 10)):
        head.zero_grad()
        head.loss(features[part], tokens[part])['loss_mim'].backward()
        gradients.append(head.cls_head.weight.grad.clone())
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, expected)


def test_mean_over_one_rank():
    for total, count, mean in ((6.0, 4, 1.5), (0.0, 0, 0.0)):
        loss, counts = over_ranks(torch.tensor(total), count)
        assert (loss.item(), counts.item()) == (mean, count)


def test_an_empty_mask_costs_nothing():
    """Every parameter still gets a gradient, zero, as DDP needs."""
    for head, target in ((TokenHead(4, 3), torch.zeros(0, dtype=torch.long)), (PixelHead(4, 6), torch.zeros(0, 6))):
        losses = head.loss(torch.randn(7, 4)[:0], target)
        assert losses['loss_mim'].item() == 0
        assert all(torch.isfinite(value) for value in losses.values())
        losses['loss_mim'].backward()
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_entropy_and_codes_used():
    head = TokenHead(4, 8)
    losses = head.loss(torch.randn(8, 4), torch.tensor([0, 0, 0, 0, 1, 1, 5, 7]))
    assert losses['target_entropy'].item() == pytest.approx(1.75 * math.log(2), rel=1e-6)  # 1/2, 1/4, 1/8, 1/8
    assert losses['codes_used'].item() == 4
    collapsed = head.loss(torch.randn(8, 4), torch.full((8,), 3))
    assert (collapsed['target_entropy'].item(), collapsed['codes_used'].item()) == (0, 1)
