"""What a training checkpoint holds besides weights, and which one a run goes on from."""

import functools
import logging
import re
import subprocess
from pathlib import Path

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..checkpoints.load import CheckpointError, as_ours, fit, read, sha256, state_dict_of
from ..registry import HOOKS

PACKAGE = Path(__file__).parents[1]


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
    """The checkpoints that a run starts from, each with its own: dicts of config, checkpoint, sha256, stages."""
    starts = []
    if config.get('load_from') and not config.get('resume'):
        starts.append(config.load_from)
    target = config.get('model', {}).get('target') or {}
    if target.get('checkpoint'):
        starts.append(target['checkpoint'])
    stages = []
    for path in starts:
        meta = read(path, map_location='cpu').get('meta', {})
        stages.append(
            dict(
                config=str(meta.get('experiment_name', '')),
                checkpoint=Path(path).name,
                sha256=sha256(path),
                seed=meta.get('seed'),
                stages=meta.get('beit_mm', {}).get('stages', []),
            )
        )
    return stages


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Keeps checkpoints free of Python objects, so that they load with `weights_only=True`.

    mmengine pickles its HistoryBuffers (open-mmlab/mmengine#1655) and, on resuming, executes `meta['config']`
    as Python; the text is kept under `cfg`, which nothing executes.
    """

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.stages: list[dict] = []

    def before_run(self, runner: Runner) -> None:
        self.stages = stages_of(runner.cfg)

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
                    backbone=dict(model.get('backbone') or {}),
                    data_preprocessor=preprocessing_of(runner.cfg),
                ),
            )
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta = checkpoint.get('meta', {})
        meta.pop('config', None)
        if runner._resume:
            self.stages = meta.get('beit_mm', {}).get('stages', [])
        hub = checkpoint.get('message_hub')
        if hub is None:
            return
        hub['log_scalars'] = {
            name: HistoryBuffer(entry['values'].tolist(), entry['counts'].tolist())
            for name, entry in hub['log_scalars'].items()
        }


def preprocessing_of(config) -> dict:
    """The data preprocessor of a run, wherever its config has it."""
    return dict(config.get('model', {}).get('data_preprocessor') or config.get('data_preprocessor') or {})


def warn_of_preprocessing(meta: dict, config, checkpoint: str) -> None:
    """Say so where images are normalised otherwise than those that the weights were trained on."""
    before, now = meta.get('beit_mm', {}).get('data_preprocessor') or {}, preprocessing_of(config)
    for key in ('mean', 'std'):
        if before.get(key) and now.get(key) and list(before[key]) != list(now[key]):
            print_log(
                f'{checkpoint} was trained on images with {key} {list(before[key])}, this config has '
                f'{list(now[key])}: results will suffer. Set data_preprocessor.{key} to the former',
                logger='current',
                level=logging.WARNING,
            )


@HOOKS.register_module()
class FitWeightsHook(Hook):
    """Makes `load_from` fit or refuse: tables expanded and resized, heads by name, nothing lost silently."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        backbone = getattr(model, 'backbone', None)
        if runner._resume or not hasattr(backbone, 'own_grid'):
            return
        try:
            weights, done = as_ours(state_dict_of(checkpoint))
            fitted, report = fit(
                weights, model.state_dict(), backbone.own_grid, interpolation=backbone.interpolate_mode
            )
        except CheckpointError as error:
            raise CheckpointError(f'{runner._load_from}: {error}') from error
        runner.logger.info(f'{runner._load_from}: {done}{report}')
        for key in ('state_dict', 'model', 'module'):
            checkpoint.pop(key, None)
        checkpoint['state_dict'] = fitted
        warn_of_preprocessing(checkpoint.get('meta') or {}, runner.cfg, runner._load_from)


def step_of(path: Path) -> int:
    """The number in `iter_120.pth` or `epoch_3.pth`; -1 where there is none."""
    found = re.fullmatch(r'(?:iter|epoch)_(\d+)', path.stem)
    return int(found[1]) if found else -1


def latest_checkpoint(work_dir: Path) -> Path | None:
    """The newest readable training checkpoint of a work_dir, by its step; damaged ones are named and passed over."""
    for path in sorted(work_dir.glob('*_*.pth'), key=step_of, reverse=True):
        if step_of(path) < 0:
            continue
        try:
            read(path, map_location='cpu')
        except CheckpointError as error:
            print_log(f'passed over: {error}', logger='current', level=logging.WARNING)
            continue
        return path
    return None
