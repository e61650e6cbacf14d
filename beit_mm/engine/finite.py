"""The finite-step policy: no optimizer step is taken on a loss or gradients that are not finite, on any rank.

Before each step all ranks look at the loss and the norm of the gradients, and decide together. A step that is skipped
leaves no trace: no weight, no running statistic of a norm layer and no counter in a buffer has changed, the schedule
and the average of the weights (EMA) stay where they are, and the log's smoothed scalars do not see it. Its batch is
spent, and it counts as an iteration.

Here is how a step is judged (`FiniteSteps`, a part of the optimizer wrappers in accumulation.py and amp.py); what
follows from it for the run is in skipping.py.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import nn
from torch.distributed.tensor import DTensor


@dataclasses.dataclass
class Skipped:
    """An optimizer step that was not taken.

    loss: whether it was the loss that was not finite, on any rank. norm: of the gradients. parts: how many batches went
    into the step. scale: with a loss scaler whose gradients overflowed, what it has come down to, else None.
    """

    loss: bool
    norm: float
    parts: int
    scale: float | None = None


def over_ranks(flags: torch.Tensor) -> torch.Tensor:
    """The largest of each of the flags, or other numbers, over all ranks, in place: one small all-reduce."""
    all_reduce(flags, 'max')
    return flags


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor (FSDP2), in the same memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def not_finite(value, name: str = '') -> list[str]:
    """Names of the tensors inside of dicts and lists that hold a NaN or an infinity, of sharded ones on this rank."""
    if isinstance(value, torch.Tensor):
        return [name] if value.is_floating_point() and not _finite(local(value.detach())) else []
    if isinstance(value, dict | list | tuple):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, one in inside for found in not_finite(one, f'{name}.{key}' if name else str(key))]
    return []


def _finite(value: torch.Tensor) -> bool:
    value = value.float() if value.dtype.itemsize == 1 else value  # torch does not add up floats of 8 bits
    # A sum is ten times faster than a look at each; one that is not finite can be of many large values
    return bool(torch.isfinite(value.sum(dtype=torch.float32))) or bool(torch.isfinite(value).all())


def norm_of(gradients: list[torch.Tensor], norm_type: float = 2.0) -> torch.Tensor:
    """The norm of all of them together, a scalar; of sharded ones over all ranks, the same on each."""
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        norm = nn.utils.get_total_norm(gradients, norm_type)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
    if norm_type != 2.0 or len({(gradient.device, gradient.dtype) for gradient in gradients}) > 1:
        return nn.utils.get_total_norm(gradients, norm_type)
    return torch.stack(torch._foreach_norm(gradients)).norm()  # the same, without the 0.2 ms of sorting them


def clip_shards(gradients: list[torch.Tensor], max_norm: float, norm_type: float = 2.0, **_) -> torch.Tensor:
    """As torch's clip_grad_norm_, which takes sharded gradients but leaves their norm in parts: the norm before."""
    norm = norm_of(gradients, norm_type)
    torch._foreach_mul_([local(gradient) for gradient in gradients], (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def judged(loss_and_norm: torch.Tensor) -> tuple[bool, bool, float]:
    """(whether the loss is not finite on any rank, whether the norm is not, the norm), by one look at the device."""
    if get_world_size() == 1:
        loss, norm = loss_and_norm.tolist()
        return not math.isfinite(loss), not math.isfinite(norm), norm
    flags = over_ranks((~loss_and_norm.isfinite()).float())
    bad_loss, bad_norm, norm = torch.cat((flags, loss_and_norm[1:])).tolist()
    return bool(bad_loss), bool(bad_norm), norm


class Buffers:
    """A model's buffers that a forward pass may change, as they were: floats (running statistics) and counters."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places = [
            (module._buffers, name)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and (buffer.is_floating_point() or buffer.numel() == 1)
        ]
        self.kept = [place[name].clone() for place, name in self.places]

    def keep(self) -> None:
        if self.kept:
            torch._foreach_copy_(self.kept, [place[name] for place, name in self.places])

    def restore(self) -> None:
        if self.kept:
            torch._foreach_copy_([place[name] for place, name in self.places], self.kept)


class FiniteSteps:
    """Mixin of an OptimWrapper: a step whose loss or gradients are not finite on any rank is skipped on all.

    The norm is the one that `clip_grad` computes, else that of all gradients. It costs no synchronisation with the
    device beyond the one that mmengine's own reading of the norm, or of the loss, makes.
    `skipped` is the last step where it was not taken, until somebody has read it by `pop_skipped`.
    """

    skipped: Skipped | None = None
    losses: torch.Tensor | None = None  # sum since the last step: finite as long as each of them is
    parts = 0
    buffers: Buffers | None = None

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        if self.parts == 0:
            if self.buffers is None or self.buffers.model is not model:
                self.buffers = Buffers(model)
            self.buffers.keep()
        with super().optim_context(model):
            yield

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        self.losses = loss.detach() if self.losses is None else self.losses + loss.detach()
        self.parts += 1
        super().backward(loss, **kwargs)

    def step(self, **kwargs) -> None:
        """Look at the loss and the gradients, clip, and take the step or skip it."""
        self.unscale()
        norm = self.clipped_norm()
        loss = torch.zeros_like(norm) if self.losses is None else self.losses.to(norm)
        bad_loss, bad_norm, norm = judged(torch.stack((loss, norm)).float())
        if bad_loss or bad_norm:
            self.skipped = Skipped(bad_loss, norm, self.parts)
            self.skip(self.skipped)
        else:
            if self.clip_grad_kwargs and self.grad_name == 'grad_norm':
                self.message_hub.update_scalar('train/grad_norm', norm)
            self.take(**kwargs)
        self.losses, self.parts = None, 0

    def clipped_norm(self) -> torch.Tensor:
        """The norm of all gradients, a scalar, before they are clipped as the config says."""
        learning = [p for group in self.optimizer.param_groups for p in group['params'] if p.grad is not None]
        if not learning:
            return torch.zeros(())
        if self.clip_grad_kwargs and self.grad_name == 'grad_norm':
            if any(isinstance(p.grad, DTensor) for p in learning):
                return clip_shards([p.grad for p in learning], **self.clip_grad_kwargs)
            return self.clip_func(learning, **self.clip_grad_kwargs).detach()
        norm = norm_of([p.grad for p in learning])
        if self.clip_grad_kwargs:
            self.clip_func(learning, **self.clip_grad_kwargs)
        return norm

    def unscale(self) -> None:
        """With a loss scaler: divide the gradients by its scale."""

    def take(self, **kwargs) -> None:
        self.optimizer.step(**kwargs)

    def skip(self, skipped: Skipped) -> None:
        """Drop the gradients, and put back what the forward passes have changed."""
        self.optimizer.zero_grad()
        if self.buffers is not None:
            self.buffers.restore()

    def pop_skipped(self) -> Skipped | None:
        skipped, self.skipped = self.skipped, None
        return skipped
