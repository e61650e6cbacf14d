"""Gradient accumulation that gives the loss of the whole step, not the mean of the losses of its parts.

Masks are ragged, so the parts of a step average over different numbers of patches, and so must they weigh.
mmengine's OptimWrapper weighs them alike.
"""

import torch
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper
from mmengine.optim import OptimWrapperDict

from ..registry import OPTIM_WRAPPERS
from .finite import FiniteSteps


def has_updated(wrapper: MMEngineOptimWrapper | OptimWrapperDict) -> bool:
    """Whether no gradients are left that wait for those of the next batch: no checkpoint has them."""
    each = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return all(one.should_update() for one in each)


class WeighsByCount:
    """Mixin of an OptimWrapper: a loss with a `count` weighs as many as it says, one without is as in mmengine."""

    first = 0.0  # counts relative to the first part's: a sum of thousands of losses would overflow in fp16
    weights = 0.0

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        count = getattr(loss, 'count', None)
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
            gradients = [p.grad for group in self.param_groups for p in group['params'] if p.grad is not None]
            torch._foreach_div_(gradients, self.weights.clamp_min(torch.finfo(torch.float32).tiny))
            self.weights = 0.0
        super().step(**kwargs)


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(WeighsByCount, FiniteSteps, MMEngineOptimWrapper):
    """mmengine's OptimWrapper, exact under gradient accumulation, whose steps are finite or skipped."""
