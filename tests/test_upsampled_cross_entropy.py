"""ops/upsampled_cross_entropy.py against F.interpolate and F.cross_entropy: loss, gradient, count of right pixels."""

import pytest
import torch
import torch.nn.functional as F

from beit_mm.ops import upsampled_cross_entropy as module
from beit_mm.ops.upsampled_cross_entropy import upsampled_cross_entropy

GRIDS = [  # (h, w) and (H, W): whole ratios, others, odd sizes, the same size, a smaller map, a single pixel
    ((8, 8), (32, 32)), ((5, 7), (33, 41)), ((6, 4), (17, 64)), ((9, 9), (9, 9)), ((16, 12), (7, 5)), ((1, 1), (6, 4)),
    ((4, 3), (1, 1)), ((13, 2), (14, 35)),
]  # fmt: skip


def case(grid, size, classes=7, images=3, dtype=torch.float32, ignored=0.2, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(images, classes, *grid, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (images, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits.requires_grad_(), labels


def plain(logits, labels, align_corners=False, ignore_index=255, class_weight=None):
    """Loss and count by PyTorch's own functions on the whole map."""
    large = F.interpolate(logits, labels.shape[1:], mode='bilinear', align_corners=align_corners)
    loss = F.cross_entropy(large, labels, class_weight, ignore_index=ignore_index, reduction='sum')
    return loss, ((large.argmax(dim=1) == labels) & (labels != ignore_index)).sum()


def assert_equal(logits, labels, **options):
    """Loss to 1e-6, gradient to 1e-5 of its largest value, the count exactly."""
    ours, theirs = upsampled_cross_entropy(logits, labels, **options), plain(logits, labels, **options)
    assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-6)
    assert int(ours[1]) == int(theirs[1])
    found, expected = (torch.autograd.grad(loss, logits)[0] for loss in (ours[0], theirs[0]))
    torch.testing.assert_close(found, expected, rtol=0, atol=max(1e-5 * float(expected.abs().max()), 1e-30))


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(('grid', 'size'), GRIDS)
@pytest.mark.parametrize('strip', [1, 2000, 2**20])
def test_equals_the_whole_map(grid, size, align_corners, strip, monkeypatch):
    """In strips of a row, of a few rows, and in one with all images."""
    monkeypatch.setitem(module.STRIP_ELEMENTS, 'cpu', strip)
    assert_equal(*case(grid, size), align_corners=align_corners)


@pytest.mark.parametrize('scale', [0.01, 100.0])
def test_small_and_large_logits(scale):
    """At 100 most of the probabilities are 0 in float32, and the loss is thousands."""
    assert_equal(*case((6, 6), (24, 24), scale=scale))


def test_class_weights_and_another_index_to_ignore():
    weight = torch.tensor([0.0, 0.5, 1, 1, 2, 3, 10])
    assert_equal(*case((6, 5), (20, 21)), class_weight=weight)
    assert_equal(*case((6, 5), (20, 21), ignored=0), class_weight=weight, ignore_index=3)
    assert_equal(*case((6, 5), (20, 21), ignored=0), ignore_index=-1)


def test_channels_last_logits_and_small_labels():
    logits, labels = case((6, 5), (20, 21))
    assert_equal(logits.detach().to(memory_format=torch.channels_last).requires_grad_(), labels)
    assert torch.equal(
        upsampled_cross_entropy(logits, labels)[0], upsampled_cross_entropy(logits, labels.to(torch.uint8))[0]
    )


def test_nothing_but_ignored_pixels():
    logits, labels = case((4, 4), (8, 8), ignored=2.0)
    loss, right = upsampled_cross_entropy(logits, labels)
    assert (float(loss), int(right)) == (0, 0)
    assert not torch.autograd.grad(loss, logits)[0].any()


@pytest.mark.parametrize('align_corners', [False, True])
def test_gradient_by_differences(align_corners):
    logits, labels = case((3, 2), (7, 5), classes=3, images=2, dtype=torch.float64)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def loss(x):
        return upsampled_cross_entropy(x, labels, align_corners, 255, weight)[0]

    assert torch.autograd.gradcheck(loss, logits)


def test_there_is_no_second_derivative():
    logits, labels = case((3, 2), (7, 5))
    with pytest.raises(RuntimeError, match='has no second derivative'):
        torch.autograd.grad(upsampled_cross_entropy(logits, labels)[0], logits, create_graph=True)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    """The numbers are those of the same logits in float32, under autocast too, which would round the products."""
    logits, labels = case((6, 5), (20, 21))
    half = logits.detach().to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    expected, right = upsampled_cross_entropy(single, labels)
    with torch.autocast('cpu', torch.bfloat16):
        loss, hits = upsampled_cross_entropy(half, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(hits, right)
    found, wanted = torch.autograd.grad(loss, half)[0], torch.autograd.grad(expected, single)[0]
    assert torch.equal(found, wanted.to(dtype))


def test_products_are_in_float32_whatever_the_process_allows():
    logits, labels = case((6, 5), (20, 21))
    expected = upsampled_cross_entropy(logits, labels)[0]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('medium')
    try:
        assert torch.equal(upsampled_cross_entropy(logits, labels)[0], expected)
        assert torch.get_float32_matmul_precision() == 'medium'
    finally:
        torch.set_float32_matmul_precision(before)


def test_without_gradient_none_is_made():
    logits, labels = case((6, 5), (20, 21))
    with torch.no_grad():
        loss, _ = upsampled_cross_entropy(logits, labels)
    assert not loss.requires_grad
    assert torch.equal(loss, upsampled_cross_entropy(logits, labels)[0])
    assert module._in_strips(logits.detach(), labels, None, False, 255, False)[2].numel() == 0


def test_compiles_without_a_graph_break():
    logits, labels = case((6, 5), (20, 21))

    def step(x, y):
        loss, right = upsampled_cross_entropy(2 * x, y)
        return loss / y.numel(), right

    expected, right = step(logits, labels)
    loss, hits = torch.compile(step, fullgraph=True, backend='aot_eager')(logits, labels)
    assert torch.equal(loss, expected)
    assert torch.equal(hits, right)
    found, wanted = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    assert torch.equal(found, wanted)


def test_the_operator_is_what_it_says():
    logits, labels = case((4, 3), (9, 8))
    torch.library.opcheck(module._in_strips, (logits.detach(), labels, None, False, 255, True))


def test_bad_input_is_named():
    logits, labels = case((4, 4), (8, 8), ignored=0)
    for wrong in (7, -2):
        labels[0, 0, 0] = wrong
        with pytest.raises(ValueError, match=rf'labels hold class {wrong}, and there are 7 classes \(0\.\.6\)'):
            upsampled_cross_entropy(logits, labels)
    with pytest.raises(ValueError, match=r'class_weight has shape \(3,\), and there are 7 classes'):
        upsampled_cross_entropy(logits, labels, class_weight=torch.ones(3))
    for shape in ((2, 8, 8), (3, 1, 8, 8), (3, 0, 8)):
        with pytest.raises(ValueError, match=r'labels \(.*\) \(B, H, W\)'):
            upsampled_cross_entropy(logits, torch.zeros(shape, dtype=torch.int64))


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, 'matmul'), reason='torch < 2.9')
def test_reduced_products_said_in_the_newer_way():
    """After which torch refuses to be asked in the older one."""
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    try:
        products.fp32_precision = 'tf32'
        with pytest.raises(RuntimeError, match='mix of the legacy and new APIs'):
            torch.get_float32_matmul_precision()
        assert_equal(*case((6, 5), (20, 21)))
        assert products.fp32_precision == 'tf32'
    finally:
        products.fp32_precision = before
