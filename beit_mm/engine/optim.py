"""Layer-wise learning-rate decay: one constructor for classifiers, segmentors and masked image modeling.

A parameter of depth d (0 = stem, see `BEiTViT.get_layer_depth`) of n depths learns at decay^(n - 1 - d) times
the learning rate. Schedules multiply that, so their floor must be relative: use `eta_min_ratio`.

The optimizer is built in its fused form where torch has one for it and for the parameters' device.
"""

import difflib
import inspect
import logging
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn
from torch.optim import AdamW, Optimizer

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

# Weight decay exceptions, as in official optim_factory.py: vectors (biases, norms, gammas, q_bias, v_bias) by
# their shape, and these names. The mask token and relative position tables do decay (timm: not the tables).
NEVER_DECAYED = ('pos_embed', 'cls_token')
WAY_OUT = (
    "use beit_mm.BEiTViT, one of mmpretrain's that has it, or a timm model (with features_only=True also "
    "feature_cls='getter'); or set layer_decay_rate=1.0"
)


class Rates(NamedTuple):
    """One parameter's layer, factor of the learning rate, and whether weight decay applies."""

    layer: int
    lr_scale: float
    decays: bool


def _decays(name: str, parameter: nn.Parameter, decay_class_token: bool) -> bool:
    if name.rsplit('.', 1)[-1] in NEVER_DECAYED:
        return decay_class_token
    return not (parameter.ndim <= 1 or name.endswith('.bias'))


def _answers(module: nn.Module) -> bool:
    return hasattr(module, 'get_layer_depth') or hasattr(module, 'group_matcher')


def _backbone(model: nn.Module) -> tuple[nn.Module, str]:
    """The part of the model that knows its layers, and the prefix of its parameters' names.

    That is the outermost one under `backbone` (a classifier answers too, but by a signature of its own), or else
    the outermost of all. Raises ValueError if there is none, or more than one.
    """
    known = [name for name, module in model.named_modules() if _answers(module)]
    inside = [name for name in known if (name + '.').startswith('backbone.')]
    known = inside or known
    outermost = [n for n in known if not any(n != other and (n + '.').startswith(other + '.') for other in known)]
    if '' in known:
        outermost = ['']
    if not outermost:
        raise ValueError(
            f'layer decay needs a backbone with get_layer_depth(), and {type(model).__name__} has none; {WAY_OUT}'
        )
    if len(outermost) > 1:
        raise ValueError(
            f'layer decay: {type(model).__name__} has several parts that know their layers, '
            f'{", ".join(outermost)}, and none is its `backbone`'
        )
    name = outermost[0]
    return model.get_submodule(name), f'{name}.' if name else ''


def _depths(model: nn.Module) -> Callable[[str], tuple[int, int]]:
    """Parameter name -> (depth, number of depths), as the backbone says."""
    backbone, prefix = _backbone(model)
    if hasattr(backbone, 'get_layer_depth'):
        try:
            backbone.get_layer_depth(f'{prefix}anything', prefix)
        except NotImplementedError as error:
            raise ValueError(f'layer decay: {type(backbone).__name__} does not say its layers; {WAY_OUT}') from error
        return lambda name: backbone.get_layer_depth(name, prefix)
    from timm.models import group_parameters  # seconds to import

    groups = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)  # timm's way
    number = max(groups.values()) + 1
    last = [name for name, group in groups.items() if group == number - 1]
    if any(re.search(r'\.\d+\.', name) for name in last):
        number += 1  # it was built without a head of its own: what follows is a layer further than its last block
    return lambda name: (
        groups.get(name.removeprefix(prefix), number - 1) if name.startswith(prefix) else number - 1,
        number,
    )


def layer_decay_table(
    model: nn.Module, decay: float, weight_decay: float, decay_class_token: bool = False
) -> dict[str, Rates]:
    """{parameter name: (layer, lr scale, decays)} of every parameter that learns.

    The model's backbone answers `get_layer_depth(name, prefix)`, or is timm's and has a `group_matcher`.
    weight_decay: 0 means that none decays. decay_class_token: as the official segmentation code, which by a
    slip (it compares names without their prefix) lets class token and position embeddings decay.
    Raises ValueError for a decay outside (0, 1] and for a model that cannot say its layers.
    Source: official optim_factory.py; semantic_segmentation/mmcv_custom/layer_decay_optimizer_constructor.py.
    """
    if not 0 < decay <= 1:
        raise ValueError(f'layer_decay_rate={decay} must be in (0, 1]')
    depth_of = _depths(model) if decay < 1 else lambda name: (0, 1)
    table = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer, depths = depth_of(name)
            decays = bool(weight_decay) and _decays(name, parameter, decay_class_token)
            table[name] = Rates(layer, decay ** (depths - 1 - layer), decays)
    return table


def describe(table: dict[str, Rates], decay: float, lr: float, weight_decay: float) -> str:
    """The table that is logged at the start: a line per layer, tensors counted."""
    if decay == 1.0:
        decayed = sum(rates.decays for rates in table.values())
        return (
            f'No layer decay: learning rate {lr:g}; weight decay {weight_decay:g} of {decayed} tensors, '
            f'none of {len(table) - decayed} (vectors, class token, positions)'
        )
    lines = [
        f'Layer decay {decay:g} of the learning rate {lr:g}; weight decay {weight_decay:g} of the decayed tensors',
        f'{"layer":>7} {"learning rate":>14} {"decayed":>8} {"not decayed":>12}',
    ]
    for layer in sorted({rates.layer for rates in table.values()}):
        here = [rates for rates in table.values() if rates.layer == layer]
        decayed = sum(rates.decays for rates in here)
        lines.append(f'{layer:>7} {lr * here[0].lr_scale:>14.3e} {decayed:>8} {len(here) - decayed:>12}')
    return '\n'.join(lines)


FORMS = ('fused', 'foreach', 'capturable', 'differentiable')  # of the same update, in torch.optim


def build_optimizer(optimizer_cfg: dict, groups: list[dict]) -> Optimizer:
    """The optimizer of a config over parameter groups; AdamW is fused: one kernel instead of a loop over tensors.

    Its updates equal the loop's to 1e-6 (relative; tests/test_optim.py), and its state is the same. A config that
    names any of FORMS has what it says: `fused=False` the loop, `fused=True` another optimizer's fused form. Where
    there is no such kernel for an optimizer or a device, the usual form is taken, and the log says so.
    A state that is loaded goes on in this optimizer's form, not in the one that it was saved in.
    """
    kind, config = optimizer_cfg['type'], dict(optimizer_cfg, params=groups)
    kind = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    asked = any(optimizer_cfg.get(name) is not None for name in FORMS)
    if kind and (optimizer_cfg.get('fused') or (kind is AdamW and not asked)):  # one that there is not, build names
        reason = _no_fused(kind, groups)
        if reason:
            config.pop('fused', None)
            print_log(f'{reason}: its usual form is taken', logger='current', level=logging.WARNING)
        else:
            config['fused'] = True
    return _keeping_its_form(OPTIMIZERS.build(config))


def _no_fused(kind: Callable[..., Optimizer], groups: list[dict]) -> str:
    """Why torch has no fused form of an optimizer for the parameters of these groups; '' if it has one."""
    name = getattr(kind, '__name__', kind)
    if 'fused' not in inspect.signature(kind).parameters:
        return f'{name} has no fused form'
    # A step of its own for each kind of parameter: only torch knows for which devices and types it has kernels
    for device, dtype in {(p.device, p.dtype) for group in groups for p in group['params']}:
        trial = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        trial.grad = torch.zeros_like(trial)
        try:
            kind([trial], lr=0.0, fused=True).step()
        except (RuntimeError, NotImplementedError):
            return f'{name} has no fused form for {dtype} on {device.type}'
    return ''


def _keeping_its_form(optimizer: Optimizer) -> Optimizer:
    """A loaded state brings `fused` and `foreach` of the run that saved it: here they stay as they were built."""
    forms = {name: optimizer.defaults[name] for name in FORMS if name in optimizer.defaults}

    def own(_, state: dict) -> dict:
        return dict(state, param_groups=[dict(group, **forms) for group in state['param_groups']])

    optimizer.register_load_state_dict_pre_hook(own)
    return optimizer


PARAMWISE = ('layer_decay_rate', 'decay_class_token')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """For `optim_wrapper=dict(constructor=..., paramwise_cfg=dict(layer_decay_rate=0.65), optimizer=...)`.

    One parameter group per (layer, decays). With layer_decay_rate 1.0 it only applies the weight decay rule,
    for models without layers too. `decay_class_token=True`: see `layer_decay_table`. The optimizer is fused where it
    can be: see `build_optimizer`.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = dict(paramwise_cfg or {})
        for key in paramwise_cfg:
            if key not in PARAMWISE:
                near = difflib.get_close_matches(key, PARAMWISE, n=1)
                hint = f'; did you mean {near[0]!r}?' if near else f'. It takes {", ".join(PARAMWISE)}'
                raise ValueError(f'paramwise_cfg: LayerDecayOptimWrapperConstructor has no {key!r}{hint}')
        self.decay = paramwise_cfg.get('layer_decay_rate', 1.0)
        self.decay_class_token = paramwise_cfg.get('decay_class_token', False)
        super().__init__(optim_wrapper_cfg, None)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = getattr(model, 'module', model)
        optimizer_cfg = dict(self.optimizer_cfg)
        if 'lr' not in optimizer_cfg:
            raise ValueError('optim_wrapper.optimizer has no lr, which layer decay scales: add lr=...')
        lr, weight_decay = optimizer_cfg['lr'], optimizer_cfg.get('weight_decay', 0.0) or 0.0
        table = layer_decay_table(model, self.decay, weight_decay, self.decay_class_token)
        parameters = dict(model.named_parameters())
        groups: dict[tuple[int, bool], dict] = {}
        for name, rates in table.items():
            group = groups.setdefault(
                (rates.layer, rates.decays),
                dict(
                    params=[],
                    lr=lr * rates.lr_scale,
                    weight_decay=weight_decay if rates.decays else 0.0,
                    lr_scale=rates.lr_scale,
                ),
            )
            group['params'].append(parameters[name])
        # The full rate first: mmengine logs the first group's as `lr`.
        optimizer = build_optimizer(optimizer_cfg, sorted(groups.values(), key=lambda g: -g['lr_scale']))
        print_log(describe(table, self.decay, lr, weight_decay), logger='current', level=logging.INFO)
        return OPTIM_WRAPPERS.build(dict(self.optim_wrapper_cfg), default_args=dict(optimizer=optimizer))
