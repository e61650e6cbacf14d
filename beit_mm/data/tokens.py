"""Visual tokens that were computed before training: what a cache of them is, and the transform that reads it.

A cache is a folder of two files. tokens.npy holds, of each of N images, K views: (K, N, Gh, Gw) unsigned integers,
read through a memory map. manifest.json says what they are the tokens of; it is written last, so that a folder with a
manifest is whole. What makes a cache and what refuses one is engine/tokens.py; the page about both: docs/tokens.md.
"""

import functools
import json
import os
from pathlib import Path

import numpy as np
from mmcv.transforms import BaseTransform

from ..compat import CONFIG_ROOT
from ..registry import TRANSFORMS

TOKENS, MANIFEST = 'tokens.npy', 'manifest.json'
FORMAT = 1  # of the manifest


class TokenCacheError(ValueError):
    """A token cache that is missing, damaged, or of something else; the message names it and says what to do."""


def command_for(config: str | os.PathLike | None, cache: str | os.PathLike) -> str:
    """The command that makes a cache. Where the config is not known: the one that the cache is named after, if any."""
    if config is None:
        named = sorted(CONFIG_ROOT.glob(f'*/{Path(cache).name}.py'))
        config = f'configs/{named[0].relative_to(CONFIG_ROOT)}' if named else 'CONFIG'
    return f'python tools/prepare_data.py tokens {config}'


def read_manifest(cache: str | os.PathLike) -> dict:
    """The manifest of a whole cache. Raises TokenCacheError for one that is missing, unfinished, or damaged."""
    path = Path(cache) / MANIFEST
    remedy = f'It is what this makes: {command_for(None, cache)}'
    if not path.is_file():
        begun = 'its tokens are not complete' if Path(cache).is_dir() else 'there is no such token cache'
        raise TokenCacheError(f'{cache}: {begun}. {remedy}')
    try:
        manifest = json.loads(path.read_text())
        if manifest['format'] != FORMAT:
            raise TokenCacheError(f'{path}: format {manifest["format"]}, and this code reads {FORMAT}. {remedy}')
        size, expected = (Path(cache) / TOKENS).stat().st_size, manifest['bytes']
        for key, kind in dict(views=int, images=int, seed=int, sha256=str).items():
            if type(manifest[key]) is not kind:
                raise TypeError(f'{key} is {manifest[key]!r}')
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, TokenCacheError):
            raise
        raise TokenCacheError(f'{path}: damaged ({type(error).__name__}: {error}). Remove {cache}. {remedy}') from error
    if size != expected:
        raise TokenCacheError(f'{cache}: {TOKENS} has {size} bytes, and should have {expected}. Remove it. {remedy}')
    return manifest


@functools.lru_cache(maxsize=8)
def opened(path: str, sha256: str) -> np.ndarray:
    """The tokens (K, N, Gh, Gw) of a file, once in a process; the digest tells a file from the one before it.

    Raises TokenCacheError for what is no array of unsigned integers in four dimensions.
    """
    try:
        tokens = np.load(path, mmap_mode='r', allow_pickle=False)
    except Exception as error:  # damaged bytes make NumPy raise SyntaxError, tokenize.TokenError, ...
        raise TokenCacheError(f'{path}: damaged ({type(error).__name__}: {error}). Make the cache anew') from error
    if tokens.ndim != 4 or tokens.dtype.kind != 'u':
        raise TokenCacheError(f'{path}: damaged ({tokens.dtype} of shape {tokens.shape}). Make the cache anew')
    return tokens


@TRANSFORMS.register_module()
class TokensFromCache(BaseTransform):
    """Put the `tokens` (Gh, Gw) int64 of this view of this image into the sample; the first step of a pipeline.

    cache: the folder. views: K, how many views of each image it has. From here on what is drawn for the sample is
    drawn for view `epoch mod K` of its image (`generator_of`), so that the steps after this one make the views that
    the tokens are of, and no second view is made. Masks are of the epoch as before: an image that comes again in the
    same view is masked otherwise.

    Raises TokenCacheError for a cache that is missing or has another K, and for samples that it has no tokens of.
    """

    def __init__(self, cache: str, views: int) -> None:
        self.cache, self.views = str(cache), views
        manifest = read_manifest(cache)
        if manifest['views'] != views:
            raise TokenCacheError(
                f'{cache}: holds {manifest["views"]} views of each image, and the config reads views={views}: give '
                f'TokensFromCache views={manifest["views"]}, or make another cache: '
                f'{command_for(None, cache)} --views {views} --out ANOTHER_FOLDER'
            )
        self.seed, self.images, self.sha256 = manifest['seed'], manifest['images'], manifest['sha256']

    def transform(self, results: dict) -> dict:
        key = getattr(results.get('sample_idx'), 'key', None)
        if key is None:
            raise TokenCacheError(
                f'{self.cache}: which view a sample is says the sampler of a training; this index comes from elsewhere'
            )
        if 'patches' in results or 'tokens_view' in results:
            raise TokenCacheError(f'{self.cache}: the view is made already; put TokensFromCache first in the pipeline')
        seed, epoch, index = key
        if seed != self.seed:
            raise TokenCacheError(
                f'{self.cache}: its views were drawn for seed {self.seed}, this run draws for seed {seed}. Run with '
                f'--seed {self.seed}'
            )
        if not index < self.images:
            raise TokenCacheError(f'{self.cache}: has {self.images} images, and the sample is of image {index}')
        tokens = opened(str(Path(self.cache) / TOKENS), self.sha256)
        if tokens.shape[:2] != (self.views, self.images):
            raise TokenCacheError(
                f'{self.cache}: {TOKENS} is of {tokens.shape[1]} images in {tokens.shape[0]} views, and {MANIFEST} '
                f'says {self.images} in {self.views}. Make the cache anew'
            )
        results['num_views'] = self.views
        results['tokens'] = tokens[epoch % self.views, index].astype(np.int64)
        return results

    def __repr__(self) -> str:
        return f'TokensFromCache({self.cache}, views={self.views})'
