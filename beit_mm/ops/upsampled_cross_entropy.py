"""Cross-entropy of bilinearly enlarged logits, a few rows of the large map at a time.

A segmentation head predicts on a coarse grid, and its loss is that of the map enlarged to the labels' size: with 150
classes and 512 x 512 pixels 157 MB an image, and as much again for its gradient. Here neither is ever there. Enlarging
is two matrix products (columns, then rows), and the gradient of a strip goes back to the coarse grid by the transposed
ones as soon as its softmax is known, in the forward pass.

Letters: B images, K classes, (h, w) the grid of the logits, (H, W) that of the labels.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F

STRIP_ROWS = 16  # aimed at: with fewer, neighbouring strips enlarge the same source rows again
STRIP_ELEMENTS = {'cpu': 2**20, 'cuda': 2**24}  # of the large map at a time: what caches hold, what fills a GPU


def upsampled_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    align_corners: bool = False,
    ignore_index: int = 255,
    class_weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the cross-entropies of all pixels, and how many are predicted right (an int64, no gradient).

    logits: (B, K, h, w), finite. labels: (B, H, W) classes, or `ignore_index`, which counts for nothing.
    class_weight: (K,), multiplies a pixel's loss by the weight of its class.

    The numbers of `F.cross_entropy(F.interpolate(logits, (H, W), mode='bilinear'), labels, reduction='sum')`, to 1e-6
    of the loss and 1e-5 of the largest gradient. Half precision is computed in, and gives, float32, also under
    autocast. A pixel is right if no class is above its own; of equal ones, others' argmax takes any. A second
    derivative is refused. Raises ValueError for labels that are no class (on CUDA a device-side assertion, as
    PyTorch's).
    """
    if logits.dim() != 4 or labels.shape != (len(logits), *labels.shape[1:3]) or not labels.numel():
        raise ValueError(
            f'upsampled_cross_entropy: logits {tuple(logits.shape)} must be (B, K, h, w) and labels '
            f'{tuple(labels.shape)} (B, H, W)'
        )
    if class_weight is not None and class_weight.shape != (logits.shape[1],):
        raise ValueError(
            f'upsampled_cross_entropy: class_weight has shape {tuple(class_weight.shape)}, and there are '
            f'{logits.shape[1]} classes'
        )
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return _UpsampledCrossEntropy.apply(logits, labels.long(), class_weight, align_corners, ignore_index)


class _UpsampledCrossEntropy(torch.autograd.Function):
    """The gradient is there when the loss is: backward only multiplies it."""

    @staticmethod
    def forward(ctx, logits, labels, class_weight, align_corners, ignore_index):
        wanted = ctx.needs_input_grad[0]
        loss, right, gradient = _in_strips(logits, labels, class_weight, align_corners, ignore_index, wanted)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx, of_loss, of_right):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise RuntimeError('upsampled_cross_entropy has no second derivative: its gradient is a constant')
        (gradient,) = ctx.saved_tensors
        return gradient * of_loss, None, None, None, None


# an operator of its own: torch.compile takes it as a whole, and does not unroll the strips
@torch.library.custom_op('beit_mm::upsampled_cross_entropy', mutates_args=())
def _in_strips(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weight: torch.Tensor | None,
    align_corners: bool,
    ignore_index: int,
    wanted: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, count of right pixels, and gradient (B, K, h, w), which is empty unless wanted."""
    size, (images, classes, *_), (height, width) = logits.shape[2:], logits.shape, labels.shape[1:]
    counted = labels != ignore_index
    labels = torch.where(counted, labels, 0)
    _check(labels, classes)
    weight = counted.to(logits.dtype) if class_weight is None else class_weight.to(logits.dtype)[labels] * counted
    rows, columns = (_enlarging(n, to, align_corners, logits) for n, to in zip(size, (height, width), strict=True))
    reach = _reach(rows)
    rows, columns = rows.to(logits.device), columns.to(logits.device)

    most = STRIP_ELEMENTS.get(logits.device.type, STRIP_ELEMENTS['cpu'])
    together = min(images, max(1, most // (STRIP_ROWS * classes * width)))
    thick = min(height, max(1, most // (together * classes * width)))
    losses, hits = [], []
    gradient = torch.zeros_like(logits) if wanted else logits.new_empty(0)
    with torch.autocast(logits.device.type, enabled=False), _full_precision():
        for batch in torch.arange(images).split(together):
            part = slice(int(batch[0]), int(batch[-1]) + 1)
            coarse = logits[part].permute(2, 0, 1, 3).contiguous()  # (h, B, K, w)
            back = torch.zeros_like(coarse) if wanted else None
            for top in range(0, height, thick):
                strip = slice(top, min(top + thick, height))
                source = slice(reach[0][strip.start], reach[1][strip.stop - 1])
                mix = rows[strip, source]
                z = torch.matmul(coarse[source], columns.T)  # (source rows, B, K, W)
                z = torch.mm(mix, z.flatten(1)).unflatten(1, z.shape[1:])  # (rows, B, K, W)
                label, share = (t[part, strip].transpose(0, 1).unsqueeze(2) for t in (labels, weight))
                largest = z.amax(dim=2, keepdim=True)
                own = z.gather(2, label)
                hits.append(((own == largest) & counted[part, strip].transpose(0, 1).unsqueeze(2)).sum())
                total = z.sub_(largest).exp_().sum(dim=2, keepdim=True)
                losses.append(((total.log() + largest - own) * share).sum())
                if wanted:
                    z.mul_(share / total).scatter_add_(2, label, -share)
                    back[source] += torch.matmul(torch.mm(mix.T, z.flatten(1)).unflatten(1, z.shape[1:]), columns)
            if wanted:
                gradient[part] = back.permute(1, 2, 0, 3)
    return torch.stack(losses).sum(), torch.stack(hits).sum(), gradient


@_in_strips.register_fake
def _(logits, labels, class_weight, align_corners, ignore_index, wanted):
    gradient = torch.empty_like(logits) if wanted else logits.new_empty(0)
    return logits.new_empty(()), labels.new_empty(()), gradient


def _enlarging(n: int, to: int, align_corners: bool, like: torch.Tensor) -> torch.Tensor:
    """(to, n), whose product with n values is what F.interpolate makes of them: its own arithmetic, on the identity."""
    identity = torch.eye(n, dtype=like.dtype)[None]
    return F.interpolate(identity, size=to, mode='linear', align_corners=align_corners)[0].T.contiguous()


def _reach(rows: torch.Tensor) -> tuple[list[int], list[int]]:
    """The first source row that each row of the large map takes something of, and the one after the last."""
    taken = (rows != 0).int()
    return taken.argmax(dim=1).tolist(), (rows.shape[1] - taken.flip(1).argmax(dim=1)).tolist()


def _check(labels: torch.Tensor, classes: int) -> None:
    if labels.device.type != 'cpu':
        return  # looking would make the device wait; gather asserts
    least, most = (int(value) for value in labels.aminmax())
    if least < 0 or most >= classes:
        raise ValueError(
            f'labels hold class {least if least < 0 else most}, and there are {classes} classes (0..{classes - 1}): '
            f'check num_classes, reduce_zero_label and ignore_index'
        )


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Products in float32 whatever the process allows elsewhere: of TF32, weights of pixels have three digits left."""
    if hasattr(torch.backends.mkldnn, 'matmul'):  # torch >= 2.9, where what is said this way forbids to ask the older
        kinds = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        reduced = {kind: kind.fp32_precision for kind in kinds if kind.fp32_precision not in ('ieee', 'none')}
        for kind in reduced:
            kind.fp32_precision = 'ieee'
        try:
            yield
        finally:
            for kind, allowed in reduced.items():
                kind.fp32_precision = allowed
        return
    allowed = torch.get_float32_matmul_precision()
    if allowed == 'highest':
        yield
        return
    torch.set_float32_matmul_precision('highest')
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
