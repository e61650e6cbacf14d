"""`init_cfg=dict(type='Pretrained')` of other projects' parts: mmengine takes what happens to match, be it nothing."""

import functools

from mmengine.model.weight_init import PretrainedInit
from mmengine.runner.checkpoint import _load_checkpoint
from torch import nn

from ..checkpoints.convert import few, stripped
from ..checkpoints.load import CheckpointError, state_dict_of


def check_fit(module: nn.Module, name: str, prefix: str | None = None) -> None:
    """Raise CheckpointError where a checkpoint has fewer than half of a module's weights.

    If it has more, mmengine lists in the log what lacks. Positions may be of another shape: their models resize them.
    """
    weights = stripped(state_dict_of(_load_checkpoint(name, map_location='cpu')))
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    own = dict(module.named_parameters())

    def fitting(start: str) -> list[str]:
        return [
            k for k, p in own.items() if start + k in weights and ('pos' in k or weights[start + k].shape == p.shape)
        ]

    fits = fitting(prefix)
    if not own or 2 * len(fits) >= len(own):
        return
    starts = ['', *sorted({f'{key.partition(".")[0]}.' for key in weights})]
    better = next((start for start in starts if start != prefix and 2 * len(fitting(start)) >= len(own)), None)
    hint = (
        f'Its keys of this part start otherwise: prefix={better!r} of init_cfg'
        if better is not None
        else (f'It is of another model: it has {few(list(weights), 3)}')
    )
    raise CheckpointError(
        f'{name}: has {len(fits)} of the {len(own)} weights of {type(module).__name__}, and the rest would be random. '
        f'{hint}'
    )


def refuse_what_does_not_fit() -> None:
    """Let mmengine's PretrainedInit look before it loads."""
    original = PretrainedInit.__call__
    if getattr(original, 'looks', False):
        return

    @functools.wraps(original)
    def call(self, module: nn.Module) -> None:
        check_fit(module, self.checkpoint, self.prefix)
        original(self, module)

    call.looks = True
    PretrainedInit.__call__ = call
