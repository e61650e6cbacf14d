"""Training curves: read from the logs of runs, drawn as one SVG in the ink of the page around it."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use('Agg')
from matplotlib import pyplot as plt

COLOURS = {'fine-tune': '#ea580c', 'from scratch': '#64748b'}  # readable on white and on dark
INK = '#010203'  # stands for the page's text colour while matplotlib draws
INKED = ('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color', 'grid.color')
NOT_SCALARS = ('iter', 'step', 'epoch', 'time', 'data_time', 'memory')
Curve = tuple[list[int], list[float]]


def read_scalars(work_dir: str | Path) -> dict[str, Curve]:
    """name -> (steps, values) from a work_dir's vis_data/scalars.json; of a resumed run the later lines win.

    Training lines carry `iter`, validation lines only `step`. A line that a killed run left half written does
    not count, and neither does step 0, under which a test of a finished run is logged.
    """
    found: dict[str, dict[int, float]] = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                scalars = json.loads(line)
            except json.JSONDecodeError:
                continue
            step = int(scalars.get('iter', scalars.get('step', 0)))
            for name, value in scalars.items():
                if step and name not in NOT_SCALARS and isinstance(value, (int, float)):
                    found.setdefault(name, {})[step] = float(value)
    return {name: (sorted(points), [points[s] for s in sorted(points)]) for name, points in found.items()}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of several runs at the steps that all of them logged."""
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(v) for v in values)))
    return steps, [sum(v[s] for v in values) / len(values) for s in steps]


def draw(panels: Sequence[tuple[str, str, Mapping[str, Sequence[Curve]]]], colours: Mapping[str, str] = COLOURS) -> str:
    """An SVG with one axis per panel (title, y label, {name in the legend: curves of its seeds}).

    Several seeds: a thin line each and their mean as a thick one. Text, axes and grid take the colour of the
    text around the SVG, the background is transparent.
    """
    style = dict.fromkeys(INKED, INK) | {'svg.fonttype': 'none', 'svg.hashsalt': 'beit_mm'}
    with mpl.rc_context(style):
        figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.1), squeeze=False)
        for axis, panel in zip(axes[0], panels, strict=True):
            _draw_panel(axis, *panel, colours)
        figure.tight_layout()
        out = io.StringIO()
        figure.savefig(
            out, format='svg', transparent=True, metadata=dict(Date=None, Creator=None, Format=None, Type=None)
        )
        plt.close(figure)
    text = re.sub(r'<metadata>.*?</metadata>', '', out.getvalue(), flags=re.DOTALL)
    return text[text.index('<svg') :].replace('<svg', '<svg fill="currentColor"', 1).replace(INK, 'currentColor')


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
        text = name if len(curves) == 1 else f'{name}, mean of {len(curves)} seeds'
        axis.plot(steps, values, color=colour, linewidth=2, marker=marker, markersize=3.5, label=text)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel('step')
    axis.set_ylabel(label)
    axis.grid(alpha=0.2)
    axis.spines[['top', 'right']].set_visible(False)
    if len(groups) > 1:
        axis.legend(fontsize=8, framealpha=0)
