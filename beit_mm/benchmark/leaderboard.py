"""The leaderboard's rows: made of result records, and of nothing else, with mean, spread and paired differences."""

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..engine.checkpointing import step_of
from .records import Record, RecordError, collect, digest_of
from .reference import HEADS, MULTI_SCALE, Reference, references_of
from .reference import SCRATCH as BASELINE

LOWER_IS_BETTER = {'reconstruction_error', 'masked_pixel_error'}
TASKS = ('tokenizer', 'pretrain', 'classification', 'segmentation')  # in the order of the road
IMAGES = {'ImageNet': 50000, 'ADE20K': 2000, 'CIFAR100': 10000, 'CIFAR10': 10000}  # of a whole test
LEFT_OUT = 'left out: '  # how a note on a file that is no record begins
HOW_TO = 'make one with: python tools/test.py CONFIG CHECKPOINT --record DIR'


class Row(NamedTuple):
    """All seeds of one recipe, started from the same chain of recipes, on one data set.

    start: configs of what it started from, nearest first, such as `beit-mini-p8_dvae < dvae-512`; '' for nothing.
    recipe: first digits of its digest where two rows would look alike, else ''. records: by seed, the newest of each;
    older: those that they take the place of. baseline: the best row from scratch of the same kind and seeds.
    """

    task: str
    dataset: str
    embedded: bool
    split: str
    num_images: int
    metric: str
    preset: str
    protocol: str
    config: str
    start: str
    recipe: str
    records: tuple[Record, ...]
    older: tuple[Record, ...]
    baseline: 'Row | None'

    @property
    def is_baseline(self) -> bool:
        return BASELINE in self.protocol.split(', ')

    @property
    def values(self) -> dict[int | None, float]:
        """The main metric by seed."""
        return {record.seed: record.value for record in self.records}

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for a single one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def differences(self) -> dict[int | None, float]:
        """Main metric minus the baseline's of the same seed; empty without a baseline."""
        base = self.baseline.values if self.baseline else {}
        return {seed: value - base[seed] for seed, value in self.values.items() if seed in base}

    @property
    def pair(self) -> tuple[float, float]:
        """Means of the main metric and of the baseline's, over the seeds that both have."""
        base = self.baseline.values
        shared = [seed for seed in self.values if seed in base]
        return statistics.fmean(self.values[s] for s in shared), statistics.fmean(base[s] for s in shared)

    @property
    def delta(self) -> tuple[float, float, int] | None:
        """Mean and sample standard deviation (nan for one seed) of the paired differences, and how many there are."""
        if not self.differences:
            return None
        values = list(self.differences.values())
        spread = statistics.stdev(values) if len(values) > 1 else float('nan')
        return statistics.fmean(values), spread, len(values)

    @property
    def references(self) -> list[Reference]:
        """What others say of this task, data set, preset and protocol; nothing for embedded data or a part of a set."""
        whole = not self.embedded and self.num_images == IMAGES.get(self.dataset)
        return references_of(self.task, self.dataset, self.preset, self.protocol) if whole else []

    def average(self, metric: str) -> float | None:
        """The mean over seeds of another metric; None unless every seed has it."""
        values = [record.metrics.get(metric) for record in self.records]
        return None if None in values else statistics.fmean(values)

    def cost(self, name: str) -> float | None:
        """The mean over seeds of an entry of the records' `cost`; None unless every seed has it."""
        values = [record.cost.get(name) for record in self.records]
        return None if None in values else statistics.fmean(values)

    @property
    def road_seconds(self) -> float | None:
        """Mean training time with that of all stages before; None where one of them does not say."""
        values = [_with_stages(r.cost.get('train_seconds'), r.stages) for r in self.records]
        return None if None in values else statistics.fmean(values)


def _with_stages(seconds: float | None, stages: Sequence[dict]) -> float | None:
    parts = [seconds, *(_with_stages(s.get('train_seconds'), s.get('stages', [])) for s in stages)]
    return None if None in parts else sum(parts)


class Board(NamedTuple):
    """rows: by task in the order of the road, then by the main metric, best first. notes: what a reader must know
    of records that were left out or are not what they seem, in words.
    """

    rows: list[Row]
    notes: list[str]


def short(config: str) -> str:
    """A config's name without batch, length and data: `dvae-512_1xb64-300_embedded-32` -> `dvae-512`."""
    return re.split(r'_\d+xb\d', config)[0]


def start_of(stages: Sequence[dict]) -> str:
    """The chain of configs in a record's `stages`, nearest first; a file of others by its name; '' for none."""
    return ' + '.join(
        ' < '.join(filter(None, [short(s['config']) or s['checkpoint'], start_of(s.get('stages', []))])) for s in stages
    )


def baseline_of(protocol: str) -> str:
    """The protocol that a row is compared with: from scratch, with the same head, labels, size and scales."""
    parts = protocol.split(', ')
    head = [part for part in parts[:1] if part in HEADS]
    kept = (part for part in parts[1:] if part == MULTI_SCALE or part.endswith((' px', 'of the labels')))
    return ', '.join([*head, BASELINE, *kept])


def board(records: Sequence[Record]) -> Board:
    """Group records into rows; of one seed the newest counts, and a checkpoint counts as one seed only.

    The baseline of a row is the best row `from scratch` of the same task, data set, metric and preset.
    """
    groups: dict[tuple, dict[int | None, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[record.row][record.seed].append(record)
    notes: list[str] = []
    made = [_row(found, notes) for found in groups.values()]
    made = _told_apart(made, notes)
    kin: dict[tuple, list[Row]] = defaultdict(list)  # what a row may be compared with, by kind and protocol
    for row in made:
        kin[row[:7], row.protocol].append(row)
    made = [row._replace(baseline=_baseline(row, kin[row[:7], baseline_of(row.protocol)])) for row in made]
    order = {task: i for i, task in enumerate(TASKS)}
    made.sort(key=lambda r: (order.get(r.task, len(order)), r.dataset, r.num_images, r.metric, sign(r.metric) * r.mean))
    return Board(made, notes)


def sign(metric: str) -> int:
    """1 where less is better, else -1: what a metric is multiplied with to sort the best first."""
    return 1 if metric in LOWER_IS_BETTER else -1


def _row(found: dict[int | None, list[Record]], notes: list[str]) -> Row:
    newest: dict[int | None, Record] = {}
    tested: dict[str, int | None] = {}
    older = []
    for seed in sorted(found, key=lambda seed: (seed is None, seed)):
        gone = {digest for record in found[seed] for digest in record.supersedes}
        order = sorted(found[seed], key=lambda r: (r.digest not in gone, step_of(Path(r.checkpoint)), r.date, r.digest))
        record = order[-1]
        older += order[:-1]
        weights = {r.checkpoint_sha256: r for r in order if r.digest not in gone}
        if len(weights) > 1:
            told = ', '.join(f'{r.checkpoint} of {r.date[:16]} ({r.value:g})' for r in weights.values())
            notes.append(
                f'{record.config}, {record.protocol}, seed {seed}: {len(weights)} different weights were tested, '
                f'{told}; the furthest trained, then the newest, counts: {record.value:g}'
            )
        before = tested.setdefault(record.checkpoint_sha256, seed)
        if before != seed:
            older.append(record)
            notes.append(
                f'{record.config}: the records of seeds {before} and {seed} are of one checkpoint '
                f'({record.checkpoint_sha256[:12]}): it counts once, as seed {before}'
            )
            continue
        newest[seed] = record
    first = next(iter(newest.values()))
    fields = ('task', 'dataset', 'embedded', 'split', 'num_images', 'metric', 'preset', 'protocol', 'config')
    return Row(
        **{name: getattr(first, name) for name in fields},
        start=start_of(first.stages),
        recipe='',
        records=tuple(newest.values()),
        older=tuple(older),
        baseline=None,
    )


def _told_apart(made: list[Row], notes: list[str]) -> list[Row]:
    """Rows that would look alike get their recipes' digests, and a note: other settings are another row."""
    alike: dict[tuple, list[Row]] = defaultdict(list)
    for row in made:
        alike[row[:10]].append(row)
    result = []
    for several in alike.values():
        if len(several) == 1:
            result += several
            continue
        recipes = [row.records[0].recipe_sha256 for row in several]
        if len(set(recipes)) < len(several):  # the same settings after other stages, or weights of others
            recipes = [digest_of(str(row.records[0].row)) for row in several]
        result += [row._replace(recipe=recipe[:8]) for row, recipe in zip(several, recipes, strict=True)]
        seeds = '; '.join(
            f'{", ".join(map(str, row.values))} ({recipe[:8]})' for row, recipe in zip(several, recipes, strict=True)
        )
        notes.append(
            f'{several[0].config}, {several[0].protocol}: its records are of {len(several)} different settings or '
            f'files, which are rows of their own; seeds by recipe: {seeds}'
        )
    return result


def _baseline(row: Row, kin: Sequence[Row]) -> Row | None:
    """The best of `kin` in a seed of the row's; None for rows that are baselines, and where no seed is in common."""
    seeds = set() if row.is_baseline else set(row.values)
    others = [other for other in kin if seeds & set(other.values)]
    return min(others, key=lambda other: sign(row.metric) * other.mean, default=None)


def rows(records: Sequence[Record]) -> list[Row]:
    """The rows of `board`."""
    return board(records).rows


def from_folder(root: str | Path) -> Board:
    """The board of the records below `root` (of a suite: below its `results`).

    Files that are no sound records are left out, and named in the notes. Raises RecordError when nothing is left.
    """
    root = Path(root)
    if (root / 'suite.json').is_file():
        root = root / 'results'
    if not root.is_dir():
        what = (
            'is a file, and records lie in a folder' if root.exists() else 'there is no such folder of result records'
        )
        raise RecordError(f'{root}: {what}; {HOW_TO}')
    found = collect(root)
    if not found.records:
        raise RecordError('\n'.join([f'{root}: holds no result record; {HOW_TO}', *found.refused]))
    made = board(found.records)
    return Board(made.rows, [*(f'{LEFT_OUT}{reason}' for reason in found.refused), *made.notes])
