"""Run what is missing of a suite: in sequence, or several stages at a time, on given devices.

Each stage runs in a process of its own that ends when this one does, and holds the stage's lock while it runs. Several
benchmarks may work below the same root: what one runs the others wait for.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..checkpoints.files import alive
from ..engine.errors import ConfigError
from ..engine.launch import check_writable, terse_terminal
from .estimate import batch_note, listing
from .index import table, whole, write_states
from .processes import LOOK_EVERY, Running, start, stop, stoppable, threads_of
from .state import (
    State,
    acquire,
    finished,
    holder,
    last_lines,
    log_of,
    now,
    progress,
    states,
    weights_left,
    who,
    write_json,
)
from .suite import Stage, edited, missing, plan, read_suite

TELL_EVERY = 10.0  # seconds between looks at what runs, for status.txt
SAY_EVERY = 30.0  # seconds between lines of progress when several stages run
LOOK_ELSEWHERE = 2.0  # at stages that another benchmark runs
LAST_LINES = 6
ABANDONED = 3600.0  # seconds after which a half-written file whose writer is not known is nobody's


class StageError(RuntimeError):
    """Stages failed, or could not start; the message says which, and where to look."""


class Outcome(NamedTuple):
    """What a run of a suite came to. problems: lines about stages that failed or wait for one that did."""

    root: Path
    problems: list[str]


def run_suite(
    path: str | Path,
    seeds: Iterable[int] | None = None,
    fast: bool = False,
    root: str | Path | None = None,
    jobs: int | None = None,
    devices: list[str] | None = None,
    only: Iterable[str] = (),
    rerun: Iterable[str] = (),
    skip_missing: bool = False,
) -> Outcome:
    """Run what is missing of a suite.

    jobs: stages at a time; default 2, or one per device. devices: names for CUDA_VISIBLE_DEVICES, each for one stage
    at a time; None leaves that variable alone. only: names of the stages to run. rerun: names of stages to run anew,
    with all that started from them. skip_missing: leave out what needs files that are not there.

    Raises ConfigError where nothing was started: a suite that cannot run, missing files, stages made by other settings.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f'--jobs {jobs}: how many stages run at a time, 1 or more')
    stages = plan(path, seeds, fast, root)
    chosen, lacking, anew = ready(path, stages, only, rerun, skip_missing)
    greedy = [stage for stage in chosen if devices and stage.gpus > len(devices)]
    if greedy:
        raise ConfigError(
            f'{path}: stage {greedy[0].name} wants {greedy[0].gpus} devices, and there are {len(devices)} '
            f'({", ".join(devices)}): --devices, or gpus= in the suite'
        )
    set_aside(anew, path)
    found = states(stages, lacking)
    jobs = jobs or (len(devices) if devices else 2)
    _say_what_there_is(chosen, found, jobs, devices)
    suite = _Suite(Path(path), stages, chosen, lacking, fast)
    with stoppable():
        problems = suite.run(jobs, devices)
    return Outcome(stages[0].root, problems)


def ready(
    path: str | Path, stages: list[Stage], only: Iterable[str], rerun: Iterable[str], skip_missing: bool
) -> tuple[list[Stage], set[Stage], list[Stage]]:
    """What is to be run, what is left out for a missing file, and what is to be set aside first; see run_suite.

    Nothing is moved here: whoever has checked the rest too calls set_aside.
    """
    check_writable(stages[0].root)
    chosen = choose(stages, only, path)
    anew = to_run_anew(stages, rerun, path)
    lacking = lacking_files(chosen, path, skip_missing, anew)
    if lacking.issuperset(chosen):
        absent = _in_words(missing(chosen))[:-1]
        raise ConfigError('\n'.join([f'{path}: --skip-missing leaves nothing to run; not there:', *absent]))
    refuse_stale({stage: state for stage, state in states(stages, lacking).items() if stage not in anew}, path)
    return chosen, lacking, anew


def choose(stages: list[Stage], only: Iterable[str], path: str | Path) -> list[Stage]:
    """The stages of these names; all if there are none."""
    only = list(only)
    for name in only:
        if name not in {stage.name for stage in stages}:
            names = ', '.join(dict.fromkeys(stage.name for stage in stages))
            raise ConfigError(f'{path}: has no stage {name!r}; it has {names}')
    return [stage for stage in stages if not only or stage.name in only]


def lacking_files(stages: list[Stage], path: str | Path, skip: bool, anew: Iterable[Stage] = ()) -> set[Stage]:
    """Unfinished stages that need a file that is not there. Raises ConfigError naming them unless they are skipped.

    anew: finished ones that are to be run again; what they left is not given up for a run that cannot be.
    """
    lost = missing(stage for stage in anew if finished(stage) is not None)
    if lost:
        raise ConfigError(
            '\n'.join([f'{path}: cannot be run anew, for not everything is there:', *_in_words(lost)[:-1]])
        )
    absent = missing(stage for stage in stages if finished(stage) is None)
    if absent and not skip:
        raise ConfigError('\n'.join([f'{path}: not everything is there:', *_in_words(absent)]))
    return {stage for _, users in absent.values() for stage in users}


def _in_words(absent: dict[str, tuple[str, list[Stage]]]) -> list[str]:
    lines = []
    for file, (way, users) in absent.items():
        names = list(dict.fromkeys(user.name for user in users))
        more = f' and {len(names) - 3} more' if len(names) > 3 else ''
        lines.append(f'  {file} (for {", ".join(names[:3])}{more}): {way}')
    return [*lines, '--skip-missing runs what needs none of these']


def describe(
    path: str | Path,
    seeds: Iterable[int] | None = None,
    fast: bool = False,
    root: str | Path | None = None,
    only: Iterable[str] = (),
    costs: bool = False,
    tflops: float | None = None,
    rerun: Iterable[str] = (),
) -> str:
    """States of all stages, of the other seeds below the root too; or, with costs, what the wanted ones will cost."""
    if tflops is not None and tflops <= 0:
        raise ConfigError(f'--tflops {tflops:g}: what a device sustains, in 10^12 operations a second, more than 0')
    terse_terminal()
    stages = plan(path, seeds, fast, root)
    if not costs:
        found = states(whole(path, stages[0].root, fast, stages))
        return table(found)
    chosen = choose(stages, only, path)
    anew = to_run_anew(stages, rerun, path)
    lacking = lacking_files(chosen, path, skip=True)
    found = {stage: state for stage, state in foreseen(stages, lacking, anew).items() if stage in chosen}
    absent = missing(stage for stage in chosen if found[stage].name != 'finished')
    notes = ['not there:', *_in_words(absent)] if absent else []
    notes += dict.fromkeys(note for stage in chosen if (note := batch_note(stage)))
    return '\n'.join([listing(found, tflops), *notes])


def refuse_stale(found: dict[Stage, State], path: str | Path) -> None:
    """Raise ConfigError for results of other settings than the suite's: they would be mixed with new ones."""
    changed = [(stage, state) for stage, state in found.items() if state.name == 'stale']
    if changed:
        lines = [f'{stage.name} (seed {stage.seed}) {state.text}' for stage, state in changed]
        names = ' '.join(dict.fromkeys(stage.name for stage, _ in changed))
        raise ConfigError(
            '\n'.join([f'{path}: not what the suite asks for now:', *lines[:6]])
            + f'\nTo run again what changed, and all that started from it: --rerun {names}. Or put the settings back'
        )


def to_run_anew(stages: list[Stage], names: Iterable[str], path: str | Path) -> list[Stage]:
    """Stages of these names, and those that start from them, as far as they left anything."""
    names = set(names)
    choose(stages, names, path)
    anew: list[Stage] = []
    for stage in stages:  # parents come first
        if stage.name in names or set(anew) & set(stage.parents):
            anew.append(stage)
    return [stage for stage in anew if stage.work_dir.is_dir()]


def foreseen(stages: list[Stage], lacking: Iterable[Stage], anew: Iterable[Stage]) -> dict[Stage, State]:
    """The states of all as they will be when what is to run anew has been set aside."""
    anew = set(anew)
    return {
        stage: State('pending', 'will run anew') if stage in anew and state.name != 'running' else state
        for stage, state in states(stages, lacking).items()
    }


def set_aside(stages: list[Stage], path: str | Path) -> None:
    """Move the folders and records of these stages to root/replaced; none of them if one is running."""
    with contextlib.ExitStack() as locks:
        for stage in stages:
            lock = acquire(stage)
            if lock is None:
                raise ConfigError(f'{path}: {stage.name} (seed {stage.seed}) is running: it cannot be run anew now')
            locks.callback(lock.release)
        _move(stages)


def _move(stages: list[Stage]) -> None:
    for stage in stages:
        place = stage.root / 'replaced' / f'{stage.work_dir.parent.name}-{stage.name}-{now().replace(":", "")}'
        place.parent.mkdir(exist_ok=True)
        record = (finished(stage) or {}).get('record')
        if record:
            os.replace(stage.work_dir / record, stage.work_dir / 'record.json')
        os.replace(stage.work_dir, place)
        print(f'{stage.name} (seed {stage.seed}) will run anew; what it was is in {place}', flush=True)


def _say_what_there_is(chosen: list, found: dict, jobs: int, devices: list[str] | None) -> None:
    done = sum(found[stage].name == 'finished' for stage in chosen)
    where = f'on devices {", ".join(devices)}' if devices else f'{threads_of(jobs)} threads each'
    print(
        f'{len(chosen)} stages below {chosen[0].root}, {done} of them finished; {jobs} at a time, {where}', flush=True
    )
    for stage in chosen:
        if found[stage].name == 'missing':
            files = ', '.join(file for file, (_, users) in missing([stage]).items())
            print(f'{stage.name} (seed {stage.seed}) is left out: it needs {files}', flush=True)
    for note in dict.fromkeys(note for stage in chosen if (note := batch_note(stage))):
        print(f'beware: {note}', flush=True)


class _Suite:
    """The stages of a suite while they run."""

    def __init__(self, path: Path, stages: list[Stage], chosen: list[Stage], lacking: set[Stage], fast: bool) -> None:
        self.path, self.stages, self.lacking, self.fast = path, stages, lacking, fast
        self.said, self.everything = read_suite(path), whole(path, stages[0].root, fast, stages)
        self.waiting = [stage for stage in chosen if finished(stage) is None and stage not in lacking]
        self.running: dict[Stage, Running] = {}
        self.elsewhere: dict[Stage, str] = {}  # stages that other benchmarks run, and what was said of them
        self.problems: list[str] = []

    def run(self, jobs: int, devices: list[str] | None) -> list[str]:
        """Start what is ready until nothing is left that can run; returns lines about what did not."""
        began = last_said = time.perf_counter()
        free = list(devices or [])
        try:
            while True:
                self._start_ready(jobs, free, bool(devices))
                if not self.running and not self.elsewhere:
                    break
                self._wait()
                self._collect(free)
                if time.perf_counter() - last_said >= SAY_EVERY:
                    last_said = time.perf_counter()
                    for stage in self.running if jobs > 1 else ():
                        print(f'{self._head(stage)}: {progress(stage)}', flush=True)
                self.tell()
        except KeyboardInterrupt:
            print('\nstopped; the same command goes on from there', file=sys.stderr, flush=True)
            raise
        finally:
            stop(*self.running.values())
            self.tell()
        for stage in self.waiting:
            self.problems.append(f'{self._head(stage)} could not run: it {states([stage], self.lacking)[stage].text}')
        if not self.problems:
            sweep(self.stages)
            print(f'all stages finished ({time.perf_counter() - began:.0f} s this time)', flush=True)
        return self.problems

    def _start_ready(self, jobs: int, free: list[str], on_devices: bool) -> None:
        """As many stages as fit, of those whose parents left their weights; what others run is left to them."""
        before, self.elsewhere = self.elsewhere, {}
        for stage in list(self.waiting):
            if finished(stage) is not None:  # by another benchmark
                self.waiting.remove(stage)
                continue
            if absent := [parent for parent in stage.parents if weights_left(parent) is None]:
                self._look_elsewhere(absent, before)
                continue
            if len(self.running) >= jobs or (on_devices and stage.gpus > len(free)):
                continue
            if edited(stage):  # the child would read what nobody planned
                self.waiting.remove(stage)
                self.problems.append(f'{self._head(stage)}: {stage.config} was changed while the benchmark ran')
                continue
            lock = acquire(stage)
            if lock is None:
                self._look_elsewhere([stage], before)
            elif finished(stage) is not None:  # it has just become so
                lock.release()
                self.waiting.remove(stage)
            else:
                self.waiting.remove(stage)
                taken = [free.pop(0) for _ in range(stage.gpus)] if on_devices else []
                print(f'{self._head(stage)}: {stage.config}', flush=True)
                self.running[stage] = start(stage, lock, taken, jobs)
                self.tell()

    def _look_elsewhere(self, needed: list[Stage], before: dict[Stage, str]) -> None:
        """Note which of these stages another benchmark runs, and say so once."""
        for stage in needed:
            if stage in self.running or (held := holder(stage)) is None:
                continue
            told = who(held) in (before.get(stage), self.elsewhere.get(stage))
            self.elsewhere[stage] = who(held)
            if not told:
                print(f'{self._head(stage)}: another benchmark runs it ({who(held)}); waiting for it', flush=True)

    def _wait(self) -> None:
        """Until a child ends; not long, if there is something to look at elsewhere."""
        deadline = time.monotonic() + (LOOK_ELSEWHERE if self.elsewhere else TELL_EVERY)
        while time.monotonic() < deadline and not any(r.exit_code() is not None for r in self.running.values()):
            time.sleep(LOOK_EVERY)

    def _collect(self, free: list[str]) -> None:
        """Take the children that ended out of the running, and say how they ended."""
        for stage, running in list(self.running.items()):
            code = running.exit_code()
            if code is None:
                continue
            del self.running[stage]
            free += running.devices
            done = finished(stage)
            if done is not None:
                result = f'{done["metric"]} {done["value"]:.4g} ' if done['metric'] else 'finished '
                print(f'{self._head(stage)}: {result}({done["seconds"]:.0f} s)', flush=True)
            else:
                lines = last_lines(stage, LAST_LINES)
                write_json(stage.work_dir / 'failed.json', dict(code=code, when=now(), lines=lines))
                self.problems.append(f'{self._head(stage)} failed with exit code {code}; see {log_of(stage)}')
                print(self.problems[-1], *lines, sep='\n', flush=True)
            self.tell()

    def _head(self, stage: Stage) -> str:
        return f'[{self.stages.index(stage) + 1}/{len(self.stages)}] seed {stage.seed} {stage.name}'

    def tell(self) -> None:
        """Everything that others read: suite.json for the page, status.txt for a watcher."""
        write_states(self.path, self.said, self.fast, self.everything, self.lacking)


def sweep(stages: list[Stage]) -> None:
    """Take away half-written files of processes that were killed; those of others, who write below this root too, stay.

    A name is `<file>.<pid>.tmp`; without a pid, a file is nobody's after an hour.
    """
    for folder in [*{stage.work_dir for stage in stages}, stages[0].root / 'results']:
        for path in folder.rglob('*.tmp'):
            with contextlib.suppress(FileNotFoundError):  # its writer has just put it in its place
                writer = re.search(r'\.(\d+)\.tmp$', path.name)
                abandoned = not alive(int(writer[1])) if writer else time.time() - path.stat().st_mtime > ABANDONED
                if abandoned:
                    path.unlink()
