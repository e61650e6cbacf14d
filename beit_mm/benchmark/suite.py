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
import multiprocessing.connection
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from mmengine.config import Config

from ..engine.checkpointing import latest_checkpoint
from ..engine.configs import ConfigError, load_config
from ..engine.launch import check_writable, door, evaluate, run
from .evaluation import record_of
from .records import write

SAY_EVERY = 30.0  # seconds between lines of progress when several stages run
FIELDS = {'name', 'kind', 'config', 'start', 'options', 'fast'}


def _is_reference(value) -> bool:
    return isinstance(value, str) and value.startswith('{') and value.endswith('}')


@dataclasses.dataclass(frozen=True, eq=False)
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

    def needs(self, stages: list['Stage']) -> list['Stage']:
        """The stages of the same seed whose checkpoints this one reads."""
        names = {value[1:-1] for value in self.options.values() if _is_reference(value)} | {self.start}
        return [other for other in stages if other.seed == self.seed and other.name in names]

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


def run_suite(
    path: str | Path, seeds: Iterable[int] = (0,), fast: bool = False, root: str | None = None, jobs: int = 1
) -> Path:
    """Run what is missing of a suite, up to `jobs` stages at a time; returns its root.

    With several jobs the processor's cores are shared out, and each stage's output goes to stage.log in its
    work_dir. Raises RuntimeError naming the stages that failed; the others are run to their end.
    """
    stages = plan(path, list(seeds), fast, root)
    root_dir = stages[0].work_dir.parents[1]
    check_writable(root_dir)
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    waiting = [stage for stage in stages if stage.done() is None]
    print(
        f'{len(stages)} stages below {root_dir}, {len(stages) - len(waiting)} of them finished; '
        f'{jobs} at a time, {threads} threads each',
        flush=True,
    )
    started = last_said = time.perf_counter()
    # Children of a server that has the imports and nothing else. Forked from here they would hang in their first
    # parallel loop if this process had run one: the threads of its pool do not live on in a child.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__, 'mmpretrain.models', 'mmseg.models'])  # ours mends theirs
    running: dict[Stage, multiprocessing.Process] = {}
    failed: list[str] = []
    while waiting or running:
        for stage in [s for s in waiting if all(n.done() for n in s.needs(stages))][: jobs - len(running)]:
            waiting.remove(stage)
            print(f'{_head(stage, stages)}: {stage.config}', flush=True)
            running[stage] = context.Process(target=_run_stage, args=(stage, threads, jobs > 1))
            running[stage].start()
        if not running:
            break  # what waits needs a stage that failed
        multiprocessing.connection.wait([child.sentinel for child in running.values()], timeout=SAY_EVERY)
        for stage, child in list(running.items()):
            if child.exitcode is None:
                continue
            del running[stage]
            if child.exitcode == 0:
                done = stage.done()
                print(
                    f'{_head(stage, stages)}: {done["metric"]} {done["value"]:.4g} ({done["seconds"]:.0f} s)',
                    flush=True,
                )
            else:
                failed.append(f'{_head(stage, stages)} failed with exit code {child.exitcode}; see {stage.work_dir}')
                print(failed[-1], *_last_lines(stage, 4), sep='\n', flush=True)
        if jobs > 1 and time.perf_counter() - last_said >= SAY_EVERY:
            last_said = time.perf_counter()
            for stage in running:
                print(f'{_head(stage, stages)}: {_progress(stage)}', flush=True)
    if failed:
        raise RuntimeError('\n'.join([*failed, 'The same command goes on from there']))
    _write_index(path, stages, root_dir, fast)
    print(f'all stages finished ({time.perf_counter() - started:.0f} s this time)', flush=True)
    return root_dir


def _head(stage: Stage, stages: list[Stage]) -> str:
    return f'[{stages.index(stage) + 1}/{len(stages)}] seed {stage.seed} {stage.name}'


def _last_lines(stage: Stage, count: int) -> list[str]:
    path = stage.work_dir / 'stage.log'
    return path.read_text(errors='replace').splitlines()[-count:] if path.is_file() else []


def _progress(stage: Stage) -> str:
    """`Iter(train) [ 500/1500] ... eta: 0:04:10` of the last line of a stage's log that has it."""
    for line in reversed(_last_lines(stage, 40)):
        found = re.search(r'(Iter\(\w+\) +\[ *\d+/\d+\]).*?(eta: \S+)', line)
        if found:
            return f'{found[1]} {found[2]}'
    return 'starting'


def _checkpoint_of(stage: Stage, name: str) -> str:
    other = json.loads((stage.work_dir.parent / name / 'done.json').read_text())
    return str(stage.work_dir.parent / name / other['checkpoint'])


def _options_of(stage: Stage) -> dict:
    options = {}
    for key, value in stage.options.items():
        if _is_reference(value):
            value = _checkpoint_of(stage, value[1:-1])
        options[key] = value
    return options


def _run_stage(stage: Stage, threads: int, to_log: bool) -> None:
    """In a child process: train, test, record, and say that it is done."""
    torch.set_num_threads(threads)
    if to_log:
        stage.work_dir.mkdir(parents=True, exist_ok=True)
        log = os.open(stage.work_dir / 'stage.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)

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
