"""The leaderboard as HTML: tables that sort and filter, rows that open to their full records (page.js moves them)."""

import html
import itertools
import json
from collections.abc import Sequence

from . import page
from .figures import class_bars, kind_of
from .leaderboard import Row, sign
from .records import CONVERTED, TRAINED, Record
from .reference import SOURCES
from .tables import COST, EMPTY, MEASURED, REFERENCE, TITLES, Column, Line, Table, duration, number, tables

GROUPS = {MEASURED: 'measured here', COST: 'cost', REFERENCE: 'numbers of others'}
BADGES = {TRAINED: 'trained', CONVERTED: 'converted'}  # badge: its class of style; others are `others`


def as_html(rows: Sequence[Row]) -> str:
    """Filters, then a section per table, references among them."""
    found = tables(rows, references=True)
    ours = [one for one in found if any(line.row for line in one.lines)]
    others = [one for one in found if one not in ours]
    said = f'{", ".join(one.dataset for one in others)}: numbers of others, nothing of it was run here'
    folded = '\n'.join(_section(one) for one in others)
    return (
        _filters(found)
        + '\n'.join(_section(one) for one in ours)
        + (f'<details class="others"><summary>{html.escape(said)}</summary>{folded}</details>' if others else '')
    )


def _option(value: str, text: str) -> str:
    return f'<option value="{html.escape(value)}">{html.escape(text)}</option>'


def _filters(found: Sequence[Table]) -> str:
    tasks = dict.fromkeys(one.task for one in found)
    badges = dict.fromkeys(line.badge for one in found for line in one.lines)
    selects = (
        ('task', 'all tasks', [(task, TITLES.get(task, task)) for task in tasks]),
        ('data', 'all data', [('embedded', 'embedded data'), ('real', 'real data')]),
        ('badge', 'trained here or not', [(badge, badge) for badge in badges]),
    )
    menus = ''.join(
        f'<select name="{name}" aria-label="{name}">{_option("", everything)}'
        f'{"".join(_option(*option) for option in options)}</select>'
        for name, everything, options in selects
    )
    return (
        '<form class="filters" hidden onsubmit="return false"><input type="search" aria-label="words" '
        'placeholder="filter: words of a row, such as SETR-PUP or CIFAR100">'
        f'{menus}<label><input type="checkbox" name="cost">cost</label>'
        '<label><input type="checkbox" name="reference" checked>numbers of others</label>'
        '<button type="reset">reset</button><output></output></form>\n'
        '<noscript><p class="note">Without JavaScript the tables neither sort nor open; leaderboard.csv has all '
        'numbers.</p></noscript>'
    )


def _section(one: Table) -> str:
    kind = 'embedded' if one.embedded else 'real'
    label = f'<span class="kind {kind}">{kind} data</span>'
    heading = html.escape(one.heading.replace(', embedded data', ''))
    lines = [_row(line, one.columns) for line in one.lines]
    return (
        f'<section class="board" data-task="{one.task}" data-data="{kind}" data-text="{html.escape(one.heading)}">'
        f'<h3>{heading}{label}</h3><div class="wide"><table class="rows"><thead>{_heads(one)}</thead>'
        f'<tbody>{"".join(row for row, _ in lines)}</tbody></table></div>{"".join(more for _, more in lines)}</section>'
    )


def _classes(column: Column, columns: Sequence[Column]) -> str:
    before = columns[columns.index(column) - 1] if columns.index(column) else None
    names = [column.group, 'number' if column.numeric else '']
    names.append('first' if column.group and before and before.group != column.group else '')
    return ' '.join(filter(None, names))


def _heads(one: Table) -> str:
    groups = ''
    for group, members in itertools.groupby(one.columns, key=lambda column: column.group):
        wide = len(list(members)) + (0 if group else 1)
        first = ' first' if group else ''
        groups += f'<th colspan="{wide}" class="{group}{first}">{GROUPS.get(group, "")}</th>'
    heads = '<th data-first="ascending"><button type="button">run</button></th>'
    for column in one.columns:
        lower = not column.numeric or (column.key == 'main' and sign(one.metric) == 1)
        lower = lower or column.key in ('parameters', 'macs', 'memory', 'time', 'road', 'millions')
        heads += (
            f'<th class="{_classes(column, one.columns)}" data-first="{"ascending" if lower else "descending"}" '
            f'title="{html.escape(column.tip)}"><button type="button">{html.escape(column.label)}</button></th>'
        )
    return f'<tr class="groups">{groups}</tr><tr>{heads}</tr>'


def _row(line: Line, columns: Sequence[Column]) -> tuple[str, str]:
    """A line of a table, and the template of what it opens to."""
    style = BADGES.get(line.badge, 'others')
    opens = '<button class="open" type="button" aria-expanded="false" aria-label="records"></button>' * bool(line.row)
    cells = f'<td data-value="{line.badge}">{opens}<span class="badge {style}">{line.badge}</span></td>'
    for column in columns:
        cell = line.cells.get(column.key, EMPTY)
        value = cell.text if cell.value is None and not column.numeric else '' if cell.value is None else cell.value
        text = html.escape(cell.text)
        if column.key == 'main':
            text = f'<strong>{text}</strong>'
        if column.key == 'delta' and line.row and line.row.delta:
            text = f'<span class="{kind_of(line.row)}">{text}</span>'
        lines = ' lines' if column.group == REFERENCE else ''
        lines += ' text' if lines and not column.numeric else ''
        lines += ' start' if column.key == 'start' else ''
        cells += f'<td class="{_classes(column, columns)}{lines}" data-value="{html.escape(str(value))}">{text}</td>'
    if line.row is None:
        return f'<tr class="row" data-badge="{line.badge}">{cells}</tr>', ''
    name = f'records-{line.row.records[0].digest}'
    row = f'<tr class="row records" data-badge="{line.badge}" data-detail="{name}">{cells}</tr>'
    return row, f'<template id="{name}">{_detail(line.row)}</template>'


def _detail(row: Row) -> str:
    """All that is known of a row: its seeds, what they came from, its classes, and the records as they lie."""
    columns = ['seed', row.metric, 'difference', 'training', 'tested', 'on', 'code', 'weights (sha256)', 'record']
    cells = [
        [
            str(record.seed), f'{record.value:.4f}' if sign(row.metric) == 1 else f'{record.value:.2f}',
            f'{row.differences[record.seed]:+.2f}' if record.seed in row.differences else '',
            duration(record.cost['train_seconds']) if record.cost.get('train_seconds') else '',
            record.date[:16].replace('T', ' '), record.device, _code(record), record.checkpoint_sha256[:12],
            record.digest,
        ]
        for record in row.records
    ]  # fmt: skip
    roads = ''.join(f'<li>seed {record.seed}: {_chain(record)}</li>' for record in row.records)
    classes = class_bars(row)
    older = ', '.join(f'{r.digest} (seed {r.seed}, {number(r.value, r.metric)}, {r.date[:10]})' for r in row.older)
    texts = ''.join(
        f'<details><summary>record {record.digest}, seed {record.seed}</summary>'
        f'<pre><code>{html.escape(_shown(record))}</code></pre></details>'
        for record in row.records
    )
    return (
        f'<h4>{html.escape(row.config)}</h4>{page.table(columns, cells, codes=columns[6:])}'
        f'<h4>What the weights came from</h4><ul>{roads}</ul>'
        + (f'<h4>IoU by class, %</h4>{classes}' if classes else '')
        + (f'<p class="note">Superseded: {html.escape(older)}.</p>' if older else '')
        + f'<h4>Full records</h4>{texts}'
    )


def _code(record: Record) -> str:
    commit = record.revision.get('commit', '')[:8]
    return f'{record.revision.get("version", "")} {commit}{"+" if record.revision.get("dirty") else ""}'.strip()


def _chain(record: Record) -> str:
    """`config (weights) < stage (weights) < ...` with the digests of all weights."""

    def told(stages: Sequence[dict]) -> str:
        return ' and '.join(
            f'<code>{html.escape(s["config"] or s["checkpoint"])}</code> {s["sha256"][:8]}'
            + (f' ← {told(s["stages"])}' if s.get('stages') else '')
            for s in stages
        )

    return told([dict(config=record.config, sha256=record.checkpoint_sha256, stages=record.stages)])


def _shown(record: Record) -> str:
    """A record's text with each curve on one line."""
    content = json.loads(record.text)
    curves = content.pop('curves')
    text = json.dumps(content, indent=1)
    lines = ',\n'.join(f'  {json.dumps(name)}: {json.dumps(axes)}' for name, axes in curves.items())
    return f'{text[:-2]},\n "curves": {{\n{lines}\n }}\n}}' if curves else text


def sources() -> str:
    """Where the numbers of others were read."""
    items = ''.join(f'<li><b>{html.escape(name)}</b>: {html.escape(said)}</li>' for name, said in SOURCES.items())
    return f'<ul class="note">{items}</ul>'
