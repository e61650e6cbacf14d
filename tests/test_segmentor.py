"""models/segmentor.py against mmseg and by hand: windows, padding, any size, views; heads of every ADE20K recipe."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder as MMSegEncoderDecoder
from mmseg.models import SegTTAModel as MMSegTTAModel
from mmseg.structures import SegDataSample
from torch import nn

from beit_mm.models.segmentor import EncoderDecoder, SegTTAModel, best_class, window_corners

CLASSES = 5


def config(mode: dict, head: str = 'UPerHead', **backbone) -> dict:
    shared = dict(num_classes=CLASSES, channels=8, norm_cfg=dict(type='BN'), align_corners=False)
    if head == 'UPerHead':
        heads = dict(
            neck=dict(type='beit_mm.ViTPyramid', embed_dim=24),
            decode_head=dict(type=head, in_channels=[24] * 4, in_index=[0, 1, 2, 3], **shared),
            auxiliary_head=dict(type='FCNHead', in_channels=24, in_index=2, num_convs=1, concat_input=False, **shared),
        )
    else:
        heads = dict(
            decode_head=dict(type=head, in_channels=24, in_index=3, num_convs=4, up_scale=2, **shared),
            auxiliary_head=[
                dict(type=head, in_channels=24, in_index=i, num_convs=2, up_scale=4, **shared) for i in range(3)
            ],
        )
    return dict(
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True),
        backbone=dict(
            type='beit_mm.BEiTViT',
            arch=dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48),
            img_size=64,
            out_indices=(0, 1, 2, 3),
            out_type='featmap',
            **backbone,
        ),
        train_cfg=dict(),
        test_cfg=mode,
        **heads,
    )


SLIDE = dict(mode='slide', crop_size=(64, 64), stride=(42, 42))


def build(kind: type, mode: dict, **options) -> nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = kind(**ConfigDict(config(mode, **options)))
    for parameter in model.parameters():  # tables, biases and norms too
        nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        model.decode_head.conv_seg.bias.zero_()  # lest one class wins everywhere
    return model.eval()


def pair(mode: dict, **options) -> tuple[nn.Module, nn.Module]:
    ours, theirs = build(EncoderDecoder, mode, **options), build(MMSegEncoderDecoder, mode, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def metas(images: torch.Tensor) -> list[dict]:
    size = tuple(images.shape[2:])
    return [dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)] * len(images)


@torch.no_grad()
@pytest.mark.parametrize('variant', ['beit', 'beit_plus'])
@pytest.mark.parametrize('size', [(64, 64), (64, 90), (107, 130), (200, 64)])
@pytest.mark.parametrize('windows', [1, 4])
def test_windows_are_mmsegs(variant, size, windows):
    """Bit for bit one window at a time; several at once, by rounding only."""
    ours, theirs = pair(dict(SLIDE), variant=variant)
    ours.windows_per_batch = windows
    images = torch.randn(2, 3, *size)
    expected = theirs.inference(images, metas(images))
    found = ours.inference(images, metas(images))
    assert found.std() > 0.01
    if windows == 1:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        ((64, 64), [(0, 0)]),
        ((64, 65), [(0, 0), (0, 1)]),
        ((64, 106), [(0, 0), (0, 42)]),
        ((64, 107), [(0, 0), (0, 42), (0, 43)]),
        ((70, 70), [(0, 0), (0, 6), (6, 0), (6, 6)]),
    ],
)
def test_corners(size, expected):
    assert window_corners(size, (64, 64), (42, 42)) == expected


def test_every_pixel_is_in_a_window():
    rng = np.random.default_rng(0)
    for _ in range(200):
        crop, size = rng.integers(8, 40, 2), rng.integers(40, 200, 2)
        stride = [int(rng.integers(1, c + 1)) for c in crop]
        seen = np.zeros(size, int)
        corners = window_corners(tuple(size), tuple(crop), stride)
        assert len(set(corners)) == len(corners)
        for top, left in corners:
            window = seen[top : top + crop[0], left : left + crop[1]]
            assert window.shape == tuple(crop)
            window += 1
        assert seen.min() >= 1


@torch.no_grad()
@pytest.mark.parametrize('size', [(40, 64), (64, 30), (17, 23), (50, 150)])
def test_an_image_smaller_than_a_window(size):
    """B15: mmseg crashes or takes another model. Ours predicts on the mean-padded image, as it was trained."""
    ours = build(EncoderDecoder, dict(SLIDE))
    images = torch.randn(2, 3, *size)
    padded = torch.zeros(2, 3, max(size[0], 64), max(size[1], 64))
    padded[..., : size[0], : size[1]] = images
    expected = ours.inference(padded, metas(padded))[..., : size[0], : size[1]]
    found = ours.inference(images, metas(images))
    assert found.shape[2:] == size
    torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize('head', ['UPerHead', 'SETRUPHead'])
@pytest.mark.parametrize('size', [(64, 64), (80, 48), (33, 95), (7, 5)])
def test_whole_images_of_any_size(head, size):
    ours, theirs = pair(dict(mode='whole'), head=head)
    images = torch.randn(1, 3, *size)
    least = 32 if head == 'UPerHead' else 16  # the pyramid halves the grid
    padded = torch.zeros(1, 3, *(max(-(-side // 16) * 16, least) for side in size))
    padded[..., : size[0], : size[1]] = images
    expected = theirs.inference(padded, metas(padded))[..., : size[0], : size[1]]
    torch.testing.assert_close(ours.inference(images, metas(images)), expected)


@pytest.mark.parametrize(
    ('mode', 'said'),
    [
        (dict(mode='slides'), r"mode='slides' is neither whole nor slide"),
        (dict(mode='slide'), r'crop_size=None must be two positive numbers'),
        (dict(mode='slide', crop_size=(64, 64), stride=(0, 4)), r'stride=\(0, 4\) must be two positive'),
        (dict(mode='slide', crop_size=(64, 64), stride=(65, 4)), r'stride=\(65, 4\) is larger than crop_size'),
        (dict(SLIDE, windows_per_batch=0), r'windows_per_batch=0 must be >= 1'),
    ],
)
def test_wrong_test_cfg(mode, said):
    with pytest.raises(ValueError, match=said):
        build(EncoderDecoder, mode)


def views(image: torch.Tensor, sizes: list[tuple[int, int]], ori: tuple[int, int]) -> dict:
    """What TestTimeAug and the collate function make of one image."""
    inputs, samples = [], []
    for size in sizes:
        for flip in (False, True):
            one = nn.functional.interpolate(image[None].float(), size=size, mode='bilinear')[0]
            meta = dict(ori_shape=ori, img_shape=size, flip=flip, flip_direction='horizontal' if flip else None)
            inputs.append([one.flip(-1) if flip else one])
            samples.append([SegDataSample(metainfo=dict(meta, img_path='a.jpg'))])
    return dict(inputs=inputs, data_samples=samples)


@pytest.mark.parametrize('sizes', [[(64, 80)], [(64, 80), (64, 80), (64, 80), (80, 100), (96, 120)]])
def test_views_are_merged_as_mmseg_merges_them(sizes):
    """Alike views go through the model once, and weigh as many as they are."""
    model = build(EncoderDecoder, dict(SLIDE))
    image = torch.rand(3, 50, 62) * 255
    ours, theirs = SegTTAModel(module=model), MMSegTTAModel(module=model)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        found = ours.test_step(views(image, sizes, (50, 62)))[0]
        assert len(calls) == 2 * len(set(sizes))
        expected = theirs.test_step(views(image, sizes, (50, 62)))[0]
    assert found.pred_sem_seg.shape == (50, 62)
    assert len(found.pred_sem_seg.data.unique()) > 1
    assert torch.equal(found.pred_sem_seg.data, expected.pred_sem_seg.data)
    mean = torch.zeros(CLASSES, 50, 62)
    with torch.no_grad():
        for sample in zip(*views(image, sizes, (50, 62)).values(), strict=True):
            (one,) = model.test_step(dict(inputs=sample[0], data_samples=sample[1]))
            mean += one.seg_logits.data.softmax(dim=0) / (2 * len(sizes))
    torch.testing.assert_close(found.seg_logits.data, mean)
    torch.testing.assert_close(mean.sum(dim=0), torch.ones(50, 62))


@pytest.mark.parametrize('head', ['UPerHead', 'SETRUPHead'])
@pytest.mark.parametrize('variant', ['beit', 'beit_plus'])
def test_every_parameter_learns(head, variant):
    """DDP without find_unused_parameters needs a gradient of each; gradient checkpointing gives the same ones."""
    grads = []
    for with_cp in (False, True):
        model = build(EncoderDecoder, dict(mode='whole'), head=head, variant=variant, with_cp=with_cp).train()
        torch.manual_seed(0)
        images = torch.randn(2, 3, 64, 64)
        samples = [SegDataSample() for _ in range(2)]
        for sample in samples:
            sample.set_data(dict(gt_sem_seg=PixelData(data=torch.randint(0, CLASSES, (1, 64, 64)))))
        torch.manual_seed(1)
        losses = model.loss(images, samples)
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


@torch.no_grad()
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(64, 80), (50, 62), (131, 40)])
@pytest.mark.parametrize('flip', [None, 'horizontal', 'vertical'])
@pytest.mark.parametrize('padding', [None, (3, 0, 5, 7)])
def test_predictions_at_the_images_size_are_mmsegs(padding, flip, size, align_corners):
    """Bit for bit, without padding, flipped back, and at the size of the file: the same, a smaller, a larger one."""
    ours, theirs = pair(dict(SLIDE))
    ours.align_corners = theirs.align_corners = align_corners
    padded = (64, 80) if padding is None else (64 + 12, 80 + 3)
    logits = torch.randn(2, CLASSES, *padded)
    meta = dict(ori_shape=size, flip=bool(flip), flip_direction=flip)
    if padding:
        meta['padding_size'] = padding
    given = [[SegDataSample(metainfo=meta) for _ in range(2)] for _ in range(2)]
    for one, other in zip(*(m.postprocess_result(logits, g) for m, g in zip((ours, theirs), given)), strict=True):
        assert one.seg_logits.shape == size
        assert torch.equal(one.seg_logits.data, other.seg_logits.data)
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)
        assert one.pred_sem_seg.data.dtype == other.pred_sem_seg.data.dtype


@torch.no_grad()
def test_predictions_without_samples_and_of_one_channel_are_mmsegs():
    ours, theirs = pair(dict(mode='whole'))
    ours.decode_head.threshold = theirs.decode_head.threshold = 0.4
    for channels, samples in ((CLASSES, False), (1, False), (1, True)):
        logits = torch.randn(2, channels, 20, 30)
        meta = dict(ori_shape=(10, 15))
        given = [[SegDataSample(metainfo=meta) for _ in range(2)] if samples else None for _ in range(2)]
        for one, other in zip(*(m.postprocess_result(logits, g) for m, g in zip((ours, theirs), given)), strict=True):
            assert torch.equal(one.seg_logits.data, other.seg_logits.data)
            assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)


def test_the_best_class_is_argmaxs():
    """Of equal ones the first, and NaN above all."""
    scores = torch.randint(0, 3, (7, 40, 50)).float()
    scores[3, :2], scores[5, 1] = float('nan'), float('nan')
    scores[:, 4], scores[:, 5] = float('inf'), -float('inf')
    assert torch.equal(best_class(scores), scores.argmax(dim=0, keepdim=True))


@torch.no_grad()
@pytest.mark.parametrize('own', [False, True])
def test_windows_are_enlarged_one_after_another(own, monkeypatch):
    """Large logits of one window are there, whatever goes through the model at once; a head that predicts on its own
    is left to it, with the same numbers."""
    model = build(EncoderDecoder, dict(SLIDE, windows_per_batch=4))
    images = torch.randn(2, 3, 107, 130)
    expected = model.inference(images, metas(images))
    enlarged = []
    head = model.decode_head

    class Own(type(head)):
        def predict(self, inputs, batch_img_metas, test_cfg):
            return super().predict(inputs, batch_img_metas, test_cfg)

        def predict_by_feat(self, seg_logits, batch_img_metas):
            enlarged.append(len(seg_logits))
            return super().predict_by_feat(seg_logits, batch_img_metas)

    if not own:
        del Own.predict
    monkeypatch.setattr(head, '__class__', Own)
    found = model.inference(images, metas(images))
    assert torch.equal(found, expected)
    assert enlarged == ([8, 8, 2] if own else [2] * 9)


@torch.no_grad()
def test_a_segmentor_with_an_encode_decode_of_its_own():
    class Own(EncoderDecoder):
        def encode_decode(self, inputs, batch_img_metas):
            return -super().encode_decode(inputs, batch_img_metas)

    images = torch.randn(1, 3, 80, 64)
    found, expected = (build(kind, SLIDE).inference(images, metas(images)) for kind in (Own, EncoderDecoder))
    torch.testing.assert_close(found, -expected)
