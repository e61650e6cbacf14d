"""Weights of projects that do not save by torch: Paddle's .pdparams, Google's .npz. Arrays, and nothing else."""

from pathlib import Path

import numpy as np
import torch

from .arrays import ArraysOnly
from .errors import CheckpointError
from .formats import Renaming


def read_paddle(path: Path) -> dict[str, torch.Tensor]:
    """Paddle's .pdparams: a pickle of {name: array}, beside a table of names that is left out."""
    try:
        with open(path, 'rb') as file:
            content = ArraysOnly(file, encoding='latin1').load()
        if not isinstance(content, dict):
            raise TypeError(f'it holds a {type(content).__name__}, and Paddle parameters are a dict of arrays')
        return {key: torch.from_numpy(np.array(v)) for key, v in content.items() if isinstance(v, np.ndarray)}
    except Exception as error:  # damaged bytes make pickle raise IndexError, struct.error, KeyError, ...
        raise CheckpointError(f'{path}: not a file of Paddle parameters ({error})') from error


# Google's vision_transformer (Flax): {theirs: timm's}; {i} is the number of a block
FLAX = {
    'cls': 'cls_token',
    'embedding': 'patch_embed.proj',
    'Transformer/posembed_input/pos_embedding': 'pos_embed',
    'Transformer/encoderblock_{i}/LayerNorm_0': 'blocks.{i}.norm1',
    'Transformer/encoderblock_{i}/LayerNorm_2': 'blocks.{i}.norm2',
    'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/query': 'blocks.{i}.attn.query',
    'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/key': 'blocks.{i}.attn.key',
    'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/value': 'blocks.{i}.attn.value',
    'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/out': 'blocks.{i}.attn.proj',
    'Transformer/encoderblock_{i}/MlpBlock_3/Dense_0': 'blocks.{i}.mlp.fc1',
    'Transformer/encoderblock_{i}/MlpBlock_3/Dense_1': 'blocks.{i}.mlp.fc2',
    'Transformer/encoder_norm': 'norm',
    'pre_logits': 'pre_logits.fc',
    'head': 'head',
}
FLAX_LEAVES = {'kernel': '.weight', 'scale': '.weight', 'bias': '.bias'}


def read_flax(path: Path) -> dict[str, torch.Tensor]:
    """The .npz of a supervised ViT (Google's vision_transformer, AugReg), under timm's names and in torch's layout."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: torch.from_numpy(archive[key].astype(np.float32)) for key in archive.files}
    except Exception as error:  # damaged bytes make NumPy raise BadZipFile, EOFError, KeyError, ...
        raise CheckpointError(f'{path}: not a readable .npz file of arrays ({error})') from error
    rename, weights = Renaming(FLAX), {}
    for key, value in arrays.items():
        stem, _, leaf = key.removeprefix('opt/target/').rpartition('/')
        whole = rename(key.removeprefix('opt/target/'))  # those without a leaf
        name = whole or (rename(stem) or '') + FLAX_LEAVES.get(leaf, '')
        if not whole and (rename(stem) is None or leaf not in FLAX_LEAVES):
            raise CheckpointError(f'{path}: {key} is of no plain vision transformer of vision_transformer')
        weights[name] = _in_torch(name, value) if leaf in FLAX_LEAVES else value
    for name in [name for name in weights if name.endswith(('.query.weight', '.query.bias'))]:
        parts = [name.replace('.query.', f'.{part}.') for part in ('query', 'key', 'value')]
        if missing := [part for part in parts if part not in weights]:
            raise CheckpointError(f'{path}: {missing[0]} is missing')
        weights[name.replace('.query.', '.qkv.')] = torch.cat([weights.pop(part) for part in parts])
    return weights


def _in_torch(name: str, value: torch.Tensor) -> torch.Tensor:
    """Flax's layout of a kernel or bias, (in, heads, dim), (heads, dim, out), (h, w, in, out), in torch's."""
    heads_come = name.endswith(('query.weight', 'key.weight', 'value.weight'))
    if value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    if name.endswith('.bias'):
        return value.flatten()
    if value.ndim == 3:
        value = value.flatten(1) if heads_come else value.flatten(0, 1)
    return value.T.contiguous() if value.ndim == 2 else value
