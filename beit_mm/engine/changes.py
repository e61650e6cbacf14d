"""A run that goes on with other settings than before: which they are, and what becomes of each.

A checkpoint carries the settings of its run as JSON, in `meta.beit_mm.settings`. What a run learns (weights, moments,
averages) and where it is (step, place in the schedule and in the data) come from the checkpoint, what is set comes from
the config: a learning rate that was changed is applied. mmengine silently goes on with the saved one.
"""

import json
import math
import warnings
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..checkpoints.load import CheckpointError, of_beit_mm
from ..registry import HOOKS
from .recipe import PLACES
from .scaling import Step, step_of

TRAINING = (
    'model', 'data_preprocessor', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr',
)  # fmt: skip
MOST = 10  # lines
SCHEDULED = ('optim_wrapper.optimizer.', 'optim_wrapper.paramwise_cfg', 'param_scheduler', 'auto_scale_lr')
PASSED_OVER = 'the config holds from here on'
EFFECTS = {  # by the start of a setting's path; the first that fits
    'optim_wrapper.optimizer.': 'applied from here on, at the same place in the schedule',
    'optim_wrapper.paramwise_cfg': 'applied from here on, at the same place in the schedule',
    'param_scheduler': 'the new schedule is applied, at the place of the old one',
    'auto_scale_lr': 'the new learning rate is applied, at the same place in the schedule',
    'train_cfg.max_': 'the run ends there; a schedule that depends on it is the new one, at the place of the old one',
    'train_dataloader.batch_size': 'the data go on at the same image; a step is of ',
    'ranks': 'the data go on at the same image; a step is of ',
    'optim_wrapper.accumulative_counts': 'a step is of ',
    'optim_wrapper.micro_batches': 'a step is of ',
    'train_dataloader.': 'other data from here on than the run would have seen',
}


def settings_of(config: Config) -> dict:
    """What decides how a run trains, as JSON has it: no places, no logs, nothing of evaluation, no seed."""

    def kept(value):
        if isinstance(value, dict):
            return {str(key): kept(each) for key, each in value.items() if key not in PLACES}
        return [kept(each) for each in value] if isinstance(value, (list, tuple)) else value

    found = {key: config.get(key) for key in TRAINING if config.get(key) is not None}
    # Hooks of ours without arguments are those that watch
    hooks = [dict(hook) for hook in config.get('custom_hooks') or () if isinstance(hook, dict)]
    found['custom_hooks'] = {
        str(hook.pop('type')): hook for hook in hooks if len(hook) > 1 or not str(hook['type']).startswith('beit_mm.')
    }
    found['ranks'] = get_world_size()
    return json.loads(json.dumps(kept(Config(found).to_dict()), default=str))


def differences(then, now, path: str = '') -> Iterator[tuple[str, object, object]]:
    """(dotted path, then, now) of what differs between two settings; None stands for what is not set."""
    same = isinstance(then, dict) and isinstance(now, dict) and then.get('type') == now.get('type')
    if same or (path == 'optim_wrapper' and then and now):  # whose types have the same keys
        for key in [*then, *(key for key in now if key not in then)]:
            yield from differences(then.get(key), now.get(key), f'{path}.{key}' if path else key)
    elif isinstance(then, list) and isinstance(now, list) and _types(then) and _types(then) == _types(now):
        for i, pair in enumerate(zip(then, now, strict=True)):
            yield from differences(*pair, f'{path}.{i}')
    elif then != now:
        yield path, then, now


def _types(values: list) -> list[str]:
    """The types of a list of configs, such as a pipeline; empty for any other list."""
    return [str(value.get('type')) for value in values if isinstance(value, dict)]


def _spelled(value) -> str:
    if value is None:
        return 'not set'
    if isinstance(value, list) and _types(value):
        value = _types(value)
    text = str(value.get('type', value)) if isinstance(value, dict) else str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


@HOOKS.register_module()
class ChangedSettingsHook(Hook):
    """Saves the settings of a run in its checkpoints; on a resume names those that have changed, and applies them.

    Refuses another optimizer and other groups of parameters, which cannot go on with what was saved. The seed, EMA and
    the model's weights are looked at elsewhere (checkpointing.py). Checkpoints without settings are taken as they are.
    """

    priority = 'LOWEST'  # what it adds belongs to what PlainCheckpointHook has made

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['meta'].setdefault('beit_mm', {})['settings'] = json.dumps(settings_of(runner.cfg))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        saved = of_beit_mm(checkpoint).get('settings')
        then = json.loads(saved) if isinstance(saved, str) else {}
        now = settings_of(runner.cfg)
        found = list(differences(then, now)) if then else []
        check_optimizer(checkpoint, then, now, runner)
        steps = [step_of(settings, settings.get('ranks', 1)) for settings in (then, now)]
        rescaled = bool(then) and all(steps) and steps[0].factor != steps[1].factor
        replayed = rescaled or any(path.startswith((*SCHEDULED, 'train_cfg.max_')) for path, _, _ in found)
        applied = replayed and apply_schedule(checkpoint, runner)
        if found:
            runner.logger.warning('\n    '.join(said(found, applied, runner, size_said(*steps, applied))))


def size_said(then: Step | None, now: Step | None, applied: bool) -> str:
    """Of a step, where what it is made of has changed: its size, and what becomes of the learning rate."""
    if not then or not now or then.images == now.images:
        return 'the same size'
    if not now.scaled:
        return 'another size, the lr is not scaled'
    return f'another size, the lr is {"" if applied else "NOT "}scaled by it: {then.factor:g} was, {now.factor:g} is'


def said(found: list[tuple], applied: bool, runner: Runner, size: str = '') -> list[str]:
    """A line for each setting that has changed, and one before them. size: of a step, in words."""
    lines = [f'{runner._load_from} was written with other settings than this config has:']
    starts = list(EFFECTS)
    found = sorted(found, key=lambda one: next((i for i, start in enumerate(starts) if one[0].startswith(start)), 99))
    for path, then, now in found[:MOST]:
        effect = next((text for start, text in EFFECTS.items() if path.startswith(start)), PASSED_OVER)
        effect += size if effect.endswith(' is of ') else ''
        if path.startswith(SCHEDULED) and not applied:
            effect = 'NOT applied: this schedule cannot be replayed, so the saved one goes on'
        lines.append(f'{path}: {_spelled(then)}, now {_spelled(now)}: {effect}')
    if len(found) > MOST:
        lines.append(f'and {len(found) - MOST} more: {", ".join(path for path, _, _ in found[MOST:])[:200]}')
    return lines


def check_optimizer(checkpoint: dict, then: dict, now: dict, runner: Runner) -> None:
    """Raise CheckpointError where the saved moments are those of another optimizer, or of other groups."""
    before, after = (
        ((settings.get('optim_wrapper') or {}).get('optimizer') or {}).get('type') for settings in (then, now)
    )
    way_out = 'Use the settings that wrote it; to start from its weights: --load-from'
    if then and before != after:
        raise CheckpointError(
            f'{runner._load_from}: was written with the optimizer {before}, this config has {after}, which cannot '
            f'go on with what the other one has saved. {way_out}'
        )
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    groups = checkpoint['optimizer'].get('param_groups')
    if optimizer is None or groups is None:  # of several optimizers
        return
    before, after = ([len(group['params']) for group in each] for each in (groups, optimizer.param_groups))
    if before != after:
        raise CheckpointError(
            f'{runner._load_from}: was written with {len(before)} groups of {sum(before)} parameters, this config '
            f'makes {len(after)} of {sum(after)} (optim_wrapper.constructor, paramwise_cfg, frozen parts). {way_out}'
        )


def apply_schedule(checkpoint: dict, runner: Runner) -> bool:
    """Put the config's hyperparameters and schedule, as they are at its step, into a checkpoint; whether that could be.

    The schedulers of the config are replayed up to the saved place.
    """
    fresh, saved = runner.param_schedulers or [], checkpoint.get('param_schedulers') or []
    if isinstance(fresh, dict) or isinstance(saved, dict):  # of several optimizers
        return False
    if any(getattr(scheduler, 'need_val_args', False) for scheduler in fresh):
        return False
    iters = next((state['_global_step'] for state in saved if not state['by_epoch']), checkpoint['meta']['iter'])
    epochs = next((state['_global_step'] for state in saved if state['by_epoch']), checkpoint['meta']['epoch'])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of schedulers that step before their optimizer has
        for by_epoch in order(iters, epochs):
            for scheduler in fresh:
                if scheduler.by_epoch == by_epoch:
                    scheduler.step()
    wrapper, state = runner.optim_wrapper, checkpoint['optimizer']
    for group, values in zip(state['param_groups'], wrapper.optimizer.param_groups, strict=True):
        group.update({key: value for key, value in values.items() if key != 'params'})
    if wrapper.base_param_settings is not None:
        state['base_param_settings'] = wrapper.base_param_settings
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in fresh]
    return True


def order(iters: int, epochs: int) -> Iterator[bool]:
    """The steps that schedulers have made, True for an epoch's, which come after equal numbers of iterations."""
    done = 0
    for epoch in range(1, epochs + 1):
        upto = math.ceil(iters * epoch / epochs)
        yield from [False] * (upto - done)
        yield True
        done = upto
    yield from [False] * (iters - done)
