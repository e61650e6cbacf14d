"""FSDP2: parameters, gradients and the optimizer's state in shards, one on each rank, for models that do not fit.

`fully_shard` is put on the matrices of each block (attention and MLP, gathered together) and on the rest, in place: no
wrapper, and the parameters keep their names, so layer decay, weight loading and checkpoints are those of the model
itself. What the ranks compute is what they would compute under DDP.
Source: torch.distributed.fsdp.fully_shard.
"""

import dataclasses
import logging

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_world_size
from mmengine.logging import print_log
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..registry import STRATEGIES
from .amp import bf16_on
from .errors import ConfigError
from .finite import local

NAMES = ('ddp', 'fsdp2')  # of strategies, on the command line
WHOLE = ('Lamb', 'mmpretrain.Lamb')  # optimizers that fail on shards
BLOCKS = ('layers', 'blocks')  # what mmpretrain, mmseg and timm call the list of a backbone's blocks


@STRATEGIES.register_module()
@dataclasses.dataclass(frozen=True)
class FSDP2:
    """A config's `strategy=dict(type='beit_mm.FSDP2', ...)`; `strategy='fsdp2'` has its defaults.

    shard_size: over how many ranks a parameter is split; the others hold copies (HSDP: 8 on machines of 8 GPUs keeps
        the gathering inside of them). None: over all ranks.
    reshard_after_forward: give a block's parameters up after its forward pass, and gather them again for the backward
        pass: less memory for half again as much communication.
    """

    shard_size: int | None = None
    reshard_after_forward: bool = True


def sharding_of(config: Config) -> FSDP2 | None:
    """What a config's `strategy` asks for; None is DDP. Raises ConfigError for what there is not."""
    strategy = config.get('strategy') or 'ddp'
    if isinstance(strategy, dict):
        return STRATEGIES.build(dict(strategy))
    if strategy not in NAMES:
        raise ConfigError(f'{config.filename}: strategy={strategy!r} is none of {", ".join(NAMES)}')
    return FSDP2() if strategy == 'fsdp2' else None


def strategy_of(config: Config, wish: str) -> str | dict:
    """The command line's wish, with what the config says of that strategy."""
    own = config.get('strategy')
    return own if isinstance(own, dict) and wish == 'fsdp2' else wish


def check_strategy(config: Config) -> None:
    """Raise ConfigError, before anything is built, for a strategy that cannot work with the rest of a config."""
    if sharding_of(config) is None:
        return
    if config.get('launcher', 'none') == 'none':
        raise ConfigError(
            f'{config.filename}: strategy fsdp2 shards a model over ranks, and this is one process: start several by '
            f'tools/dist_train.sh CONFIG GPUS --strategy fsdp2, or take --strategy ddp'
        )
    if config.get('model_wrapper_cfg'):
        raise ConfigError(
            f'{config.filename}: strategy fsdp2 wraps no model, and the config has a model_wrapper_cfg: remove it'
        )
    wrapper = config.get('optim_wrapper') or {}
    kind, optimizer = wrapper.get('type', ''), (wrapper.get('optimizer') or {}).get('type')
    if optimizer in WHOLE:
        raise ConfigError(
            f'{config.filename}: strategy fsdp2 splits parameters, and optim_wrapper.optimizer.type={optimizer!r} '
            f'takes whole ones only: AdamW, or --strategy ddp'
        )
    if kind == 'beit_mm.Fp16OptimWrapper':
        raise ConfigError(
            f'{config.filename}: strategy fsdp2 trains in float32 or bf16, and the config asks for fp16: --amp bf16'
        )
    if not str(kind).startswith('beit_mm.'):
        raise ConfigError(
            f'{config.filename}: strategy fsdp2 needs an optim_wrapper of beit_mm, which knows norms of shards, not '
            f'{kind or "several of them"}; take --strategy ddp'
        )


def check_even(loader: DataLoader) -> None:
    """Raise ConfigError, on all ranks, for a validation in which one has more batches than another: it would gather
    parameters alone, and wait for the others until the time-out."""
    batches = all_gather_object(len(loader))
    if len(set(batches)) > 1:
        raise ConfigError(
            f'strategy fsdp2: the ranks have from {min(batches)} to {max(batches)} batches of val_dataloader, and need '
            f'as many each: val_dataloader.sampler.round_up=True (no image is then counted twice), or --strategy ddp'
        )


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model's backbone: what its lists named as in BLOCKS hold, of nested ones the outermost.

    Raises ConfigError where there are none: small models without a repeated block gain nothing from being sharded.
    """
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f'{outer}.') for outer in lists)
        if name.rpartition('.')[2] in BLOCKS and isinstance(module, nn.ModuleList | nn.Sequential) and not inside:
            lists.append(name)
    lists = [name for name in lists if name.startswith('backbone.')] or lists
    blocks = [block for name in lists for block in model.get_submodule(name)]
    if not blocks:
        raise ConfigError(
            f'strategy fsdp2: {type(model).__name__} has no list of blocks ({" or ".join(BLOCKS)}), as transformers '
            f'have; take --strategy ddp'
        )
    return blocks


def mesh_of(device: str, shard_size: int | None) -> DeviceMesh:
    """All ranks in a row, or in rows of `shard_size`."""
    ranks = get_world_size()
    if shard_size in (None, ranks):
        return init_device_mesh(device, (ranks,), mesh_dim_names=('shard',))
    if shard_size < 1 or ranks % shard_size:
        raise ConfigError(f'strategy fsdp2: shard_size={shard_size} does not divide the {ranks} ranks')
    return init_device_mesh(device, (ranks // shard_size, shard_size), mesh_dim_names=('replicate', 'shard'))


def shard(model: nn.Module, mesh: DeviceMesh, bf16: bool = False, reshard_after_forward: bool = True) -> nn.Module:
    """Split the parameters of a model over the ranks of a mesh, in place. It has the same weights on all of them.

    bf16: the matrices of blocks are gathered as what autocast would make of them, bfloat16. All that a rank holds, and
    what gradients are summed up in, stays float32, and so do norms, LayerScale, embeddings and heads. Validations are
    then in bfloat16 too. Frozen parts beside the backbone, as tokenizers are, stay whole on every rank.
    """
    rounded = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = dict(mp_policy=rounded) if bf16 else {}
    frozen = [
        part
        for name, part in model.named_children()
        if name != 'backbone' and not any(parameter.requires_grad for parameter in part.parameters())
    ]
    whole = {parameter for part in frozen for parameter in part.parameters()}
    for block in blocks_of(model):
        if parts := [part for part in block.children() if any(p.ndim > 1 for p in part.parameters())]:
            fully_shard(parts, mesh=mesh, reshard_after_forward=reshard_after_forward, **policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=whole)
    model._register_load_state_dict_pre_hook(_shards_on_loading, with_module=True)
    model.register_forward_hook(_reshard_after_inference)
    if bf16:  # in training an AmpOptimWrapper does it
        for step in ('val_step', 'test_step'):
            setattr(model, step, torch.autocast(mesh.device_type, torch.bfloat16)(getattr(model, step)))
    return model


def shard_as(model: nn.Module, sharding: FSDP2, config: Config) -> nn.Module:
    """`shard` as a run wants it, said in the log."""
    device = next(model.parameters()).device.type
    wrapper = config.get('optim_wrapper') or {}
    bf16 = wrapper.get('type') == 'beit_mm.AmpOptimWrapper' and bf16_on(device, wrapper.get('devices'))
    mesh = mesh_of(device, sharding.shard_size)
    total = sum(parameter.numel() for parameter in model.parameters())
    model = shard(model, mesh, bf16, sharding.reshard_after_forward)
    here = sum(local(parameter).numel() for parameter in model.parameters())
    copies = f', in {mesh.size(0)} copies' if mesh.ndim == 2 else ''
    print_log(
        f'FSDP2: {total / 1e6:,.1f} M parameters over {mesh.size(mesh.ndim - 1)} ranks{copies}, {here / 1e6:,.1f} M on '
        f'this one; gathered in {"bfloat16" if bf16 else "float32"}',
        logger='current',
        level=logging.INFO,
    )
    return model


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def sharded_like(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on all ranks, in the shards of another of its shape. No rank asks another."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole.detach(), like.device_mesh, like.placements, src_data_rank=None)


def _shards_on_loading(model: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Whoever loads whole weights into a sharded model: each parameter takes its shard of them."""
    for name, own in model.state_dict(prefix=prefix).items():
        if isinstance(state_dict.get(name), torch.Tensor):
            state_dict[name] = sharded_like(state_dict[name], own)


def _reshard_after_inference(model: nn.Module, inputs: tuple, outputs: object) -> None:
    """Without a backward pass, after which FSDP2 does it, parameters that were gathered would stay as they were, also
    when the shards change, as by the averages of an EMAHook."""
    if not torch.is_grad_enabled():
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def take_whole_state(optimizer: Optimizer) -> None:
    """A state that is loaded may be whole, as in the checkpoints of other strategies: each tensor of a parameter's
    shape is then split as the parameter is."""

    def in_shards(_, state: dict) -> dict:
        parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
        places = [place for group in state['param_groups'] for place in group['params']]
        own = dict(zip(places, parameters, strict=False))  # of another model: for the optimizer to refuse
        split = {
            place: {
                key: sharded_like(value, own[place]) if isinstance(value, torch.Tensor) and place in own else value
                for key, value in values.items()
            }
            for place, values in state['state'].items()
        }
        return dict(state, state=split)

    optimizer.register_load_state_dict_pre_hook(in_shards)
