"""benchmark/slurm.py: a script per missing stage, submitted in order, each after those it needs."""

import json
import os
import re
import shlex

import pytest
from processes import call
from test_suite_state import finish
from tiny_suite import tiny_suite

from beit_mm.benchmark.jobs import to_run_anew
from beit_mm.benchmark.slurm import submit
from beit_mm.benchmark.state import states
from beit_mm.benchmark.suite import plan
from beit_mm.engine.configs import ConfigError

SBATCH = """#!/bin/bash
# Slurm's sbatch, of which it has the options that are used: it notes them, and gives out numbers
here=$(dirname "$0")
echo "$@" >> "$here/calls"
[ -e "$here/refuse" ] && { echo "sbatch: error: invalid partition" >&2; exit 1; }
echo "$(( 100 + $(wc -l < "$here/calls") ));cluster"
"""
RUNS = """#!/bin/bash
# As above, and it runs the script at once, if what it depends on succeeded
here=$(dirname "$0")
echo "$@" >> "$here/calls"
number=$(( 100 + $(wc -l < "$here/calls") ))
for job in $(echo "$@" | grep -o 'afterok:[0-9:]*' | tr ':' ' ' | cut -d' ' -f2-); do
  [ "$(cat "$here/$job")" = 0 ] || { echo 1 > "$here/$number"; echo $number; exit 0; }
done
log=$(grep -o -- '--output=.*' "${@: -1}" | cut -d= -f2- | sed "s/%j/$number/")
SLURM_JOB_ID=$number bash "${@: -1}" > "$log" 2>&1
echo $? > "$here/$number"
echo $number
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of fake commands in PATH."""
    folder = tmp_path / 'bin'
    folder.mkdir()

    def command(name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    command('sbatch', SBATCH)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    folder_calls = folder / 'calls'
    command.calls = lambda: folder_calls.read_text().splitlines() if folder_calls.is_file() else []
    command.folder = folder
    return command


def test_jobs_wait_for_each_other(tmp_path, slurm):
    suite = tiny_suite(tmp_path)
    stages = plan(suite, [0, 1], root=tmp_path / 'r')
    finish(stages[0])
    lines = submit(suite, stages, stages, set(), '--partition=gpu --time=48:00:00')
    assert lines == [
        'seed0-pretrain: job 101', 'seed0-classify: job 102, after 101', 'seed0-classify-scratch: job 103',
        'seed1-tokenizer: job 104', 'seed1-pretrain: job 105, after 104', 'seed1-classify: job 106, after 105',
        'seed1-classify-scratch: job 107',
    ]  # fmt: skip
    folder = tmp_path / 'r' / 'slurm'
    assert slurm.calls()[1] == f'--parsable --dependency=afterok:101 {folder}/seed0-classify.sh'
    assert slurm.calls()[2] == f'--parsable {folder}/seed0-classify-scratch.sh'
    script = (folder / 'seed1-pretrain.sh').read_text().splitlines()
    assert script[0] == '#!/bin/bash'
    assert '#SBATCH --partition=gpu --time=48:00:00' in script
    assert f'#SBATCH --output={tmp_path}/r/seed1/pretrain/slurm-%j.log' in script
    assert '#SBATCH --gpus-per-node=1' in script
    command = shlex.split(script[-1])
    assert command[2].endswith('tools/benchmark.py')
    assert command[3:] == [
        str(suite), '--root', str(tmp_path / 'r'), '--seed', '1', '--stage', 'pretrain', '--jobs', '1', '--no-page',
    ]  # fmt: skip
    state = states(stages)[stages[1]]
    assert state == ('pending', 'was submitted as job 101')

    slurm('squeue', '#!/bin/sh\n[ "$4" = 101 ] && echo PENDING || echo\n')
    lines = submit(suite, stages, stages[:4], set())
    assert lines == [
        'seed0-pretrain: is job 101 already',
        'seed0-classify: job 108, after 101',
        'seed0-classify-scratch: job 109',
    ]
    assert json.loads((folder / 'jobs.json').read_text())['seed0-classify'] == '108'


def test_a_dry_run_only_writes(tmp_path, slurm):
    suite = tiny_suite(tmp_path)
    stages = plan(suite, root=tmp_path / 'r')
    lines = submit(suite, stages, stages, {stages[3]}, '--gres=gpu:a100:1', fast=True, dry=True)
    folder = tmp_path / 'r' / 'slurm'
    assert lines == [
        f'{folder}/seed0-tokenizer.sh', f'{folder}/seed0-pretrain.sh, after seed0-tokenizer',
        f'{folder}/seed0-classify.sh, after seed0-pretrain',
    ]  # fmt: skip
    assert slurm.calls() == []
    text = (folder / 'seed0-tokenizer.sh').read_text()
    assert '--gpus-per-node' not in text  # the user has said which
    assert '--fast' in text
    assert call_bash(folder / 'submit.sh') == 0
    assert [re.sub(r' \S+/', ' ', line) for line in slurm.calls()] == [
        '--parsable seed0-tokenizer.sh', '--parsable --dependency=afterok:101 seed0-pretrain.sh',
        '--parsable --dependency=afterok:102 seed0-classify.sh',
    ]  # fmt: skip


def test_a_rerun_by_slurm_moves_only_when_it_submits(tmp_path, slurm):
    suite = tiny_suite(tmp_path)
    stages = plan(suite, root=tmp_path / 'r')
    for stage in stages:
        finish(stage)
    anew = to_run_anew(stages, ['pretrain'], suite)
    folder = tmp_path / 'r' / 'slurm'
    lines = submit(suite, stages, stages, set(), dry=True, anew=anew)
    assert lines == [f'{folder}/seed0-pretrain.sh', f'{folder}/seed0-classify.sh, after seed0-pretrain']
    with pytest.raises(ConfigError, match='seed0-classify needs seed0-pretrain, which is neither'):
        submit(suite, stages, [stages[2]], set(), anew=anew)
    assert [state.name for state in states(stages).values()] == ['finished'] * 4
    assert not (tmp_path / 'r' / 'replaced').exists()
    assert submit(suite, stages, stages, set(), anew=anew) == [
        'seed0-pretrain: job 101', 'seed0-classify: job 102, after 101',
    ]  # fmt: skip
    assert len(list((tmp_path / 'r' / 'replaced').iterdir())) == 2


def call_bash(script) -> int:
    return os.waitstatus_to_exitcode(os.system(f'bash {script}'))


def test_what_slurm_refuses_is_said(tmp_path, slurm, monkeypatch):
    suite = tiny_suite(tmp_path)
    stages = plan(suite, root=tmp_path / 'r')
    (slurm.folder / 'refuse').touch()
    with pytest.raises(ConfigError, match='exit code 1; it said: sbatch: error: invalid partition'):
        submit(suite, stages, stages, set(), '--partition=gup')
    (slurm.folder / 'refuse').unlink()
    with pytest.raises(ConfigError, match='seed0-classify needs seed0-pretrain, which is neither finished nor a job'):
        submit(suite, stages, [stages[2]], set())
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ConfigError, match='there is no sbatch here'):
        submit(suite, stages, stages, set())


@pytest.mark.slow
def test_a_suite_by_slurm(tmp_path, slurm):
    """The fake sbatch runs the scripts in order: the suite is finished when all are submitted."""
    slurm('sbatch', RUNS)
    suite, root = tiny_suite(tmp_path, more='del stages[2:]'), tmp_path / 'r'
    code, out, err = call('tools/benchmark.py', suite, '--root', root, '--slurm=--partition=gpu', timeout=500)
    assert code == 0, err[-3000:]
    assert 'seed0-pretrain: job 102, after 101' in out
    done = [(slurm.folder / str(number)).read_text().strip() for number in (101, 102)]
    assert done == ['0', '0'], (root / 'seed0/tokenizer/slurm-101.log').read_text()[-3000:]
    assert len(list(root.glob('seed0/*/done.json'))) == len(list((root / 'results').rglob('*.json'))) == 2
    code, out, err = call('tools/benchmark.py', suite, '--root', root, '--status')
    assert out.splitlines()[-1] == '2 finished', err[-3000:]
    assert len(json.loads((root / 'suite.json').read_text())['stages']) == 2
