"""EMA of a sharded model: mmengine copies the whole model to average it, which FSDP2 does not allow.

Each rank averages its own shards, in a tree of bare modules with the model's names.
"""

import functools

from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from ..checkpoints.gathering import in_shards
from .finite import local
from .sharding import is_sharded, sharded_like


def shards_of(model: nn.Module) -> nn.Module:
    """A tree of bare modules with a model's names, whose parameters are this rank's shards and whose buffers are the
    model's, in the same memory."""
    tree = nn.Module()
    for name, child in model.named_children():
        tree.add_module(name, shards_of(child))
    for name, parameter in model.named_parameters(recurse=False):
        tree.register_parameter(name, nn.Parameter(local(parameter).detach(), requires_grad=False))
    for name, buffer in model.named_buffers(recurse=False):
        tree.register_buffer(name, buffer, persistent=name not in model._non_persistent_buffers_set)
    return tree


class ShardedAverages:
    """Mixin of mmengine's EMAHook, and of mmpretrain's: `src_model` and `ema_model.module` are `shards_of` the model.
    A checkpoint has the averages under the same names as without shards."""

    def before_run(self, runner: Runner) -> None:
        self.model = runner.model
        self.src_model = shards_of(runner.model)
        self.ema_model = MODELS.build(self.ema_cfg, default_args=dict(model=self.src_model))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        own = self.model.state_dict()
        checkpoint['ema_state_dict'] = {
            name: in_shards(value.clone(), own.get(name.removeprefix('module.'), value))
            for name, value in self.ema_model.state_dict().items()
        }
        self._swap_ema_state_dict(checkpoint)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """A run that goes on takes its averages; one that starts from weights begins its averages with them."""
        own = self.model.state_dict()
        if 'ema_state_dict' in checkpoint:
            self._swap_ema_state_dict(checkpoint)
            averages = checkpoint['ema_state_dict']
        else:
            averages = {f'module.{name}': value for name, value in checkpoint['state_dict'].items()}
        self.ema_model.load_state_dict(
            {
                name: local(sharded_like(value, own.get(name.removeprefix('module.'), value)))
                for name, value in averages.items()
            },
            strict='ema_state_dict' in checkpoint,
        )


@functools.cache
def _sharded(kind: type[EMAHook]) -> type[EMAHook]:
    return type(f'Sharded{kind.__name__}', (ShardedAverages, kind), {})


def average_shards(hook: EMAHook, model: nn.Module) -> None:
    """Have an EMAHook, of whatever kind, average the shards of a model; nothing for one that is whole."""
    if is_sharded(model) and not isinstance(hook, ShardedAverages):
        hook.__class__ = _sharded(type(hook))
