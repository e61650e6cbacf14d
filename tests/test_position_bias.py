"""models/position_bias.py: what is kept between calls is never of other weights."""

import copy
import io

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from torch.autograd import forward_ad

from beit_mm.models import position_bias
from beit_mm.models.backbone import BEiTViT

TINY = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
KINDS = {
    'a table per block': {},
    'one table': dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
    'none': dict(variant='beit'),
}
IMAGE = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))


def built(kind, seed=1, **arguments):
    model = BEiTViT(TINY, img_size=32, patch_size=8, out_type='raw', **KINDS[kind], **arguments)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def fresh(model):
    """What a model that has never been called says, with these weights."""
    other = BEiTViT(TINY, img_size=32, patch_size=8, out_type='raw', **KINDS[model.kind], fused_attention=False).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        return other(IMAGE.to(model.cls_token.dtype))[0]


@torch.no_grad()
def right(model):
    """Two calls, the second out of what is kept, are what a fresh model says to 1e-5."""
    expected = fresh(model)
    first, second = model(IMAGE)[0], model(IMAGE)[0]
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    return first


@pytest.fixture(params=list(KINDS))
def model(request):
    model = built(request.param)
    model.kind = request.param
    return model


def test_ema_swaps_weights_unsaid(model):
    """As mmengine's hook does before and after validation: into `.data`, in eval, no version counter moves."""
    hook = EMAHook()
    hook.src_model, hook.ema_model = model, ExponentialMovingAverage(model)
    for parameter in hook.ema_model.module.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    own = right(model)
    versions = [parameter._version for parameter in model.parameters()]
    hook._swap_ema_parameters()
    assert versions == [parameter._version for parameter in model.parameters()]
    averaged = right(model)
    assert (own - averaged).abs().max() > 0.1
    hook._swap_ema_parameters()
    assert torch.equal(right(model), own)


def to_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1


def one_entry(model):
    for parameter in model.parameters():
        parameter.data.view(-1)[-1] += 1.0


def step(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


def load(model):
    model.load_state_dict({key: value + 0.1 for key, value in model.state_dict().items()})


def into_storage(model):
    """By another tensor of the same memory, as flattened optimizers do."""
    for parameter in model.parameters():
        torch.from_numpy(parameter.detach().numpy()).mul_(2.0)


@pytest.mark.parametrize('change', [to_data, one_entry, step, load, into_storage])
def test_changed_weights_are_seen(model, change):
    before = right(model)
    change(model)
    assert not torch.allclose(right(model), before, atol=1e-3)


def test_copies_and_files_do_not_carry_it():
    model = built('a table per block')
    model.kind = 'a table per block'
    right(model)
    assert model._position_biases.by_grid
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert not other._position_biases.by_grid
        one_entry(other)
        right(other)
    right(model)
    assert not any('position_bias' in key for key in model.state_dict() if not key.endswith('table'))


@pytest.mark.parametrize('act', ['train', 'eval', 'double', 'load'])
def test_it_is_dropped(act):
    model = built('a table per block')
    with torch.no_grad():
        model(IMAGE)
    assert len(model._position_biases.by_grid[4, 6]) == 2
    dict(train=model.train, eval=model.eval, double=model.double, load=lambda: load(model))[act]()
    assert not model._position_biases.by_grid


def test_only_where_no_gradient_is_wanted(model):
    """In eval with gradients, and in training, tables get theirs, also after a call that kept the biases."""
    right(model)
    for mode in (model.eval, model.train):
        model.zero_grad()
        mode()(IMAGE)[0].square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert not model._position_biases.by_grid


def test_frozen_tables_after_inference_mode():
    """What was made in inference mode serves a later gradient of the image."""
    model = built('a table per block').requires_grad_(False)
    with torch.inference_mode():
        expected = model(IMAGE)[0]
    image = IMAGE.clone().requires_grad_()
    out = model(image)[0]
    assert model._position_biases.by_grid
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    assert image.grad.abs().sum() > 0


def test_sizes_and_the_limit(monkeypatch):
    """Several sizes stand side by side as long as there is room."""
    model = built('a table per block')
    small, large = IMAGE, torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        expected = [model(small)[0], model(large)[0]]
        assert set(model._position_biases.by_grid) == {(4, 6), (8, 6)}
        for limit, kept in ((16 * (25**2 + 49**2) - 1, {(8, 6)}), (16 * 49**2 - 1, {(4, 6)}), (0, set())):
            monkeypatch.setattr(position_bias, 'MOST_KEPT', limit)
            model.eval()
            for image, before in zip((small, large), expected, strict=True):
                torch.testing.assert_close(model(image)[0], before)
            assert set(model._position_biases.by_grid) == kept


@pytest.mark.parametrize('image', [IMAGE, IMAGE[..., :32]], ids=['resized', 'own size'])
def test_reduced_precision(image):
    """What is computed under autocast serves no call without, nor the other way round."""
    model = built('a table per block')
    results = {True: [], False: []}
    for keep in (True, False):
        for reduced in (True, False, True):
            with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, reduced), pytest.MonkeyPatch.context() as patch:
                if not keep:
                    patch.setattr(position_bias, '_may_outlive_a_call', lambda *_: False)
                results[keep].append(model(image)[0])
    assert all(map(torch.equal, results[True], results[False]))


def test_another_thread_drops_it_meanwhile(monkeypatch):
    """As when two threads make the first call at once."""
    model = built('a table per block')
    expected = model(IMAGE)[0]
    look_up = position_bias.position_bias

    def meanwhile(*arguments):
        model._position_biases.clear()
        return look_up(*arguments)

    monkeypatch.setattr(position_bias, 'position_bias', meanwhile)
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGE)[0], expected)


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_transforms_of_functions(mode):
    """torch.func's gradients per image, models in a batch, and forward differentiation while tables learn."""
    model = getattr(built('a table per block'), mode)()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights, image):
        return torch.func.functional_call(model, weights, (image[None],))[0].square().sum()

    per_image = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, IMAGE)
    loss(dict(model.named_parameters()), IMAGE[1]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(per_image[name][1], parameter.grad, atol=2e-4, rtol=1e-4)
    both = {name: torch.stack([weight, 2 * weight]) for name, weight in weights.items()}
    with torch.no_grad():
        batched = torch.func.vmap(loss, (0, None))(both, IMAGE[0])
        alone = [loss({name: weight[i] for name, weight in both.items()}, IMAGE[0]) for i in range(2)]
    torch.testing.assert_close(batched, torch.stack(alone))
    along, image = torch.randn(1, *IMAGE.shape[1:]), IMAGE[:1].clone().requires_grad_()
    model(image)[0].sum().backward()
    with forward_ad.dual_level():
        slope = forward_ad.unpack_dual(model(forward_ad.make_dual(IMAGE[:1], along))[0].sum()).tangent
    torch.testing.assert_close(slope, (image.grad * along).sum(), atol=1e-3, rtol=1e-4)


def test_an_export_and_a_count_do_not_touch_it():
    model = built('a table per block')
    with torch.no_grad():
        torch.export.export(model, (IMAGE,))
    assert not model._position_biases.by_grid
