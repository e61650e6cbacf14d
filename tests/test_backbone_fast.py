"""models/backbone.py and block.py: what is computed for less is what was computed before."""

import functools

import pytest
import torch

from beit_mm.models.backbone import BEiTViT
from beit_mm.models.block import Block

TINY = dict(embed_dims=48, num_layers=3, num_heads=3, feedforward_channels=96)
KINDS = {
    'beit': dict(variant='beit'),
    'beit_plus': dict(variant='beit_plus'),
    'shared': dict(variant='beit_plus', with_mask_token=True),
    'plain': {},
}


def built(kind, arch=TINY, **arguments):
    arguments = {**dict(img_size=32, patch_size=8, out_type='raw', final_norm=True), **KINDS[kind], **arguments}
    model = BEiTViT(arch, **arguments)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def with_gradients(model, run):
    """What `run` gives, and the gradient of every parameter under a fixed draw."""
    model.zero_grad()
    torch.manual_seed(3)
    out = run()
    (out * torch.linspace(-1, 1, out.shape[-1])).square().sum().backward()
    return [out, *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_same(found, expected, tolerance=1e-5):
    """To `tolerance` of each tensor's scale."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance * max(1.0, b.abs().max().item()), rtol=0)


@pytest.mark.parametrize('kind', ['beit', 'beit_plus', 'shared'])
@pytest.mark.parametrize('arguments', [{}, dict(drop_path_rate=0.6), dict(with_cp=True), dict(final_norm=False)])
@pytest.mark.parametrize('train', [True, False])
def test_masked_features_are_the_features_at_the_mask(kind, arguments, train):
    """Ragged masks, one of them empty; another grid than the tables'; the same samples are dropped."""
    model = built(kind, **arguments).train(train)
    image, wanted = torch.randn(4, 3, 32, 48), torch.rand(4, 4, 6) < 0.4
    wanted[1] = False
    mask = wanted if model.mask_token is not None else None
    whole = with_gradients(model, lambda: model(image, mask)[-1][:, 1:][wanted.flatten(1)])
    for form in (wanted, wanted.flatten(1)):
        part = with_gradients(model, lambda form=form: model.masked_features(image, mask, form))
        assert part[0].shape == (wanted.sum(), 48)
        assert_same(part, whole)


@pytest.mark.parametrize('kind', ['beit', 'plain'])
@pytest.mark.parametrize('train', [True, False])
def test_no_image_at_all(kind, train):
    model = built(kind, drop_path_rate=0.5).train(train)
    out = model(torch.randn(0, 3, 32, 48))[0]
    assert out.shape == (0, 25, 48)
    out.sum().backward()


def test_gradients_per_image_with_drop_path():
    """torch.func's vmap: each image draws for itself. At a rate of nearly 1 none of the blocks is left."""
    model = built('plain', drop_path_rate=0.5).train()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for block in model.layers:
        block.drop_path.rate = 1 - 1e-6

    def loss(weights, image):
        return torch.func.functional_call(model, weights, (image[None],))[0].square().sum()

    images = torch.randn(3, 3, 32, 32)
    found = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness='different')(weights, images)
    for i, image in enumerate(images):
        model.zero_grad()
        model(image[None])[0].square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad, atol=1e-3, rtol=1e-4)
    assert not found['layers.0.attn.qkv.weight'].any()


def test_nothing_is_wanted():
    model = built('shared').train()
    none = torch.zeros(2, 16, dtype=torch.bool)
    out = model.masked_features(torch.randn(2, 3, 32, 32), none, none)
    assert out.shape == (0, 48)
    out.sum().backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('gamma', [0.0, 0.5])
def test_drop_path_on_kept_samples(seed, gamma):
    """The formula, by the same draws: samples that are dropped are not computed. Seeds drop all, some and none."""
    block = Block(
        dim=48, num_heads=3, hidden=96, bias='qv_bias', grid=None, drop=0.0, attn_drop=0.0, drop_path=0.5,
        layer_scale=gamma, eps=1e-6, fused=True,
    ).train()  # fmt: skip
    x, bias = torch.randn(3, 7, 48), torch.randn(3, 7, 7, requires_grad=True)

    def formula():
        x1 = x + drop(block.attn(block.ln1(x), bias) * (1.0 if block.gamma_1 is None else block.gamma_1))
        return x1 + drop(block.ffn(block.ln2(x1)) * (1.0 if block.gamma_2 is None else block.gamma_2))

    def drop(branch):
        return branch * x.new_empty(3, 1, 1).bernoulli_(0.5) / 0.5

    results = []
    for run in (lambda: block(x, bias), formula):
        block.zero_grad()
        bias.grad = None
        torch.manual_seed(seed)
        out = run()
        out.square().sum().backward()
        results.append([out, bias.grad, *(p.grad for p in block.parameters())])
    assert_same(*results)


def test_drop_path_in_reduced_precision():
    model = built('beit_plus', drop_path_rate=0.6).train()
    with torch.autocast('cpu', torch.bfloat16):
        out = model(torch.randn(4, 3, 32, 32))[0]
    assert out.dtype == torch.float32
    out.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_patches_by_a_matrix_product():
    """As the convolution whose weights they are, for images of any layout in memory."""
    embed = built('beit').patch_embed
    for image in (torch.randn(2, 3, 32, 48), torch.randn(2, 32, 48, 3).permute(0, 3, 1, 2)):
        expected = embed.projection(image).flatten(2).transpose(1, 2)
        torch.testing.assert_close(embed(image), expected, atol=1e-5, rtol=1e-5)


def one_graph(kind, backend, sizes, layers=3, **how):
    """Outputs and gradients, in eval and in training, are those of the model that is not compiled."""
    torch._dynamo.reset()
    shared = kind == 'one table'
    biases = dict(use_abs_pos_emb=True, use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared)
    model = built('plain', arch=dict(TINY, num_layers=layers), drop_path_rate=0.5, **biases).eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend, **how)
    for size in sizes:
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(image)[0], model(image)[0], atol=2e-5, rtol=2e-5)
        assert_same(*(with_gradients(model, functools.partial(first, run, image)) for run in (compiled, model)))
    model.train()
    with_gradients(model, lambda: first(compiled, image))
    assert all(p.grad is not None for p in model.parameters())


def first(run, image):
    return run(image)[0]


def test_compiles_in_one_graph():
    """At a size that is not the tables' own: no numpy, no kept bias and no gradient by hand cuts the graph."""
    one_graph('a table per block', 'eager', [(32, 48)], layers=1, dynamic=False)


@pytest.mark.slow
def test_compiles_in_one_graph_at_any_size():
    """The second size makes torch compile for all sizes."""
    one_graph('a table per block', 'aot_eager', [(32, 32), (32, 48), (64, 32)])
