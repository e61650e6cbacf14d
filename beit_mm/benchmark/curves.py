"""Training curves: read from the logs of runs, drawn as one SVG in the ink of the page around it, or as a file."""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter, MaxNLocator

COLOURS = {'fine-tune': '#ea580c', 'from scratch': '#64748b'}  # readable on white and on dark
INK = '#010203'  # stands for the page's text colour while matplotlib draws
INKED = ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color', 'grid.color')
TIMES = ('time', 'data_time', 'memory')  # seconds per step, of it waiting for data; MB
NOT_SCALARS = ('iter', 'step', 'epoch', *TIMES)
LEGEND_INSIDE = 3  # names that find room inside an axis; more go below it
Curve = tuple[list[int], list[float]]
Panel = tuple[str, str, Mapping[str, Sequence[Curve]]]
# mmengine's line: Iter(train) [ 50/100] ... eta: 0:00:13  time: ..., or Epoch(train)  [2][ 50/196] ...
TRAIN_LINE = re.compile(r'(Iter|Epoch)\(train\)\s+(?:\[\s*(\d+)\])?\[\s*(\d+)/(\d+)\].*?eta: (.*?)\s+time:')


class Progress(NamedTuple):
    """Where a run's last log is: step, of how many (None where the log does not say), the time left, epoch's length."""

    step: int
    total: int | None
    eta: str
    epoch_length: int | None


def read_progress(work_dir: str | Path) -> Progress | None:
    """Of the newest text log of a work_dir; None without one, or without a step in it."""
    for path in sorted(Path(work_dir).glob('*/*.log'), reverse=True):
        found = TRAIN_LINE.findall(path.read_text(errors='replace'))
        if found:
            kind, epoch, step, length, eta = found[-1]
            if kind == 'Iter':
                return Progress(int(step), int(length), eta, None)
            return Progress((int(epoch) - 1) * int(length) + int(step), None, eta, int(length))
    return None


def _lines(work_dir: str | Path) -> Iterator[dict]:
    """Lines of all logs of a work_dir, oldest first. One that a killed run left half written does not count."""
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                scalars = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(scalars, dict):
                yield scalars


def _curves(work_dir: str | Path) -> dict[str, Curve]:
    progress = read_progress(work_dir)
    epoch_length = progress.epoch_length if progress else None
    found: dict[str, dict[int, float]] = {}
    validated: set[str] = set()
    epoch = 0
    for scalars in _lines(work_dir):
        step = int(scalars.get('iter', scalars.get('step', 0)))
        epoch = max(epoch, int(scalars.get('epoch', 0)))
        if 'iter' not in scalars and epoch_length and step <= epoch:
            step *= epoch_length  # of an epoch-based run, whose evaluations are logged by their epoch
        for name, value in scalars.items():
            if name in TIMES and 'iter' not in scalars:
                continue  # of an evaluation
            if not step or not isinstance(value, (int, float)):
                continue
            if 'iter' not in scalars and name not in validated:
                validated.add(name)
                found.pop(name, None)
            if 'iter' not in scalars or name not in validated:
                found.setdefault(name, {})[step] = float(value)
    return {name: (sorted(points), [points[s] for s in sorted(points)]) for name, points in found.items()}


def read_scalars(work_dir: str | Path) -> dict[str, Curve]:
    """name -> (steps, values) from a work_dir's vis_data/scalars.json; of a resumed run the later lines win.

    Training lines carry `iter`, validation lines only `step`, which in epoch-based runs counts epochs; of a scalar
    that both have, validation's counts. A line that a killed run left half written does not count, and neither does
    step 0, under which a test of a finished run is logged.
    """
    return {name: curve for name, curve in _curves(work_dir).items() if name not in NOT_SCALARS}


def read_times(work_dir: str | Path) -> dict[str, Curve]:
    """What a step took, under the names of TIMES, at the steps that were logged in training."""
    return {name: curve for name, curve in _curves(work_dir).items() if name in TIMES}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of several runs at the steps that all of them logged."""
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(v) for v in values)))
    return steps, [sum(v[s] for v in values) / len(values) for s in steps]


def draw(panels: Sequence[Panel], colours: Mapping[str, str] = COLOURS) -> str:
    """An SVG with one axis per panel (title, y label, {name in the legend: curves of its seeds}).

    Several seeds: a thin line each and their mean as a thick one. Text, axes and grid take the colour of the
    text around the SVG, the background is transparent.
    """
    style = dict.fromkeys(INKED, INK) | {'svg.fonttype': 'none', 'svg.hashsalt': 'beit_mm'}
    with mpl.rc_context(style):
        figure = _figure(panels, colours)
        out = io.StringIO()
        figure.savefig(
            out, format='svg', transparent=True, metadata=dict(Date=None, Creator=None, Format=None, Type=None)
        )
        plt.close(figure)
    text = re.sub(r'<metadata>.*?</metadata>', '', out.getvalue(), flags=re.DOTALL)
    return text[text.index('<svg') :].replace('<svg', '<svg fill="currentColor"', 1).replace(INK, 'currentColor')


def save(panels: Sequence[Panel], path: str | Path, colours: Mapping[str, str] = COLOURS) -> None:
    """The same as a picture of its own, on white: what the file's ending says, .svg or .png."""
    figure = _figure(panels, colours)
    figure.savefig(path, dpi=150, facecolor='white')
    plt.close(figure)


def _figure(panels: Sequence[Panel], colours: Mapping[str, str]):
    below = max((len(groups) for *_, groups in panels if len(groups) > LEGEND_INSIDE), default=0)
    size = (4.4 * len(panels), 3.1 + 0.2 * below)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        _draw_panel(axis, *panel, colours)
    figure.tight_layout()
    return figure


def _draw_panel(
    axis, title: str, label: str, groups: Mapping[str, Sequence[Curve]], colours: Mapping[str, str]
) -> None:
    for i, (name, curves) in enumerate(groups.items()):
        colour = colours.get(name, f'C{i}')
        if len(curves) > 1:
            for steps, values in curves:
                axis.plot(steps, values, color=colour, alpha=0.45, linewidth=1)
        steps, values = mean_curve(curves)
        marker = 'o' if len(steps) <= 12 else None
        text = name if len(curves) == 1 else f'{name} ({len(curves)} seeds)'
        axis.plot(steps, values, color=colour, linewidth=2, marker=marker, markersize=3.5, label=text)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel('step')
    axis.set_ylabel(label)
    axis.grid(alpha=0.2)
    axis.spines[['top', 'right']].set_visible(False)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.xaxis.set_major_formatter(EngFormatter(sep=''))  # 160k
    if len(groups) > LEGEND_INSIDE:
        axis.legend(fontsize=8, framealpha=0, loc='upper center', bbox_to_anchor=(0.5, -0.17))
    elif len(groups) > 1:
        axis.legend(fontsize=8, framealpha=0)
