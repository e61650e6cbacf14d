"""Configs of the miniature, so small that a test can train and evaluate them, and checkpoints of random weights."""

from pathlib import Path

import torch
from mmengine.config import Config

from beit_mm.apis import build_model
from beit_mm.engine.configs import load_config

CLASSIFY = 'configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'
SEGMENT = 'configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py'
PRETRAIN = 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py'
TOKENIZE = 'configs/tokenizer/dvae-512_1xb64-300_embedded-32.py'
ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
HEADS = {
    CLASSIFY: {'model.head.in_channels': 24},
    SEGMENT: {
        'model.backbone.out_indices': (0, 1, 1, 1),
        'model.neck.embed_dim': 24,
        'model.decode_head.in_channels': [24] * 4,
        'model.decode_head.channels': 8,
        'model.auxiliary_head.in_channels': 24,
        'model.auxiliary_head.channels': 8,
    },
    PRETRAIN: {'model.head.embed_dims': 24, 'model.target.checkpoint': None},
    TOKENIZE: {'model.vocab_size': 32, 'model.hidden_dims': 8, 'model.code_dims': 8},
}


def tiny(path: str, **options) -> Config:
    """A config with two narrow blocks and 30 images to test on."""
    small = {f'model.backbone.arch.{key}': value for key, value in ARCH.items() if path != TOKENIZE}
    images = {f'{split}_dataloader.dataset.length': 30 for split in ('train', 'val', 'test')}
    batch = {f'{split}_dataloader.batch_size': 10 for split in ('train', 'val', 'test')}
    return load_config(path, {**small, **HEADS[path], **images, **batch, **options})


def saved(config: Config, path: Path, **meta) -> str:
    """A checkpoint of random weights, wide enough that a tiny model does not give one answer for all."""
    model = build_model(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    if hasattr(model, 'decode_head'):  # what all pixels share must not decide
        weight = model.decode_head.conv_seg.weight.data
        weight -= weight.mean(dim=1, keepdim=True)
        model.decode_head.conv_seg.bias.data.zero_()
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return str(path)
