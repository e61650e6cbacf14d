"""Run a chain of trainings and evaluations, once per seed; what is finished is not run again.

A suite is a config with `title`, `note` (what a reader must know), `root` (its work_dir), and `stages`, dicts of:

    name, kind     how it is called; tokenizer, pretrain, classification or segmentation
    config         the config to train
    start          name of the stage whose weights it loads (optional)
    options        overrides as for --cfg-options; `{stage}` in a value is that stage's checkpoint
    fast           more overrides, for `fast=True`: a check that everything runs, not a result

Every stage trains (going on from its last checkpoint if it was cut off), is tested, and leaves a result record
below root/results and `done.json` in its work_dir, root/seed<n>/<name>.
"""

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config

from ..engine.checkpointing import latest_checkpoint
from ..engine.configs import ConfigError, load_config
from ..engine.launch import check_writable, door, evaluate, run
from .evaluation import record_of
from .records import write

FIELDS = {'name', 'kind', 'config', 'start', 'options', 'fast'}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of a suite for one seed."""

    name: str
    kind: str
    config: str
    start: str | None
    options: dict
    seed: int
    work_dir: Path

    @property
    def done_file(self) -> Path:
        return self.work_dir / 'done.json'

    def done(self) -> dict | None:
        """What the finished stage left, or None."""
        return json.loads(self.done_file.read_text()) if self.done_file.is_file() else None


def plan(path: str | Path, seeds: Iterable[int], fast: bool = False, root: str | None = None) -> list[Stage]:
    """The stages of a suite in order, seed by seed. Raises ConfigError for what cannot run."""
    suite = Config.fromfile(path)
    root_dir = Path(root or suite.root + ('-fast' if fast else ''))
    stages = []
    for seed in seeds:
        known: set[str] = set()
        for entry in suite.stages:
            unknown = set(entry) - FIELDS
            if unknown:
                raise ConfigError(f'{path}: stage {entry.get("name")}: {", ".join(sorted(unknown))} unknown')
            if entry.get('start') and entry['start'] not in known:
                raise ConfigError(
                    f'{path}: stage {entry["name"]} starts from {entry["start"]!r}, which is not before it'
                )
            known.add(entry['name'])
            stages.append(
                Stage(
                    name=entry['name'],
                    kind=entry['kind'],
                    config=entry['config'],
                    start=entry.get('start'),
                    options={**entry.get('options', {}), **(entry.get('fast', {}) if fast else {})},
                    seed=seed,
                    work_dir=root_dir / f'seed{seed}' / entry['name'],
                )
            )
    return stages


def run_suite(path: str | Path, seeds: Iterable[int] = (0,), fast: bool = False, root: str | None = None) -> Path:
    """Run what is missing of a suite; returns its root. Raises RuntimeError naming the stage that failed."""
    seeds = list(seeds)
    stages = plan(path, seeds, fast, root)
    root_dir = stages[0].work_dir.parents[1]
    check_writable(root_dir)
    finished = sum(stage.done() is not None for stage in stages)
    print(f'{len(stages)} stages below {root_dir}, {finished} of them finished', flush=True)
    started = time.perf_counter()
    for number, stage in enumerate(stages, start=1):
        head = f'[{number}/{len(stages)}] seed {stage.seed} {stage.name}'
        if stage.done() is None:
            print(f'{head}: {stage.config}', flush=True)
            # A forked child has the imports and nothing of the stages before; no thread pool is running yet.
            child = multiprocessing.get_context('fork').Process(target=_run_stage, args=(stage,))
            child.start()
            child.join()
            if child.exitcode != 0:
                raise RuntimeError(
                    f'{head} failed with exit code {child.exitcode}; see {stage.work_dir}. '
                    f'The same command goes on from there'
                )
        done = stage.done()
        print(f'{head}: {done["metric"]} {done["value"]:.4g} ({done["seconds"]:.0f} s)', flush=True)
    _write_index(path, stages, root_dir, fast)
    print(f'all stages finished ({time.perf_counter() - started:.0f} s this time)', flush=True)
    return root_dir


def _checkpoint_of(stage: Stage, name: str) -> str:
    other = json.loads((stage.work_dir.parent / name / 'done.json').read_text())
    return str(stage.work_dir.parent / name / other['checkpoint'])


def _options_of(stage: Stage) -> dict:
    options = {}
    for key, value in stage.options.items():
        if isinstance(value, str) and value.startswith('{') and value.endswith('}'):
            value = _checkpoint_of(stage, value[1:-1])
        options[key] = value
    return options


def _run_stage(stage: Stage) -> None:
    """In a child process: train, test, record, and say that it is done."""

    @door
    def train_and_test() -> None:
        started = time.perf_counter()
        options = _options_of(stage)
        run(
            load_config(stage.config, options),
            work_dir=str(stage.work_dir),
            resume='auto' if latest_checkpoint(stage.work_dir) else None,
            load_from=_checkpoint_of(stage, stage.start) if stage.start else None,
            seed=stage.seed,
        )
        checkpoint = latest_checkpoint(stage.work_dir)
        config = load_config(stage.config, options)
        runner, metrics, seconds = evaluate(config, str(checkpoint), work_dir=str(stage.work_dir))
        record = record_of(runner, config, str(checkpoint), metrics, seconds)
        written = write(record, stage.work_dir.parents[1] / 'results')
        content = dict(
            checkpoint=checkpoint.name,
            record=os.path.relpath(written, stage.work_dir),
            metric=record.metric,
            value=record.value,
            protocol=record.protocol,
            seconds=time.perf_counter() - started,
        )
        temporary = stage.done_file.with_suffix('.tmp')
        temporary.write_text(json.dumps(content, indent=1))
        os.replace(temporary, stage.done_file)

    train_and_test()


def _write_index(path: str | Path, stages: list[Stage], root_dir: Path, fast: bool) -> None:
    """root/suite.json: what the report reads."""
    suite = Config.fromfile(path)
    title = suite.title + (' (a fast check: the numbers mean nothing)' if fast else '')
    entries = []
    for stage in stages:
        done = stage.done() or {}
        entries.append(
            dict(
                name=stage.name,
                kind=stage.kind,
                protocol=done.get('protocol', stage.kind),
                seed=stage.seed,
                config=stage.config,
                options=_options_of(stage) if done else {},
                load_from=_checkpoint_of(stage, stage.start) if stage.start and done else None,
                work_dir=str(stage.work_dir),
                checkpoint=str(stage.work_dir / done['checkpoint']) if done else None,
                seconds=done.get('seconds'),
            )
        )
    (root_dir / 'suite.json').write_text(json.dumps(dict(title=title, note=suite.note, stages=entries), indent=1))
