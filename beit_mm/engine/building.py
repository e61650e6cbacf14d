"""What could not be built from a config, in words: which part of it, with which values, and why."""

import contextlib
import os
from collections.abc import Iterator
from types import TracebackType

from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop

from ..data.images import ListError, read_list
from .configs import typed_nodes
from .errors import ConfigError
from .places import place_of
from .runner import Runner

SHOWN_VALUES, LONGEST = 6, 60  # arguments of a part, and characters of one, in a message


TOGETHER = (  # that the Runner takes all or none of
    ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
)


def check_trainable(config: Config) -> None:
    """Raise ConfigError for a config that lacks a part which a training needs."""
    name = config.filename or 'the config'
    if missing := [key for key in ('model', *TOGETHER[0]) if config.get(key) is None]:
        raise ConfigError(f'{name}: has no {", ".join(missing)}, which a training needs')
    for keys in TOGETHER:
        missing = [key for key in keys if config.get(key) is None]
        if 0 < len(missing) < len(keys):
            there = ' and '.join(key for key in keys if key not in missing)
            raise ConfigError(f'{name}: {there} without {" and ".join(missing)}: all of them, or none')


@contextlib.contextmanager
def explained(config: Config) -> Iterator[None]:
    """Raise ConfigError, naming the part of the config, for what its building raises; all else passes as it is."""
    try:
        yield
    except Exception as error:
        part = _part_in(error.__traceback__)
        if part is None or type(error).__module__.startswith('beit_mm'):
            raise
        raise ConfigError(_in_words(error, part, config)) from error


def _part_in(trace: TracebackType | None) -> dict | None:
    """The config of the innermost part that was being built where a traceback began."""
    part = None
    while trace is not None:
        code, local = trace.tb_frame.f_code, trace.tb_frame.f_locals
        if code.co_name == 'build_from_cfg' and isinstance(local.get('cfg'), dict) and 'type' in local['cfg']:
            part = local['cfg']
        trace = trace.tb_next
    return part


def _in_words(error: Exception, part: dict, config: Config) -> str:
    where = next((where for where, node in typed_nodes(config.to_dict()) if _is(node, part)), '')
    place = place_of(config.filename, where) if config.filename and where else config.filename or 'the config'
    kind = part['type'] if isinstance(part['type'], str) else part['type'].__name__
    if bad_line := _bad_line(part):
        return f'{place}: {where}: {bad_line}'
    values = [(key, value) for key, value in part.items() if key not in ('type', '_scope_') and not _nested(value)]
    shown = ', '.join(
        f'{key}={str(value)[:LONGEST]!r}' if isinstance(value, str) else f'{key}={str(value)[:LONGEST]}'
        for key, value in values[:SHOWN_VALUES]
    )
    return f'{place}: {where or kind} cannot be built: {kind}({shown}): {_reason(error)}'


def _is(node: dict, part: dict) -> bool:
    return node['type'] == part['type'] and all(key in part and part[key] == value for key, value in node.items())


def _nested(value) -> bool:
    return isinstance(value, dict) or (isinstance(value, (list, tuple)) and any(isinstance(v, dict) for v in value))


def _reason(error: Exception) -> str:
    if 'need at least one array to concatenate' in str(error):  # mmengine's data sets, of an empty list
        return 'it has no image: look at data_root, data_prefix, ann_file and the suffixes'
    if isinstance(error, FileNotFoundError) and error.filename:
        return f'there is no {error.filename}'
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    line = (text.splitlines() or [''])[0].strip()
    plain = type(error) in (ValueError, RuntimeError, AssertionError) and line
    return line if plain else f'{type(error).__name__}: {line}'


def _bad_line(part: dict) -> str:
    """What is wrong with the list file of a data set of classes, with the line; '' if nothing is."""
    name = part.get('ann_file')
    if (
        not isinstance(name, str)
        or not part.get('with_label', True)
        or name.endswith(('.json', '.pkl', '.yaml', '.yml'))
    ):
        return ''
    path = os.path.join(part.get('data_root') or '', name)
    try:
        for _ in read_list(path):
            pass
    except ListError as error:
        return str(error)
    except (OSError, ValueError):
        return ''
    return ''


def check_batches(runner: Runner) -> None:
    """Raise ConfigError where an epoch would never end, or the training set does not fill one batch and half
    ones are dropped."""
    if runner._train_loop is None:
        return
    loader = runner.train_loop.dataloader
    endless = 'Infinite' in type(loader.sampler).__name__ or getattr(loader.sampler, 'endless', False)
    if endless and isinstance(runner.train_loop, EpochBasedTrainLoop):
        raise ConfigError(
            'train_dataloader.sampler: an InfiniteSampler, whose first epoch never ends, and train_cfg counts epochs: '
            "sampler=dict(type='DefaultSampler', shuffle=True), or train_cfg.max_iters"
        )
    # endless ones fill a batch with what they have given before
    if len(loader) == 0 and not endless:
        raise ConfigError(
            f'train_dataloader: {len(loader.dataset)} images do not fill one batch of {loader.batch_size}, and '
            f'drop_last=True drops what is not full: batch_size={max(1, len(loader.sampler))} or less, or '
            f'drop_last=False'
        )
