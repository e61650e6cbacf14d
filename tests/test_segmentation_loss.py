"""models/segmentation_loss.py against mmseg's heads: every reduction and weight, and who computes the loss itself."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models import FCNHead, SETRUPHead, UPerHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.structures import SegDataSample
from test_segmentor import build

from beit_mm.models import segmentation_loss
from beit_mm.models.segmentation_loss import head_losses, is_plain
from beit_mm.models.segmentor import EncoderDecoder

CLASSES = 5


def made(kind=FCNHead, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    given = dict(in_channels=6, channels=8, num_classes=CLASSES, norm_cfg=dict(type='BN'), dropout_ratio=0.0)
    if kind is UPerHead:
        given.update(in_channels=[6] * 3, in_index=[0, 1, 2], pool_scales=(1, 2))
    head = kind(**ConfigDict({**given, **options}))
    torch.nn.init.normal_(head.conv_seg.weight)
    return head


def samples(size=(37, 50), count=2, ignored=0.2, classes=CLASSES) -> list[SegDataSample]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        labels = torch.randint(0, classes, (1, *size), generator=generator)
        labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
        found.append(SegDataSample(gt_sem_seg=PixelData(data=labels)))
    return found


def features() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 6, side, side + 2) for side in (12, 8, 4)]


def assert_same_losses(head, truth):
    """Losses and accuracies of mmseg's code and ours, and gradients of all parameters."""
    twin = copy.deepcopy(head)
    expected = twin.loss(features(), truth, {})
    found = head_losses(head, features(), truth, {})
    assert found.keys() == expected.keys() == {'loss_ce', 'acc_seg'}
    assert found['acc_seg'].shape == expected['acc_seg'].shape == (1,)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-6, atol=1e-9, equal_nan=True)
    found['loss_ce'].backward()
    expected['loss_ce'].backward()
    for (name, ours), theirs in zip(head.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * float(theirs.grad.abs().max()))


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        (FCNHead, dict(num_convs=1, in_index=1)),
        (UPerHead, {}),
        (SETRUPHead, dict(num_convs=2, up_scale=2, in_index=0)),
    ],
)
def test_equals_mmsegs_heads(kind, options, align_corners):
    assert_same_losses(made(kind, align_corners=align_corners, **options), samples())


@pytest.mark.parametrize('avg_non_ignore', [False, True])
@pytest.mark.parametrize('reduction', ['mean', 'sum'])
@pytest.mark.parametrize('weighted', [False, True])
def test_equals_mmsegs_criterion(avg_non_ignore, reduction, weighted):
    weight = [0.5, 1.0, 2.0, 0.0, 3.0] if weighted else None
    loss = dict(type='CrossEntropyLoss', loss_weight=0.4, avg_non_ignore=avg_non_ignore, reduction=reduction)
    # mmseg looks the weight of every label up, of ignored ones too: only a class can be ignored there
    options = dict(ignore_index=2) if weighted else {}
    head = made(num_convs=1, loss_decode=dict(**loss, class_weight=weight), **options)
    assert_same_losses(head, samples(ignored=0 if weighted else 0.2))


@pytest.mark.parametrize('avg_non_ignore', [False, True])
def test_nothing_but_ignored_pixels(avg_non_ignore):
    loss = dict(type='CrossEntropyLoss', avg_non_ignore=avg_non_ignore)
    assert_same_losses(made(num_convs=1, loss_decode=loss), samples(ignored=2.0))


@pytest.mark.parametrize('avg_non_ignore', [False, True])
def test_ignored_pixels_and_class_weights(avg_non_ignore):
    """mmseg looks up the weight of class 255, and dies; here ignored pixels weigh nothing, as in PyTorch."""
    weight = [0.5, 1.0, 2.0, 0.0, 3.0]
    loss = dict(type='CrossEntropyLoss', avg_non_ignore=avg_non_ignore, class_weight=weight)
    head, truth = made(num_convs=1, loss_decode=loss), samples()
    with pytest.raises(IndexError):
        head.loss(features(), truth, {})
    logits = torch.nn.functional.interpolate(head(features()), (37, 50), mode='bilinear')
    labels = torch.cat([sample.gt_sem_seg.data for sample in truth])
    expected = torch.nn.functional.cross_entropy(logits, labels, torch.tensor(weight), ignore_index=255)
    assert float(head_losses(head, features(), truth, {})['loss_ce']) == pytest.approx(float(expected), rel=1e-6)


class OwnLoss(FCNHead):
    def loss_by_feat(self, seg_logits, batch_data_samples) -> dict:
        return dict(loss_mine=seg_logits.sum())


class OwnCriterion(CrossEntropyLoss):
    pass


def patched() -> FCNHead:
    head = made(num_convs=1)
    head.loss_by_feat = lambda *_: dict(loss_mine=torch.zeros(()))
    return head


def with_criterion() -> FCNHead:
    head = made(num_convs=1)
    head.loss_decode = OwnCriterion()
    return head


SEVERAL = [dict(type='CrossEntropyLoss'), dict(type='CrossEntropyLoss', loss_name='loss_again')]


@pytest.mark.parametrize(
    'build_head',
    [
        patched,
        with_criterion,
        lambda: made(OwnLoss, num_convs=1),
        lambda: made(num_convs=1, loss_decode=SEVERAL),
        lambda: made(num_convs=1, loss_decode=dict(type='CrossEntropyLoss', reduction='none')),
        lambda: made(num_convs=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)),
        lambda: made(num_convs=1, loss_decode=dict(type='DiceLoss')),
        lambda: made(num_convs=1, sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10)),
    ],
)
def test_unusual_heads_compute_their_losses_themselves(build_head):
    """Bit for bit what mmseg gives, under all of its names."""
    head, truth = build_head(), samples(ignored=0)
    assert not is_plain(head)
    expected = copy.deepcopy(head).loss(features(), truth, {})
    found = head_losses(head, features(), truth, {})
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize('head', ['UPerHead', 'SETRUPHead'])
def test_a_segmentors_losses_have_mmsegs_names_and_numbers(head, monkeypatch):
    """Of the decode head and of one or several auxiliary heads; none of them makes its logits large."""
    model = build(EncoderDecoder, dict(mode='whole'), head=head).train()
    images, truth = torch.randn(2, 3, 64, 64), samples((64, 64))
    for module in model.modules():  # the same in both passes
        if isinstance(module, (torch.nn.Dropout, torch.nn.Dropout2d, torch.nn.modules.batchnorm._BatchNorm)):
            module.eval()
    monkeypatch.setattr(segmentation_loss, 'is_plain', lambda head: False)
    expected = model.loss(images, truth)
    monkeypatch.undo()
    monkeypatch.setattr('mmseg.models.decode_heads.decode_head.resize', None)  # it would be called with the logits
    found = model.loss(images, truth)
    assert found.keys() == expected.keys()
    assert {'decode.loss_ce', 'decode.acc_seg'} < found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-9)


def test_under_autocast_the_loss_is_in_float32():
    """mmseg enlarges the logits in bfloat16, and loses digits in it; these are the numbers of its float32 loss."""
    head, truth = made(num_convs=1), samples()
    with torch.autocast('cpu', torch.bfloat16):
        logits = head(features())
        found = head_losses(head, features(), truth, {})
        rounded = head.loss(features(), truth, {})
    assert logits.dtype == torch.bfloat16
    assert found['loss_ce'].dtype == torch.float32
    expected = head.loss_by_feat(logits.float(), truth)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-6, atol=0)
        torch.testing.assert_close(found[name], rounded[name].float(), rtol=2e-2, atol=0)
    found['loss_ce'].backward()
    assert head.conv_seg.weight.grad.dtype == torch.float32


def test_a_head_compiles_without_a_graph_break():
    head, truth = made(num_convs=1).eval(), samples()
    compiled = torch.compile(
        lambda inputs, labels: segmentation_loss.cross_entropy_loss(head.loss_decode, head(inputs), labels, False, 255),
        fullgraph=True,
        backend='aot_eager',
    )
    labels = torch.cat([sample.gt_sem_seg.data for sample in truth])
    found, expected = compiled(features(), labels), head_losses(head, features(), truth, {})
    for one, other in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
