"""The loss of mmseg's decode heads, without their logits at the size of the image.

Heads stay mmseg's; beit_mm's EncoderDecoder asks for their losses here. A head of which anything is unusual (a pixel
sampler, several losses, another loss, a `loss` of its own) computes its loss itself, as in mmseg.
"""

from collections.abc import Sequence

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.models.losses.cross_entropy_loss import cross_entropy
from torch import nn

from ..ops.upsampled_cross_entropy import upsampled_cross_entropy

EPS = torch.finfo(torch.float32).eps  # mmseg's, in denominators that may be 0


def head_losses(head: nn.Module, features: Sequence[torch.Tensor], samples: list, train_cfg: dict) -> dict:
    """What `head.loss(features, samples, train_cfg)` gives: the loss under its name, and `acc_seg` in percent."""
    if not is_plain(head):
        return head.loss(features, samples, train_cfg)
    logits = head.forward(features)
    labels = head._stack_batch_gt(samples).squeeze(1)
    loss, accuracy = cross_entropy_loss(head.loss_decode, logits, labels, head.align_corners, head.ignore_index)
    return {head.loss_decode.loss_name: loss, 'acc_seg': accuracy}


def is_plain(head: nn.Module) -> bool:
    """Whether a head's loss is mmseg's own: one softmax cross-entropy of the enlarged logits, and the accuracy."""
    own = ('loss', 'loss_by_feat', '_stack_batch_gt')
    return (
        isinstance(head, BaseDecodeHead)
        and all(getattr(getattr(head, name), '__func__', None) is getattr(BaseDecodeHead, name) for name in own)
        and head.sampler is None
        and head.out_channels > 1
        and isinstance(head.ignore_index, int)
        and type(head.loss_decode) is CrossEntropyLoss
        and head.loss_decode.cls_criterion is cross_entropy
        and head.loss_decode.reduction in ('mean', 'sum')
    )


def cross_entropy_loss(
    criterion: CrossEntropyLoss, logits: torch.Tensor, labels: torch.Tensor, align_corners: bool, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """mmseg's `criterion` of logits (B, K, h, w) enlarged to labels (B, H, W), and mmseg's accuracy in percent, (1,).

    Its mean is over all pixels, ignored ones too, unless the criterion has avg_non_ignore. With class weights it is
    over the weights of the pixels' classes; there ignored pixels, at which mmseg fails, weigh nothing.
    """
    weight = None if criterion.class_weight is None else logits.new_tensor(criterion.class_weight, dtype=torch.float32)
    loss, right = upsampled_cross_entropy(logits, labels, align_corners, ignore_index, weight)
    counted = labels != ignore_index
    accuracy = (right.float() + EPS) * (100 / (counted.sum() + EPS))
    if criterion.reduction == 'mean':
        taken = counted if criterion.avg_non_ignore else torch.ones_like(counted)
        if weight is not None:
            there = (labels >= 0) & (labels < len(weight))
            taken = weight[torch.where(there, labels, 0)] * (there & taken)
        loss = loss / (taken.sum() + EPS)
    return criterion.loss_weight * loss, accuracy.reshape(1)
