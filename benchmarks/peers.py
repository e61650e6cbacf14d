"""The models that benchmarks/gpu.py compares: ours and the peers', of the same size and with the same weights.

whose: `ours`, `mmpretrain`, `timm`, `hf` (Hugging Face) or `mmseg`. Ours is built as its recipe in configs/ says; the
peers as they are published, with their own attention, layers and losses. The weights of all are ours, through
beit_mm's converters: where drop path is off their outputs are equal.
A project that is not installed raises ImportError where its model is built, and nowhere else.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))  # beit_mm need not be installed, and what is installed may be another

PATCH = 16
GAMMA = 0.1  # LayerScale at the start
BACKWARD = 2  # a backward pass costs two forward passes
FLOPS_PER_MAC = 2
COMPILED = {
    'compiled': {},
    'max-autotune': dict(mode='max-autotune-no-cudagraphs'),
    'reduce-overhead': dict(mode='reduce-overhead'),
}
Step = Callable[[], object]  # gives the output (inference, attention) or the loss (training), or a tuple of gradients


@dataclasses.dataclass(frozen=True)
class Size:
    """A model: width, blocks and heads; pixels of classification and of segmentation; what the tasks need of it."""

    name: str
    dim: int
    depth: int
    heads: int
    image: int
    crop: int
    taps: tuple[int, int, int, int]  # blocks that the pyramid takes
    classes: int = 1000
    labels: int = 150  # of segmentation
    masked: int = 75  # patches
    tokenizer: tuple[int, int] = (256, 8192)  # DALL-E's encoder: width, vocabulary

    @property
    def grid(self) -> int:
        return self.image // PATCH

    @property
    def arch(self) -> dict[str, int]:
        return dict(embed_dims=self.dim, num_layers=self.depth, num_heads=self.heads, feedforward_channels=4 * self.dim)

    @property
    def backbone_macs(self) -> float:
        return self.macs_at(self.image)

    def macs_at(self, pixels: int) -> float:
        """Multiply-accumulates of the backbone's matrix products for one square image, attention included."""
        patches = (pixels // PATCH) ** 2
        tokens = patches + 1
        block = tokens * 12 * self.dim**2 + 2 * tokens**2 * self.dim  # qkv, projection, MLP; q k and p v
        return patches * 3 * PATCH**2 * self.dim + self.depth * block


SIZES = {
    'base': Size('base', 768, 12, 12, 224, 512, (3, 5, 7, 11)),
    'large': Size('large', 1024, 24, 16, 224, 640, (7, 11, 15, 23)),
}
TINY = Size('tiny', 32, 4, 2, 64, 64, (0, 1, 2, 3), classes=7, labels=5, masked=6, tokenizer=(8, 64))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where it runs. smoke: on the CPU in float32, without drop path and dropout, and graphs run as they are."""

    device: str = 'cuda'
    smoke: bool = False

    @property
    def drop(self) -> float:
        return 0.0 if self.smoke else 0.1

    @property
    def learning_rate(self) -> float:
        """So high in a smoke test that a wrong gradient shows in the next loss."""
        return 1e-3 if self.smoke else 1e-5

    def autocast(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.smoke else torch.autocast(self.device, torch.bfloat16)

    def compiled(self, model: nn.Module, how: str | None) -> nn.Module:
        if how is None:
            return model
        return torch.compile(model, **(dict(backend='eager') if self.smoke else COMPILED[how]))

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """What is built is built on the device, from the same seed."""
        torch.manual_seed(0)
        with torch.device(self.device):
            yield


@functools.cache
def without_ours() -> str:
    """Why beit_mm cannot be imported, and with it no weights be shared; empty where it can."""
    try:
        import beit_mm.models  # noqa: F401
    except ImportError as error:
        return str(error)
    return ''


def _stirred(model: nn.Module) -> nn.Module:
    """Weights that matter: matrices that keep the scale of what they take; the rest away from its start."""
    generator = torch.Generator('cpu').manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            table = parameter.ndim == 1 or name.endswith(('table', 'token', 'pos_embed'))
            scale = 0.2 if table else parameter[0].numel() ** -0.5
            noise = torch.randn(parameter.shape, generator=generator, device='cpu').to(parameter.device)
            parameter.copy_(parameter * table + scale * noise)
    return model


def _kept(model: nn.Module) -> dict[str, torch.Tensor]:
    """Its weights, where they take no memory of the card."""
    return {key: value.cpu() for key, value in model.state_dict().items()}


def _converted(weights: dict[str, torch.Tensor], target: str) -> dict[str, torch.Tensor]:
    from beit_mm.checkpoints import convert_state_dict

    return convert_state_dict(weights, source='beit_mm', target=target)[0]


def _load(model: nn.Module, weights: dict[str, torch.Tensor] | None, allowed: tuple[str, ...] = ()) -> nn.Module:
    """All weights or an error; keys that may be missing start with, or end in, one of `allowed`."""
    if weights is not None:
        missing, unexpected = model.load_state_dict(weights, strict=False)
        missing = [key for key in missing if not key.startswith(allowed) and not key.endswith(allowed)]
        if missing or unexpected:
            raise ValueError(f'weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}')
    return model


# Classification


@functools.lru_cache(maxsize=2)
def _backbone_weights(size: Size, setting: Setting) -> dict[str, torch.Tensor] | None:
    if without_ours():
        return None
    with setting.building():
        return _kept(_stirred(_ours(size, setting)))


def _ours(size: Size, setting: Setting) -> nn.Module:
    from beit_mm.models import BEiTViT

    return BEiTViT(size.arch, img_size=size.image, drop_path_rate=setting.drop, layer_scale_init_value=GAMMA)


def _mmpretrain(size: Size, setting: Setting) -> nn.Module:
    from mmpretrain.models.backbones import BEiTViT

    return BEiTViT(size.arch, img_size=size.image, drop_path_rate=setting.drop, layer_scale_init_value=GAMMA)


def _timm(size: Size, setting: Setting) -> nn.Module:
    from timm.models.beit import Beit

    return Beit(
        img_size=size.image, patch_size=PATCH, embed_dim=size.dim, depth=size.depth, num_heads=size.heads,
        num_classes=0, init_values=GAMMA, use_abs_pos_emb=False, use_rel_pos_bias=True, global_pool='avg',
        drop_path_rate=setting.drop,
    )  # fmt: skip


def _hf(size: Size, setting: Setting) -> nn.Module:
    from transformers import BeitConfig, BeitModel

    config = BeitConfig(
        hidden_size=size.dim, num_hidden_layers=size.depth, num_attention_heads=size.heads,
        intermediate_size=4 * size.dim, image_size=size.image, patch_size=PATCH, layer_norm_eps=1e-6,
        use_mean_pooling=True, use_relative_position_bias=True, layer_scale_init_value=GAMMA,
        drop_path_rate=setting.drop,
    )  # fmt: skip
    return BeitModel(config)


def _hf_names() -> str:
    return 'hf5' if int(importlib.metadata.version('transformers').partition('.')[0]) >= 5 else 'hf'


BACKBONES = {  # how each is built, and a pooled feature (B, D) is taken out of what it gives
    'mmpretrain': (_mmpretrain, lambda given: given[0]),
    'hf': (_hf, lambda given: given.pooler_output),
    'timm': (_timm, lambda given: given),
    'ours': (_ours, lambda given: given[0]),
}


class Classifier(nn.Module):
    """(B, 3, H, W) -> logits (B, classes): a backbone and a linear layer."""

    def __init__(self, whose: str, size: Size, setting: Setting) -> None:
        super().__init__()
        build, self.pooled = BACKBONES[whose]
        with setting.building():
            self.backbone = build(size, setting)
        weights = _backbone_weights(size, setting)
        if weights is not None and whose != 'ours':
            weights = _converted(weights, _hf_names() if whose == 'hf' else whose)
            weights = {key.removeprefix('backbone.').removeprefix('beit.'): value for key, value in weights.items()}
        _load(self.backbone, weights, allowed=('relative_position_index',))
        with setting.building():
            self.head = nn.Linear(size.dim, size.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.pooled(self.backbone(images)))


# Masked image modeling


def _recipe(path: str) -> dict:
    from mmengine.config import Config

    return Config.fromfile(ROOT / 'configs' / path, import_custom_modules=False).model.to_dict()


def _our_mim(size: Size, setting: Setting) -> nn.Module:
    from beit_mm.models import MaskedImageModel

    recipe = _recipe('pretrain/beit-plus-base-p16_dalle_16xb128-300e_in1k-224.py')
    n_hid, vocab_size = size.tokenizer
    for part in ('type', 'data_preprocessor'):  # batches come normalised
        recipe.pop(part, None)
    recipe['backbone'].update(arch=size.arch, img_size=size.image, drop_path_rate=setting.drop)
    recipe['target'].update(checkpoint=None)
    recipe['target']['tokenizer'].update(n_hid=n_hid, vocab_size=vocab_size)
    recipe['head'].update(embed_dims=size.dim, vocab_size=vocab_size)
    return MaskedImageModel(**recipe)


def _mmpretrain_mim(size: Size, setting: Setting) -> nn.Module:
    import mmpretrain.models  # noqa: F401  (registers)
    from mmengine.registry import MODELS, DefaultScope

    n_hid, vocab_size = size.tokenizer
    backbone = dict(type='BEiTPretrainViT', arch=size.arch, img_size=size.image, drop_path_rate=setting.drop)
    head = dict(
        type='BEiTV1Head', embed_dims=size.dim, num_embed=vocab_size, loss=dict(type='CrossEntropyLoss'), init_cfg=None
    )
    target = dict(type='DALL-E', n_hid=n_hid, vocab_size=vocab_size, device=torch.device(setting.device))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(type='BEiT', backbone=backbone, head=head, target_generator=target))


class OutsideAutocast(nn.Module):
    """A tokenizer whose tokens are those of float32, as the official code takes care of."""

    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        with torch.autocast(view.device.type, enabled=False):
            return self.tokenizer(view)


@functools.lru_cache(maxsize=1)
def _mim_weights(size: Size, setting: Setting) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None:
    """Of the model, and of its tokenizer, which is in no checkpoint."""
    if without_ours():
        return None
    with setting.building():
        model = _stirred(_our_mim(size, setting))
        return _kept(model), _kept(model.target.tokenizer)


def masked_image_model(whose: str, size: Size, setting: Setting) -> nn.Module:
    """Backbone, tokenizer and head."""
    with setting.building():
        model = (_our_mim if whose == 'ours' else _mmpretrain_mim)(size, setting)
    if (shared := _mim_weights(size, setting)) is not None:
        weights, tokenizer = shared
        _load(model.target.tokenizer if whose == 'ours' else model.target_generator, tokenizer)
        weights = weights if whose == 'ours' else _converted(weights, 'mmpretrain')
        _load(model, weights, allowed=('relative_position_index', 'target_generator.'))
    return model.to(setting.device)


# Segmentation


def _our_segmentor(size: Size, setting: Setting) -> dict:
    """The model of the recipe, as a config."""
    recipe = _recipe('_base_/models/beit_base_upernet.py')
    recipe['backbone'].update(arch=size.arch, img_size=size.crop, out_indices=size.taps, drop_path_rate=setting.drop)
    recipe['neck'].update(embed_dim=size.dim)
    channels = recipe['auxiliary_head']['channels'] if size.dim > 256 else size.dim
    recipe['decode_head'].update(in_channels=[size.dim] * 4, channels=size.dim)
    recipe['auxiliary_head'].update(in_channels=size.dim, channels=channels)
    for head in (recipe['decode_head'], recipe['auxiliary_head']):
        head.update(num_classes=size.labels, dropout_ratio=setting.drop)
    recipe['test_cfg'].update(crop_size=(size.crop,) * 2, stride=(2 * size.crop // 3,) * 2)
    return recipe


def _mmseg_segmentor(size: Size, setting: Setting) -> dict:
    from mmengine.config import ConfigDict

    norm = dict(type='BN', requires_grad=True)
    common = dict(num_classes=size.labels, dropout_ratio=setting.drop, norm_cfg=norm, align_corners=False)
    return dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(
            type='mmseg.BEiT', img_size=(size.crop,) * 2, patch_size=PATCH, embed_dims=size.dim,
            num_layers=size.depth, num_heads=size.heads, mlp_ratio=4, out_indices=size.taps, qv_bias=True,
            drop_path_rate=setting.drop, norm_cfg=dict(type='LN', eps=1e-6), init_values=GAMMA,
        ),
        neck=dict(type='mmseg.Feature2Pyramid', embed_dim=size.dim, rescales=[4, 2, 1, 0.5], norm_cfg=norm),
        decode_head=dict(
            type='mmseg.UPerHead', in_channels=[size.dim] * 4, in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6),
            channels=size.dim, loss_decode=dict(type='mmseg.CrossEntropyLoss', loss_weight=1.0), **common,
        ),
        auxiliary_head=dict(
            type='mmseg.FCNHead', in_channels=size.dim, in_index=2, channels=256 if size.dim > 256 else size.dim,
            num_convs=1, concat_input=False, loss_decode=dict(type='mmseg.CrossEntropyLoss', loss_weight=0.4),
            **common,
        ),
        test_cfg=ConfigDict(mode='slide', crop_size=(size.crop,) * 2, stride=(2 * size.crop // 3,) * 2),
    )  # fmt: skip


def build_segmentor(whose: str, size: Size, setting: Setting) -> nn.Module:
    import mmseg.models  # noqa: F401  (registers)
    from mmengine.registry import MODELS, DefaultScope

    if whose == 'ours' and without_ours():
        raise ImportError(without_ours())
    with setting.building(), DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build((_our_segmentor if whose == 'ours' else _mmseg_segmentor)(size, setting))


@functools.lru_cache(maxsize=1)
def _segmentor_weights(size: Size, setting: Setting) -> dict[str, torch.Tensor] | None:
    return None if without_ours() else _kept(_stirred(build_segmentor('ours', size, setting)))


def segmentor(whose: str, size: Size, setting: Setting) -> nn.Module:
    """UPerNet on BEiT, with an auxiliary head."""
    model, weights = build_segmentor(whose, size, setting), _segmentor_weights(size, setting)
    if weights is not None and whose != 'ours':
        weights = _converted(weights, 'mmseg')
    return _load(model, weights, allowed=('relative_position_index',)).to(setting.device)
