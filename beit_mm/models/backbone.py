"""BEiTViT: the vision transformer of BEiT, for pre-training, classification and segmentation.

Letters in shapes: B images, C channels, H x W pixels, Gh x Gw patches, N = Gh * Gw, T = 1 + N tokens
(the class token first), D width, h heads.

Try it: `BEiTViT('deit-tiny')(torch.rand(1, 3, 224, 224))`.
"""

import inspect
import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from ..checkpoints.load import CheckpointError, fit, state_dict_of
from ..ops.relative_position import num_offsets, relative_position_index, resize_positions, resize_table
from ..registry import MODELS
from .architectures import ARCHITECTURES, architecture, translate_mmseg  # noqa: F401  (read from here too)

OUT_TYPES = ('raw', 'cls_token', 'featmap', 'avg_featmap')
INIT_STD = 0.02  # official modeling_finetune.py and modeling_pretrain.py


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is dropped with probability `rate`, the rest scaled up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class RelativePositionBias(nn.Module):
    """A learned bias per head and offset (query minus key), zero at the start; see ops/relative_position.py."""

    def __init__(self, grid: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_offsets(grid), num_heads))

    def forward(self, grid: tuple[int, int]) -> torch.Tensor:
        """The bias (h, T, T) for `grid`, resized from the table's own grid where they differ."""
        return position_bias(self.relative_position_bias_table, self.grid, grid)


def position_bias(table: torch.Tensor, own_grid: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """Look the table (rows, h) up for every pair of tokens: (h, T, T)."""
    index = relative_position_index(grid).to(table.device)
    by_head = resize_table(table, own_grid, grid).T.contiguous()
    return by_head.index_select(1, index.flatten()).view(-1, *index.shape)


class Attention(nn.Module):
    """Multi-head self-attention with biases for q and v only and an optional relative position bias."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: str | bool,
        grid: tuple[int, int] | None,
        attn_drop: float,
        proj_drop: float,
        fused: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.fused = fused
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias is True)
        self.q_bias = self.v_bias = None
        if bias == 'qv_bias':
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.own_grid = grid
        self.relative_position_bias_table = None
        if grid is not None:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(num_offsets(grid), num_heads))
        self.attn_drop = attn_drop
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def split_heads(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, T, D) -> q, k, v, each (B, h, T, D / h)."""
        qkv_bias = self.qkv.bias
        if self.q_bias is not None:
            qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        return qkv.view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def probabilities(self, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Softmax of the scaled products plus bias: (B, h, T, T)."""
        logits = (q * self.scale) @ k.transpose(-2, -1)
        if bias is not None:
            logits = logits + bias
        return logits.softmax(dim=-1)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x (B, T, D), bias (h, T, T) or None -> (B, T, D)."""
        q, k, v = self.split_heads(x)
        dropout = self.attn_drop if self.training else 0.0
        learns_bias = bias is not None and bias.requires_grad and torch.is_grad_enabled()
        # The fused kernels give no gradient for the bias; asked for one, SDPA is slower than the plain form.
        if self.fused and not learns_bias:
            mask = None if bias is None else bias.unsqueeze(0).to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)
        else:
            out = F.dropout(self.probabilities(q, k, bias), dropout, self.training) @ v
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(x.shape)))


class FeedForward(nn.Module):
    """Linear, GELU, linear, dropout. The nesting of `layers` gives mmcv's FFN key names."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU()), nn.Linear(hidden, dim), nn.Dropout(drop)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Block(nn.Module):
    """Pre-norm transformer block: x + drop_path(gamma * branch(ln(x))) for attention, then for the MLP."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        bias: str | bool,
        grid: tuple[int, int] | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
        layer_scale: float,
        eps: float,
        fused: bool,
    ) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, bias, grid, attn_drop, drop, fused)
        self.ln2 = nn.LayerNorm(dim, eps=eps)
        self.ffn = FeedForward(dim, hidden, drop)
        self.drop_path = DropPath(drop_path)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale > 0:
            self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        attended = self.attn(self.ln1(x), bias)
        x = x + self.drop_path(attended if self.gamma_1 is None else self.gamma_1 * attended)
        transformed = self.ffn(self.ln2(x))
        return x + self.drop_path(transformed if self.gamma_2 is None else self.gamma_2 * transformed)


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, N, D): one linear map per patch, as a strided convolution."""

    def __init__(self, in_channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection(x).flatten(2).transpose(1, 2)


@MODELS.register_module()
class BEiTViT(BaseModule):
    """BEiT's backbone. Takes mmpretrain's `BEiTViT` arguments; state-dict keys are mmpretrain's and mmseg's.

    arch: a preset of ARCHITECTURES, or a dict of embed_dims, num_layers, num_heads, feedforward_channels.
        mmseg's spellings (embed_dims, num_layers, num_heads, mlp_ratio, qv_bias, init_values, ...) are
        taken too, as keywords; the default `out_type` is then mmseg's.
    img_size: pixels, (H, W) or one number: the grid that tables and positions are made for. Any other size
        that the patch size divides works at run time; they are resized.
    out_indices: blocks whose outputs are returned, 0-based, negative from the end.
    out_type: `raw` (B, T, D), `cls_token` (B, D), `featmap` (B, D, Gh, Gw), or `avg_featmap` (B, D), the
        mean over patches through `ln2` (the default, as in mmpretrain).
    final_norm: LayerNorm `ln1` after the last block (pre-training and class-token output).
    use_abs_pos_emb, use_rel_pos_bias, use_shared_rel_pos_bias, layer_scale_init_value: True, False, False, 0
        is `beit` (the paper's main model); False, True, False, 0.1 is `beit_plus`, whose pre-training
        shares one table (False, False, True, 0.1).
    with_mask_token: adds the embedding that stands in for masked patches, and the initialisation of
        pre-training, truncated at one sigma.
    frozen_stages: -1 none; 0 freezes the stem (patches, class token, positions); k also the first k blocks.
        Frozen parts stay in eval mode.
    fused_attention: False computes plain matrix products: for export and for counting FLOPs.

    Source: official modeling_finetune.py, modeling_pretrain.py; paper section 2.2 and Appendix A.
    """

    num_extra_tokens = 1

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
        init_cfg: dict | None = None,
        **mmseg_spellings,
    ) -> None:
        super().__init__(init_cfg)
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
        if out_type is None:
            out_type = 'featmap' if mmseg_spellings else 'avg_featmap'
        if out_type not in OUT_TYPES:
            raise ValueError(f'BEiTViT: out_type={out_type!r} is none of {", ".join(OUT_TYPES)}')
        if use_rel_pos_bias and use_shared_rel_pos_bias:
            raise ValueError('BEiTViT: use_rel_pos_bias and use_shared_rel_pos_bias exclude each other; choose one')
        eps = (norm_cfg or {}).get('eps', 1e-6)

        self.patch_size = patch_size
        self.interpolate_mode = interpolate_mode
        self.own_grid = self._grid(*(img_size if isinstance(img_size, Sequence) else (img_size, img_size)))
        self.out_indices = _block_indices(out_indices, self.num_layers)
        self.out_type = out_type
        self.frozen_stages = frozen_stages

        self.patch_embed = PatchEmbed(in_channels, dim, patch_size)
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
                layer_scale_init_value or 0.0,
                eps,
                fused_attention,
            )
            for drop_path in np.linspace(0, drop_path_rate, self.num_layers).tolist()
        )
        self.ln1 = nn.LayerNorm(dim, eps=eps) if final_norm else None
        self.ln2 = nn.LayerNorm(dim, eps=eps) if out_type == 'avg_featmap' else None

        self._register_load_state_dict_pre_hook(_drop_index_buffers)
        self._initialise()
        self._freeze()

    def _initialise(self) -> None:
        """The official initialisation: every weight at +-1 sigma to pre-train, the official defaults else."""
        pretraining = self.mask_token is not None
        limit = INIT_STD if pretraining else 2.0
        for module in self.modules():
            if isinstance(module, nn.Linear) or (pretraining and isinstance(module, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-limit, b=limit)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.mask_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=INIT_STD, a=-limit, b=limit)
        for depth, block in enumerate(self.layers, start=1):
            with torch.no_grad():
                block.attn.proj.weight.div_((2.0 * depth) ** 0.5)
                block.ffn.layers[1].weight.div_((2.0 * depth) ** 0.5)

    def init_weights(self) -> None:
        """Load `init_cfg`'s checkpoint if there is one; the official initialisation is done when building."""
        if isinstance(self.init_cfg, dict) and self.init_cfg.get('type') == 'Pretrained':
            self._load_pretrained(self.init_cfg['checkpoint'], self.init_cfg.get('prefix') or '')
        elif self.init_cfg:
            super().init_weights()
        self._is_init = True

    def _load_pretrained(self, checkpoint: str, prefix: str) -> None:
        """mmengine's `Pretrained` loads what happens to match; here all fits, or CheckpointError says why not."""
        weights = state_dict_of(CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu'))
        weights = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        try:
            fitted, report = fit(weights, self.state_dict(), self.own_grid, '', self.interpolate_mode)
        except CheckpointError as error:
            raise CheckpointError(f'{checkpoint}, prefix {prefix!r}: {error}') from error
        self.load_state_dict(fitted, strict=False)
        print_log(f'{checkpoint}: {report}', logger='current', level=logging.INFO)

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
        super().train(mode)  # mmengine's BaseBackbone forgets to return self; nn.Module's contract does
        for part in self._frozen_parts():
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f'BEiTViT: an image of {height} x {width} pixels does not divide into patches of '
                f'{self.patch_size}; pad or crop it to a multiple'
            )
        return height // self.patch_size, width // self.patch_size

    def embed(self, x: torch.Tensor, mask: torch.Tensor | None, grid: tuple[int, int]) -> torch.Tensor:
        """Images (B, C, H, W) -> tokens (B, T, D); masked patches are replaced before positions are added."""
        tokens = self.patch_embed(x)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError('BEiTViT: a mask needs a mask token; build with with_mask_token=True')
            tokens = torch.where(mask.flatten(1)[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        if self.pos_embed is not None:
            tokens = tokens + resize_positions(self.pos_embed, self.own_grid, grid, self.interpolate_mode)
        return self.drop_after_pos(tokens)

    def _bias(self, block: Block, shared: torch.Tensor | None, grid: tuple[int, int]) -> torch.Tensor | None:
        table = block.attn.relative_position_bias_table
        return shared if table is None else position_bias(table, self.own_grid, grid)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """x (B, C, H, W); mask (B, Gh, Gw) bool, True = hidden. One output per entry of `out_indices`."""
        grid = self._grid(*x.shape[-2:])
        tokens = self.embed(x, mask, grid)
        shared = None if self.rel_pos_bias is None else self.rel_pos_bias(grid)
        outputs = []
        for i, block in enumerate(self.layers):
            tokens = block(tokens, self._bias(block, shared, grid))
            if i == self.num_layers - 1 and self.ln1 is not None:
                tokens = self.ln1(tokens)
            if i in self.out_indices:
                outputs.append(self._output(tokens, grid))
        return tuple(outputs)

    def _output(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if self.out_type == 'raw':
            return tokens
        if self.out_type == 'cls_token':
            return tokens[:, 0]
        patches = tokens[:, 1:]
        if self.out_type == 'featmap':
            return patches.transpose(1, 2).reshape(len(tokens), -1, *grid)
        return self.ln2(patches.mean(dim=1))

    @torch.no_grad()
    def attention_maps(self, x: torch.Tensor, layer: int = -1) -> torch.Tensor:
        """Attention probabilities (B, h, T, T) of one block, in the mode the model is in."""
        grid = self._grid(*x.shape[-2:])
        tokens = self.embed(x, None, grid)
        shared = None if self.rel_pos_bias is None else self.rel_pos_bias(grid)
        for block in self.layers[: layer % self.num_layers]:
            tokens = block(tokens, self._bias(block, shared, grid))
        block = self.layers[layer]
        q, k, _ = block.attn.split_heads(block.ln1(tokens))
        return block.attn.probabilities(q, k, self._bias(block, shared, grid))

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


def _block_indices(out_indices: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    wanted = [out_indices] if isinstance(out_indices, int) else list(out_indices)
    for index in wanted:
        if not -num_layers <= index < num_layers:
            raise ValueError(f'BEiTViT: out_indices={out_indices} names block {index}, but there are {num_layers}')
    return tuple(index % num_layers for index in wanted)


def _drop_index_buffers(state_dict: dict, prefix: str, *_) -> None:
    """Checkpoints of the other BEiTs store the index of relative positions; ours computes it."""
    for key in [k for k in state_dict if k.startswith(prefix) and k.endswith('relative_position_index')]:
        del state_dict[key]
