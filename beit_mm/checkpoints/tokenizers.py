"""Weights of a tokenizer, from whichever file has them: found, renamed, and checked whole before any is loaded."""

import torch

from .convert import few, stripped
from .errors import CheckpointError

Weights = dict[str, torch.Tensor]
# Below these names a larger checkpoint holds one: mmpretrain's pre-trained BEiTs, Hugging Face's FLAVA.
INSIDE = ('target_generator.', 'image_codebook.')
# Hugging Face's FlavaImageCodebook is OpenAI's encoder: {theirs: OpenAI's}, as parts of names.
OF_FLAVA = {'.group.': '.', '.res_path.path.': '.res_path.', '.weight': '.w', '.bias': '.b'}
# What a tokenizer counts while it is trained; one that was saved without goes on at zero.
COUNTED = ('num_updates', 'code_counts')


def tokenizer_weights(weights: Weights, own: Weights, vocab_size: int) -> Weights:
    """The weights that fit the tokenizer whose state dict is `own`.

    Raises CheckpointError, saying what differs, unless they are all there and of the right shapes.
    """
    weights = stripped(weights)
    for prefix in INSIDE:
        inside = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
        weights = inside or weights
    if any('.res_path.path.' in key for key in weights):
        weights = {_of_openai(key): value for key, value in weights.items()}
    missing = [key for key in own if key not in weights and key not in COUNTED]
    unknown = [key for key in weights if key not in own]
    if missing or unknown:
        said = [f'{few(names)} {fate}' for names, fate in ((missing, 'missing'), (unknown, 'unknown to it')) if names]
        raise CheckpointError(f'these are the weights of another model: {"; ".join(said)}')
    for key, value in weights.items():
        if value.shape != own[key].shape:
            ours = tuple(own[key].shape)
            differs = [i for i, (a, b) in enumerate(zip(value.shape, ours, strict=False)) if a != b]
            if len(differs) == 1 and ours[differs[0]] == vocab_size:
                raise CheckpointError(f'vocab_size is {value.shape[differs[0]]} in the file and {vocab_size} here')
            raise CheckpointError(f'{key} is {tuple(value.shape)} in the file and {ours} here: set the same widths')
    return weights


def _of_openai(key: str) -> str:
    for theirs, openai in OF_FLAVA.items():
        key = key.replace(theirs, openai)
    return key
