"""Layer-wise learning-rate decay: one constructor for classifiers, segmentors and masked image modeling.

A parameter of depth d (0 = stem, see `BEiTViT.get_layer_depth`) of n depths learns at decay^(n - 1 - d) times
the learning rate. Schedules multiply that, so their floor must be relative: use `eta_min_ratio`.
"""

import logging
from typing import NamedTuple

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

# Weight decay exceptions, as in official optim_factory.py: vectors (biases, norms, gammas, q_bias, v_bias) by
# their shape, and these names. The mask token and relative position tables do decay (timm: not the tables).
NEVER_DECAYED = ('pos_embed', 'cls_token')


class Rates(NamedTuple):
    """One parameter's layer, factor of the learning rate, and whether weight decay applies."""

    layer: int
    lr_scale: float
    decays: bool


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return not (parameter.ndim <= 1 or name.endswith('.bias') or name.rsplit('.', 1)[-1] in NEVER_DECAYED)


def _backbone(model: nn.Module) -> tuple[nn.Module, str]:
    """The part of the model that knows its layers, and the prefix of its parameters' names."""
    # A classifier answers too, but by a signature of its own: ask its backbone.
    if hasattr(getattr(model, 'backbone', None), 'get_layer_depth'):
        return model.backbone, 'backbone.'
    if hasattr(model, 'get_layer_depth'):
        return model, ''
    for name, module in model.named_modules():
        if name and hasattr(module, 'get_layer_depth'):
            return module, name + '.'
    raise ValueError(
        f'layer decay needs a backbone with get_layer_depth(), and {type(model).__name__} has none. '
        f"Use beit_mm.BEiTViT or one of mmpretrain's that has it, or set layer_decay_rate=1.0"
    )


def layer_decay_table(model: nn.Module, decay: float, weight_decay: float) -> dict[str, Rates]:
    """{parameter name: (layer, lr scale, decays)} of every parameter that learns.

    `weight_decay` 0 means that none decays. Source: official optim_factory.py.
    """
    if not 0 < decay <= 1:
        raise ValueError(f'layer_decay_rate={decay} must be in (0, 1]')
    table = {}
    backbone, prefix = _backbone(model) if decay < 1 else (None, '')
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = bool(weight_decay) and _decays(name, parameter)
        if backbone is None:
            table[name] = Rates(0, 1.0, decays)
            continue
        layer, depths = backbone.get_layer_depth(name, prefix)
        table[name] = Rates(layer, decay ** (depths - 1 - layer), decays)
    return table


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """For `optim_wrapper=dict(constructor=..., paramwise_cfg=dict(layer_decay_rate=0.65), optimizer=...)`.

    One parameter group per (layer, decays). With layer_decay_rate 1.0 it only applies the weight decay rule,
    for models without layers too.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        unknown = set(paramwise_cfg) - {'layer_decay_rate'}
        if unknown:
            raise ValueError(
                f'paramwise_cfg: {", ".join(sorted(unknown))} unknown to LayerDecayOptimWrapperConstructor, '
                f'which takes layer_decay_rate'
            )
        self.decay = paramwise_cfg.get('layer_decay_rate', 1.0)
        super().__init__(optim_wrapper_cfg, None)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, 'module', model)
        optimizer_cfg = dict(self.optimizer_cfg)
        weight_decay = optimizer_cfg.get('weight_decay', 0.0) or 0.0
        table = layer_decay_table(model, self.decay, weight_decay)
        parameters = dict(model.named_parameters())
        groups: dict[tuple[int, bool], dict] = {}
        for name, rates in table.items():
            group = groups.setdefault(
                (rates.layer, rates.decays),
                dict(
                    params=[],
                    lr=optimizer_cfg['lr'] * rates.lr_scale,
                    weight_decay=weight_decay if rates.decays else 0.0,
                    lr_scale=rates.lr_scale,
                ),
            )
            group['params'].append(parameters[name])
        # The full rate first: mmengine logs the first group's as `lr`.
        optimizer_cfg['params'] = sorted(groups.values(), key=lambda g: -g['lr_scale'])
        optimizer = OPTIMIZERS.build(optimizer_cfg)
        scales = sorted({g['lr_scale'] for g in groups.values()})
        print_log(
            f'Layer decay {self.decay}: {len(table)} parameters in {len(groups)} groups, '
            f'learning rate x {scales[0]:.2e} to x {scales[-1]:.2e}',
            logger='current',
            level=logging.INFO,
        )
        return OPTIM_WRAPPERS.build(dict(self.optim_wrapper_cfg), default_args=dict(optimizer=optimizer))
