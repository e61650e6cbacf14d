"""What others read of a suite: suite.json for the page, and a table of states for people."""

from collections.abc import Iterable
from pathlib import Path

from ..checkpoints.files import into_place
from .state import State, finished, last_lines, now, read_json, states, write_json
from .suite import Stage, is_reference, plan, read_suite

ORDER = ('finished', 'running', 'failed', 'stale', 'missing', 'blocked', 'pending')
LINES_OF_FAILED = 3


def whole(path: str | Path, root: Path, fast: bool, stages: list[Stage]) -> list[Stage]:
    """These stages, and those of the other seeds that were run below this root before."""
    seeds = {stage.seed for stage in stages}
    folders = [folder.name.removeprefix('seed') for folder in root.glob('seed*') if folder.is_dir()]
    others = sorted({int(name) for name in folders if name.isdigit()} - seeds)
    more = plan(path, others, fast, root) if others else []
    known = {stage.work_dir for stage in stages}
    return sorted([*stages, *(stage for stage in more if stage.work_dir not in known)], key=lambda stage: stage.seed)


def write_index(path: str | Path, root: Path, fast: bool, stages: list[Stage], lacking: Iterable[Stage] = ()) -> None:
    """Write root/suite.json and root/status.txt as they are now."""
    suite = read_suite(path)
    write_states(path, suite, fast, whole(path, root, fast, stages), lacking)


def write_states(path: str | Path, suite: dict, fast: bool, stages: list[Stage], lacking: Iterable[Stage]) -> None:
    """As write_index, of a suite that has been read: while it runs, its file may be edited."""
    root = stages[0].root
    found = states(stages, lacking)
    title = suite['title'] + (' (a fast check: the numbers mean nothing)' if fast else '')
    entries = [dict(_entry(stage, found[stage]), suite=Path(path).name) for stage in stages]
    own = {entry['work_dir'] for entry in entries}
    others = (read_json(root / 'suite.json') or {}).get('stages') or []  # of suites that share the root
    entries += [e for e in others if e.get('suite', Path(path).name) != Path(path).name and e['work_dir'] not in own]
    write_json(root / 'suite.json', dict(title=title, note=suite['note'], stages=entries))
    into_place(root / 'status.txt', lambda file: file.write(f'{now()}\n{table(found)}\n'.encode()))


def _entry(stage: Stage, state: State) -> dict:
    """A stage in suite.json; options are without what it starts from, which is load_from."""
    done = finished(stage) or {}
    begun = read_json(stage.work_dir / 'stage.json') or {} if done else {}
    options = begun.get('resolved', stage.options)
    start = options.get('load_from')
    return dict(
        name=stage.name,
        kind=stage.kind,
        protocol=done.get('protocol') or stage.kind,
        seed=stage.seed,
        config=stage.config,
        options={key: value for key, value in options.items() if key != 'load_from'} if done else {},
        load_from=start if done and not is_reference(start) else None,
        work_dir=str(stage.work_dir),
        checkpoint=str(stage.work_dir / done['checkpoint']) if done else None,
        seconds=done.get('seconds'),
        evaluated_only=stage.checkpoint is not None,
        status=state.name,
        status_text=state.text,
    )


def table(found: dict[Stage, State]) -> str:
    """A line per stage, with the last lines of those that failed; then how many are in which state."""
    widths = max(len(state.name) for state in found.values()), max(len(stage.name) for stage in found)
    lines = []
    for stage, state in found.items():
        lines.append(f'{state.name:{widths[0]}}  seed {stage.seed}  {stage.name:{widths[1]}}  {state.text}'.rstrip())
        if state.name == 'failed':
            lines += [f'    | {line}' for line in last_lines(stage, LINES_OF_FAILED)]
    counts = {name: sum(state.name == name for state in found.values()) for name in ORDER}
    return '\n'.join([*lines, ', '.join(f'{count} {name}' for name, count in counts.items() if count)])
