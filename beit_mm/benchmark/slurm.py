"""A suite as Slurm jobs: a script per missing stage, which wait for each other as the stages do.

Each job runs tools/benchmark.py for its one stage and seed, so that what is known of it (states, locks, records) is as
if it had been run here. root/slurm/ holds the scripts, submit.sh (the same by hand) and jobs.json.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ..engine.errors import ConfigError
from .index import write_index
from .jobs import foreseen, set_aside
from .state import State, read_json, slurm_key, write_json
from .suite import Stage

JOB_STATES = ('PENDING', 'RUNNING', 'CONFIGURING', 'COMPLETING', 'SUSPENDED')  # of squeue: it will be, or is, run


def submit(
    path: str | Path,
    stages: list[Stage],
    chosen: list[Stage],
    lacking: set[Stage],
    options: str = '',
    fast: bool = False,
    dry: bool = False,
    anew: Iterable[Stage] = (),
) -> list[str]:
    """Write the scripts of what is missing and submit them in order; returns lines about each.

    stages: all; chosen: those that may be submitted. options: sbatch's own, such as '--partition=gpu --time=48:00:00'.
    dry: only write the scripts. anew: stages that are run again; what they left is set aside, unless dry. A stage whose
    job still waits or runs is not submitted again. Raises ConfigError where there is no sbatch, or it refuses.
    """
    root = stages[0].root
    if not dry and shutil.which('sbatch') is None:
        raise ConfigError('--slurm: there is no sbatch here. --slurm-dry-run writes the scripts for where there is')
    found = foreseen(stages, lacking, anew)
    wanted = [stage for stage in chosen if _to_run(stage, found)]
    folder = root / 'slurm'
    folder.mkdir(parents=True, exist_ok=True)
    jobs = read_json(folder / 'jobs.json') or {}
    alive = {key: job for key, job in jobs.items() if not dry and _alive(job)}
    if not dry:
        to_come = {*alive, *(slurm_key(stage) for stage in wanted)}
        for stage in wanted:
            if unknown := [name for name in _needed(stage, found) if name not in to_come]:
                said = f'{slurm_key(stage)} needs {", ".join(unknown)}, which is neither finished nor a job'
                raise ConfigError(f'--slurm: {said}')
        set_aside(list(anew), path)
    lines: list[str] = []
    by_hand = [
        '#!/bin/bash',
        '# Submits every script of this folder, each after those it waits for',
        'set -eo pipefail',
    ]
    for stage in wanted:
        key, script = slurm_key(stage), folder / f'{slurm_key(stage)}.sh'
        needed = _needed(stage, found)
        _write(script, path, stage, options, fast)
        waits = ':'.join(f'${_variable(name)}' for name in needed)
        after = f' --dependency=afterok:{waits}' if needed else ''
        by_hand.append(
            f'{_variable(key)}=$(sbatch --parsable{after} {shlex.quote(str(script.resolve()))} | cut -d";" -f1)'
        )
        if dry:
            lines.append(f'{script}' + (f', after {", ".join(needed)}' if needed else ''))
        elif key in alive:
            lines.append(f'{key}: is job {alive[key]} already')
        else:
            job = _sbatch(script, [alive[name] for name in needed])
            alive[key] = jobs[key] = job
            write_json(folder / 'jobs.json', jobs)  # at once: what is submitted must not be forgotten
            lines.append(
                f'{key}: job {job}' + (f', after {", ".join(alive[name] for name in needed)}' if needed else '')
            )
    (folder / 'submit.sh').write_text('\n'.join(by_hand) + '\n')
    write_index(path, root, fast, stages, lacking)
    return lines


def _to_run(stage: Stage, found: dict[Stage, State]) -> bool:
    """Not finished, not running, and nothing that it needs is missing; what failed is tried again."""
    if found[stage].name in ('finished', 'running', 'missing'):
        return False
    return all(found[parent].name == 'finished' or _to_run(parent, found) for parent in stage.parents)


def _needed(stage: Stage, found: dict[Stage, State]) -> list[str]:
    """The jobs that it waits for."""
    return [slurm_key(parent) for parent in stage.parents if found[parent].name != 'finished']


def _write(script: Path, path: str | Path, stage: Stage, options: str, fast: bool) -> None:
    """The batch script of one stage. Its log is below the stage's folder."""
    stage.work_dir.mkdir(parents=True, exist_ok=True)
    tool = Path(sys.argv[0]).resolve() if sys.argv[0].endswith('benchmark.py') else Path('tools/benchmark.py').resolve()
    command = [sys.executable, str(tool), str(path), '--root', str(stage.root), '--seed', str(stage.seed)]
    command += ['--stage', stage.name, '--jobs', '1', '--no-page', *(['--fast'] if fast else [])]
    lines = [
        '#!/bin/bash',
        f'#SBATCH --job-name={slurm_key(stage)}',
        f'#SBATCH --output={(stage.work_dir / "slurm-%j.log").resolve()}',
        '#SBATCH --ntasks=1',
        *([] if 'gpus' in options or 'gres' in options else [f'#SBATCH --gpus-per-node={stage.gpus}']),
        '#SBATCH --kill-on-invalid-dep=yes',
        *([f'#SBATCH {options}'] if options else []),
        f'cd {shlex.quote(os.getcwd())}',
        f'exec {shlex.join(command)}',
    ]
    script.write_text('\n'.join(lines) + '\n')


def _variable(key: str) -> str:
    return 'job_' + ''.join(letter if letter.isalnum() else '_' for letter in key)


def _sbatch(script: Path, after: list[str]) -> str:
    """Submit; returns the job's number."""
    dependency = [f'--dependency=afterok:{":".join(after)}'] if after else []
    done = subprocess.run(['sbatch', '--parsable', *dependency, str(script)], capture_output=True, text=True)
    job = done.stdout.strip().split(';')[0]
    if done.returncode or not job:
        said = (done.stderr or done.stdout).strip() or 'nothing'
        raise ConfigError(f'sbatch {script}: exit code {done.returncode}; it said: {said}')
    return job


def _alive(job: str) -> bool:
    """Whether Slurm still has the job before it or at work."""
    if shutil.which('squeue') is None:
        return False
    done = subprocess.run(['squeue', '--noheader', '--format=%T', '--jobs', job], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() in JOB_STATES
