"""Of what the tokens of a cache are, and refusing a cache that is of something else (data/tokens.py reads it).

What decides over the token of a patch: tokenizer, images, the pipeline up to the token view, and the seed that views
are drawn for. That is written into a cache's manifest (token_maker.py) and compared before the first step.
"""

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch.utils.data import default_collate

from ..data.check import parts_of
from ..data.sampling import Draw, Keyed
from ..data.tokens import TokenCacheError, TokensFromCache, command_for, read_manifest
from ..models.targets import TokenTarget
from ..registry import HOOKS
from .checkpointing import model_of
from .launch import parts_of as configs_of

SPOT, SPOT_EQUAL = 4, 0.9  # views made again before training, and the share of their tokens that must be equal
SIZES = 256  # files whose size is part of a data set's digest
OF_NO_VIEW = ('TokensFromCache', 'MaskPatches')  # steps of a pipeline that do not change the token view
OF_NO_TOKEN = ('mean', 'std')  # of the data preprocessor: these are for the patches
WORDS = dict(  # what must be equal, in words, in the order in which a difference is told
    seed='the seed of the views (--seed, randomness.seed)',
    views='the number of views of each image',
    images='the number of images',
    data='the data set: its list of files, their sizes, or its settings',
    vocabulary='the vocabulary of the tokenizer',
    tokenizer='the tokenizer: its kind, its arguments or its weights',
    pipeline='the pipeline that makes the token view',
    preprocessor='the data preprocessor of the token view',
)


def name_of(step: dict) -> str:
    """A step of a pipeline by the name of its type, without the scope."""
    return str(step['type']).rsplit('.', 1)[-1]


def _plain(value):
    """As JSON has it, in an order of its own: tuples are lists, and what the scope was is no matter."""
    if isinstance(value, dict):
        return {str(key): _plain(value[key]) for key in sorted(value, key=str) if key != '_scope_'}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def view_steps(pipeline: list[dict]) -> list[dict]:
    """Of a pre-training pipeline, the steps that make the token view."""
    steps = [dict(step) for step in pipeline if name_of(step) not in OF_NO_VIEW]
    return [dict(step, patches_size=None) if name_of(step) == 'TwoViewCrop' else step for step in steps]


def data_digest(dataset, settings: dict) -> str:
    """sha256 of what a data set lists, in its order: class folders and names of files, and the sizes of some of them.

    settings: the config, which stands for images that are no files. Where the files lie does not count. Shards have
    a digest of their own.
    """
    digest, some = hashlib.sha256(str(len(dataset)).encode()), max(1, len(dataset) // SIZES)
    if own := [part.digest() for part in parts_of(dataset) if hasattr(part, 'digest')]:
        digest.update(json.dumps(own).encode())
    described = not hasattr(dataset, 'get_data_info')
    for index in range(0 if described else len(dataset)):
        path = str(dataset.get_data_info(index).get('img_path', ''))
        if not path or '://' in path:
            described = True
            break
        digest.update('/'.join(path.replace('\\', '/').rsplit('/', 2)[-2:]).encode())
        if index % some == 0:
            digest.update(str(os.path.getsize(path)).encode())
    if described:
        kept = {k: v for k, v in _plain(settings).items() if k not in ('pipeline', 'data_root', 'lazy_init')}
        digest.update(json.dumps(kept).encode())
    return digest.hexdigest()


def facts_of(config: Config, dataset, target: TokenTarget, seed: int, views: int) -> dict:
    """What decides over the tokens of a config's training set, as JSON has it."""
    settings = config.train_dataloader.dataset
    preprocessor = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    return dict(
        seed=seed,
        views=views,
        images=len(dataset),
        data=data_digest(dataset, settings),
        vocabulary=target.vocab_size,
        tokenizer=target.digest(),
        pipeline=_plain([view_steps(part['pipeline']) for part in configs_of(settings)]),
        preprocessor=_plain({key: value for key, value in preprocessor.items() if key not in OF_NO_TOKEN}),
    )


def difference(of_cache: dict, of_config: dict) -> str:
    """The first thing in which the tokens of a cache are not those of a config, in words; '' if there is none."""
    for key, words in WORDS.items():
        cached, wanted = of_cache.get(key), of_config[key]
        if cached == wanted:
            continue
        if key == 'pipeline' and [len(part) for part in cached] == [len(part) for part in wanted]:
            steps = zip([s for part in cached for s in part], [s for part in wanted for s in part], strict=True)
            cached, wanted = next((a, b) for a, b in steps if a != b)
        return f'{words}: the tokens are of {cached}, the config has {wanted}'
    return ''


class Views:
    """The token views of a config's training set and their tokens: one sample per Draw(index, (seed, view, index))."""

    def __init__(self, config: Config, dataset, target: TokenTarget, preprocessor, seed: int) -> None:
        self.dataset, self.target, self.preprocessor, self.seed = dataset, target, preprocessor, seed
        self.scope = config.get('default_scope', 'mmengine')
        self.steps = [view_steps(part['pipeline']) for part in configs_of(config.train_dataloader.dataset)]

    def draw(self, view: int, index: int) -> Draw:
        return Draw(index, (self.seed, view, index))

    @contextlib.contextmanager
    def only(self) -> Iterator[None]:
        """Within this, the data set makes token views and nothing else."""
        parts = list(parts_of(self.dataset))
        kept = [part.pipeline for part in parts]
        try:
            with DefaultScope.overwrite_default_scope(self.scope):
                for part, steps in zip(parts, self.steps, strict=True):
                    part.pipeline = Compose(copy.deepcopy(steps))
            yield
        finally:
            for part, pipeline in zip(parts, kept, strict=True):
                part.pipeline = pipeline

    def tokens(self, samples: dict) -> np.ndarray:
        """(B, Gh, Gw) int64 of a batch of samples."""
        if 'tokens_view' not in samples:
            raise TokenCacheError(
                'the training pipeline makes no tokens_view to compute tokens of: keep tokens_size of TwoViewCrop; '
                'where tokens come from a cache it makes none'
            )
        view = self.preprocessor(dict(tokens_view=samples['tokens_view']), False)['tokens_view']
        return self.target.tokens(view).cpu().numpy()

    def some(self, count: int, views: int) -> list[Draw]:
        """Draws from all over the data set, of one view after the other."""
        indices = np.unique(np.linspace(0, len(self.dataset) - 1, count, dtype=int)).tolist()
        return [self.draw(place % views, index) for place, index in enumerate(indices)]


@HOOKS.register_module()
class TokenCacheHook(Hook):
    """Before the first step of a run whose tokens come from a cache: are they those of its tokenizer, images and views?

    Compared are what the manifest says, and the tokens of a few views that are made again: other code, or another
    decoder of images, is in no digest. Raises TokenCacheError. Other runs are left alone.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        dataset = runner.train_dataloader.dataset
        pipelines = [
            getattr(part.pipeline, 'transforms', []) for part in parts_of(dataset) if hasattr(part, 'pipeline')
        ]
        readers = [step for steps in pipelines for step in steps if isinstance(step, TokensFromCache)]
        if not readers:
            return
        found = [self._problem(runner, pipelines, readers[0]) if is_main_process() else None]
        broadcast_object_list(found)  # every rank ends, with the same words
        if found[0]:
            raise TokenCacheError(found[0])

    def _problem(self, runner: Runner, pipelines: list[list], reader: TokensFromCache) -> str:
        """What is wrong, and the way out; '' if nothing is."""
        model, loader = model_of(runner), runner.train_dataloader
        target, cache = getattr(model, 'target', None), reader.cache
        for steps in pipelines:
            if not steps or not isinstance(steps[0], TokensFromCache) or steps[0].cache != cache:
                return f'{cache}: every part of the training set reads it, and as the first step of its pipeline'
        if not isinstance(target, TokenTarget):
            return f'{cache}: holds tokens, and model.target is {type(target).__name__}: set beit_mm.CachedTokens'
        if not isinstance(loader.sampler, Keyed):
            return f'{cache}: needs train_dataloader.sampler DefaultSampler, InfiniteSampler or beit_mm.ShardSampler'
        facts = facts_of(runner.cfg, loader.dataset, target, loader.sampler.seed, reader.views)
        wishes = f'--views {reader.views} --seed {loader.sampler.seed} --out FOLDER'
        remedy = f'Make the config as it was, or another cache: {command_for(runner.cfg.filename, cache)} {wishes}'
        manifest = read_manifest(cache)
        if found := difference(manifest, facts):
            return f'{cache}: these are not the tokens of this config. {found}. {remedy}'
        equal = self._equal(Views(runner.cfg, loader.dataset, target, model.data_preprocessor, reader.seed), reader)
        runner.logger.info(f'{cache}: {100 * equal:.1f} % of the tokens of {SPOT} views are as computed now')
        if equal < SPOT_EQUAL:
            made = manifest['revision']
            return (
                f'{cache}: of the tokens of {SPOT} views that were made again, {100 * equal:.0f} % are those of the '
                f'cache: what makes views has changed since it was made (by version {made["version"]}, commit '
                f'{made["commit"] or "unknown"}). {remedy}'
            )
        return ''

    @staticmethod
    def _equal(source: Views, reader: TokensFromCache) -> float:
        """The share of tokens of a few views that are computed now as they are in the cache."""
        draws = source.some(SPOT, reader.views)
        with source.only():
            computed = source.tokens(default_collate([source.dataset[draw] for draw in draws]))
        cached = [reader.transform(dict(sample_idx=draw))['tokens'] for draw in draws]
        return float((computed == np.stack(cached)).mean())
