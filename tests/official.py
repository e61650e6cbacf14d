"""Reading the goldens: official state dicts under our names."""

import ast
from pathlib import Path

import torch
from safetensors import safe_open

DATA = Path(__file__).parent / 'data'
RENAMES = (  # official -> ours
    ('blocks.', 'layers.'),
    ('norm1.', 'ln1.'),
    ('norm2.', 'ln2.'),
    ('mlp.fc1.', 'ffn.layers.0.0.'),
    ('mlp.fc2.', 'ffn.layers.1.'),
    ('patch_embed.proj.', 'patch_embed.projection.'),
)


def ours(key: str) -> str:
    for theirs, own in RENAMES:
        key = key.replace(theirs, own)
    if key.startswith('fc_norm.'):
        return key.replace('fc_norm.', 'ln2.')
    return key.replace('norm.', 'ln1.') if key.startswith('norm.') else key


def golden(name: str) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(metadata, official weights under our names, inputs and outputs)."""
    with safe_open(DATA / f'{name}.safetensors', 'pt') as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        meta = {
            key: value if key in ('kind', 'note') else ast.literal_eval(value) for key, value in file.metadata().items()
        }
    rename = str if meta['kind'] == 'dalle_encoder' else ours
    weights = {rename(k[len('model.') :]): v for k, v in tensors.items() if k.startswith('model.')}
    return meta, weights, {k: v for k, v in tensors.items() if not k.startswith('model.')}


def backbone_arguments(meta: dict) -> dict:
    """BEiTViT's arguments for a golden's metadata."""
    dim = meta['embed_dim']
    return dict(
        arch=dict(embed_dims=dim, num_layers=meta['depth'], num_heads=meta['num_heads'], feedforward_channels=4 * dim),
        img_size=meta['img_size'],
        patch_size=meta['patch_size'],
        use_abs_pos_emb=meta['use_abs_pos_emb'],
        use_rel_pos_bias=meta.get('use_rel_pos_bias', False),
        use_shared_rel_pos_bias=meta['use_shared_rel_pos_bias'],
    )
