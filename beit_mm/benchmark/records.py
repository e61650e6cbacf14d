"""Result records: one JSON file per evaluation, written once and never edited. Leaderboards are made of these."""

import dataclasses
import datetime
import hashlib
import json
import os
import platform
from pathlib import Path

import torch

from .. import compat
from ..engine.checkpointing import code_revision

SCHEMA = 1


class RecordError(ValueError):
    """A record that lacks something, or is not one."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured, on what, with what, and by which code.

    task: `classification`, `segmentation`, `pretrain` or `tokenizer`. dataset: its type; embedded: True for
    the data that ship with scikit-image and scikit-learn. metric, value: the main number, in percent.
    metrics: all of them. protocol: how it was trained and tested, such as `fine-tune` or `from scratch`.
    preset: the architecture, `beit` or `beit_plus` and size. config: its name; config_sha256: of the merged
    text. checkpoint_sha256: of the weights that were tested. stages: digests of what they came from.
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
    seed: int
    config: str
    config_sha256: str
    checkpoint: str
    checkpoint_sha256: str
    stages: list[dict]
    revision: dict
    versions: dict[str, str]
    device: str
    seconds: float
    date: str
    schema: int = SCHEMA


COMPULSORY = ('task', 'dataset', 'metric', 'protocol', 'preset', 'config_sha256', 'checkpoint_sha256', 'date')


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
    """Raise RecordError naming what is missing, unknown or empty."""
    names = {f.name for f in dataclasses.fields(Record)}
    if not isinstance(record, dict) or set(record) != names:
        given = set(record) if isinstance(record, dict) else set()
        raise RecordError(
            f'{where}: not a result record of schema {SCHEMA}; '
            f'missing: {", ".join(sorted(names - given)) or "-"}; unknown: {", ".join(sorted(given - names)) or "-"}'
        )
    if record['schema'] != SCHEMA:
        raise RecordError(f'{where}: schema {record["schema"]}, this version reads {SCHEMA}')
    empty = [name for name in COMPULSORY if not record[name]]
    if empty:
        raise RecordError(f'{where}: {", ".join(empty)} must not be empty')
    if record['num_images'] < 1:
        raise RecordError(f'{where}: num_images={record["num_images"]}; an evaluation has at least one image')


def write(record: Record, root: str | os.PathLike) -> Path:
    """Write to root/<task>/<config>/<digest>.json; the same evaluation again is another file."""
    text = json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True, allow_nan=False)
    name = f'seed{record.seed}_{hashlib.sha256(text.encode()).hexdigest()[:12]}.json'
    path = Path(root) / record.task / record.config / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp')
    temporary.write_text(text + '\n')
    os.replace(temporary, path)
    return path


def read_all(root: str | os.PathLike) -> list[Record]:
    """All records below root, by path. Raises RecordError naming the file that is not one."""
    found = []
    for path in sorted(Path(root).rglob('*.json')):
        try:
            content = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise RecordError(f'{path}: not JSON ({error})') from error
        check(content, path)
        found.append(Record(**content))
    return found
