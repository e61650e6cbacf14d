"""What a suite says: its stages, checked before any of them runs.

A suite is a Python file with `title`, `note` (what a reader must know), `root` (its work_dir), optionally `seeds` (how
many, or which), `gpus` and `amp` (for stages that name none), and `stages`, dicts of:

    name           how it is called, and its folder: root/seed<n>/<name>
    config         the config to train
    kind           tokenizer, pretrain, classification or segmentation (default: the config's folder)
    start          name of the stage whose weights it loads
    load_from      a file whose weights it loads; None: random weights, whatever the config says
    checkpoint     nothing is trained: this file, or `{stage}`, is tested
    options        overrides as for --cfg-options; `{stage}` as a value is that stage's checkpoint
    fast           more overrides, for `--fast`: a check that everything runs, not a result
    gpus, amp      ranks that it is trained and tested on; bf16 or fp16
    tta            tested over scales and flips

`tasks`, `backbones` and `recipes` besides, or instead, are the short way to write a table: see grid.py. Names that
start with `_` are the suite's own.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.config import Config

from ..checkpoints.load import made_by
from ..engine.configs import load_config
from ..engine.errors import ConfigError
from .fields import OF_STAGE, OF_SUITE, check_fields
from .grid import expand

KINDS = ('tokenizer', 'pretrain', 'classification', 'segmentation')
AMP = (None, 'bf16', 'fp16')
LARGEST_SEED = 2**32 - 1  # that NumPy takes
SEED_OF_FILES = 0  # testing somebody's weights has no seed: it is done once


def is_reference(value) -> bool:
    """Whether an option stands for a stage's checkpoint."""
    return isinstance(value, str) and value.startswith('{') and value.endswith('}')


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One training of a suite for one seed; or, with a checkpoint, one test. parents: whose weights it reads."""

    name: str
    kind: str
    config: str
    options: dict
    seed: int
    work_dir: Path
    checkpoint: str | None = None
    gpus: int = 1
    amp: str | None = None
    tta: bool = False
    parents: tuple['Stage', ...] = ()

    @property
    def root(self) -> Path:
        return self.work_dir.parents[1]

    def resolved(self, paths: dict[str, str]) -> tuple[dict, str | None]:
        """Options and checkpoint with the paths of stages in place of their names."""

        def path_of(value):
            return paths[value[1:-1]] if is_reference(value) else value

        return {key: path_of(value) for key, value in self.options.items()}, path_of(self.checkpoint)


def read_suite(path: str | Path) -> dict:
    """The fields of a suite's file. Raises ConfigError for a missing file, Python that does not run, unknown fields."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(str(path), map(str, Path('configs/suites').glob('*.py')), n=3, cutoff=0.4)
        hint = f'. The nearest names are: {", ".join(near)}' if near else ''
        raise ConfigError(f'{path}: there is no such suite{hint}')
    try:
        content = Config.fromfile(path).to_dict()
    except Exception as error:  # a suite is Python: it can raise anything
        raise ConfigError(f'{path}: cannot be read: {type(error).__name__}: {error}') from error
    suite = {key: value for key, value in content.items() if not key.startswith('_')}
    if 'model' in suite and not {'stages', 'backbones'} & set(suite):
        raise ConfigError(f'{path}: the config of one training, no suite: python tools/train.py {path}')
    check_fields(suite, OF_SUITE, f'{path}')
    lacking = [key for key in ('title', 'note', 'root') if not isinstance(suite.get(key), str)]
    if lacking:
        raise ConfigError(f'{path}: {", ".join(lacking)} must be there, as text')
    return suite


def seeds_of(suite: dict, path: str | Path) -> list[int]:
    """The seeds that a suite asks for: 0 alone where it does not say."""
    seeds = suite.get('seeds', 1)
    seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ConfigError(f'{path}: seeds={suite["seeds"]!r}: write how many, or a list of them')
    return seeds


def plan(
    path: str | Path, seeds: Iterable[int] | None = None, fast: bool = False, root: str | Path | None = None
) -> list[Stage]:
    """The stages of a suite in order, seed by seed. Raises ConfigError for what cannot run.

    Configs and overrides are read and checked; files on disk are not looked at (see `missing`).
    """
    suite = read_suite(path)
    root_dir = Path(root or suite['root'] + ('-fast' if fast else ''))
    entries = _checked(suite, path)
    seeds = list(dict.fromkeys(seeds if seeds is not None else seeds_of(suite, path)))
    if not seeds or not all(0 <= seed <= LARGEST_SEED for seed in seeds):
        given = ', '.join(map(str, seeds)) or 'none'
        raise ConfigError(
            f'{path}: seeds: {given}; at least one is needed (--seeds 1 is seed 0), each from 0 to {LARGEST_SEED}'
        )
    stages: list[Stage] = []
    for seed in seeds:
        known: dict[str, Stage] = {}
        for entry in entries:
            once = entry.get('checkpoint') is not None and not is_reference(entry['checkpoint'])
            own_seed = SEED_OF_FILES if once else seed
            if once and any(stage.name == entry['name'] for stage in stages):
                continue
            options = {**_options(entry), **(entry.get('fast') or {} if fast else {})}
            names = [value[1:-1] for value in (*options.values(), entry.get('checkpoint')) if is_reference(value)]
            stage = Stage(
                name=entry['name'],
                kind=entry['kind'],
                config=entry['config'],
                options=options,
                seed=own_seed,
                work_dir=root_dir / f'seed{own_seed}' / entry['name'],
                checkpoint=entry.get('checkpoint'),
                gpus=entry['gpus'],
                amp=entry['amp'],
                tta=bool(entry.get('tta')),
                parents=tuple(known[name] for name in dict.fromkeys(names)),
            )
            known[stage.name] = stage
            stages.append(stage)
    for stage in stages:
        _check_trains(stage, path)
    return stages


def _options(entry: dict) -> dict:
    """Overrides of a stage, with what it starts from among them: all that differs from its config."""
    start = {'load_from': f'{{{entry["start"]}}}'} if entry.get('start') else {}
    start.update({'load_from': entry['load_from']} if 'load_from' in entry else {})
    return {**start, **(entry.get('options') or {})}


def _checked(suite: dict, path: str | Path) -> list[dict]:
    """All stage entries, complete and possible together."""
    explicit = suite.get('stages') or []
    for i, entry in enumerate(explicit):
        where = f'{path}: stage {entry.get("name", i + 1)}'
        check_fields(entry, OF_STAGE, where)
        if not entry.get('name'):
            raise ConfigError(f'{where}: has no name')
    entries = expand(suite, path)
    if not entries:
        raise ConfigError(f'{path}: names neither stages, nor backbones and recipes: nothing to run')
    known: dict[str, dict] = {}
    runs: dict[str, str] = {}
    for entry in entries:
        where = f'{path}: stage {entry["name"]}'
        _check_entry(entry, where, suite)
        if entry['name'] in known:
            raise ConfigError(f'{where}: another stage has this name')
        _check_references(entry, known, {other['name'] for other in entries}, where)
        known[entry['name']] = entry
        same = _identity(entry)
        if same in runs:
            raise ConfigError(
                f'{where}: would be the same run as {runs[same]} (config, options and start are equal): name one'
            )
        runs[same] = entry['name']
    return entries


def _check_entry(entry: dict, where: str, suite: dict) -> None:
    if not isinstance(entry.get('config'), str):
        raise ConfigError(f'{where}: has no config')
    entry.setdefault('kind', Path(entry['config']).parent.name)
    entry.setdefault('gpus', suite.get('gpus', 1))
    entry.setdefault('amp', suite.get('amp'))
    if not re.fullmatch(r'[\w.+-]+', entry['name']) or entry['name'].startswith('.'):
        raise ConfigError(f'{where}: its name is that of a folder: letters, digits, and any of _ . + -')
    if entry['kind'] not in KINDS:
        raise ConfigError(f'{where}: kind={entry["kind"]!r} is none of {", ".join(KINDS)}')
    if entry['amp'] not in AMP:
        raise ConfigError(f"{where}: amp={entry['amp']!r} is neither 'bf16' nor 'fp16'")
    if not isinstance(entry['gpus'], int) or entry['gpus'] < 1:
        raise ConfigError(f'{where}: gpus={entry["gpus"]!r} must be 1 or more')
    starts = [key for key in ('start', 'load_from', 'checkpoint') if entry.get(key) is not None]
    if len(starts) > 1:
        raise ConfigError(f'{where}: has {" and ".join(starts)}; what it starts from is one of them')


def _check_references(entry: dict, known: dict[str, dict], names: set[str], where: str) -> None:
    """What it starts from comes before it, so that there are no circles, and leaves weights."""
    values = {**_options(entry), **(entry.get('fast') or {}), 'checkpoint': entry.get('checkpoint')}
    for key, name in ((key, value[1:-1]) for key, value in values.items() if is_reference(value)):
        if name == entry['name']:
            raise ConfigError(f'{where}: {_key(entry, key)}={name!r} is the stage itself: name one before it')
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            after = '; it comes later: put it first, and no two stages can start from each other'
            hint = after if name in names else f'; did you mean {near[0]!r}?' if near else ''
            raise ConfigError(f'{where}: {_key(entry, key)}: starts from {name!r}, which is not before it{hint}')
        if known[name].get('checkpoint'):
            raise ConfigError(
                f'{where}: {_key(entry, key)}: starts from {name!r}, which is only tested; start from what that tests'
            )


def _key(entry: dict, option: str) -> str:
    """Where a stage says what it starts from: load_from may come of `start`."""
    return 'start' if option == 'load_from' and entry.get('start') else option


def _identity(entry: dict) -> str:
    """What makes two stages the same run: all but how they are called."""
    options = {key: value for key, value in _options(entry).items() if key != 'protocol'}
    parts = [entry['config'], options, entry.get('checkpoint'), bool(entry.get('tta')), entry['gpus'], entry['amp']]
    return json.dumps(parts, sort_keys=True, default=repr)


_configs: dict[tuple, Config] = {}  # reading one takes a tenth of a second
_of_stage: weakref.WeakKeyDictionary[Stage, Config] = weakref.WeakKeyDictionary()


def merged(stage: Stage) -> Config:
    """A stage's checked config with its overrides, as it was when the stage was planned; not to be changed."""
    if stage not in _of_stage:
        path = Path(stage.config)
        age = path.stat().st_mtime_ns if path.is_file() else 0
        key = (stage.config, age, json.dumps(stage.options, sort_keys=True, default=repr))
        if key not in _configs:
            _configs[key] = load_config(stage.config, dict(stage.options))
        _of_stage[stage] = _configs[key]
    return _of_stage[stage]


def edited(stage: Stage) -> bool:
    """Whether the config has become another since the stage was planned."""
    try:
        now = load_config(stage.config, dict(stage.options))
    except ConfigError:
        return True
    return _text(now) != _text(merged(stage))


def _text(config: Config) -> str:
    return json.dumps(config.to_dict(), sort_keys=True, default=repr)


def _check_trains(stage: Stage, path: str | Path) -> None:
    try:
        config = merged(stage)
    except ConfigError as error:
        raise ConfigError(f'{path}: stage {stage.name}: {error}') from error
    if stage.checkpoint is None and config.get('train_cfg') is None:
        raise ConfigError(
            f"{path}: stage {stage.name}: {stage.config} trains nothing; write checkpoint=FILE or '{{stage}}' "
            f'instead of what it starts from'
        )
    if stage.checkpoint is not None and not tested(stage):
        raise ConfigError(f'{path}: stage {stage.name}: {stage.config} has no test_dataloader')
    if stage.tta and config.get('tta_model') is None:
        raise ConfigError(f'{path}: stage {stage.name}: tta=True, and {stage.config} has no tta_model')


def tested(stage: Stage) -> bool:
    """Whether its config says how to test: pre-training on ImageNet-22K has nothing to be tested on."""
    return merged(stage).get('test_dataloader') is not None


def digest(stage: Stage) -> str:
    """Of all that decides what a stage does, but the weights it starts from."""
    parts = [_text(merged(stage)), stage.checkpoint, stage.tta, stage.amp, stage.gpus, stage.seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def weights_of(stage: Stage) -> list[str]:
    """Files that a stage reads weights from, stages' apart."""
    config = merged(stage)
    found = [stage.checkpoint] if stage.checkpoint else [config.get('load_from')]
    model = config.get('model') or {}
    found += [model.get('pretrained'), (model.get('target') or {}).get('checkpoint')]
    found += [node.get('checkpoint') for node in _dicts(model) if node.get('type') == 'Pretrained']
    return [path for path in dict.fromkeys(found) if path and not is_reference(path) and '://' not in path]


def _dicts(node) -> Iterator[dict]:
    if isinstance(node, dict):
        yield node
        node = node.values()
    if not isinstance(node, str) and isinstance(node, Iterable):
        for value in node:
            yield from _dicts(value)


def _folders_of(stage: Stage) -> list[str]:
    """Folders of images that a stage reads."""
    names = ('test_dataloader',) if stage.checkpoint else ('train_dataloader', 'val_dataloader', 'test_dataloader')
    parts = [node for name in names for node in _dicts(merged(stage).get(name) or {})]
    roots = [node.get('data_root') for node in parts if not node.get('download')]
    return [root for root in dict.fromkeys(roots) if root and '://' not in root]


def missing(stages: Iterable[Stage]) -> dict[str, tuple[str, list[Stage]]]:
    """{file or folder that is not there: (the way out, the stages that read it)}."""
    found: dict[str, tuple[str, list[Stage]]] = {}
    for stage in stages:
        for path in weights_of(stage):
            if not Path(path).exists():
                way = made_by(path).removeprefix('. ') or 'docs/checkpoints.md says whose files are understood'
                found.setdefault(path, (way, []))[1].append(stage)
        for path in _folders_of(stage):
            if not Path(path).is_dir():
                way = f'a data set; or its own place by options: ...dataset.data_root, in {stage.config}'
                found.setdefault(path, (way, []))[1].append(stage)
    return found
