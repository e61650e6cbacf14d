"""The leaderboard as tables: one per task and data set, for a terminal, Markdown and CSV; the page has its own dress.

A number of others never stands in the column of a measured one, and embedded data have tables of their own.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from .leaderboard import BASELINE, IMAGES, Row, short
from .records import Record
from .reference import PAPER, REFERENCES, Reference

TITLES = {
    'tokenizer': 'Tokenizers',
    'pretrain': 'Masked image modeling',
    'classification': 'Image classification',
    'segmentation': 'Semantic segmentation',
}
# Other metrics worth a column, by task
EXTRA = {
    'tokenizer': ('cell_mean_error', 'image_mean_error', 'perplexity', 'codes_used'),
    'pretrain': ('most_frequent',),
    'classification': ('accuracy/top5',),
    'segmentation': ('mAcc', 'aAcc'),
}
LABELS = {  # of metrics, as the tables call them
    'reconstruction_error': 'error (MAE)',
    'cell_mean_error': 'of cell means',
    'image_mean_error': 'of image means',
    'codes_used': 'codes used',
    'masked_accuracy': 'masked accuracy %',
    'most_frequent': 'constant guess %',
    'accuracy/top1': 'top-1 %',
    'accuracy/top5': 'top-5 %',
    'mIoU': 'mIoU %',
    'mAcc': 'mAcc %',
    'aAcc': 'aAcc %',
}
MAIN = {'classification': 'accuracy/top1', 'segmentation': 'mIoU'}  # the metric of references
PAPER_ONLY = 'paper only'  # a row that nobody has run here
TEXT_WIDTH = 100  # columns of a terminal


class Column(NamedTuple):
    """label: its head. group: which kind of column. tip: what it says. optional: a narrow place does without it."""

    key: str
    label: str
    group: str = ''
    tip: str = ''
    optional: bool = False
    numeric: bool = True


class Cell(NamedTuple):
    """text: what is read. value: what it is sorted by; None where there is nothing."""

    text: str
    value: float | str | None = None


EMPTY = Cell('')


class Line(NamedTuple):
    """A line of a table: a row of records, or, with row None, what others say alone. badge: which of these it is."""

    badge: str
    cells: dict[str, Cell]
    row: Row | None


class Table(NamedTuple):
    """One task on one data set and metric, embedded and real data apart."""

    heading: str
    task: str
    dataset: str
    embedded: bool
    metric: str
    columns: list[Column]
    lines: list[Line]


MEASURED, COST, REFERENCE = 'measured', 'cost', 'reference'  # groups of columns


def number(value: float, metric: str) -> str:
    """A metric's value with as many digits as it deserves."""
    return f'{value:.4f}' if 'error' in metric else f'{value:.0f}' if metric == 'codes_used' else f'{value:.1f}'


def with_spread(value: float, spread: float | None, metric: str) -> str:
    """`41.5 ± 0.3`, or `41.5` where there is no spread; another digit for a spread that would be 0.0."""
    if spread is None or spread != spread:
        return number(value, metric)
    if 0 < spread < 0.05 and 'error' not in metric:
        return f'{value:.2f} ± {spread:.2f}'
    return f'{number(value, metric)} ± {number(spread, metric)}'


def verdict(row: Row) -> str:
    """The difference from the baseline in words, such as `+4.2 ± 1.1 (3 seeds)`; '' without a baseline."""
    if row.delta is None:
        return ''
    mean, spread, count = row.delta
    seeds = f'{count} seeds' if count > 1 else '1 seed'
    return f'{"-" if mean < 0 else "+"}{with_spread(abs(mean), spread, row.metric)} ({seeds})'


def duration(seconds: float) -> str:
    """`42 s`, `3.5 min` or `12.1 h`."""
    return f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.1f} min' if seconds < 6000 else hours(seconds)


def hours(seconds: float) -> str:
    return f'{seconds / 3600:.1f} h'


def tables(rows: Sequence[Row], references: bool = False) -> list[Table]:
    """A table per task, data set and metric. references: also the lines that nobody has run here."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.task, row.dataset, row.embedded, row.num_images, row.metric].append(row)
    if references:
        for one in REFERENCES:
            groups.setdefault((one.task, one.dataset, False, IMAGES[one.dataset], MAIN[one.task]), [])
    made = []
    for (task, dataset, embedded, num_images, metric), members in groups.items():
        where = f'{dataset}, embedded data' if embedded else dataset
        heading = f'{TITLES.get(task, task)} on {where} ({num_images} images)'
        lines = [_line(row) for row in members]
        if references and not embedded and num_images == IMAGES.get(dataset):
            said = {(row.preset, row.protocol) for row in members}
            alone: dict[tuple, list[Reference]] = defaultdict(list)
            for one in REFERENCES:
                if (one.task, one.dataset) == (task, dataset) and one[2:4] not in said and metric == MAIN[task]:
                    alone[one[2:4]].append(one)
            lines += sorted((_alone(found) for found in alone.values()), key=lambda line: -line.cells['says'].value)
        columns = [c for c in _columns(task, metric) if any(line.cells.get(c.key, EMPTY).text for line in lines)]
        made.append(Table(heading, task, dataset, embedded, metric, columns, lines))
    return made


def _columns(task: str, metric: str) -> list[Column]:
    main = LABELS.get(metric, metric)
    return [
        Column('model', 'tokenizer' if task == 'tokenizer' else 'model', tip='architecture and size', numeric=False),
        Column('config', 'config', tip='name of the config, short', numeric=False),
        Column('protocol', 'protocol', tip='how it was trained and tested', numeric=False),
        Column('recipe', 'recipe', tip='digest of its settings, where rows look alike', numeric=False),
        Column('main', main, MEASURED, 'mean ± sample standard deviation over seeds'),
        Column('delta', f'against {BASELINE}', MEASURED, 'mean ± sample standard deviation of differences per seed'),
        Column('seeds', 'seeds', MEASURED, 'trainings with different seeds'),
        Column('says', main, REFERENCE, 'what others say; not measured here'),
        Column('source', 'source', REFERENCE, numeric=False),
        Column('range', 'range', MEASURED, 'lowest and highest seed', optional=True),
        *(Column(name, LABELS.get(name, name), MEASURED, 'mean over seeds', True) for name in EXTRA.get(task, ())),
        Column('start', 'starts from', MEASURED, 'what its weights came from, nearest first', numeric=False),
        Column('parameters', 'params', COST, 'millions of parameters, the head included'),
        Column('macs', 'GMACs', COST, 'billions of multiply-accumulates of one image; FLOPs are twice that'),
        Column('speed', 'images/s', COST, 'images per second of the test, loading included, on its device'),
        Column('memory', 'memory', COST, 'peak MB of the GPU, without one of the process that tested'),
        Column('time', 'training', COST, 'wall time of the training alone'),
        Column('road', 'with all before', COST, 'wall time with tokenizer and pre-training'),
        Column('top5', 'top-5 %', REFERENCE, 'what others say; not measured here'),
        Column('mean_class', 'mAcc %', REFERENCE, 'what others say; not measured here'),
        Column('crop', 'crop', REFERENCE, 'share of the short side that is tested'),
        Column('millions', 'params', REFERENCE, 'millions of parameters'),
    ]


def _line(row: Row) -> Line:
    found = dict(
        model=Cell(short(row.config) if row.task == 'tokenizer' else row.preset),
        config=Cell(short(row.config) if row.task == 'pretrain' else ''),
        protocol=Cell(row.protocol if row.task in MAIN else ''),
        start=Cell(row.start),
        recipe=Cell(row.recipe),
        seeds=Cell(str(len(row.values)), len(row.values)),
        main=Cell(with_spread(row.mean, row.spread, row.metric), row.mean),
        delta=Cell(verdict(row), row.delta[0] if row.delta else None),
    )
    if len(row.values) > 1:
        ends = [number(end(row.values.values()), row.metric) for end in (min, max)]
        found['range'] = Cell(' to '.join(ends), min(row.values.values()))
    for name in EXTRA.get(row.task, ()):
        if (value := row.average(name)) is not None:
            found[name] = Cell(number(value, name), value)
    for key, name, shown in (
        ('parameters', 'parameters', lambda v: f'{v / 1e6:.1f} M'),
        ('macs', 'macs', lambda v: f'{v / 1e9:.2f}'),
        ('speed', 'images_per_second', lambda v: f'{v:.0f}' if v >= 10 else f'{v:.2g}'),
        ('memory', 'memory_mb', lambda v: f'{v:.0f} MB'),
        ('time', 'train_seconds', duration),
    ):
        if (value := row.cost(name)) is not None:
            found[key] = Cell(shown(value), value)
    if row.road_seconds is not None and any(record.stages for record in row.records):
        found['road'] = Cell(duration(row.road_seconds), row.road_seconds)
    return Line(row.records[0].origin, {**found, **_said(row.references)}, row)


def _alone(found: list[Reference]) -> Line:
    badge = PAPER_ONLY if all(one.source == PAPER for one in found) else 'of others'
    cells = dict(model=Cell(found[0].preset), protocol=Cell(found[0].protocol))
    return Line(badge, {**cells, **_said(found)}, None)


def _said(found: list[Reference]) -> dict[str, Cell]:
    """The reference columns: several sources one under another, in the same order in each column."""
    if not found:
        return {}

    def column(texts: list[str | None], unit: str = '') -> Cell:
        if not any(texts):
            return EMPTY
        shown = '\n'.join('-' if text is None else f'{text}{unit}' for text in texts)
        return Cell(shown, max(float(text) for text in texts if text is not None))

    sources = '\n'.join(', '.join(filter(None, [one.source, one.detail])) for one in found)
    return dict(
        says=column([one.value for one in found]),
        top5=column([one.top5 for one in found]),
        mean_class=column([one.mAcc for one in found]),
        crop=column([one.crop and f'{one.crop:.1f}' for one in found]),
        millions=column([one.parameters and f'{one.parameters:.1f}' for one in found], ' M'),
        source=Cell(sources, sources),
    )


def _plain(table: Table, groups: Sequence[str] = ('', MEASURED)) -> tuple[list[Column], list[list[str]]]:
    """Columns and texts for a terminal and Markdown, where references are one column of words."""
    columns = [column for column in table.columns if column.group in groups]
    cells = [[line.cells.get(column.key, EMPTY).text for column in columns] for line in table.lines]
    said = ['; '.join(one.said for one in line.row.references) if line.row else '' for line in table.lines]
    if any(said):
        columns = [*columns, Column('said', 'of others, not measured here', REFERENCE)]
        cells = [[*line, text] for line, text in zip(cells, said, strict=True)]
    return columns, cells


def as_text(rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal of TEXT_WIDTH; ± is the sample standard deviation over seeds."""
    blocks = []
    for table in tables(rows):
        columns, cells = _plain(table)
        while True:
            lines = [[column.label for column in columns], *cells]
            widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
            spare = [i for i, column in enumerate(columns) if column.optional]
            if not spare or sum(widths) + 2 * len(widths) - 2 <= TEXT_WIDTH:
                break
            columns = [column for i, column in enumerate(columns) if i != spare[-1]]
            cells = [[text for i, text in enumerate(line) if i != spare[-1]] for line in cells]
        text = ['  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        blocks.append('\n'.join([table.heading, '-' * len(table.heading), *text]))
    return '\n\n'.join(blocks)


def as_markdown(rows: Sequence[Row], narrow: bool = False) -> str:
    """One pipe table per task and data set. narrow: without the range of seeds."""
    blocks = []
    for table in tables(rows):
        columns, cells = _plain(table)
        kept = [i for i, column in enumerate(columns) if not (narrow and column.key == 'range')]
        columns, cells = [columns[i] for i in kept], [[line[i] for i in kept] for line in cells]
        head = [[column.label for column in columns], ['---'] * len(columns)]
        lines = ['| ' + ' | '.join(text.replace('|', '\\|') for text in line) + ' |' for line in [*head, *cells]]
        blocks.append('\n'.join([f'### {table.heading}', '', *lines]))
    return '\n\n'.join(blocks) + '\n'


OF_RECORDS = (
    'task', 'dataset', 'embedded', 'split', 'num_images', 'preset', 'protocol', 'config', 'seed', 'metric', 'value',
    'origin', 'checkpoint_sha256', 'config_sha256', 'recipe_sha256', 'device', 'seconds', 'date',
)  # fmt: skip
OF_COST = ('parameters', 'macs', 'images_per_second', 'memory_mb', 'train_seconds')


def as_csv(rows: Sequence[Row]) -> str:
    """One line per record, with what identifies it; then one per number of others, in columns of their own."""
    out = io.StringIO()
    names = [*OF_RECORDS, *OF_COST, 'start', 'commit', 'record', 'reference_value', 'reference_source']
    writer = csv.DictWriter(out, names, lineterminator='\n', restval='')
    writer.writeheader()
    for row in rows:
        writer.writerows(_of_record(record, row.start) for record in row.records)
    for one in REFERENCES:
        what = dict(task=one.task, dataset=one.dataset, embedded=False, preset=one.preset, protocol=one.protocol)
        source = ', '.join(filter(None, [one.source, one.detail]))
        writer.writerow({**what, 'metric': MAIN[one.task], 'reference_value': one.value, 'reference_source': source})
    return out.getvalue()


def _of_record(record: Record, start: str) -> dict:
    cost = {name: record.cost.get(name) for name in OF_COST}
    commit = record.revision.get('commit', '')
    own = {name: getattr(record, name) for name in OF_RECORDS}
    return {**own, **cost, 'start': start, 'commit': commit, 'record': record.digest}
