"""Segmentation against mmseg: the loss, the count for mIoU, predictions by windows, a training step of UPerNet.

    python benchmarks/segmentation.py --only loss
    python benchmarks/segmentation.py --only slide tiny

Models are mmseg's recipe for BEiT with UPerNet on ADE20K (its backbone, neck, heads and segmentor), made small as
`MODELS` says, against the same of ours (backbone, neck, segmentor; the heads are mmseg's). `base4` is BEiT-B with four
of its twelve blocks; `recipe` is the whole of it, most of which is a head of 768 channels that both share.

An allocator that keeps its memory makes anybody faster; it is a setting of the process (`ALLOCATOR`), so both are timed
with it and without. The column MiB shows what the logits at the size of the images took.
"""

import functools
from collections.abc import Callable
from pathlib import Path

from harness import Case, main

ALLOCATOR = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_='100000000000', MALLOC_TOP_PAD_='67108864')
MODELS = {  # width, blocks, heads of attention, blocks that are looked at, channels of UPerNet
    'tiny': (192, 12, 3, (3, 5, 7, 11), 192),
    'base4': (768, 4, 12, (0, 1, 2, 3), 192),
    'recipe': (768, 12, 12, (3, 5, 7, 11), 768),
}
CLASSES, CROP, STRIDE = 150, 512, 341
PHOTO = (512, 683)  # height, width: the size that most of ADE20K's images are resized to
BATCH = 2
IGNORED = 255


def mend() -> None:
    """mmseg imports beside mmcv-lite once beit_mm has mended it; and the imports of both are nobody's memory."""
    import beit_mm.engine
    import beit_mm.models  # noqa: F401


def pixel_classes(images: int, size: tuple[int, int], block: int = 16):
    """(images, H, W) int64 classes in patches of `block` pixels, a tenth of them ignored."""
    import torch

    grid = [-(-side // block) for side in size]
    coarse = torch.randint(0, CLASSES, (images, *grid))
    coarse[torch.rand(coarse.shape) < 0.1] = IGNORED
    large = coarse.repeat_interleave(block, 1).repeat_interleave(block, 2)
    return large[:, : size[0], : size[1]].contiguous()


def samples_of(labels) -> list:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    return [SegDataSample(gt_sem_seg=PixelData(data=one[None])) for one in labels]


def loss(ours: bool) -> Callable[[], object]:
    """Of logits (2, 150, 128, 128), for images of 512 pixels: loss, accuracy, and the gradient of the logits."""
    mend()
    import torch
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    from beit_mm.models.segmentation_loss import head_losses

    class Given(BaseDecodeHead):
        def forward(self, inputs):
            return inputs[0]

    head = Given(in_channels=CLASSES, channels=CLASSES, num_classes=CLASSES)
    logits = torch.randn(BATCH, CLASSES, CROP // 4, CROP // 4, requires_grad=True)
    samples = samples_of(pixel_classes(BATCH, (CROP, CROP)))

    def step() -> None:
        found = head_losses(head, [logits], samples, {}) if ours else head.loss([logits], samples, {})
        logits.grad = None
        found['loss_ce'].backward()

    return step


def miou(ours: bool) -> Callable[[], object]:
    """One image's prediction and truth, as they come from the model and the pipeline, put to the metric."""
    mend()
    import torch
    from mmseg.evaluation import IoUMetric as MMSegIoU

    from beit_mm.engine.metrics import IoUMetric

    metric = IoUMetric() if ours else MMSegIoU()
    metric.dataset_meta = dict(classes=[str(i) for i in range(CLASSES)])
    truth = pixel_classes(1, PHOTO)
    guess = torch.where(pixel_classes(1, PHOTO) < 2 * CLASSES // 3, truth, truth.flip(2)) % CLASSES
    sample = dict(pred_sem_seg=dict(data=guess), gt_sem_seg=dict(data=truth))

    def step() -> None:
        metric.results.clear()
        metric.process({}, [sample])

    return step


def segmentor(model: str, ours: bool):
    """UPerNet on a BEiT, weights drawn anew."""
    mend()
    import mmseg
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS as REGISTRY

    width, blocks, heads, looked_at, channels = MODELS[model]
    config = Config.fromfile(Path(mmseg.__file__).parent / '.mim/configs/_base_/models/upernet_beit.py')
    norm = dict(type='BN', requires_grad=True)  # the recipe's is synchronised, which needs GPUs
    changes = dict(
        test_cfg=dict(mode='slide', crop_size=(CROP, CROP), stride=(STRIDE, STRIDE)),
        backbone=dict(
            img_size=(CROP, CROP), embed_dims=width, num_layers=blocks, num_heads=heads, out_indices=looked_at
        ),
        neck=dict(embed_dim=width, norm_cfg=norm),
        decode_head=dict(in_channels=[width] * 4, channels=channels, norm_cfg=norm),
        auxiliary_head=dict(in_channels=width, norm_cfg=norm),
    )
    config.merge_from_dict(dict(model=changes))
    config = config.model
    if ours:
        config.type = 'beit_mm.EncoderDecoder'
        arch = dict(embed_dims=width, num_layers=blocks, num_heads=heads, feedforward_channels=4 * width)
        config.backbone = dict(
            type='beit_mm.BEiTViT', arch=arch, variant='beit_plus', img_size=CROP, out_type='featmap',
            out_indices=looked_at, drop_path_rate=config.backbone.drop_path_rate,
        )  # fmt: skip
        config.neck = dict(type='beit_mm.ViTPyramid', embed_dim=width)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return REGISTRY.build(config)


def slide(model: str, ours: bool) -> Callable[[], object]:
    """Classes of the pixels of one photo, from normalised pixels: windows, their mean, the highest of 150 logits."""
    import torch

    built = segmentor(model, ours).eval()
    image = torch.randn(1, 3, *PHOTO)
    meta = dict(ori_shape=PHOTO, img_shape=PHOTO, pad_shape=PHOTO)

    def step() -> None:
        from mmseg.structures import SegDataSample

        with torch.no_grad():
            built.predict(image, [SegDataSample(metainfo=dict(meta))])

    return step


def training(model: str, ours: bool) -> Callable[[], object]:
    """Losses of two images of 512 pixels, and all gradients; no optimizer."""
    import torch

    built = segmentor(model, ours).train()
    images, samples = torch.randn(BATCH, 3, CROP, CROP), samples_of(pixel_classes(BATCH, (CROP, CROP)))

    def step() -> None:
        losses = built.loss(images, samples)
        built.zero_grad()
        sum(value for name, value in losses.items() if 'loss' in name).backward()

    return step


def case(name: str, make: Callable, unit: str, work: float, bar: float | None, kept: bool = True) -> Case:
    """mmseg and ours, each without and with the allocator that keeps its memory."""
    plain = {'mmseg': functools.partial(make, ours=False), 'ours': functools.partial(make, ours=True)}
    tuned = {f'{who}, allocator': made for who, made in plain.items()} if kept else {}
    return Case(
        name=name,
        candidates={**plain, **tuned},
        baseline='mmseg',
        work=work,
        unit=unit,
        bars={who: (bar, 'mmseg') for who in ('ours', 'ours, allocator') if bar and (kept or who == 'ours')},
        env=dict.fromkeys(tuned, ALLOCATOR),
    )


CASES = [
    case('loss', loss, 'images', BATCH, 3.0),
    case('mIoU', miou, 'images', 1, 10.0),
    case('slide tiny', functools.partial(slide, 'tiny'), 'images', 1, 1.1),
    case('slide base4', functools.partial(slide, 'base4'), 'images', 1, 2.0),
    case('slide recipe', functools.partial(slide, 'recipe'), 'images', 1, None, kept=False),
    case('training step tiny', functools.partial(training, 'tiny'), 'images', BATCH, None),
    case('training step base4', functools.partial(training, 'base4'), 'images', BATCH, None, kept=False),
]

if __name__ == '__main__':
    main(__doc__.splitlines()[0], CASES)
