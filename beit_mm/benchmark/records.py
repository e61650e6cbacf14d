"""Result records: one JSON file per evaluation, written once and never edited. Leaderboards are made of these."""

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from .. import compat
from ..checkpoints.files import into_place
from ..engine.checkpointing import code_revision

SCHEMA = 2
TRAINED, CONVERTED = 'trained here', 'converted'
DIGEST = 12  # hexadecimal digits of a record's own digest, in the name of its file
SHA256 = re.compile('[0-9a-f]{64}')


class RecordError(ValueError):
    """A record that lacks something, or is not one."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured, on what, with what, and by which code.

    task: `classification`, `segmentation`, `pretrain` or `tokenizer`. dataset: its name; embedded: True for
    the data that ship with scikit-image and scikit-learn. metric, value: the main number, in percent.
    metrics: all of them; of classes as `IoU.sky`. protocol: how it was trained and tested, such as `fine-tune` or
    `from scratch`. preset: the architecture, `beit` or `beit_plus` and size. origin: `trained here` or `converted`.
    seed: of the training; None for converted weights alone.
    config: its name; config_sha256: of the merged text; recipe_sha256: of the same without places (work_dir, folders,
    checkpoints), so that the seeds of one recipe share it. checkpoint_sha256: of the weights that were tested.
    stages: what they came from, nearest first, each with config, checkpoint, sha256, seed and its own stages.
    cost: parameters, macs of one forward pass of `input` (channels, height, width), images_per_second of the test with
    its loading, memory_mb (the GPU's peak, without one the process'), train_seconds; None where it is not known.
    curves: scalar -> (steps, values) of the training, as far as its log lay beside the checkpoint.
    supersedes: digests of the records of the same evaluation that this one takes the place of.
    """

    task: str
    dataset: str
    embedded: bool
    split: str
    num_images: int
    metric: str
    value: float
    metrics: dict[str, float]
    protocol: str
    preset: str
    origin: str
    seed: int | None
    config: str
    config_sha256: str
    recipe_sha256: str
    checkpoint: str
    checkpoint_sha256: str
    stages: list[dict]
    cost: dict
    curves: dict[str, list[list[float]]]
    revision: dict
    versions: dict[str, str]
    device: str
    seconds: float
    date: str
    supersedes: list[str] = dataclasses.field(default_factory=list)
    schema: int = SCHEMA

    @property
    def text(self) -> str:
        """The record as it is written."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, allow_nan=False) + '\n'

    @functools.cached_property
    def digest(self) -> str:
        """What names the record: the first digits of its text's sha256."""
        return digest_of(self.text)

    @property
    def row(self) -> tuple:
        """What the seeds of one row of a leaderboard share; converted weights, which have no seed, are a row each."""
        where = (self.task, self.dataset, self.embedded, self.split, self.num_images, self.metric)
        own = self.checkpoint_sha256 if self.seed is None else ''
        return *where, self.protocol, self.preset, self.config, self.recipe_sha256, lineage(self.stages), own

    @property
    def identity(self) -> tuple:
        """What makes two records evaluations of the same weights by the same test, one of which is enough."""
        return *self.row, self.seed, self.checkpoint_sha256


def lineage(stages: list[dict]) -> tuple:
    """What a chain of stages was trained with: recipes; for files of others, which do not say, their own digests."""
    return tuple((s.get('recipe_sha256') or s.get('sha256'), lineage(s.get('stages', []))) for s in stages)


def digest_of(text: str) -> str:
    """The first digits of a text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST]


NAMED = ('task', 'dataset', 'split', 'metric', 'protocol', 'preset', 'config', 'checkpoint', 'device', 'date')
DIGESTS = ('config_sha256', 'recipe_sha256', 'checkpoint_sha256')


def make(**fields) -> Record:
    """A record of now and here: revision, versions, device and date are filled in, the rest is `fields`."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{platform.machine()} CPU'
    record = Record(
        revision=code_revision(),
        versions={'python': platform.python_version(), **compat.versions()},
        device=f'{device}, {torch.get_num_threads()} threads',
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        **fields,
    )
    check(dataclasses.asdict(record), 'new record')
    return record


def check(record: dict, where: str | Path) -> None:
    """Raise RecordError naming what is missing, unknown, empty or of a wrong kind."""
    names = {f.name for f in dataclasses.fields(Record)}
    schema = record.get('schema') if isinstance(record, dict) else None
    if schema is not None and schema != SCHEMA:
        raise RecordError(f'{where}: schema {schema}, this version reads {SCHEMA}: evaluate the checkpoint again')
    if not isinstance(record, dict) or set(record) != names:
        given = set(record) if isinstance(record, dict) else set()
        raise RecordError(
            f'{where}: not a result record of schema {SCHEMA}; '
            f'missing: {", ".join(sorted(names - given)) or "-"}; unknown: {", ".join(sorted(given - names)) or "-"}'
        )
    for problem in _problems(record):
        raise RecordError(f'{where}: {problem}')


def _problems(record: dict) -> Iterator[str]:
    """What is wrong with the values of a record that has all fields, in words."""
    empty = [name for name in NAMED if not isinstance(record[name], str) or not record[name]]
    if empty:
        yield f'{", ".join(empty)} must be words, and not empty'
        return
    for name in ('task', 'config'):
        if Path(record[name]).name != record[name]:
            yield f'{name}={record[name]!r} is no name of a folder'
    if type(record['embedded']) is not bool:
        yield f'embedded={record["embedded"]!r} is neither true nor false'
    try:
        datetime.datetime.fromisoformat(record['date'])
    except ValueError:
        yield f'date={record["date"]!r} is no date'
    for name in DIGESTS:
        if not isinstance(record[name], str) or not SHA256.fullmatch(record[name]):
            yield f'{name}={record[name]!r} is not a sha256: what was tested cannot be told'
    revision = record['revision']
    if not isinstance(revision, dict) or {'commit', 'version', 'dirty'} - set(revision):
        yield f'revision={revision!r} must say commit, version and dirty'
    elif not all(isinstance(revision[name], str) for name in ('commit', 'version')):
        yield f'revision={revision!r}: commit and version are words'
    elif not (revision['commit'] or revision['version']):
        yield f'revision={revision!r} names no code, neither a commit nor a version'
    if type(record['num_images']) is not int or record['num_images'] < 1:
        yield f'num_images={record["num_images"]!r}; an evaluation has at least one image'
    if record['origin'] not in (TRAINED, CONVERTED):
        yield f'origin={record["origin"]!r} is neither {TRAINED!r} nor {CONVERTED!r}'
    if type(record['seed']) is not int and not (record['seed'] is None and record['origin'] == CONVERTED):
        yield f'seed={record["seed"]!r}: weights that were trained here have one'
    for name, fits in (('metrics', _number), ('versions', lambda value: isinstance(value, str)), ('curves', _curve)):
        if not isinstance(record[name], dict) or not all(map(fits, record[name].values())):
            yield f'{name} is not a table of {WANTED[name]}'
    cost = record['cost']
    if not isinstance(cost, dict) or not all(v is None or _number(v) for k, v in cost.items() if k not in UNCOUNTED):
        yield 'cost is not a table of numbers'
    if not isinstance(record['stages'], list) or not all(map(_stage, record['stages'])):
        yield 'stages is not a list of tables with config, checkpoint, sha256 and stages'
    if not isinstance(record['supersedes'], list) or not all(isinstance(one, str) for one in record['supersedes']):
        yield 'supersedes is not a list of digests'
    if not _number(record['value']) or not _number(record['seconds']):
        yield f'value={record["value"]!r}, seconds={record["seconds"]!r}: no numbers'
    elif isinstance(record['metrics'], dict) and record['metrics'].get(record['metric']) != record['value']:
        yield f'value={record["value"]} is not metrics[{record["metric"]!r}]'


WANTED = dict(metrics='numbers', versions='words', curves='pairs of lists, steps and values')
UNCOUNTED = ('input', 'memory_of')  # of cost: a shape and a word


def _number(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # neither infinite nor nan


def _curve(value) -> bool:
    axes = isinstance(value, list) and len(value) == 2 and all(isinstance(axis, list) for axis in value)
    return axes and len(value[0]) == len(value[1]) > 0 and all(map(_number, [*value[0], *value[1]]))


def _stage(value) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get('stages'), list):
        return False
    words = all(isinstance(value.get(name), str) for name in ('config', 'checkpoint', 'sha256'))
    seconds, recipe = value.get('train_seconds'), value.get('recipe_sha256')
    words = words and (recipe is None or isinstance(recipe, str))
    return words and (seconds is None or _number(seconds)) and all(map(_stage, value['stages']))


def write(record: Record, root: str | os.PathLike) -> Path:
    """Write to root/<task>/<config>/<seed>_<digest>.json; the same evaluation again is another file, and says so."""
    folder = Path(root) / record.task / record.config
    folder.mkdir(parents=True, exist_ok=True)
    before = [old.digest for old in collect(folder).records if old.identity == record.identity]
    record = dataclasses.replace(record, supersedes=before)
    seed = 'converted' if record.seed is None else f'seed{record.seed}'
    path = folder / f'{seed}_{record.digest}.json'
    into_place(path, lambda file: file.write(record.text.encode()))
    return path


def read(path: Path) -> Record:
    """The record of one file. Raises RecordError for what is not one, or is not any more what was written."""
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
    except ValueError as error:
        raise RecordError(f'{path}: not JSON, or written in part ({error})') from error
    check(content, path)
    if not path.stem.endswith(f'_{digest_of(text)}'):
        raise RecordError(
            f'{path}: was edited or renamed after it was written (its digest is {digest_of(text)}). A record is never '
            f'edited: evaluate again, and the new record takes its place'
        )
    return Record(**content)


class Found(NamedTuple):
    """records: by path. refused: why each other file is not one, in words that name it."""

    records: list[Record]
    refused: list[str]


def collect(root: str | os.PathLike) -> Found:
    """All records below root that are sound, and what the other files lack."""
    found = Found([], [])
    for path in sorted(Path(root).rglob('*.json')):
        try:
            found.records.append(read(path))
        except RecordError as error:
            found.refused.append(str(error))
        except OSError as error:
            found.refused.append(f'{path}: cannot be read ({error.strerror})')
    return found
