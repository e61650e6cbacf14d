"""Values of a config that the Runner would stumble over later, or take for something else: their kinds and ranges."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


class Kind(NamedTuple):
    """What a value may be: a test and its words."""

    holds: Callable[[object], bool]
    words: str


def _number(value, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def whole(least: int) -> Kind:
    return Kind(lambda value: _number(value, whole=True) and value >= least, f'a whole number, {least} or more')


def number(least: float) -> Kind:
    return Kind(lambda value: _number(value, whole=False) and value >= least, f'a number, {least:g} or more')


STEPS = Kind(lambda value: _number(value, False) and value >= 1 and value == int(value), 'a whole number, 1 or more')
SWITCH = Kind(lambda value: isinstance(value, bool), 'True or False')
TEXT = Kind(lambda value: isinstance(value, str), 'a text')
DICT = Kind(lambda value: isinstance(value, dict), 'a dict')
DICTS = Kind(lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value), 'a list of dicts')
SCHEDULES = Kind(
    lambda value: (
        DICTS.holds(value)
        or (isinstance(value, dict) and ('type' in value or all(isinstance(v, (dict, list)) for v in value.values())))
    ),
    'a dict with a type, or a list of them',
)
INTERVAL = Kind(
    lambda value: _number(value, True) and (value == -1 or value >= 1), 'a whole number, 1 or more (-1: never)'
)

KINDS = {
    'model': DICT,
    'optim_wrapper': DICT,
    'optim_wrapper.optimizer': DICT,
    'default_hooks': DICT,
    'randomness': DICT,
    'env_cfg': DICT,
    'custom_hooks': DICTS,
    'param_scheduler': SCHEDULES,
    'load_from': TEXT,
    'work_dir': TEXT,
    'train_cfg.max_iters': STEPS,
    'train_cfg.max_epochs': STEPS,
    'train_cfg.val_interval': whole(1),
    'train_cfg.val_begin': whole(0),
    'optim_wrapper.accumulative_counts': whole(1),
    'optim_wrapper.micro_batches': whole(1),
    'optim_wrapper.optimizer.lr': number(0),
    'optim_wrapper.optimizer.weight_decay': number(0),
    'optim_wrapper.clip_grad.max_norm': number(0),
    'randomness.seed': whole(0),
    'randomness.deterministic': SWITCH,
    'default_hooks.checkpoint.interval': INTERVAL,
    'default_hooks.checkpoint.max_keep_ckpts': whole(-1),
    'default_hooks.logger.interval': whole(1),
    **{
        f'{loader}{key}': kind
        for loader in LOADERS
        for key, kind in {
            '': DICT,
            '.batch_size': whole(1),
            '.num_workers': whole(0),
            '.persistent_workers': SWITCH,
            '.pin_memory': SWITCH,
            '.drop_last': SWITCH,
            '.timeout': number(0),
            '.sampler.shuffle': SWITCH,
        }.items()
    },
}


def wrong_values(config: dict) -> Iterator[tuple[str, str]]:
    """(dotted path, what is wrong with it) of values that cannot be meant."""
    for dotted, kind in KINDS.items():
        node = config
        for key in dotted.split('.'):
            node = node.get(key) if isinstance(node, dict) else None
        if node is not None and not kind.holds(node):
            yield dotted, f'{dotted}={node!r}: must be {kind.words}'
    for loader in LOADERS:
        node = config.get(loader)
        if isinstance(node, dict) and node.get('persistent_workers') and not node.get('num_workers'):
            where = f'{loader}.persistent_workers'
            yield where, f'{where}=True, and num_workers=0: there are none. Give num_workers, or leave it out'
