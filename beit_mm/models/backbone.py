"""BEiTViT: the vision transformer of BEiT, for pre-training, classification and segmentation.

Letters in shapes: B images, C channels, H x W pixels, Gh x Gw patches, N = Gh * Gw, T = 1 + N tokens
(the class token first), D width, h heads.

Try it: `BEiTViT('deit-tiny')(torch.rand(1, 3, 224, 224))`.
"""

import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..checkpoints.convert import grid_of_index
from ..checkpoints.fit import SHARED_TABLE, as_ours, fit, grid_of_ours
from ..checkpoints.formats import INDEX
from ..checkpoints.load import CheckpointError, state_dict_of
from ..ops.relative_position import resize_positions
from ..registry import MODELS
from .architectures import (
    MMPRETRAIN_FIXED,
    MMSEG_FIXED,
    MMSEG_TRANSLATED,
    architecture,
    refuse_changed,
    translate_mmseg,
    variant_arguments,
)
from .block import Block
from .position_bias import PositionBiases, RelativePositionBias

OUT_TYPES = ('raw', 'cls_token', 'featmap', 'avg_featmap')
INIT_STD = 0.02  # official modeling_finetune.py and modeling_pretrain.py
UNCHANGED = 'The value is the same before and after'  # mmengine's word for a parameter nobody has initialised


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, N, D): one linear map per patch. The weight is that of a strided convolution."""

    def __init__(self, in_channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != self.projection.in_channels:
            raise ValueError(
                f'BEiTViT: the images have {x.shape[1]} channels, the patch embedding takes '
                f'in_channels={self.projection.in_channels}'
            )
        images, channels, height, width = x.shape
        patch = self.projection.kernel_size[0]
        # The pixels of a patch in a row, and one matrix product: less work than what a convolution does around it
        pixels = x.reshape(images, channels, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)
        return F.linear(pixels.flatten(3).flatten(1, 2), self.projection.weight.flatten(1), self.projection.bias)


@MODELS.register_module()
class BEiTViT(BaseModule):
    """BEiT's backbone. Takes mmpretrain's `BEiTViT` arguments; state-dict keys are mmpretrain's and mmseg's.

    arch: a preset (deit-tiny, deit-small, base, large; see architectures.py), or a dict of embed_dims,
        num_layers, num_heads, feedforward_channels.
        mmseg's spellings (embed_dims, num_layers, num_heads, mlp_ratio, qv_bias, init_values, ...) are
        taken too, as keywords; the default `out_type` is then mmseg's.
    img_size: pixels, (H, W) or one number: the grid that tables and positions are made for. Any other size
        that the patch size divides works at run time; they are resized.
    in_channels: weights trained on another number are inflated on loading (`ops.pixels.inflate_bands`).
    out_indices: blocks whose outputs are returned, in this order, 0-based, negative from the end.
    drop_rate, attn_drop_rate: dropout of embeddings, projections and MLPs, and of attention probabilities.
    drop_path_rate: stochastic depth of each branch, rising linearly from 0 at the first block.
    out_type: `raw` (B, T, D), `cls_token` (B, D), `featmap` (B, D, Gh, Gw), or `avg_featmap` (B, D), the
        mean over patches through `ln2` (the default, as in mmpretrain).
    final_norm: LayerNorm `ln1` after the last block (pre-training and class-token output).
    variant: `beit` (the paper's main model: absolute positions only) or `beit_plus` (what the official code
        trains: LayerScale, and a relative position bias, one table for all blocks where there is a mask
        token, one per block elsewhere). It stands for use_abs_pos_emb, use_rel_pos_bias,
        use_shared_rel_pos_bias and layer_scale_init_value, which can be given one by one instead.
    with_mask_token: adds the embedding that stands in for masked patches, and the initialisation of
        pre-training, truncated at one sigma.
    frozen_stages: -1 none; 0 freezes the stem (patches, class token, positions); k also the first k blocks.
        Frozen parts stay in eval mode.
    fused_attention: False computes plain matrix products: for export, for counting FLOPs, and for gradients of
        gradients while relative positions learn.
    with_cp: gradient checkpointing, which keeps a block's input only and computes the rest twice.

    Raises ValueError for arguments or inputs that do not fit, naming both numbers.
    Source: official modeling_finetune.py, modeling_pretrain.py; paper section 2.2 and Appendix A.
    """

    num_extra_tokens = 1
    started_from: tuple[str, dict] | None = None  # init_cfg's file, and a dict of its meta
    also_takes = (*MMSEG_TRANSLATED, *MMSEG_FIXED, *MMPRETRAIN_FIXED)  # what `others` may hold

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        bias: str | bool = 'qv_bias',
        norm_cfg: dict | None = None,
        final_norm: bool = False,
        out_type: str | None = None,
        with_mask_token: bool = False,
        frozen_stages: int = -1,
        use_abs_pos_emb: bool = False,
        use_rel_pos_bias: bool = True,
        use_shared_rel_pos_bias: bool = False,
        interpolate_mode: str = 'bicubic',
        layer_scale_init_value: float = 0.1,
        fused_attention: bool = True,
        variant: str | None = None,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **others,
    ) -> None:
        super().__init__(init_cfg)
        mmseg_spellings = refuse_changed(others)
        if mmseg_spellings:
            arch, bias, layer_scale_init_value = translate_mmseg(
                mmseg_spellings, inspect.signature(BEiTViT).parameters, arch, bias, layer_scale_init_value
            )
            if mmseg_spellings.get('pretrained'):  # mmseg's segmentors set it
                self.init_cfg = dict(type='Pretrained', checkpoint=mmseg_spellings['pretrained'])
        self.arch_settings = architecture(arch)
        self.embed_dims = dim = self.arch_settings['embed_dims']
        self.num_layers = self.arch_settings['num_layers']
        num_heads = self.arch_settings['num_heads']
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f'BEiTViT: num_heads={num_heads} does not divide embed_dims={dim}')
        rates = dict(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path_rate=drop_path_rate)
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise ValueError(f'BEiTViT: {name}={rate} must be in [0, 1)')
        if not -1 <= frozen_stages <= self.num_layers:
            raise ValueError(f'BEiTViT: frozen_stages={frozen_stages} must be in -1..{self.num_layers}, its blocks')
        if variant is not None:
            use_abs_pos_emb, use_rel_pos_bias, use_shared_rel_pos_bias, layer_scale_init_value = variant_arguments(
                variant,
                self.num_layers,
                with_mask_token,
                (use_abs_pos_emb, use_rel_pos_bias, use_shared_rel_pos_bias, layer_scale_init_value),
            )
        if out_type is None:
            out_type = 'featmap' if mmseg_spellings else 'avg_featmap'
        if out_type not in OUT_TYPES:
            raise ValueError(f'BEiTViT: out_type={out_type!r} is none of {", ".join(OUT_TYPES)}')
        if use_rel_pos_bias and use_shared_rel_pos_bias:
            raise ValueError('BEiTViT: use_rel_pos_bias and use_shared_rel_pos_bias exclude each other; choose one')
        if bias not in ('qv_bias', True, False):
            raise ValueError(f"BEiTViT: bias={bias!r} is none of 'qv_bias', True, False")
        if interpolate_mode not in ('bicubic', 'bilinear'):
            raise ValueError(f'BEiTViT: interpolate_mode={interpolate_mode!r} is neither bicubic nor bilinear')
        norm_cfg = norm_cfg or {}
        if unknown := set(norm_cfg) - {'type', 'eps', 'requires_grad'}:
            raise ValueError(f'BEiTViT: norm_cfg has type and eps, not {", ".join(sorted(unknown))}')
        if norm_cfg.get('type', 'LN') != 'LN':
            raise ValueError(f"BEiTViT: norm_cfg type={norm_cfg['type']!r}: every BEiT has LayerNorm, type='LN'")
        eps = norm_cfg.get('eps', 1e-6)

        self.patch_size = _one_side(patch_size)
        self.interpolate_mode = interpolate_mode
        self.own_grid = self._grid(*_two_sides(img_size))
        self.out_indices = _block_indices(out_indices, self.num_layers)
        self.out_type = out_type
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.layer_scale = float(layer_scale_init_value or 0.0)

        self.patch_embed = PatchEmbed(in_channels, dim, self.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if with_mask_token else None
        self.pos_embed = None
        if use_abs_pos_emb:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.own_grid[0] * self.own_grid[1], dim))
        self.drop_after_pos = nn.Dropout(drop_rate)
        self.rel_pos_bias = RelativePositionBias(self.own_grid, num_heads) if use_shared_rel_pos_bias else None
        self.layers = nn.ModuleList(
            Block(
                dim,
                num_heads,
                self.arch_settings['feedforward_channels'],
                bias,
                self.own_grid if use_rel_pos_bias else None,
                drop_rate,
                attn_drop_rate,
                drop_path,
                self.layer_scale,
                eps,
                fused_attention,
            )
            for drop_path in np.linspace(0, drop_path_rate, self.num_layers).tolist()
        )
        self.ln1 = nn.LayerNorm(dim, eps=eps) if final_norm else None
        self.ln2 = nn.LayerNorm(dim, eps=eps) if out_type == 'avg_featmap' else None

        self._position_biases = PositionBiases()
        self._register_load_state_dict_pre_hook(_fit_on_loading, with_module=True)
        self._initialise()
        self._freeze()

    @torch.no_grad()
    def _initialise(self) -> None:
        """The official initialisation: every weight at +-1 sigma to pre-train, the official defaults else."""
        pretraining = self.mask_token is not None
        limit = INIT_STD if pretraining else 2.0
        for name, parameter in self.named_parameters():
            if name.endswith(('gamma_1', 'gamma_2')):
                parameter.fill_(self.layer_scale)
            elif parameter.ndim == 1 or name.endswith('bias_table'):
                parameter.fill_(1.0 if name.endswith(('ln1.weight', 'ln2.weight')) else 0.0)
            else:
                nn.init.trunc_normal_(parameter, std=INIT_STD, a=-limit, b=limit)
        if not pretraining:
            self.patch_embed.projection.reset_parameters()
        for depth, block in enumerate(self.layers, start=1):
            block.attn.proj.weight.div_((2.0 * depth) ** 0.5)
            block.ffn.layers[1].weight.div_((2.0 * depth) ** 0.5)

    def init_weights(self) -> None:
        """Load `init_cfg`'s checkpoint if there is one. The official initialisation is done when building, and
        again if the `init_cfg` of a model around this one has been over it."""
        init_cfgs = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        pretrained = [cfg for cfg in init_cfgs if _names_pretrained(cfg['type'])]
        if pretrained:
            start = pretrained[-1]
            self._load_pretrained(start['checkpoint'], start.get('prefix') or '', start.get('partial', False))
        elif self.init_cfg:
            super().init_weights()
        else:
            # What mmengine's init_weights keeps while it runs: {parameter: who changed it}
            history = getattr(self, '_params_init_info', {})
            if any(not history[p]['init_info'].startswith(UNCHANGED) for p in self.parameters() if p in history):
                self._initialise()
        self._is_init = True

    def _load_pretrained(self, checkpoint: str, prefix: str, partial: bool) -> None:
        """mmengine's `Pretrained` loads what happens to match; here all fits, or CheckpointError says why not."""
        if not checkpoint:
            raise CheckpointError(f'BEiTViT: init_cfg has {checkpoint=}: name a file, or set init_cfg=None')
        content = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
        try:
            weights, done, grid = as_ours(state_dict_of(content), prefix, grid_of_ours(content))
            of_backbone = 'backbone.'
            weights = {k[len(of_backbone) :]: v for k, v in weights.items() if k.startswith(of_backbone)}
            fitted, report = fit(weights, self.state_dict(), self.own_grid, '', self.interpolate_mode, partial, grid)
        except CheckpointError as error:
            raise CheckpointError(f'{checkpoint}: {error}') from error
        self.load_state_dict(fitted, strict=False)
        print_log(f'{checkpoint}: {done}{report}', logger='current', level=report.level)
        # Its images may have been normalised otherwise, which FitWeightsHook says; the weights are not kept for that
        self.started_from = (checkpoint, dict(meta=content.get('meta')))

    def _freeze(self) -> None:
        for part in self._frozen_parts():
            for parameter in [part] if isinstance(part, nn.Parameter) else part.parameters():
                parameter.requires_grad_(False)

    def _frozen_parts(self) -> list:
        if self.frozen_stages < 0:
            return []
        parts = [self.patch_embed, self.cls_token, self.pos_embed, self.drop_after_pos]
        if self.frozen_stages > 0:
            parts += [self.rel_pos_bias, *self.layers[: self.frozen_stages]]
        if self.frozen_stages >= self.num_layers:
            parts += [self.ln1, self.ln2]
        return [part for part in parts if part is not None]

    def train(self, mode: bool = True) -> 'BEiTViT':
        self._position_biases.clear()
        super().train(mode)  # mmengine's BaseBackbone forgets to return self; nn.Module's contract does
        for part in self._frozen_parts():
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> 'BEiTViT':
        self._position_biases.clear()  # another device or type
        return super()._apply(fn, recurse)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f'BEiTViT: an image of {height} x {width} pixels does not divide into patches of '
                f'{self.patch_size}; pad or crop it to a multiple'
            )
        if isinstance(height, torch.SymInt):  # of an export for any size; a number would fix it
            return height // self.patch_size, width // self.patch_size
        return int(height) // self.patch_size, int(width) // self.patch_size

    def embed(self, x: torch.Tensor, mask: torch.Tensor | None, grid: tuple[int, int]) -> torch.Tensor:
        """Images (B, C, H, W) -> tokens (B, T, D); masked patches are replaced before positions are added."""
        tokens = self.patch_embed(x)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError('BEiTViT: a mask needs a mask token; build with with_mask_token=True')
            shape = tuple(mask.shape)
            if shape not in ((len(tokens), *grid), tuple(tokens.shape[:2])):
                raise ValueError(
                    f'BEiTViT: the mask is for {" x ".join(map(str, shape))} (images x patches), '
                    f'the batch has {len(tokens)} images of {grid[0]} x {grid[1]} patches'
                )
            tokens = torch.where(mask.flatten(1).bool()[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        if self.pos_embed is not None:
            tokens = tokens + resize_positions(self.pos_embed, self.own_grid, grid, self.interpolate_mode)
        return self.drop_after_pos(tokens)

    def _tables(self) -> list[torch.Tensor]:
        """The tables of relative positions: of every block, of all together, or none."""
        if self.rel_pos_bias is not None:
            return [self.rel_pos_bias.relative_position_bias_table]
        tables = [block.attn.relative_position_bias_table for block in self.layers]
        return [] if tables[0] is None else tables

    def _biases(self, grid: tuple[int, int], tokens: torch.Tensor) -> list[Callable | None]:
        """For each block what makes its bias (h, T, T) of its table: called by its attention, or all biases would have
        to exist at once, and a sharded table (FSDP2) is whole only there."""
        tables = self._tables()
        if not tables:
            return [None] * self.num_layers
        biases = self._position_biases.of(tables, self.own_grid, grid, tokens, keep=not self.training)
        return biases * self.num_layers if self.rel_pos_bias is not None else biases

    def _through(self, block: Block, tokens, bias: Callable | None, wanted: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, T, D) after a block, or its `wanted` ones only; the rest is computed twice if with_cp."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, tokens, bias, wanted, use_reentrant=False)
        return block(tokens, bias, wanted)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """x (B, C, H, W); mask (B, Gh, Gw) or (B, N) bool, True = hidden. One output per entry of `out_indices`."""
        grid = self._grid(*x.shape[-2:])
        tokens = self.embed(x, mask, grid)
        outputs = {}
        for i, (block, bias) in enumerate(zip(self.layers, self._biases(grid, tokens), strict=True)):
            tokens = self._through(block, tokens, bias)
            if i == self.num_layers - 1 and self.ln1 is not None:
                tokens = self.ln1(tokens)
            if i in self.out_indices:
                outputs[i] = self._output(tokens, grid)
        return tuple(outputs[i] for i in self.out_indices)

    def masked_features(self, x: torch.Tensor, mask: torch.Tensor | None, wanted: torch.Tensor) -> torch.Tensor:
        """Features (M, D) after the last block and `ln1` at the M patches of `wanted`, (B, N) or (B, Gh, Gw) bool.

        Equal to those of `forward` of out_type `raw` to the rounding of matrix products. What the last block does after
        its attention is done for these patches only.
        """
        grid = self._grid(*x.shape[-2:])
        tokens = self.embed(x, mask, grid)
        biases = self._biases(grid, tokens)
        for block, bias in zip(self.layers[:-1], biases, strict=False):
            tokens = self._through(block, tokens, bias)
        wanted = F.pad(wanted.flatten(1).bool(), (self.num_extra_tokens, 0))
        tokens = self._through(self.layers[-1], tokens, biases[-1], wanted)
        return tokens if self.ln1 is None else self.ln1(tokens)

    def _output(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if self.out_type == 'raw':
            return tokens
        if self.out_type == 'cls_token':
            return tokens[:, 0]
        patches = tokens[:, 1:]
        if self.out_type == 'featmap':
            return patches.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
        return self.ln2(patches.mean(dim=1))

    @torch.no_grad()
    def attention_maps(self, x: torch.Tensor, layers: Sequence[int] = (-1,)) -> list[torch.Tensor]:
        """Attention probabilities (B, h, T, T) of each block of `layers`, in the mode the model is in."""
        for layer in layers:
            if not -self.num_layers <= layer < self.num_layers:
                raise ValueError(
                    f'BEiTViT: there is no block {layer}; there are {self.num_layers}, 0 to {self.num_layers - 1}'
                )
        wanted = [layer % self.num_layers for layer in layers]
        grid = self._grid(*x.shape[-2:])
        tokens = self.embed(x, None, grid)
        biases = self._biases(grid, tokens)
        found = {}
        for i, block in enumerate(self.layers[: max(wanted) + 1]):
            if i in wanted:
                q, k, _ = block.attn.project(block.ln1(tokens)).permute(2, 0, 3, 1, 4)
                found[i] = block.attn.probabilities(q, k, block.attn.bias_of(biases[i]))
            if i < max(wanted):
                tokens = self._through(block, tokens, biases[i])
        return [found[i] for i in wanted]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """(depth, number of depths) of a parameter: stem 0, block i at i + 1, all that follows last.

        Source: official optim_factory.py, get_num_layer_for_vit.
        """
        num_depths = self.num_layers + 2
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        name = param_name[len(prefix) :]
        if name in ('cls_token', 'mask_token', 'pos_embed') or name.startswith('patch_embed'):
            return 0, num_depths
        if name.startswith('layers.'):
            return int(name.split('.')[1]) + 1, num_depths
        return num_depths - 1, num_depths


def _one_side(patch_size: int | Sequence[int]) -> int:
    sides = set(patch_size) if isinstance(patch_size, Sequence) else {patch_size}
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f'BEiTViT: patch_size={patch_size!r} must be one positive integer: patches are square')
    return sides.pop()


def _two_sides(img_size: int | Sequence[int]) -> tuple[int, int]:
    sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f'BEiTViT: img_size={img_size!r} must be a positive integer, or two: (height, width)')
    return sides


def _names_pretrained(kind: str | type) -> bool:
    return kind is PretrainedInit or str(kind).rsplit('.', 1)[-1] == 'Pretrained'


def _block_indices(out_indices: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    wanted = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    if not wanted or not all(isinstance(index, int) for index in wanted):
        raise ValueError(f'BEiTViT: out_indices={out_indices!r} must name at least one block, by its number')
    for index in wanted:
        if not -num_layers <= index < num_layers:
            raise ValueError(f'BEiTViT: out_indices={out_indices} names block {index}, but there are {num_layers}')
    return tuple(index % num_layers for index in wanted)


def _fit_on_loading(backbone: BEiTViT, state_dict: dict, prefix: str, *_) -> None:
    """Whoever loads, be it another project's Runner: a shared table goes to all blocks, tables and positions are
    resized; the index of relative positions, which the other BEiTs store, goes, for ours is computed."""
    backbone._position_biases.clear()
    grid = grid_of_index({key: value for key, value in state_dict.items() if key.startswith(prefix)})
    for key in [k for k in state_dict if k.startswith(prefix) and k.endswith(INDEX)]:
        del state_dict[key]
    own = {f'{prefix}{key}': value for key, value in backbone.state_dict().items()}
    given = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    same_grid = grid in (None, backbone.own_grid)
    if same_grid and all(key in own and value.shape == own[key].shape for key, value in given.items()):
        return
    try:
        fitted, report = fit(given, own, backbone.own_grid, prefix, backbone.interpolate_mode, source_grid=grid)
    except CheckpointError:
        return  # what does not match is for the loader to name
    state_dict.update({key: fitted[key] for key in report.expanded + report.resized})
    if report.expanded:
        state_dict.pop(f'{prefix}{SHARED_TABLE}', None)
