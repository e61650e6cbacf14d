"""models/dvae.py: hand computations, a density that integrates to one, and a small training."""

import math

import numpy as np
import pytest
import torch

from beit_mm.data import embedded
from beit_mm.models.dvae import DiscreteVAE, KMeansTokenizer, logit_laplace_nll, ramp
from beit_mm.ops.pixels import map_pixels

SMALL = dict(vocab_size=32, in_channels=1, num_downsamples=2, hidden_dims=16, code_dims=16, num_res_blocks=1)


def views(count, size=32):
    images = [embedded.pool_crop(0, i, size, grey=True)[..., 0] for i in range(count)]
    return map_pixels(torch.from_numpy(np.stack(images))[:, None].float() / 255)


def test_ramp():
    assert ramp(1.0, 0.0, 100, 0) == 1.0
    assert ramp(1.0, 0.0, 100, 50) == pytest.approx(0.5)
    assert ramp(1.0, 0.0, 100, 25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert ramp(0.0, 6.6, 10, 1000) == pytest.approx(6.6)


def test_logit_laplace_is_a_density():
    """exp(-nll) integrates to one over (0, 1), whatever mean and scale."""
    x = torch.linspace(1e-4, 1 - 1e-4, 200_001, dtype=torch.float64).view(1, 1, 1, -1)
    for mean, log_scale in ((0.0, 0.0), (0.7, -1.0)):
        stats = torch.tensor([mean, log_scale], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 1, x.shape[-1])
        density = torch.exp(-logit_laplace_nll(stats, x))
        assert torch.trapezoid(density.flatten(), x.flatten()).item() == pytest.approx(1.0, abs=2e-3)


def test_loss_terms_by_hand():
    model = DiscreteVAE(**SMALL, kl_weight=(0.5, 0.5, 1), balance_weight=0.25)
    view = views(4)
    losses = model.loss(view)
    q = model.logits(view).softmax(dim=-1).double()
    kl = (q * (q / (1 / 32)).log()).sum(dim=-1).mean()  # a mean over cells: not summed over the batch as unilm's
    mean_q = q.mean(dim=(0, 1, 2))
    balance = (mean_q * (mean_q * 32).log()).sum()
    assert losses['loss_kl'].item() == pytest.approx(0.5 * kl.item(), rel=1e-4)
    assert losses['loss_balance'].item() == pytest.approx(0.25 * balance.item(), rel=1e-3, abs=1e-6)
    assert {k for k in losses if 'loss' in k} == {'loss_reconstruction', 'loss_kl', 'loss_balance'}
    assert int(model.num_updates) == 1


def test_the_divergence_does_not_grow_with_the_batch():
    """unilm's sums it over the batch: 3.2, 6.4, 25.6 for 1, 2, 8 of the same image."""
    model = DiscreteVAE(**SMALL, kl_weight=(1.0, 1.0, 1))
    one = views(1)
    divergences = [model.loss(one.expand(n, -1, -1, -1))['loss_kl'].item() for n in (1, 2, 8)]
    assert divergences == pytest.approx([divergences[0]] * 3, rel=1e-5)


def test_the_loss_of_dalles_recipe_is_the_bound_per_value():
    """Reconstruction + 6.6 / 192 of the divergence per cell = (an image's nats + 6.6 its divergence) / its values."""
    settings = dict(vocab_size=32, num_downsamples=3, hidden_dims=8, code_dims=8, num_res_blocks=1)
    model = DiscreteVAE(
        **settings, kl_weight=(6.6 / 192, 6.6 / 192, 1), balance_weight=0, reconstruction='logit_laplace',
        reconstruction_weight=1.0,
    )  # fmt: skip
    view = torch.rand(3, 3, 32, 48) * 0.8 + 0.1
    torch.manual_seed(5)
    losses = model.loss(view)
    assert {name for name in losses if 'loss' in name} == {'loss_reconstruction', 'loss_kl'}
    torch.manual_seed(5)
    logits = model.logits(view)
    stats = model.stats(model.relax(logits, model.temperature[0]))
    nats = logit_laplace_nll(stats, view).sum(dim=(1, 2, 3))
    q = logits.softmax(dim=-1)
    divergence = (q * (q * 32).log()).sum(dim=(1, 2, 3))
    bound = ((nats + 6.6 * divergence) / (3 * 32 * 48)).mean()
    assert (losses['loss_reconstruction'] + losses['loss_kl']).item() == pytest.approx(bound.item(), rel=1e-4)


def test_a_dead_code_gets_half_of_a_busy_ones_cells():
    model = DiscreteVAE(**SMALL)
    view = views(8)
    model.to_logits.bias.data[5:] = -1e4  # codes 5.. are never chosen
    before = model.tokens(view)
    counts = torch.bincount(before.flatten(), minlength=32)
    dead = counts == 0
    assert 0 < (counts > 3).sum() <= 5
    parameters, rows = model.revive(dead, view, torch.Generator().manual_seed(0))
    after = model.tokens(view)
    assert len(rows) == (counts > 3).sum()
    assert set(after.unique().tolist()) == set(before.unique().tolist()) | set(rows.tolist())
    for row in rows.tolist():
        parents = before[after == row].unique()
        assert len(parents) == 1  # a new code takes from one only
        share = (after == row).sum() / counts[parents[0]]
        assert 0.15 < share < 0.85
        assert torch.equal(model.codebook.weight[row], model.codebook.weight[parents[0]])
    untouched = [i for i in range(32) if i not in rows.tolist()]
    same = DiscreteVAE(**SMALL)
    same.load_state_dict(model.state_dict())
    assert len(parameters) == 3
    model.revive(torch.zeros(32, dtype=torch.bool), view, torch.Generator())  # nobody is dead: nothing changes
    for key, value in model.state_dict().items():
        assert torch.equal(value, same.state_dict()[key]), key
    assert untouched


def test_a_code_that_cannot_be_chosen_has_a_gradient():
    """Its probability is zero in float32, and the logarithm of zero is no reason for NaN."""
    model = DiscreteVAE(**SMALL, kl_weight=(0.1, 0.1, 1), balance_weight=0.1)
    model.to_logits.bias.data[5:] = -1e4
    losses = model.loss(views(4))
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_what_a_code_is_used_for_is_counted():
    model = DiscreteVAE(**SMALL)
    for batch in (views(4), views(2)):
        model.loss(batch)
    expected = torch.bincount(torch.cat([model.tokens(views(n)).flatten() for n in (4, 2)]), minlength=32)
    assert torch.equal(model.code_counts, expected.float())


def test_straight_through_is_one_hot_with_a_gradient():
    model = DiscreteVAE(**SMALL, straight_through=True)
    logits = torch.randn(2, 3, 3, 32, requires_grad=True)
    codes = model.relax(logits, 0.5)
    torch.testing.assert_close(codes.sort(dim=-1).values[..., -1], torch.ones(2, 3, 3))
    torch.testing.assert_close(codes.sum(dim=-1), torch.ones(2, 3, 3))
    (codes * torch.randn(32)).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_noise_is_fine_grained_in_bf16():
    """bfloat16 has 256 steps in [0, 1): noise drawn in it would never exceed 5.6 and tie in every cell."""
    model = DiscreteVAE(**SMALL)
    codes = model.relax(torch.zeros(64, 8, 8, 32, dtype=torch.bfloat16), 0.1)
    top = codes.topk(2, dim=-1).values
    assert (top[..., 0] == top[..., 1]).float().mean() < 1e-3
    shares = torch.bincount(codes.argmax(dim=-1).flatten(), minlength=32) / 4096
    torch.testing.assert_close(shares, torch.full((32,), 1 / 32), atol=0.012, rtol=0)


def test_decode_paints_what_the_decoder_says_of_one_hot_codes():
    for kind in ('mse', 'logit_laplace'):
        model = DiscreteVAE(**SMALL, reconstruction=kind).eval()
        tokens = torch.randint(32, (2, 4, 4))
        stats = model.stats(torch.nn.functional.one_hot(tokens, 32).float())
        assert stats.shape[1] == (2 if kind == 'logit_laplace' else 1)
        expected = ((torch.sigmoid(stats[:, :1]) - 0.1) / 0.8).clamp(0, 1)
        torch.testing.assert_close(model.decode(tokens), expected)


def test_errors_of_the_yardsticks_by_hand():
    model = KMeansTokenizer(vocab_size=4, in_channels=1, downsampling=2, neighbourhood=2)
    pixels = torch.tensor([[0.0, 1.0, 0.5, 0.5], [1.0, 0.0, 0.5, 0.5]]).view(1, 1, 2, 4)
    judged = model.judge(map_pixels(pixels), torch.zeros(1, 1, 2, dtype=torch.long))[0]
    assert judged['cell_mean_error'] == pytest.approx(0.25)  # the left cell's mean is 0.5, off by 0.5 everywhere
    assert judged['image_mean_error'] == pytest.approx(0.25)
    painted = model.decode(torch.zeros(1, 1, 2, dtype=torch.long))
    assert judged['reconstruction_error'] == pytest.approx((painted - pixels).abs().mean().item(), abs=1e-6)


def test_temperature_sharpens_samples():
    model = DiscreteVAE(**SMALL)
    logits = torch.randn(1, 20, 20, 32)
    warm, cold = (model.relax(logits, t).max(dim=-1).values.mean().item() for t in (2.0, 0.05))
    assert warm < 0.3
    assert cold > 0.95


def test_codes_start_spread_and_training_beats_the_image_mean():
    model = DiscreteVAE(**SMALL, temperature=(1.0, 0.1, 100), balance_weight=0.01)
    train, val = views(64), views(16)
    before = len(model.tokens(train).unique())
    model.start_codes(train)
    assert before < 16
    assert len(model.tokens(train).unique()) >= 30
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        losses = model.loss(train)
        optimizer.zero_grad()
        sum(v for k, v in losses.items() if 'loss' in k).backward()
        optimizer.step()
    judged = model.judge(val, model.tokens(val))
    error, image_mean = (np.mean([j[k] for j in judged]) for k in ('reconstruction_error', 'image_mean_error'))
    assert error < 0.75 * image_mean
    assert len(model.tokens(train).unique()) >= 24


def test_kmeans_tokens_of_its_own_paintings():
    model = KMeansTokenizer(vocab_size=16, in_channels=1, downsampling=4, neighbourhood=4)
    view = views(32)
    model.start_codes(view)
    tokens = model.tokens(view)
    painted = map_pixels(model.decode(tokens))
    assert torch.equal(model.tokens(painted), tokens)  # a centre is nearest to itself
    by_hand = torch.cdist(model.features(view).flatten(0, 2), model.centres).min(dim=1).values.square().mean() / 16
    assert model.loss(view)['loss_kmeans'].item() == pytest.approx(by_hand.item(), rel=1e-3)
    with pytest.raises(ValueError, match='cannot start from'):
        KMeansTokenizer(vocab_size=512, in_channels=1).start_codes(views(1))


@pytest.mark.slow
def test_dalles_recipe_trains():
    """Logit-Laplace likelihood, annealed temperature, a divergence that grows: codes stay in use, errors fall."""
    train, val = views(64), views(80)[64:]
    model = DiscreteVAE(
        **{**SMALL, 'vocab_size': 64, 'hidden_dims': 32}, temperature=(1.0, 1 / 16, 120),
        kl_weight=(0.0, 6.6 / 16, 30), balance_weight=0.0, reconstruction='logit_laplace', reconstruction_weight=1.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.999), weight_decay=1e-4)
    for _ in range(160):
        losses = model.loss(train)
        optimizer.zero_grad()
        (losses['loss_reconstruction'] + losses.get('loss_kl', 0.0)).backward()
        optimizer.step()
    judged = model.judge(val, model.tokens(val))
    error, image_mean = (np.mean([j[k] for j in judged]) for k in ('reconstruction_error', 'image_mean_error'))
    assert error < 0.75 * image_mean
    assert len(model.tokens(train).unique()) > 24
