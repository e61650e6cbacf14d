"""What the fields of a suite's file are, and of what type: a mistake is named where it stands."""

import difflib
from collections.abc import Callable
from typing import NamedTuple

from ..engine.errors import ConfigError

LONGEST = 80  # characters of a value in a message


class Kind(NamedTuple):
    """words: what a field must be, for a reader. fits: whether a value is that."""

    words: str
    fits: Callable[[object], bool]


def _by_text(value) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


ANY = Kind('', lambda value: True)  # whoever reads it says what it must be
TEXT = Kind('text', lambda value: isinstance(value, str))
TEXT_OR_NONE = Kind('text or None', lambda value: value is None or isinstance(value, str))
TEXTS = Kind('a list of texts', lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value))
YES_OR_NO = Kind('True or False', lambda value: isinstance(value, bool))
OPTIONS = Kind("a dict, as {'train_cfg.max_iters': 100}", lambda value: value is None or _by_text(value))
CHAIN = Kind(
    "a list of configs, or of dicts of a stage's fields",
    lambda value: isinstance(value, list) and value and all(isinstance(part, str | dict) for part in value),
)
ROWS = Kind("a dict, as {'from scratch': None}", _by_text)
COLUMNS = Kind("a dict, as {'ft': dict(config='FILE.py')}", _by_text)
CONFIGS = Kind(
    "a config, or a dict of them as {'name of a backbone': 'FILE.py'}",
    lambda value: isinstance(value, str) or (_by_text(value) and all(isinstance(one, str) for one in value.values())),
)
STAGES = Kind('a list of dicts', lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value))

RUN = {'kind': TEXT, 'options': OPTIONS, 'fast': OPTIONS, 'gpus': ANY, 'amp': ANY}
OF_SUITE = {
    'title': TEXT, 'note': TEXT, 'root': TEXT, 'seeds': ANY, 'stages': STAGES, 'tasks': TEXTS, 'backbones': ROWS,
    'recipes': COLUMNS, 'gpus': ANY, 'amp': ANY,
}  # fmt: skip
OF_STAGE = {
    **RUN, 'name': TEXT, 'config': TEXT, 'start': TEXT_OR_NONE, 'load_from': TEXT_OR_NONE, 'checkpoint': TEXT_OR_NONE,
    'tta': YES_OR_NO,
}  # fmt: skip
OF_RECIPE = {**RUN, 'config': CONFIGS, 'tta': YES_OR_NO, 'evaluate': YES_OR_NO}
OF_BACKBONE = {'checkpoint': TEXT_OR_NONE, 'chain': CHAIN, 'options': OPTIONS, 'fast': OPTIONS}
OF_CHAIN = {**RUN, 'name': TEXT, 'config': TEXT, 'load_from': TEXT_OR_NONE}


def shown(value) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'


def check_fields(entry: dict, known: dict[str, Kind], where: str) -> None:
    """Raise ConfigError for a key that nobody reads, with the nearest that somebody does, and for a wrong type."""
    for key, value in entry.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f'; did you mean {near[0]!r}?' if near else f'. There are: {", ".join(sorted(known))}'
            raise ConfigError(f'{where}: {key!r} unknown{hint}')
        if not known[key].fits(value):
            raise ConfigError(f'{where}: {key}={shown(value)} must be {known[key].words}')
