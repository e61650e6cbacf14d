"""The part of a config that a picture needs, with its weights: the whole model, its backbone, or its tokenizer."""

from collections.abc import Callable

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ...apis import flips
from ...checkpoints.load import CheckpointError, read, state_dict_of
from ...checkpoints.tokenizers import tokenizer_weights
from ...engine.errors import ConfigError
from ...models.backbone import BEiTViT
from ...models.dalle import Decoder
from ...models.targets import TokenTarget
from .canvas import PictureError


def device_of(module: nn.Module) -> torch.device:
    """Where its weights are."""
    return next(module.parameters()).device


def own_device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def load_backbone(config: Config, checkpoint: str | None) -> BEiTViT:
    """The backbone of any model, in eval mode; it gives raw tokens of its last block.

    checkpoint: of the model, of another with the same backbone, or in any format of docs/checkpoints.md; tables and
    positions are resized. None takes the file of the config's init_cfg. Raises ConfigError, CheckpointError.
    """
    described = config.model.get('backbone')
    if described is None:
        raise ConfigError(f'{config.filename}: {config.model.type} has no backbone to look into')
    start = described.get('init_cfg') or {}
    checkpoint = checkpoint or (start.get('checkpoint') if isinstance(start, dict) else None)
    if not checkpoint:
        raise PictureError(f'{config.filename}: give CHECKPOINT after it: a backbone without weights shows nothing')
    settings = dict(described, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
    if str(described.get('type')).endswith('BEiTViT'):
        settings['out_type'] = 'raw'
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        backbone = MODELS.build(settings)
    if not isinstance(backbone, BEiTViT):
        raise ConfigError(
            f'{config.filename}: the backbone is {described.type}; only beit_mm.BEiTViT can be looked into'
        )
    backbone.init_weights()
    backbone.out_indices = (backbone.num_layers - 1,)
    return backbone.to(own_device()).eval()


def preprocessing(config: Config) -> dict:
    """mean and std per band, and whether bands are reversed, of the config's data preprocessor."""
    found = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    if not found.get('mean') or not found.get('std'):
        raise ConfigError(f'{config.filename}: data_preprocessor has no mean and std, by which images are normalised')
    return dict(mean=list(found['mean']), std=list(found['std']), reversed=flips(found))


def load_tokenizer(config: Config, checkpoint: str | None) -> tuple[nn.Module, nn.Module]:
    """(tokenizer, data preprocessor) of a tokenizer's config with its checkpoint, or of a pre-training config, whose
    target names its own. Raises ConfigError for models without visual tokens."""
    target = config.model.get('target')
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        if target is not None:
            tokenizer = getattr(MODELS.build(target), 'tokenizer', None)
        elif config.model.get('vocab_size') is None:
            tokenizer = None
        elif not checkpoint:
            raise PictureError(f'{config.filename}: give CHECKPOINT after it: an untrained tokenizer shows nothing')
        else:
            tokenizer = TokenTarget(config.model, checkpoint).tokenizer
        if tokenizer is None:
            raise ConfigError(
                f'{config.filename}: {(target or config.model).get("type")} has no visual tokens; give the config of '
                f'a tokenizer, or of a pre-training on tokens'
            )
        preprocessor = MODELS.build(config.model.get('data_preprocessor') or config.data_preprocessor)
    return tokenizer.to(own_device()).eval(), preprocessor.to(own_device())


def painter_of(tokenizer: nn.Module, decoder: str | None = None) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What turns tokens (B, h, w) into images (B, C, H, W) in [0, 1]: the tokenizer's own decoder, or None.

    decoder: OpenAI's decoder.pkl, or its state dict, for the DALL-E encoder, which has none by itself.
    """
    if not decoder:
        return getattr(tokenizer, 'decode', None)
    weights = state_dict_of(read(decoder, map_location='cpu'))
    first, last = (weights.get(f'blocks.{name}.w') for name in ('input', 'output.conv'))
    if first is None or last is None:
        raise CheckpointError(
            f'{decoder}: holds no DALL-E decoder: blocks.input.w and blocks.output.conv.w are missing'
        )
    if first.shape[1] != tokenizer.vocab_size:
        raise CheckpointError(f'{decoder}: paints {first.shape[1]} tokens, the tokenizer has {tokenizer.vocab_size}')
    blocks = sum(key.startswith('blocks.group_1.') and key.endswith('res_path.conv_1.w') for key in weights)
    painter = Decoder(first.shape[0], last.shape[1], first.shape[1], blocks)
    painter.load_state_dict(tokenizer_weights(weights, painter.state_dict(), first.shape[1]))
    return painter.to(device_of(tokenizer)).decode
