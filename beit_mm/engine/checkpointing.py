"""What a training checkpoint holds besides weights, and what is taken of one that a run starts from."""

import functools
import logging
import re
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..checkpoints.convert import few, stripped
from ..checkpoints.fit import as_ours, fit, grid_of_ours
from ..checkpoints.formats import INDEX
from ..checkpoints.load import (
    WEIGHTS,
    CheckpointError,
    meta_of,
    of_beit_mm,
    preprocessing_in,
    read,
    sha256,
    state_dict_of,
)
from ..registry import HOOKS
from .recipe import recipe_of

PACKAGE = Path(__file__).parents[1]
STAMP = re.compile(r'_\d{8}_\d{6}$')  # that mmengine puts behind the name of an experiment


@functools.cache
def code_revision() -> dict[str, str | bool]:
    """beit_mm's version and, in a git checkout, its commit and whether files differ from it."""
    from .. import __version__

    def git(*args: str) -> str:
        done = subprocess.run(['git', '-C', str(PACKAGE), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git('rev-parse', '--show-toplevel')) != PACKAGE.parent:
            raise FileNotFoundError  # installed inside somebody else's repository
        return dict(version=__version__, commit=git('rev-parse', 'HEAD'), dirty=bool(git('status', '--porcelain')))
    except (OSError, subprocess.CalledProcessError):
        return dict(version=__version__, commit='', dirty=False)


def plain(value):
    """The same value made of dicts, lists, tuples, strings, numbers, None and tensors only."""
    if isinstance(value, dict):
        return {str(k) if isinstance(k, np.generic) else k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value) if type(value) in (list, tuple) else [plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if value is None or isinstance(value, (str, bytes, int, float, bool, torch.Tensor)):
        return value
    return str(value)


def stages_of(config) -> list[dict]:
    """The checkpoints that a run starts from, each with its own stages: dicts of config, checkpoint, sha256, seed,
    recipe_sha256, train_seconds and stages; what a file of others does not say is None or empty.
    """
    starts = []
    if config.get('load_from') and not config.get('resume'):
        starts.append(config.load_from)
    model = config.get('model', {})
    for part in (model.get('target'), model.get('init_cfg'), (model.get('backbone') or {}).get('init_cfg')):
        if isinstance(part, dict) and part.get('checkpoint'):
            starts.append(part['checkpoint'])
    stages = []
    for path in starts:
        content = read(path, map_location='cpu', lazy=True)
        meta = meta_of(content)
        stages.append(
            dict(
                config=STAMP.sub('', str(meta.get('experiment_name', ''))),
                checkpoint=Path(path).name,
                sha256=sha256(path),
                seed=meta.get('seed'),
                **{key: of_beit_mm(content).get(key) for key in ('recipe_sha256', 'train_seconds')},
                stages=of_beit_mm(content).get('stages', []),
            )
        )
    return stages


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Keeps checkpoints free of Python objects, so that they load with `weights_only=True`.

    mmengine pickles its HistoryBuffers (open-mmlab/mmengine#1655).
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.stages: list[dict] = []
        self.recipe = ''
        self.run = uuid.uuid4().hex  # the files of one run, from its first start on
        self.trained = 0.0  # seconds, before this process
        self.started = time.perf_counter()

    def before_run(self, runner: Runner) -> None:
        self.stages = stages_of(runner.cfg)
        self.recipe = recipe_of(runner.cfg)

    def before_train(self, runner: Runner) -> None:
        self.started = time.perf_counter()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        hub = checkpoint['message_hub']
        hub['log_scalars'] = {
            name: dict(zip(('values', 'counts'), map(torch.from_numpy, buffer.data), strict=True))
            for name, buffer in hub['log_scalars'].items()
        }
        checkpoint['message_hub'] = plain(hub)
        model = runner.cfg.get('model', {})
        checkpoint['meta'] = plain(
            dict(
                checkpoint['meta'],
                beit_mm=dict(
                    revision=code_revision(),
                    stages=self.stages,
                    recipe_sha256=self.recipe,
                    run=self.run,
                    train_seconds=round(self.trained + time.perf_counter() - self.started, 2),
                    backbone=dict(model.get('backbone') or {}),
                    preprocessing=preprocessing_of(runner.cfg),
                ),
            )
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            self.stages = of_beit_mm(checkpoint).get('stages', [])
            self.trained = of_beit_mm(checkpoint).get('train_seconds', 0.0)
            self.run = str(of_beit_mm(checkpoint).get('run') or self.run)
        hub = checkpoint.get('message_hub')
        if hub is None:
            return
        hub['log_scalars'] = {
            name: entry  # of mmengine's own checkpoints
            if isinstance(entry, HistoryBuffer)
            else HistoryBuffer(entry['values'].tolist(), entry['counts'].tolist())
            for name, entry in hub['log_scalars'].items()
        }


POOLING = dict(avg_featmap='mean', cls_token='class token')


def preprocessing_of(config) -> dict:
    """What a model expects of its images and does with its features, as far as the config says it: mean, std,
    pooling, and of a classifier's test pipeline crop_ratio (crop over resized short side) and interpolation.
    """
    model = config.get('model') or {}
    normalisation = model.get('data_preprocessor') or config.get('data_preprocessor') or {}
    found = {key: list(normalisation[key]) for key in ('mean', 'std') if normalisation.get(key) is not None}
    pooling = POOLING.get(str((model.get('backbone') or {}).get('out_type')))
    if pooling:
        found['pooling'] = pooling
    loader = config.get('test_dataloader') or config.get('val_dataloader') or {}
    steps = [step for step in (loader.get('dataset') or {}).get('pipeline') or [] if isinstance(step, dict)]
    resized = [step for step in steps if str(step.get('type')).rsplit('.', 1)[-1] in ('Resize', 'ResizeEdge')]
    cropped = [step for step in steps if str(step.get('type')).rsplit('.', 1)[-1] == 'CenterCrop']
    if len(resized) == 1 and pooling:
        found['interpolation'] = resized[0].get('interpolation', 'bilinear')
        short = _short_side(resized[0].get('scale'))
        if short:
            crop = _short_side(cropped[0].get('crop_size')) if cropped else short
            found['crop_ratio'] = round(crop / short, 4)
    return found


def _short_side(size) -> int | None:
    return min(size) if isinstance(size, (list, tuple)) else size


def model_of(runner: Runner) -> torch.nn.Module:
    """The model itself, also where it is wrapped for several ranks."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def warn_of_preprocessing(content: dict, config, checkpoint: str, keys: tuple[str, ...]) -> None:
    """Say so where images are treated otherwise than those that the weights were trained, or tested, on."""
    before, now = preprocessing_in(content), preprocessing_of(config)
    for key in keys:
        if key in before and key in now and before[key] != now[key]:
            print_log(
                f'{checkpoint} comes with {key} {before[key]}, this config has {now[key]}: the result is '
                f"another one than its own. Use the checkpoint's unless you mean to change it",
                logger='current',
                level=logging.WARNING,
            )


TO_TRAIN_ON = ('mean', 'std')
TO_EVALUATE = ('mean', 'std', 'pooling', 'crop_ratio', 'interpolation')


@HOOKS.register_module()
class FitWeightsHook(Hook):
    """Makes `load_from` fit or refuse: tables expanded and resized, heads by name, nothing lost silently.

    partial: what does not fit keeps its initial value, and is named. reinit: starts of the names of weights that are
    not taken although they would fit, such as `head.`. Resuming takes what was saved, whole, or refuses.
    """

    priority = 'HIGH'  # before mmengine's EMAHook, which copies the weights and stumbles over another head

    def __init__(self, partial: bool = False, reinit: Sequence[str] = ()) -> None:
        self.partial = partial
        self.reinit = (reinit,) if isinstance(reinit, str) else tuple(reinit)

    def before_run(self, runner: Runner) -> None:
        backbone = getattr(model_of(runner), 'backbone', None)
        if getattr(backbone, 'started_from', None):
            name, content = backbone.started_from
            warn_of_preprocessing(content, runner.cfg, name, TO_TRAIN_ON)
            backbone.started_from = None  # once is enough

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = model_of(runner)
        if runner._resume:
            averages = any(isinstance(hook, EMAHook) for hook in getattr(runner, 'hooks', ()))
            check_resumable(checkpoint, model.state_dict(), runner._load_from, averages)
            return
        checkpoint.pop(
            'ema_state_dict', None
        )  # mmpretrain's EMAHook would swap it with what is not taken; averages anew
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'own_grid'):
            if backbone is not None and not self.partial:
                check_complete(checkpoint, model.state_dict(), runner._load_from)
            return
        try:
            weights, done, grid = as_ours(state_dict_of(checkpoint), grid=grid_of_ours(checkpoint))
            left = [key for key in weights if self.reinit and key.startswith(self.reinit)]
            if self.reinit and not left:
                raise CheckpointError(f'reinit={", ".join(self.reinit)}: no weight of it starts so')
            weights = {key: value for key, value in weights.items() if key not in left}
            fitted, report = fit(
                weights,
                model.state_dict(),
                backbone.own_grid,
                interpolation=backbone.interpolate_mode,
                partial=self.partial,
                source_grid=grid,
            )
        except CheckpointError as error:
            raise CheckpointError(f'{runner._load_from}: {error}') from error
        own = model.state_dict()
        report.missing = [key for key in report.missing if key not in left]
        report.reinitialised += [key for key in left if key in own]
        report.dropped += [key for key in left if key not in own]
        print_log(f'{runner._load_from}: {done}{report}', logger=runner.logger, level=report.level)
        for key in WEIGHTS:
            checkpoint.pop(key, None)
        checkpoint['state_dict'] = fitted
        warn_of_preprocessing(checkpoint, runner.cfg, runner._load_from, TO_TRAIN_ON)
        kept = sorted({'.'.join(key.split('.')[:2]) for key in report.matched if CLASSIFIERS.search(key)})
        if kept:
            warn_of_classes(checkpoint, runner, kept)


CLASSIFIERS = re.compile(r'head\S*\.(conv_seg|fc|cls_head)\.')  # weights with a row for each class


def warn_of_classes(checkpoint: dict, runner: Runner, kept: list[str]) -> None:
    """Say so where a head is kept, as it tells as many classes apart, and they are others than it was trained on."""
    trained_on = meta_of(checkpoint).get('dataset_meta')
    before = trained_on.get('classes') if isinstance(trained_on, dict) else None
    dataset = getattr(getattr(runner, 'train_dataloader', None), 'dataset', None)
    now = getattr(dataset, 'metainfo', {}).get('classes')
    if not isinstance(before, (list, tuple)) or not now or list(before) == list(now):
        return
    first = next((pair for pair in zip(before, now) if pair[0] != pair[1]), ('', ''))
    print_log(
        f'{runner._load_from}: was trained on other classes of the same number ({first[0]!r} where this data set has '
        f'{first[1]!r}), and its head is kept. To start the head anew: '
        f"custom_hooks=[dict(type='beit_mm.FitWeightsHook', reinit={tuple(kept)})]",
        logger='current',
        level=logging.WARNING,
    )


def _unlike(saved: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> Iterator[str]:
    """What of a model's weights is not among those that were saved, or of another shape, in words."""
    yield from (f'{key} is not in it' for key in own if key not in saved)
    for key, value in own.items():
        if key in saved and saved[key].shape != value.shape:
            yield f'{key} is {tuple(saved[key].shape)}, the model has {tuple(value.shape)}'


def check_complete(checkpoint: dict, own: dict[str, torch.Tensor], name: str) -> None:
    """Raise CheckpointError where a backbone that is not ours would keep a part of its start: mmengine only warns.

    Positions and tables may be of another shape: their models resize them when they load.
    """
    weights = stripped(state_dict_of(checkpoint))
    parts = {key: value for key, value in own.items() if key.startswith('backbone.') and not key.endswith(INDEX)}
    resizable = {key for key in parts if 'pos' in key and key in weights}
    if wrong := list(_unlike(weights, {key: value for key, value in parts.items() if key not in resizable})):
        raise CheckpointError(
            f'{name}: does not fit the backbone of this config: {few(wrong, 4)}. What fits alone: --partial-load'
        )


def check_resumable(checkpoint: dict, own: dict[str, torch.Tensor], name: str, averages: bool = False) -> None:
    """Raise CheckpointError unless this is a training checkpoint of just this model; mmengine warns and goes on."""
    lacking = [key for key in ('state_dict', 'optimizer', 'message_hub') if key not in checkpoint]
    meta = checkpoint.get('meta')
    lacking += [f'meta.{key}' for key in ('iter', 'epoch') if not isinstance(meta, dict) or key not in meta]
    if not lacking and not isinstance((checkpoint['message_hub'] or {}), dict):
        lacking = ['message_hub that is a dict']
    if lacking:
        raise CheckpointError(
            f'{name}: no run can go on from it: it has no {", ".join(lacking)}. To start from its weights: --load-from'
        )
    if averages != ('ema_state_dict' in checkpoint):
        raise CheckpointError(
            f'{name}: was written {"without" if averages else "with"} an EMAHook, and this config has '
            f'{"one" if averages else "none"}: the run would not go on as it was. Use the config that wrote it'
        )
    saved = {key: value for key, value in stripped(state_dict_of(checkpoint)).items() if not key.endswith(INDEX)}
    own = {key: value for key, value in own.items() if not key.endswith(INDEX)}
    wrong = [*_unlike(saved, own), *(f'{key} is not in the model' for key in saved if key not in own)]
    if wrong:
        raise CheckpointError(
            f'{name}: is of another model than this config: {few(wrong, 4)}. To start from its weights: --load-from'
        )


def step_of(path: Path) -> int:
    """The number in `iter_120.pth` or `epoch_3.pth`; -1 where there is none."""
    found = re.fullmatch(r'(?:iter|epoch)_(\d+)', path.stem)
    return int(found[1]) if found else -1
