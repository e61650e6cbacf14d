"""Gradient accumulation that gives the loss of the whole step, not the mean of the losses of its parts.

Masks are ragged, so the parts of a step average over different numbers of patches, and so must they weigh.
mmengine's OptimWrapper weighs them alike.

There are two ways to take a step in parts. `optim_wrapper.accumulative_counts` is mmengine's: each batch is an
iteration, so schedules, intervals and lengths that count iterations count parts of steps. With
`optim_wrapper.micro_batches` an iteration stays a step: its batch goes through the model in so many parts
(`train_step`), and nothing else changes. Part j of rank r is what rank r + j * ranks would get of that batch if there
were so many times more ranks, random numbers included.
"""

from collections.abc import Iterator

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from ..data.sampling import seed_globals
from ..registry import OPTIM_WRAPPERS
from .finite import FiniteSteps, local


def has_updated(wrapper: MMEngineOptimWrapper | OptimWrapperDict) -> bool:
    """Whether no gradients are left that wait for those of the next batch: no checkpoint has them."""
    each = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return all(one.should_update() for one in each)


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed the global generators for what a rank draws in an iteration."""
    seed_globals('step', seed, iteration, rank)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(torch.initial_seed())


def images_in(batch) -> int:
    """How many images a collated batch has: the length of the first tensor, or list of anything but lists, in it."""
    if isinstance(batch, dict):
        return images_in(next(iter(batch.values())))
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], (list, tuple, dict)):
        return images_in(batch[0])
    return len(batch)


def split(batch, count: int) -> Iterator:
    """The batches of images j, j + count, j + 2 count, ... of a collated batch, for each j; as many as have images."""
    images = images_in(batch)

    def part(value, first: int):
        if isinstance(value, dict):
            return {key: part(each, first) for key, each in value.items()}
        if isinstance(value, torch.Tensor):
            return value[first::count] if value.ndim and len(value) == images else value
        if isinstance(value, (list, tuple)):
            if len(value) == images:
                return value[first::count]
            return type(value)(part(each, first) for each in value)
        return value

    for first in range(min(count, images)):
        yield part(batch, first)


def train_step(runner: Runner, batch) -> dict[str, torch.Tensor]:
    """What the model's `train_step` does with the batch of an iteration, in `micro_batches` parts if the optimizer
    wrapper says so; of what it logs, the mean over the images."""
    wrapper = runner.optim_wrapper
    count = getattr(wrapper, 'micro_batches', 1)
    if count == 1:
        return runner.model.train_step(batch, optim_wrapper=wrapper)
    images, logged = images_in(batch), {}
    wrapper.leave_out(count - min(count, images))
    for j, part in enumerate(split(batch, count)):
        seed_step(runner.seed, runner.iter, get_rank() + j * get_world_size())
        wrapper.images = images_in(part)
        for key, value in runner.model.train_step(part, optim_wrapper=wrapper).items():
            logged[key] = logged.get(key, 0.0) + value * (wrapper.images / images)
    return logged


class WeighsByCount:
    """Mixin of an OptimWrapper: a loss with a `count` weighs as many as it says, one without is as in mmengine.

    micro_batches: in how many parts the batch of an iteration goes through the model; a loss without a count then
        weighs as many as the part has images. Multiplies accumulative_counts, which keeps counting iterations.
    """

    first = 0.0  # counts relative to the first part's: a sum of thousands of losses would overflow in fp16
    weights = 0.0
    images = 0  # of the part

    def __init__(self, *args, accumulative_counts: int = 1, micro_batches: int = 1, **kwargs) -> None:
        super().__init__(*args, accumulative_counts=accumulative_counts * micro_batches, **kwargs)
        self.micro_batches = micro_batches

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """As mmengine's, of iterations; what is counted from there on are parts."""
        super().initialize_count_status(model, init_counts * self.micro_batches, max_counts * self.micro_batches)

    def leave_out(self, parts: int) -> None:
        """Count parts that have no image."""
        self._inner_count += parts

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        count = getattr(loss, 'count', None)
        if count is None and self.micro_batches > 1:
            count = loss.new_tensor(float(self.images))
        if self._accumulative_counts == 1 or count is None:
            return super().scale_loss(loss)
        if isinstance(self.weights, float):
            self.first = count.clamp_min(1)
        weight = count / self.first
        self.weights = self.weights + weight
        return loss * weight

    def step(self, **kwargs) -> None:
        """Divide the summed gradients by the weights of their parts, then clip and step."""
        if not isinstance(self.weights, float):
            gradients = [local(p.grad) for group in self.param_groups for p in group['params'] if p.grad is not None]
            torch._foreach_div_(gradients, self.weights.clamp_min(torch.finfo(torch.float32).tiny))
            self.weights = 0.0
        super().step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(WeighsByCount, FiniteSteps, MMEngineOptimWrapper):
    """mmengine's OptimWrapper, exact under gradient accumulation, whose steps are finite or skipped."""
