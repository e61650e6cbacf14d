"""`analyze.py curves`: the logs of several runs in one picture, and how long a step takes in each."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import curves
from ..evaluation import TASK_OF_METRIC
from . import AnalysisError
from .tables import aligned, target, write_csv

SEED = re.compile(r'[-_.]?seed[-_.]?(\d+)', re.IGNORECASE)  # in a folder's name
SEED_OF_CONFIG = re.compile(r'^randomness = dict\([^)]*?\bseed=(\d+)', re.MULTILINE)
OF_ONE_RUN = re.compile(r'^(work_dir|experiment_name) = .*$|\bseed[-_=.]?\d+', re.MULTILINE)  # in a config's text
DEFAULT_KEYS = ('loss', *TASK_OF_METRIC)
ENDINGS = ('.svg', '.png', '.csv')


class Run(NamedTuple):
    """A work_dir: whose seeds it belongs to, its seed if known, and what it logged."""

    path: Path
    group: str
    seed: int | None
    scalars: dict[str, curves.Curve]


def read_runs(work_dirs: Sequence[str], legend: Sequence[str] | None = None) -> list[Run]:
    """Runs in the order given; the seeds of one recipe share a `group`, which is their name.

    Seeds are found by `seed<n>` in the paths, or by configs that are alike but for it. legend: a name for each work_dir
    instead; equal names are seeds of one. Raises AnalysisError for a folder without logs.
    """
    paths = [Path(folder) for folder in work_dirs]
    for path in paths:
        if not any(path.glob('*/vis_data/scalars.json')):
            below = sorted({str(p.parents[2]) for p in path.glob('**/vis_data/scalars.json')})[:4]
            hint = f'; below it are {", ".join(below)}' if below else '; it is what tools/train.py --work-dir names'
            raise AnalysisError(f'{path}: no run has logged there (*/vis_data/scalars.json){hint}')
    if legend and len(legend) != len(paths):
        raise AnalysisError(f'--legend has {len(legend)} names for {len(paths)} runs; give one for each')
    groups = list(legend) if legend else _groups(paths)
    return [Run(path, group, _seed(path), curves.read_scalars(path)) for path, group in zip(paths, groups, strict=True)]


def _config_text(path: Path) -> str:
    """Of the run's first start: a test of the finished run, and one that was resumed, leave others beside it."""
    return next((p.read_text() for p in sorted(path.glob('*/vis_data/config.py'))), '')


def _seed(path: Path) -> int | None:
    if found := SEED_OF_CONFIG.search(_config_text(path)):
        return int(found[1])
    found = [int(n) for part in path.parts for n in SEED.findall(part)]
    return found[-1] if found else None


def _groups(paths: Sequence[Path]) -> list[str]:
    """A name for each run: what its path has that the others' have not, without seeds."""
    seedless = [[part for part in (SEED.sub('', p) for p in path.absolute().parts) if part] for path in paths]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == seedless[0][shared] for p in seedless):
        shared += 1
    names = ['/'.join(parts[shared:]) for parts in seedless]
    recipes: dict[str, str] = {}  # of a config's text: the first name of a run with it
    seen: set[tuple[str, int | None]] = set()
    groups = []
    for path, name in zip(paths, names, strict=True):
        text = OF_ONE_RUN.sub('', _config_text(path))
        group = recipes.setdefault(text, name) if text else name
        while (group, _seed(path)) in seen:  # the same recipe with the same seed is no second seed
            group += "'"
        seen.add((group, _seed(path)))
        groups.append(group)
    return groups


def _chosen(runs: Sequence[Run], keys: Sequence[str] | None) -> list[str]:
    there = sorted({name for run in runs for name in run.scalars})
    if not keys:
        return [key for key in DEFAULT_KEYS if key in there] or there[:1]
    for key in keys:
        if key not in there:
            near = difflib.get_close_matches(key, there, n=1, cutoff=0.5)
            hint = f'; did you mean {near[0]!r}?' if near else '.'
            raise AnalysisError(f'--keys {key}: no run has logged it{hint} There are: {", ".join(there)}')
    return list(keys)


def step_times(runs: Sequence[Run]) -> str:
    """A line per run: steps done, seconds per step (mean, standard deviation, slowest), share of waiting for data,
    memory, hours of training so far and what is left, of the last log."""
    header = ['run', 'seed', 'steps', 's/step', '± std', 'slowest', 'data %', 'memory MB', 'trained', 'left']
    rows = []
    for run in runs:
        times, progress = curves.read_times(run.path), curves.read_progress(run.path)
        logged, seconds = times.get('time', ([], []))
        if not logged:
            continue
        steps = f'{logged[-1]}/{progress.total}' if progress and progress.total else str(logged[-1])
        mean, waiting = float(np.mean(seconds)), times.get('data_time', ([], [0.0]))[1]
        memory = times.get('memory', ([], [0.0]))[1]
        slowest = int(np.argmax(seconds))
        rows.append([
            run.group,
            '' if run.seed is None else str(run.seed),
            steps,
            f'{mean:.4f}',
            f'{np.std(seconds, ddof=1):.4f}' if len(seconds) > 1 else '-',
            f'{seconds[slowest]:.4f} @{logged[slowest]}',
            f'{100 * float(np.mean(waiting)) / mean:.1f}' if mean else '-',
            f'{max(memory):.0f}' if any(memory) else '-',
            _duration(mean * logged[-1]),
            progress.eta if progress else '-',
        ])  # fmt: skip
    return aligned(header, rows)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{rest:02}'


def show(
    work_dirs: Sequence[str],
    keys: Sequence[str] | None = None,
    legend: Sequence[str] | None = None,
    out: str | None = None,
) -> str:
    """Curves of runs as .svg, .png or .csv, and the table of their steps. keys: default loss and main metrics."""
    runs = read_runs(work_dirs, legend)
    keys = _chosen(runs, keys)
    said = [step_times(runs), _last_values(runs, keys)]
    if out:
        path = target(out, ENDINGS)
        if path.suffix == '.csv':
            write_csv(path, ('run', 'seed', 'work_dir', 'key', 'step', 'value'), [
                (run.group, run.seed, run.path, key, step, value)
                for key in keys for run in runs if key in run.scalars for step, value in zip(*run.scalars[key])
            ])  # fmt: skip
        else:
            curves.save([(key, '', _grouped(runs, key)) for key in keys], path)
        said.append(f'{path}: {", ".join(keys)} of {len(runs)} runs')
    return '\n\n'.join(said)


def _grouped(runs: Sequence[Run], key: str) -> dict[str, list[curves.Curve]]:
    groups: dict[str, list[curves.Curve]] = {}
    for run in runs:
        if key in run.scalars:
            groups.setdefault(run.group, []).append(run.scalars[key])
    return groups


def _last_values(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """Per group and key: the mean of the runs' last values, with its sample standard deviation from two seeds on."""
    header = ['run', 'seeds', *(f'last {key}' for key in keys)]
    rows = []
    for group in dict.fromkeys(run.group for run in runs):
        own = [run for run in runs if run.group == group]
        cells = []
        for key in keys:
            last = [run.scalars[key][1][-1] for run in own if key in run.scalars]
            spread = f' ± {np.std(last, ddof=1):.4g}' if len(last) > 1 else ''
            cells.append(f'{np.mean(last):.4g}{spread}' if last else '-')
        rows.append([group, str(len(own)), *cells])
    return aligned(header, rows)
