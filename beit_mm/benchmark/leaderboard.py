"""The leaderboard: rows made of result records, and of nothing else, as text, Markdown, CSV and HTML.

A paper's number never stands in the column of a measured one, and embedded data have tables of their own.
"""

import csv
import html
import io
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .records import Record, RecordError

BASELINE = 'from scratch'
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
LOWER_IS_BETTER = {'reconstruction_error'}


class Paper(NamedTuple):
    """One number of the paper (arXiv 2106.08254), for the column of its own beside real data."""

    task: str
    dataset: str
    preset: str
    protocol: str
    value: float
    table: str


PAPER = (
    Paper('classification', 'ImageNet', 'beit base', 'fine-tune', 83.2, 'Table 1'),
    Paper('classification', 'ImageNet', 'beit large', 'fine-tune', 85.2, 'Table 1'),
    Paper('classification', 'ImageNet', 'beit base', BASELINE, 81.8, 'Table 1, DeiT-B'),
    Paper('classification', 'ImageNet', 'beit_plus base', 'fine-tune', 83.22, 'Table 5, 300 epochs'),
    Paper('classification', 'CIFAR100', 'beit base', 'fine-tune', 90.1, 'Table 11'),
    Paper('segmentation', 'ADE20KDataset', 'beit base', 'fine-tune', 45.6, 'Table 3, SETR-PUP'),
    Paper('segmentation', 'ADE20KDataset', 'beit_plus base', 'fine-tune', 53.6, 'Table 7, UPerNet 640'),
)


class Row(NamedTuple):
    """All seeds of one config on one data set.

    values: the main metric by seed. delta: mean and sample standard deviation (nan for one seed) of the
    difference from the baseline, paired by seed; None without a baseline.
    """

    task: str
    dataset: str
    embedded: bool
    num_images: int
    metric: str
    preset: str
    protocol: str
    config: str
    values: dict[int, float]
    extra: dict[str, float]
    delta: tuple[float, float, int] | None
    records: tuple[Record, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for a single one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def paper(self) -> Paper | None:
        own = (self.task, self.dataset, self.preset, self.protocol)
        return next((p for p in PAPER if p[:4] == own and not self.embedded), None)


def rows(records: Sequence[Record]) -> list[Row]:
    """Group records by task, data set, preset, protocol and config; of one seed the newest record counts.

    Sorted by task in the order of the road, then by the main metric, best first.
    """
    newest: dict[tuple, dict[int, Record]] = defaultdict(dict)
    for r in sorted(records, key=lambda r: r.date):
        key = (r.task, r.dataset, r.embedded, r.num_images, r.metric, r.preset, r.protocol, r.config)
        newest[key][r.seed] = r
    values = {key: {seed: r.value for seed, r in sorted(found.items())} for key, found in newest.items()}
    made = []
    for key, found in newest.items():
        baseline = next((v for k, v in values.items() if k[:6] == key[:6] and k[6] == BASELINE), None)
        extra = {
            name: statistics.fmean(r.metrics[name] for r in found.values())
            for name in EXTRA.get(key[0], ())
            if all(name in r.metrics for r in found.values())
        }
        delta = None if baseline is None or key[6] == BASELINE else _delta(values[key], baseline)
        made.append(Row(*key, values=values[key], extra=extra, delta=delta, records=tuple(found.values())))
    order = list(TITLES)
    sign = {m: 1 if m in LOWER_IS_BETTER else -1 for m in {r.metric for r in made}}
    return sorted(
        made,
        key=lambda r: (order.index(r.task) if r.task in order else len(order), r.dataset, sign[r.metric] * r.mean),
    )


def _delta(values: dict[int, float], baseline: dict[int, float]) -> tuple[float, float, int] | None:
    differences = [values[seed] - baseline[seed] for seed in values if seed in baseline]
    if not differences:
        return None
    spread = statistics.stdev(differences) if len(differences) > 1 else float('nan')
    return statistics.fmean(differences), spread, len(differences)


def _number(value: float, metric: str) -> str:
    return f'{value:.4f}' if 'error' in metric else f'{value:.0f}' if metric == 'codes_used' else f'{value:.1f}'


def _with_spread(value: float, spread: float | None, metric: str) -> str:
    text = _number(value, metric)
    return text if spread is None or spread != spread else f'{text} ± {_number(spread, metric)}'


def tables(found: Sequence[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(heading, columns, cells) of each task and data set."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in found:
        groups[row.task, row.dataset, row.embedded, row.num_images].append(row)
    result = []
    for (task, dataset, embedded, num_images), members in groups.items():
        where = f'{dataset}, embedded data' if embedded else dataset
        heading = f'{TITLES.get(task, task)} on {where} ({num_images} images)'
        metric = members[0].metric
        extras = [name for name in EXTRA.get(task, ()) if all(name in m.extra for m in members)]
        columns = ['model', 'protocol', 'seeds', metric, *extras]
        has_delta = any(m.delta for m in members)
        columns += [f'against {BASELINE}'] if has_delta else []
        columns += ['paper'] if not embedded else []
        cells = []
        for m in members:
            line = [m.preset, m.protocol, str(len(m.values)), _with_spread(m.mean, m.spread, metric)]
            if task == 'tokenizer':
                line[:2] = [m.config.split('_')[0], '-']
            elif task == 'pretrain':
                line[1] = m.config.split('_')[1]
            line += [_number(m.extra[name], name) for name in extras]
            if has_delta:
                line.append(
                    '' if m.delta is None else '+-'[m.delta[0] < 0] + _with_spread(abs(m.delta[0]), m.delta[1], metric)
                )
            if not embedded:
                line.append(f'{m.paper.value} ({m.paper.table})' if m.paper else '')
            cells.append(line)
        result.append((heading, columns, cells))
    return result


def as_text(found: Sequence[Row]) -> str:
    """Aligned columns for a terminal; ± is the sample standard deviation over seeds."""
    blocks = []
    for heading, columns, cells in tables(found):
        widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
        lines = [
            '  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [columns, *cells]
        ]
        blocks.append('\n'.join([heading, '-' * len(heading), *lines]))
    return '\n\n'.join(blocks)


def as_markdown(found: Sequence[Row]) -> str:
    """One pipe table per task and data set."""
    blocks = []
    for heading, columns, cells in tables(found):
        lines = ['| ' + ' | '.join(line) + ' |' for line in [columns, ['---'] * len(columns), *cells]]
        blocks.append('\n'.join([f'### {heading}', '', *lines]))
    return '\n\n'.join(blocks) + '\n'


def as_csv(found: Sequence[Row]) -> str:
    """One line per record, with what identifies it."""
    out = io.StringIO()
    names = ('task', 'dataset', 'embedded', 'num_images', 'preset', 'protocol', 'config', 'seed', 'metric', 'value')
    names += ('checkpoint_sha256', 'config_sha256', 'device', 'date')
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow([*names, 'commit'])
    for row in found:
        for record in row.records:
            writer.writerow([getattr(record, name) for name in names] + [record.revision.get('commit', '')])
    return out.getvalue()


def as_html(found: Sequence[Row]) -> str:
    """The tables as an HTML fragment."""
    blocks = []
    for heading, columns, cells in tables(found):
        head = ''.join(f'<th>{html.escape(c)}</th>' for c in columns)
        body = ''.join('<tr>' + ''.join(f'<td>{html.escape(c)}</td>' for c in line) + '</tr>' for line in cells)
        blocks.append(f'<h3>{html.escape(heading)}</h3><table><tr>{head}</tr>{body}</table>')
    return '\n'.join(blocks)


def write_all(found: Sequence[Row], out: str | Path) -> list[Path]:
    """leaderboard.md, .csv and .html below `out`. Raises RecordError when there is no row."""
    if not found:
        raise RecordError('no result records; make one with: python tools/test.py CONFIG CHECKPOINT --record results')
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    page = f'<!doctype html><meta charset="utf-8"><title>Leaderboard</title>{as_html(found)}'
    paths = []
    for suffix, text in (('md', as_markdown(found)), ('csv', as_csv(found)), ('html', page)):
        paths.append(out / f'leaderboard.{suffix}')
        paths[-1].write_text(text)
    return paths
