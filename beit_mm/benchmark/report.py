"""One self-contained HTML page of a board: result, tables, figures, and how the numbers were made."""

import html
import itertools
from collections.abc import Sequence
from pathlib import Path

from . import curves, figures, page
from .board import as_html, sources
from .leaderboard import BASELINE, Board, Row
from .tables import LABELS, as_csv, as_markdown, number, verdict


def conclusions(rows: Sequence[Row]) -> list[str]:
    """A line per row that has a baseline: both numbers, the difference, and whether it exceeds its spread."""
    lines = []
    for row in rows:
        if row.delta is None:
            continue
        mean, spread, count = row.delta
        said = 'no spread' if count == 1 else 'within the spread' if abs(mean) <= spread else 'more than the spread'
        metric = LABELS.get(row.metric, row.metric).removesuffix(' %')
        own, base = row.pair
        values = f'{number(own, row.metric)} against {number(base, row.metric)} {BASELINE}'
        values += '' if count == len(row.values) == len(row.baseline.values) else ', over the seeds that both have'
        lines.append(f'{metric}, {row.protocol}: {values}, {verdict(row)}: {said}')
    return lines or ['No pair of runs to compare yet.']


PLOTTED = (  # of a task's curves: scalar, title, label of the axis
    ('tokenizer', 'reconstruction_error', 'tokenizer: reconstruction', 'mean absolute error'),
    ('pretrain', 'loss', 'pre-training: loss', 'cross-entropy, nats'),
    ('classification', 'accuracy/top1', 'classification', 'top-1 accuracy, %'),
    ('classification', 'loss', 'classification: loss', 'training loss'),
    ('segmentation', 'mIoU', 'segmentation', 'mIoU, %'),
    ('segmentation', 'loss', 'segmentation: loss', 'training loss'),
)
HUES = ('#ea580c', '#0d9488', '#7c3aed', '#ca8a04', '#db2777', '#2563eb')  # readable on white and on dark
GREY = '#64748b'  # of baselines


def _curves(rows: Sequence[Row]) -> str:
    """Scalars against steps from the records, a table of the leaderboard at a time: the paper's convergence figure."""
    tables: dict[tuple, list[Row]] = {}
    for row in rows:
        tables.setdefault((row.task, row.dataset, row.embedded, row.num_images, row.metric), []).append(row)
    drawn = []
    for (task, *_), members in tables.items():
        names = [_name(row, members) for row in members]
        hues = itertools.cycle(HUES)
        colours = {n: GREY if row.is_baseline else next(hues) for n, row in zip(names, members, strict=True)}
        for kind, scalar, title, label in PLOTTED:
            lines = {
                name: [tuple(record.curves[scalar]) for record in row.records if scalar in record.curves]
                for name, row in zip(names, members, strict=True)
            }
            lines = {name: several for name, several in lines.items() if several}
            if kind == task and lines:
                drawn.append(curves.draw([(title, label, lines)], colours))
    if not drawn:
        return '<p class="note">Not here: no log lay beside the checkpoints that were tested.</p>'
    said = '<p class="note">Thin: seeds. Thick: their mean.</p>'
    return f'{said}<div class="plots">{"".join(f"<figure>{svg}</figure>" for svg in drawn)}</div>'


def _name(row: Row, members: Sequence[Row]) -> str:
    """What a legend calls a row: its protocol, and what tells it from others of the same."""
    alike = [other for other in members if other.protocol == row.protocol]
    return row.protocol if len(alike) == 1 else ', '.join(filter(None, [row.protocol, row.start, row.recipe]))


def _classes(rows: Sequence[Row]) -> str:
    """Bars of the best segmentor of each data set that has a baseline, beside that."""
    best = {(r.dataset, r.num_images): r for r in reversed(rows) if r.baseline and figures.classes_of(r)}
    parts = []
    for row in best.values():
        legend = ''.join(
            f'<span><i style="background:var(--{colour})"></i>{html.escape(one.protocol)}</span>'
            for colour, one in (('accent', row), ('base', row.baseline))
        )
        parts.append(
            f'<h3>{html.escape(row.dataset)}</h3><p class="legend">{legend} IoU in percent, mean over seeds; the '
            f'difference behind it</p>{figures.class_bars(row, row.baseline)}'
        )
    return ''.join(parts)


def _provenance(rows: Sequence[Row], stages: Sequence[dict]) -> str:
    records = [record for row in rows for record in row.records]
    newest = max(records, key=lambda record: record.date)
    commits = {
        f'beit_mm {r.revision["version"]}, commit {r.revision["commit"][:12] or "unknown"}'
        + (' with uncommitted changes' if r.revision['dirty'] else '')
        for r in records
    }
    facts = [
        ['code', '; '.join(sorted(commits))],
        ['device', '; '.join(sorted({r.device for r in records}))],
        ['versions', ', '.join(f'{k} {v}' for k, v in newest.versions.items())],
        ['seeds', ', '.join(str(seed) for seed in sorted({r.seed for r in records if r.seed is not None}))],
        ['tested', f'{min(r.date for r in records)[:10]} to {newest.date[:10]}'],
    ]
    text = (
        '<p>Every number of the leaderboard is a mean over seeds of result records, one JSON file per evaluation that '
        '<code>tools/test.py</code> or a suite wrote and nobody edits; a row opens to its own. ± is the sample '
        'standard deviation over seeds, differences are paired by seed. Training times are wall time on the device '
        'named.</p>'
    )
    runs = [
        [s['name'], str(s['seed']), s['protocol'], s['config'], f'{s["seconds"]:.0f} s' if s.get('seconds') else '']
        for s in stages
    ]
    listed = f'<h3>Runs</h3>{page.table(["stage", "seed", "protocol", "config", "time"], runs, codes=["config"])}'
    return text + _commands(stages) + page.table(['', ''], facts) + (listed if runs else '')


def _commands(stages: list[dict]) -> str:
    """How to train and test each stage of the first seed by hand."""
    lines = []
    for stage in stages:
        if stage['seed'] != stages[0]['seed'] or 'load_from' not in stage:
            continue
        changes = ''.join(f' {k}={v}' for k, v in (stage.get('options') or {}).items())
        changes = f' --cfg-options{changes}' if changes else ''
        start = f' --load-from {stage["load_from"]}' if stage['load_from'] else ''
        place = f' --work-dir {stage["work_dir"]}'
        lines.append(f'python tools/train.py {stage["config"]} --seed {stage["seed"]}{place}{start}{changes}')
        lines.append(f'python tools/test.py {stage["config"]} {stage["checkpoint"]}{changes}')
    return f'<pre><code>{html.escape(chr(10).join(lines))}</code></pre>' if lines else ''


def write_all(found: Board, out: str | Path, title: str = 'Leaderboard', note: str = '') -> list[Path]:
    """leaderboard.md, .csv and .html below `out`."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    texts = dict(md=as_markdown(found.rows), csv=as_csv(found.rows), html=whole(found, title, note))
    paths = [out / f'leaderboard.{kind}' for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    return paths


def whole(found: Board, title: str, note: str = '', pictures: Sequence[str] = (), stages: Sequence[dict] = ()) -> str:
    """The page: result, tables, figures of the records, then `pictures`, sections as they are, and how all was made."""
    rows = found.rows
    cards = ''.join(figures.card(row) for row in rows if row.delta is not None)
    notes = ''.join(f'<li>{html.escape(one)}</li>' for one in found.notes)
    head = (
        f'<h1>{html.escape(title)}</h1><p class="note">{html.escape(note)}</p>'
        + (f'<div class="cards">{cards}</div>' if cards else '')
        + (f'<div class="warning">Read with care:<ul>{notes}</ul></div>' if notes else '')
    )
    differences, classes = figures.differences(rows), _classes(rows)
    said = (
        '<figcaption>Rings: seeds, each paired with the same seed from scratch. Diamond and bar: their mean and sample '
        'standard deviation.</figcaption>'
    )
    parts = [
        page.section('Leaderboard', as_html(rows) + '<h3>Where the numbers of others are from</h3>' + sources()),
        page.section('Against from scratch', f'<figure class="differences">{differences}{said}</figure>')
        if differences
        else '',
        page.section('Training curves', _curves(rows)),
        page.section('IoU by class', classes) if classes else '',
        *pictures,
        page.section('How these numbers were made', _provenance(rows, stages)),
    ]
    foot = 'Made by <code>tools/leaderboard.py</code> of beit_mm from result records. The page loads nothing.'
    return page.whole(title, head, '\n'.join(filter(None, parts)), foot)
