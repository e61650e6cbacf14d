"""The short way to write a table: tasks x backbones x recipes become stages, and what rows have in common is one stage.

    backbones = {                                    # the rows
        'BEiT': ['configs/pretrain/A.py'],           # a chain of configs, each starting from the one before
        'DINO': 'checkpoints/dino.pth',              # a file, or `{stage}` of `stages`
        'ViT': dict(checkpoint=..., options={...}),  # with overrides for every recipe; or dict(chain=[...])
        'from scratch': None,                        # random weights; the protocol, unless given, `from scratch`
    }
    recipes = {                                      # the columns
        'ft': dict(config='configs/classification/B.py', options={'protocol': 'fine-tune after {backbone}'}),
        'setr': dict(config={'BEiT': 'configs/segmentation/C.py'}),  # by row; what has no config is not run
        'knn': dict(config='configs/classification/D.py', evaluate=True),  # tests the row's weights
    }
    tasks = ['classification']                       # only recipes of these kinds (default: all)

`{backbone}` in a recipe's texts is the row's name. A chain's parts are configs, or dicts of a stage's fields.
"""

import json
import re
from pathlib import Path

from ..engine.errors import ConfigError
from .fields import OF_BACKBONE, OF_CHAIN, OF_RECIPE, check_fields, shown


def expand(suite: dict, path: str | Path) -> list[dict]:
    """The stages of a suite whose own fields are checked, and then those of its table. Raises ConfigError."""
    entries = [dict(entry) for entry in suite.get('stages') or []]
    backbones, recipes = suite.get('backbones') or {}, suite.get('recipes') or {}
    if bool(backbones) != bool(recipes):
        raise ConfigError(f'{path}: backbones and recipes make a table together; one of them is missing')
    for name, recipe in recipes.items():
        if not isinstance(recipe, dict):
            raise ConfigError(f"{path}: recipe {name}: {shown(recipe)} must be a dict, as dict(config='FILE.py')")
        check_fields(recipe, OF_RECIPE, f'{path}: recipe {name}')
        configs = recipe.get('config')
        if not configs:
            raise ConfigError(f'{path}: recipe {name}: has no config')
        unknown = set(configs) - set(backbones) if isinstance(configs, dict) else set()
        if unknown:
            raise ConfigError(f'{path}: recipe {name}: has configs for unknown backbones: {", ".join(sorted(unknown))}')
    kinds = {name: _kind(recipe) for name, recipe in recipes.items()}
    tasks = suite.get('tasks') or sorted(set(kinds.values()))
    for task in tasks:
        if task not in kinds.values():
            raise ConfigError(
                f'{path}: tasks: no recipe is of {task!r}; they are of {", ".join(sorted(set(kinds.values())))}'
            )
    for row, backbone in backbones.items():
        wanted = [
            (name, recipe)
            for name, recipe in recipes.items()
            if kinds[name] in tasks and (isinstance(recipe['config'], str) or row in recipe['config'])
        ]
        if not wanted:
            raise ConfigError(f'{path}: backbone {row}: no recipe has a config for it')
        where = f'{path}: backbone {row}'
        backbone = _backbone(backbone, where)
        start = backbone['checkpoint']
        if backbone['chain']:
            start = _chain(backbone['chain'], entries, where)
        testing = [name for name, recipe in wanted if recipe.get('evaluate')]
        if start is None and testing:
            raise ConfigError(
                f'{where}: has no weights that recipe {testing[0]} (evaluate=True) could test: give it a checkpoint or '
                f"a chain, or let the recipe name its rows, as config={{'BEiT': ...}}"
            )
        entries += [_cell(row, backbone, start, name, recipe) for name, recipe in wanted]
    return entries


def _kind(recipe: dict) -> str:
    configs = recipe['config']
    first = configs if isinstance(configs, str) else next(iter(configs.values()), '')
    return recipe.get('kind') or Path(first).parent.name


def _backbone(given, where: str) -> dict:
    """A backbone in its long form: checkpoint, chain, options, fast."""
    if given is None or isinstance(given, str):
        given = dict(checkpoint=given)
    elif isinstance(given, list):
        given = dict(chain=given)
    elif not isinstance(given, dict):
        raise ConfigError(f'{where}: {shown(given)} is no checkpoint, list of configs, dict or None')
    check_fields(given, OF_BACKBONE, where)
    if given.get('checkpoint') and given.get('chain'):
        raise ConfigError(f'{where}: has a checkpoint and a chain; its weights come from one of them')
    return {
        name: given.get(name) or empty for name, empty in dict(checkpoint=None, chain=[], options={}, fast={}).items()
    }


def _chain(chain: list, entries: list[dict], where: str) -> str:
    """Put the stages of a chain among the others, but for those that are there; returns `{the last one}`."""
    before = None
    for part in chain:
        part = dict(config=part) if isinstance(part, str) else dict(part)
        check_fields(part, OF_CHAIN, f'{where}: chain')
        if not part.get('config'):
            raise ConfigError(f'{where}: a part of its chain has no config')
        entry = {'name': Path(part['config']).stem, 'kind': Path(part['config']).parent.name, **part}
        if before and before['kind'] == 'tokenizer':
            entry['options'] = {'model.target.checkpoint': f'{{{before["name"]}}}', **(part.get('options') or {})}
        elif before:
            entry['start'] = before['name']
        same = [other for other in entries if _alike(other) == _alike(entry)]
        named = [other for other in entries if other.get('name') == entry['name']]
        if named and not same:
            raise ConfigError(
                f'{where}: its chain has another {entry["name"]} than the one before: give it a name of its own'
            )
        if not same:
            entries.append(entry)
        before = same[0] if same else entry
    return f'{{{before["name"]}}}'


def _alike(entry: dict) -> str:
    """What two stages have in common that need to run only once."""
    keys = ('config', 'start', 'load_from', 'checkpoint', 'options', 'fast', 'gpus', 'amp')
    return json.dumps([entry.get(key) or None for key in keys], sort_keys=True, default=repr)


def _cell(row: str, backbone: dict, start: str | None, name: str, recipe: dict) -> dict:
    """The stage of one row and one column."""

    def filled(value):
        return value.replace('{backbone}', row) if isinstance(value, str) else value

    config = recipe['config'] if isinstance(recipe['config'], str) else recipe['config'][row]
    place = re.sub(r'[^\w.+]+', '-', row).strip('-')
    options = {key: filled(value) for key, value in {**(recipe.get('options') or {}), **backbone['options']}.items()}
    if start is None:
        options = {'protocol': 'from scratch', **options}  # whatever the config is called when it fine-tunes
    entry = dict(
        name=f'{name}-{place}',
        config=filled(config),
        options=options,
        fast={**(recipe.get('fast') or {}), **backbone['fast']},
        **{key: recipe[key] for key in ('kind', 'gpus', 'amp', 'tta') if key in recipe},
    )
    if recipe.get('evaluate'):
        return dict(entry, checkpoint=start)
    if start and start.startswith('{'):
        return dict(entry, start=start[1:-1])
    return dict(entry, load_from=start)
