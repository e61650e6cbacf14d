"""The leaderboard: rows made of result records, and of nothing else, as text, Markdown, CSV and HTML.

A paper's number never stands in the column of a measured one, and embedded data have tables of their own.
"""

import csv
import html
import io
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import page
from .records import Record, RecordError, read_all

BASELINE = 'from scratch'
HEADS = ('UPerNet', 'SETR-PUP')  # of segmentors: a protocol may begin with one, and is compared with its own baseline
TUNED_640, MULTI_SCALE = 'intermediate fine-tune, 640 px', 'multi-scale and flip'
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
LOWER_IS_BETTER = {'reconstruction_error', 'masked_pixel_error'}
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
TEXT_WIDTH = 100  # columns of a terminal
HOW_TO = 'make one with: python tools/test.py CONFIG CHECKPOINT --record DIR'


class Paper(NamedTuple):
    """One number of the paper (arXiv 2106.08254), for the column of its own beside real data.

    It stands beside rows of the same task, data set, preset and protocol. Segmentation: mIoU, single scale unless the
    protocol says otherwise.
    """

    task: str
    dataset: str
    preset: str
    protocol: str
    value: float
    table: str


def _both(preset: str, protocol: str, table: str, imagenet: float, ade20k: float, head: str) -> tuple[Paper, Paper]:
    return (
        Paper('classification', 'ImageNet', preset, protocol, imagenet, table),
        Paper('segmentation', 'ADE20K', preset, f'{head}, {protocol}', ade20k, table),
    )


# Tables 1, 3 to 7 and 9 to 11
PAPER = (
    Paper('classification', 'ImageNet', 'beit base', 'fine-tune', 83.2, 'Table 1'),
    Paper('classification', 'ImageNet', 'beit large', 'fine-tune', 85.2, 'Table 1'),
    Paper('classification', 'ImageNet', 'beit base', 'fine-tune, 384 px', 84.6, 'Table 1'),
    Paper('classification', 'ImageNet', 'beit large', 'fine-tune, 384 px', 86.3, 'Table 1'),
    Paper('classification', 'ImageNet', 'beit base', BASELINE, 81.8, 'Table 1, DeiT-B'),
    Paper('classification', 'ImageNet', 'beit base', 'from scratch, 384 px', 83.1, 'Table 1, DeiT-B'),
    Paper('classification', 'ImageNet', 'beit large', 'from scratch, 384 px', 76.5, 'Table 1, ViT-L'),
    Paper('segmentation', 'ADE20K', 'vit base', 'SETR-PUP, supervised pre-training', 45.3, 'Table 3'),
    Paper('segmentation', 'ADE20K', 'vit base', 'SETR-PUP, fine-tune after DINO', 44.1, 'Table 3'),
    Paper('segmentation', 'ADE20K', 'beit base', 'SETR-PUP, fine-tune', 45.6, 'Table 3'),
    Paper('segmentation', 'ADE20K', 'beit base', 'SETR-PUP, intermediate fine-tune', 47.7, 'Table 3'),
    # Table 10: nobody can run BEiT + DINO here; the others are DINO for 400 epochs and BEiT for 300
    Paper('segmentation', 'ADE20K', 'beit base', 'SETR-PUP, fine-tune after BEiT + DINO', 46.85, 'Table 10'),
    Paper('segmentation', 'ADE20K', 'vit base', 'SETR-PUP, fine-tune after DINO', 44.08, 'Table 10, 400 epochs'),
    Paper('classification', 'ImageNet', 'beit base', 'fine-tune after BEiT + DINO', 82.9, 'Table 10'),
    *_both('beit base', 'fine-tune', 'Table 4, 300 epochs', 82.86, 44.65, 'SETR-PUP'),
    *_both('beit base', 'fine-tune, random masks', 'Table 4', 82.77, 42.93, 'SETR-PUP'),
    *_both('beit base', 'fine-tune, pixels', 'Table 4', 81.04, 41.38, 'SETR-PUP'),
    *_both('beit base', 'fine-tune, pixels, random masks', 'Table 4', 80.50, 37.09, 'SETR-PUP'),
    *_both('beit base', 'fine-tune, all tokens', 'Table 4', 82.59, 40.93, 'SETR-PUP'),
    *_both('beit base', 'fine-tune, all tokens, no mask', 'Table 4', 81.67, 36.73, 'SETR-PUP'),
    *_both('beit base', 'fine-tune', 'Table 4, 800 epochs', 83.19, 45.58, 'SETR-PUP'),
    *_both('beit base', 'fine-tune', 'Table 5, 300 epochs', 82.86, 44.86, 'UPerNet'),
    *_both('beit_plus base', 'fine-tune', 'Table 5, 300 epochs', 83.22, 45.70, 'UPerNet'),
    Paper('segmentation', 'ADE20K', 'beit, mixed base', 'UPerNet, fine-tune', 45.43, 'Table 5, LayerScale alone'),
    Paper('segmentation', 'ADE20K', 'beit_plus base', f'UPerNet, {TUNED_640}', 53.6, 'Table 7'),
    Paper('segmentation', 'ADE20K', 'beit_plus base', f'UPerNet, {TUNED_640}, {MULTI_SCALE}', 54.2, 'Table 7'),
    Paper('segmentation', 'ADE20K', 'beit_plus large', f'UPerNet, {TUNED_640}', 56.7, 'Table 7'),
    Paper('segmentation', 'ADE20K', 'beit_plus large', f'UPerNet, {TUNED_640}, {MULTI_SCALE}', 57.0, 'Table 7'),
    Paper('classification', 'ImageNet', 'vit base', BASELINE, 81.8, 'Table 1, DeiT-B'),
    Paper('classification', 'ImageNet', 'vit base', 'fine-tune after DINO', 82.8, 'Table 1, DINO-B'),
    Paper('classification', 'ImageNet', 'vit base', 'fine-tune after MoCo v3', 83.2, 'Table 1, MoCo v3-B'),
    Paper('classification', 'ImageNet', 'iGPT-1.36B', 'fine-tune', 66.5, 'Table 1'),  # nobody can run this one
    Paper('classification', 'ImageNet', 'beit_plus base', 'intermediate fine-tune, 384 px', 86.8, 'Table 6'),
    Paper('classification', 'ImageNet', 'beit_plus large', 'intermediate fine-tune, 384 px', 88.4, 'Table 6'),
    Paper('classification', 'ImageNet', 'beit_plus large', 'intermediate fine-tune, 512 px', 88.6, 'Table 6'),
    Paper('classification', 'ImageNet', 'beit base', 'linear probe', 56.7, 'Table 9'),
    Paper('classification', 'ImageNet', 'beit large', 'linear probe', 73.5, 'Table 9'),
    Paper('classification', 'CIFAR100', 'beit base', 'fine-tune', 90.1, 'Table 11'),
    Paper('classification', 'CIFAR100', 'beit base', 'intermediate fine-tune', 91.8, 'Table 11'),
)


class Row(NamedTuple):
    """All seeds of one config, started from the same chain of configs, on one data set.

    start: configs of what it started from, nearest first, such as `beit-mini-p8_dvae < dvae-512`; '' for nothing.
    values: the main metric by seed. delta: mean and sample standard deviation (nan for one seed) of the
    difference from the baseline, paired by seed, and the number of pairs; None without a baseline.
    """

    task: str
    dataset: str
    embedded: bool
    num_images: int
    metric: str
    preset: str
    protocol: str
    config: str
    start: str
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
    def verdict(self) -> str:
        """The difference from the baseline in words, such as `+4.2 ± 1.1 (3 seeds)`; '' without a baseline."""
        if self.delta is None:
            return ''
        mean, spread, count = self.delta
        seeds = f'{count} seeds' if count > 1 else '1 seed'
        return f'{"-" if mean < 0 else "+"}{_with_spread(abs(mean), spread, self.metric)} ({seeds})'

    @property
    def paper(self) -> list[Paper]:
        """What the paper says of this task, data set, preset and protocol; never anything for embedded data."""
        own = (self.task, self.dataset, self.preset, self.protocol)
        return [] if self.embedded else [p for p in PAPER if p[:4] == own]


def short(config: str) -> str:
    """A config's name without batch, length and data: `dvae-512_1xb64-300_embedded-32` -> `dvae-512`."""
    return re.split(r'_\d+xb\d|_\d{8}_\d{6}$', config)[0]


def start_of(stages: Sequence[dict]) -> str:
    """The chain of configs in a record's `stages`, nearest first; '' for none."""
    return ' + '.join(
        ' < '.join(filter(None, [short(stage['config']), start_of(stage.get('stages', []))])) for stage in stages
    )


def baseline_of(protocol: str) -> str:
    """The protocol that a row is compared with: from scratch, with the same head, at the same size and scales."""
    parts = protocol.split(', ')
    head = [part for part in parts[:1] if part in HEADS]
    return ', '.join([*head, BASELINE, *(part for part in parts[1:] if part == MULTI_SCALE or part.endswith(' px'))])


def rows(records: Sequence[Record]) -> list[Row]:
    """Group records by task, data set, preset, protocol, config and start; of one seed the newest record counts.

    Sorted by task in the order of the road, then by the main metric, best first. The baseline of a row is the
    best row `from scratch` of the same task, data set, metric and preset.
    """
    newest: dict[tuple, dict[int, Record]] = defaultdict(dict)
    for r in sorted(records, key=lambda r: r.date):
        where = (r.task, r.dataset, r.embedded, r.num_images, r.metric, r.preset)
        newest[*where, r.protocol, r.config, start_of(r.stages)][r.seed] = r
    values = {key: {seed: r.value for seed, r in sorted(found.items())} for key, found in newest.items()}
    sign = {key[4]: 1 if key[4] in LOWER_IS_BETTER else -1 for key in values}
    made = []
    for key, found in newest.items():
        baselines = [v for k, v in values.items() if k[:6] == key[:6] and k[6] == baseline_of(key[6])]
        best = min(baselines, key=lambda v: sign[key[4]] * statistics.fmean(v.values()), default=None)
        extra = {
            name: statistics.fmean(r.metrics[name] for r in found.values())
            for name in EXTRA.get(key[0], ())
            if all(name in r.metrics for r in found.values())
        }
        delta = None if best is None or BASELINE in key[6].split(', ') else _delta(values[key], best)
        by_seed = tuple(found[seed] for seed in sorted(found))
        made.append(Row(*key, values=values[key], extra=extra, delta=delta, records=by_seed))
    order = list(TITLES)
    return sorted(
        made,
        key=lambda r: (order.index(r.task) if r.task in order else len(order), r.dataset, sign[r.metric] * r.mean),
    )


def from_folder(root: str | Path) -> list[Row]:
    """Rows of the records below `root` (of a suite: below its `results`). Raises RecordError when there is none."""
    root = Path(root)
    if (root / 'suite.json').is_file():
        root = root / 'results'
    if not root.is_dir():
        raise RecordError(f'{root}: there is no such folder of result records; {HOW_TO}')
    found = rows(read_all(root))
    if not found:
        raise RecordError(f'{root}: holds no result record; {HOW_TO}')
    return found


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


class Table(NamedTuple):
    """One task on one data set. optional: columns that a narrow terminal can do without, the first to go last."""

    heading: str
    columns: list[str]
    cells: list[list[str]]
    optional: list[str]


def tables(found: Sequence[Row]) -> list[Table]:
    """A table per task, data set and metric, embedded and real data apart; the range where there are several seeds."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in found:
        groups[row.task, row.dataset, row.embedded, row.num_images, row.metric].append(row)
    result = []
    for (task, dataset, embedded, num_images, _), members in groups.items():
        where = f'{dataset}, embedded data' if embedded else dataset
        heading = f'{TITLES.get(task, task)} on {where} ({num_images} images)'
        extras = [name for name in EXTRA.get(task, ()) if all(name in m.extra for m in members)]
        lines = [_line(m, extras) for m in members]
        columns = [name for name in lines[0] if any(line[name] for line in lines)]
        cells = [[line[name] for name in columns] for line in lines]
        optional = [name for name in ['range', *(LABELS.get(name, name) for name in extras)] if name in columns]
        result.append(Table(heading, columns, cells, optional))
    return result


def _line(row: Row, extras: Sequence[str]) -> dict[str, str]:
    """Cells by column; a column that is empty in all rows of a table is left out."""
    own = {'tokenizer': short(row.config)} if row.task == 'tokenizer' else {'model': row.preset}
    if row.task == 'pretrain':
        own['config'] = short(row.config)
    elif row.task != 'tokenizer':
        own['protocol'] = row.protocol
    several = len(row.values) > 1
    ends = [_number(end(row.values.values()), row.metric) for end in (min, max)]
    return {
        **own,
        'starts from': row.start,
        'seeds': str(len(row.values)),
        LABELS.get(row.metric, row.metric): _with_spread(row.mean, row.spread, row.metric),
        'range': ' to '.join(ends) if several else '',
        **{LABELS.get(name, name): _number(row.extra[name], name) for name in extras},
        f'against {BASELINE}': row.verdict,
        'paper': '; '.join(f'{p.value} ({p.table})' for p in row.paper),
    }


def as_text(found: Sequence[Row]) -> str:
    """Aligned columns for a terminal of TEXT_WIDTH; ± is the sample standard deviation over seeds."""
    blocks = []
    for table in tables(found):
        columns, cells, optional = list(table.columns), table.cells, list(table.optional)
        while True:
            lines = [columns, *([dict(zip(table.columns, line))[name] for name in columns] for line in cells)]
            widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
            if not optional or sum(widths) + 2 * len(widths) - 2 <= TEXT_WIDTH:
                break
            columns.remove(optional.pop())
        text = ['  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        blocks.append('\n'.join([table.heading, '-' * len(table.heading), *text]))
    return '\n\n'.join(blocks)


def as_markdown(found: Sequence[Row]) -> str:
    """One pipe table per task and data set."""
    blocks = []
    for heading, columns, cells, _ in tables(found):
        lines = ['| ' + ' | '.join(line) + ' |' for line in [columns, ['---'] * len(columns), *cells]]
        blocks.append('\n'.join([f'### {heading}', '', *lines]))
    return '\n\n'.join(blocks) + '\n'


def as_csv(found: Sequence[Row]) -> str:
    """One line per record, with what identifies it."""
    out = io.StringIO()
    names = ('task', 'dataset', 'embedded', 'num_images', 'preset', 'protocol', 'config', 'seed', 'metric', 'value')
    names += ('checkpoint_sha256', 'config_sha256', 'device', 'seconds', 'date')
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow([*names, 'start', 'commit'])
    for row in found:
        for record in row.records:
            writer.writerow([getattr(record, name) for name in names] + [row.start, record.revision.get('commit', '')])
    return out.getvalue()


def as_html(found: Sequence[Row]) -> str:
    """The tables as an HTML fragment."""
    return '\n'.join(
        f'<h3>{html.escape(heading)}</h3>{page.table(columns, cells)}' for heading, columns, cells, _ in tables(found)
    )


def write_all(found: Sequence[Row], out: str | Path) -> list[Path]:
    """leaderboard.md, .csv and .html below `out`. Raises RecordError when there is no row."""
    if not found:
        raise RecordError(f'no result records; {HOW_TO}')
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, text in (
        ('md', as_markdown(found)),
        ('csv', as_csv(found)),
        ('html', page.whole('Leaderboard', as_html(found))),
    ):
        paths.append(out / f'leaderboard.{suffix}')
        paths[-1].write_text(text)
    return paths
