"""Figures of the leaderboard's rows in the page's colours: differences per seed as SVG, classes as bars, cards."""

import html
import math
from collections.abc import Collection, Sequence

from .leaderboard import BASELINE, Row, sign
from .tables import LABELS, number, verdict, with_spread

RIGHT, LINE, HEAD = 200, 34, 46  # px: verdicts, height of a row, room for the axis
WIDE, LETTER = 880, 7.4  # px: the figure, a letter of a name


def nice_step(span: float, most: int = 7) -> float:
    """1, 2 or 5 times a power of ten: the finest with which `span` has at most `most` steps."""
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most)


def differences(rows: Sequence[Row]) -> str:
    """SVG: a dot per seed, and mean ± standard deviation, of each row's difference from its baseline; '' for none."""
    rows = [row for row in rows if row.delta is not None]
    if not rows:
        return ''
    names = [_cut(f'{LABELS.get(row.metric, row.metric).removesuffix(" %")} · {row.protocol}') for row in rows]
    left = round(30 + LETTER * max(map(len, names)))
    values = [value for row in rows for value in row.differences.values()]
    reach = [value for row in rows for value in _ends(row)]
    low, high = min(0.0, *values, *reach), max(0.0, *values, *reach)
    step = nice_step((high - low) or 1.0)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    high = high if high > low else low + step

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (WIDE - left - RIGHT), 1)

    height = HEAD + LINE * len(rows) + 8
    parts = [
        f'<svg viewBox="0 0 {WIDE} {height}" width="{WIDE}" height="{height}" role="img" font-size="14" '
        f'fill="currentColor" font-family="inherit" aria-label="differences from {BASELINE}">'
    ]
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        zero = abs(value) < step / 2
        parts.append(
            f'<line x1="{x(value)}" x2="{x(value)}" y1="{HEAD - 8}" y2="{height - 8}" '
            f'stroke="var(--{"dim" if zero else "line"})" stroke-width="{1.5 if zero else 1}"/>'
            f'<text x="{x(value)}" y="{HEAD - 14}" text-anchor="middle" fill="var(--dim)" font-size="12">'
            f'{0 if zero else f"{value:+g}"}</text>'
        )
    for i, row in enumerate(rows):
        y = HEAD + LINE * i + LINE // 2
        mean = row.delta[0]
        colour = {'better': 'var(--good)', 'worse': 'var(--bad)', 'unclear': 'var(--base)'}[kind_of(row)]
        ends = _ends(row)
        parts.append(f'<text x="{left - 14}" y="{y + 5}" text-anchor="end">{html.escape(names[i])}</text>')
        if len(ends) == 2:
            parts.append(
                f'<line x1="{x(ends[0])}" x2="{x(ends[1])}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
            )
        for seed, value in row.differences.items():
            parts.append(
                f'<circle cx="{x(value)}" cy="{y}" r="4.5" fill="var(--paper)" stroke="{colour}" stroke-width="1.8">'
                f'<title>seed {seed}: {value:+.2f}</title></circle>'
            )
        points = f'{x(mean)},{y - 7} {x(mean) + 7},{y} {x(mean)},{y + 7} {x(mean) - 7},{y}'
        parts.append(f'<polygon points="{points}" fill="{colour}"/>')
        parts.append(f'<text x="{WIDE - RIGHT + 16}" y="{y + 5}" font-weight="600">{html.escape(verdict(row))}</text>')
    return ''.join([*parts, '</svg>'])


def kind_of(row: Row) -> str:
    """`better` or `worse` than the baseline by more than the spread, else `unclear`; for errors less is better."""
    mean, spread, count = row.delta
    if count == 1 or abs(mean) <= spread:
        return 'unclear'
    return 'better' if mean * sign(row.metric) < 0 else 'worse'


def _ends(row: Row) -> list[float]:
    mean, spread, _ = row.delta
    return [mean] if spread != spread else [mean - spread, mean + spread]


def _cut(text: str, most: int = 44) -> str:
    return text if len(text) <= most else text[: most - 1] + '…'


CLASS = 'IoU.'  # how the metrics of single classes begin


def classes_of(row: Row, seeds: Collection | None = None) -> dict[str, float]:
    """IoU by class in percent, the mean over seeds that have it; of these `seeds` alone where they are given."""
    records = [record for record in row.records if seeds is None or record.seed in seeds]
    names = [name for record in records for name in record.metrics if name.startswith(CLASS)]
    found = {}
    for name in dict.fromkeys(names):
        values = [record.metrics[name] for record in records if name in record.metrics]
        found[name.removeprefix(CLASS)] = sum(values) / len(values)
    return found


def class_bars(row: Row, baseline: Row | None = None) -> str:
    """A bar per class, best first, in percent IoU; with a baseline a second one below it, both of the seeds that they
    share. '' without classes."""
    shared = set(row.values) & set(baseline.values) if baseline else None
    ours, theirs = classes_of(row, shared), classes_of(baseline, shared) if baseline else {}
    lines = []
    for name in sorted(ours, key=lambda name: -ours[name]):
        bars = f'<i style="width:{ours[name]:.2f}%"></i>'
        text = number(ours[name], row.metric)
        if name in theirs:
            bars += f'<i class="base" style="width:{theirs[name]:.2f}%"></i>'
            text += f' <span class="note">{ours[name] - theirs[name]:+.1f}</span>'
        lines.append(f'<li><span>{html.escape(name)}</span><div>{bars}</div><span>{text}</span></li>')
    return f'<ul class="bars">{"".join(lines)}</ul>' if lines else ''


def card(row: Row) -> str:
    """The difference of a row as a large number, with what it is the difference of."""
    mean, spread, count = row.delta
    kind = kind_of(row)
    metric = LABELS.get(row.metric, row.metric).removesuffix(' %')
    own, base = (number(value, row.metric) for value in row.pair)
    how = {'unclear': 'within the spread' if count > 1 else 'one seed: no spread'}.get(kind, 'more than the spread')
    seeds = f'{count} seeds' if count > 1 else '1 seed'
    number_of = f'{"−" if mean < 0 else "+"}{with_spread(abs(mean), spread, row.metric)}'
    return (
        f'<div class="card {kind}"><b>{number_of}</b>{html.escape(metric)} points, {html.escape(row.protocol)}'
        f'<span>{own} against {base} {BASELINE}; {seeds}, {how}; {html.escape(row.dataset)}</span></div>'
    )
