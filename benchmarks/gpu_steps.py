"""The steps of work that benchmarks/gpu.py times, and what they cost; the models are peers.py's.

Every step is made for (size, setting, batch), after what names the candidate.
"""

import contextlib
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from peers import (
    BACKWARD,
    FLOPS_PER_MAC,
    PATCH,
    Classifier,
    OutsideAutocast,
    Setting,
    Size,
    Step,
    build_segmentor,
    masked_image_model,
    segmentor,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CLIP, WEIGHT_DECAY = 3.0, 0.05
DOWNSAMPLING = 8  # of DALL-E's encoder
AUTOCAST, PURE = 'autocast', 'pure bf16'
WINDOWS = 2  # that cover an image of 3 : 4
TRAINING = 1 + BACKWARD  # forward passes that a step of training costs


def images_of(batch: int, sides: tuple[int, int], setting: Setting) -> torch.Tensor:
    with setting.building():
        return torch.randn(batch, 3, *sides)


def classify(
    whose: str, size: Size, setting: Setting, batch: int, precision: str = AUTOCAST, how: str | None = None
) -> Step:
    """Inference: logits of a batch of images."""
    model, images = Classifier(whose, size, setting).eval(), images_of(batch, (size.image,) * 2, setting)
    if precision == PURE:
        model, images = model.bfloat16(), images.bfloat16()
    model = setting.compiled(model, how)

    @torch.inference_mode()
    def step() -> torch.Tensor:
        with setting.autocast() if precision == AUTOCAST else contextlib.nullcontext():
            return model(images)

    return step


def train_classifier(whose: str, size: Size, setting: Setting, batch: int, how: str | None = None) -> Step:
    """Training: forward, cross-entropy, backward, clip, AdamW."""
    model, images = Classifier(whose, size, setting).train(), images_of(batch, (size.image,) * 2, setting)
    labels = torch.arange(batch, device=setting.device) % size.classes
    network = setting.compiled(model, how)
    return training(model, lambda: F.cross_entropy(network(images), labels), setting)


def training(model: nn.Module, loss_of: Callable[[], torch.Tensor], setting: Setting) -> Step:
    """A step of training with what all candidates have in common; gives the loss."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=setting.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)

    def step() -> torch.Tensor:
        with setting.autocast():
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def train_mim(
    whose: str, size: Size, setting: Setting, batch: int, tokens: str = 'computed', how: str | None = None
) -> Step:
    """The step of pre-training: tokens of the second view at half the size, backbone, head, loss, AdamW.

    tokens: `computed` as the project does, in `fp32` outside autocast (ours always is), or `cached`.
    """
    model = masked_image_model(whose, size, setting).train()
    patches = images_of(batch, (size.image,) * 2, setting)
    view = images_of(batch, (size.image // 2,) * 2, setting).sigmoid() * 0.8 + 0.1
    ranks = torch.rand(batch, size.grid**2, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    mask = (ranks < size.masked).view(batch, size.grid, size.grid).to(setting.device)
    if whose == 'ours':
        given = dict(patches=patches, tokens_view=view, mask=mask)
        if tokens == 'cached':
            grid = view.shape[-1] // DOWNSAMPLING
            given = dict(patches=patches, tokens=model.target(given).view(batch, grid, grid), mask=mask)
        model.backbone = setting.compiled(model.backbone, how)
        return training(model, lambda: model.parse_losses(model(mode='loss', **given))[0], setting)
    from mmpretrain.structures import DataSample

    if tokens == 'fp32':
        model.target_generator = OutsideAutocast(model.target_generator)
    samples = [DataSample().set_mask(one) for one in mask]
    return training(model, lambda: model.loss([patches, view], samples)['loss'], setting)


def segment(whose: str, size: Size, setting: Setting, batch: int) -> Step:
    """Inference over an image of 3 : 4, by two windows of the crop: logits of every pixel."""
    sides = (size.crop, 4 * size.crop // 3)
    model, images = segmentor(whose, size, setting).eval(), images_of(batch, sides, setting)
    meta = dict(ori_shape=sides, img_shape=sides, pad_shape=sides, padding_size=[0, 0, 0, 0])

    @torch.inference_mode()
    def step() -> torch.Tensor:
        with setting.autocast():
            return model.inference(images, [meta] * batch)

    return step


def train_segmentor(whose: str, size: Size, setting: Setting, batch: int) -> Step:
    """Training on crops: both heads' losses, with every tenth row of labels to be ignored."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model, images = segmentor(whose, size, setting).train(), images_of(batch, (size.crop,) * 2, setting)
    with setting.building():
        labels = torch.randint(size.labels, (batch, 1, size.crop, size.crop))
    labels[:, :, ::10] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=one), metainfo=dict(img_shape=one.shape[1:])) for one in labels]
    return training(model, lambda: model.parse_losses(model.loss(images, samples))[0], setting)


# What the steps cost, in floating-point operations an image: of the plain computation, whoever takes a shorter way


def flops_classify(size: Size) -> float:
    return FLOPS_PER_MAC * (size.backbone_macs + size.dim * size.classes)


def counted(model: nn.Module, forward: Callable[[], object]) -> float:
    """Of convolutions and matrix products, on a model that has shapes only."""
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return float(counter.get_total_flops())


@functools.cache
def flops_tokenizer(size: Size) -> float:
    from beit_mm.models.dalle import Encoder

    with torch.device('meta'):
        encoder, view = Encoder(*size.tokenizer), torch.empty(1, 3, size.image // 2, size.image // 2)
    return counted(encoder, lambda: encoder(view))


def flops_mim(size: Size, cached: bool = False) -> float:
    """The head sees the masked patches only."""
    learned = FLOPS_PER_MAC * (size.backbone_macs + size.masked * size.dim * size.tokenizer[1])
    return TRAINING * learned + (0 if cached else flops_tokenizer(size))


@functools.cache
def flops_segment(size: Size, heads: tuple[str, ...]) -> float:
    """Of one crop."""
    side = size.crop // PATCH
    with torch.device('meta'):
        model, maps = build_segmentor('ours', size, Setting('meta')), torch.empty(4, 1, size.dim, side, side)

    def after_backbone() -> list[torch.Tensor]:
        scales = model.neck(maps.unbind())
        return [getattr(model, head)(scales) for head in heads]

    return FLOPS_PER_MAC * size.macs_at(size.crop) + counted(model, after_backbone)
