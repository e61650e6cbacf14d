"""Training curves: read from the logs of runs, drawn as one SVG."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use('Agg')
from matplotlib import pyplot as plt

COLOURS = {'fine-tune': '#c2410c', 'from scratch': '#475569'}
Curve = tuple[list[int], list[float]]


def read_scalars(work_dir: str | Path) -> dict[str, Curve]:
    """name -> (steps, values) from a work_dir's vis_data/scalars.json; of a resumed run the later lines win.

    Training lines carry `iter`, validation lines only `step`.
    """
    found: dict[str, dict[int, float]] = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            scalars = json.loads(line)
            step = int(scalars.get('iter', scalars.get('step', 0)))
            if step == 0:
                continue  # a test of a finished run logs at step 0
            for name, value in scalars.items():
                if name not in ('iter', 'step', 'epoch', 'time', 'data_time', 'memory') and isinstance(
                    value, (int, float)
                ):
                    found.setdefault(name, {})[step] = float(value)
    return {name: (sorted(points), [points[s] for s in sorted(points)]) for name, points in found.items()}


def draw(panels: Sequence[tuple[str, str, Mapping[str, Sequence[Curve]]]], colours: Mapping[str, str] = COLOURS) -> str:
    """An SVG with one axis per panel (title, y label, {protocol: curves of its seeds}).

    A thin line per seed; where all seeds share their steps, their mean as a thick one.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.1), squeeze=False)
    for axis, (title, label, groups) in zip(axes[0], panels, strict=True):
        for i, (name, curves) in enumerate(groups.items()):
            colour = colours.get(name, f'C{i}')
            for steps, values in curves:
                axis.plot(steps, values, color=colour, alpha=0.45 if len(curves) > 1 else 1, linewidth=1.2)
            if all(steps == curves[0][0] for steps, _ in curves):
                mean = [sum(v) / len(curves) for v in zip(*(values for _, values in curves), strict=True)]
                axis.plot(curves[0][0], mean, color=colour, linewidth=2.2, marker='o', markersize=3, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel('step')
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if len(groups) > 1:
            axis.legend(fontsize=8)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format='svg', metadata={'Date': None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index('<svg') :]
