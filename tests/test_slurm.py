"""tools/slurm_train.sh, slurm_test.sh, sbatch_train.sh: what they ask of Slurm, with stand-ins for its commands, and
what becomes of it, with a Slurm of our own where the daemons are installed (tests/slurm.py)."""

import os
import subprocess
from pathlib import Path

import pytest
from faults import config_file
from processes import ROOT, door_started
from ranks import ranks_started
from slurm import cluster, missing, of_jobs
from tiny import CLASSIFY

from beit_mm.checkpoints.load import read

SHORT = {'train_cfg.max_iters': 6, 'train_cfg.val_interval': 100, 'default_hooks.checkpoint.interval': 100}
FAKE = """#!/bin/bash
# Notes how it was called, and ends with what $here/code says; SAVES: a file to change
here=$(dirname "$0")
[ -n "$SAVES" ] && echo iter_2.pth > "$SAVES"
printf '%s\\n' "$(basename "$0")" "$@" > "$here/called.$(basename "$0")"
exit "$(cat "$here/code" 2> /dev/null || echo 0)"
"""


@pytest.fixture
def fake(tmp_path):
    """The environment in which srun, sbatch and scontrol are stand-ins; `called(name)`: the arguments of the last call,
    or None; `code(n)`: what they end with from now on."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in ('srun', 'sbatch', 'scontrol'):
        (folder / name).write_text(FAKE)
        (folder / name).chmod(0o755)

    class Fake:
        env = {**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}', 'PYTHON': 'py'}

        def code(self, number: int) -> None:
            (folder / 'code').write_text(str(number))

        def called(self, name: str) -> list[str] | None:
            note = folder / f'called.{name}'
            return note.read_text().splitlines()[1:] if note.exists() else None

        def script(self, *command, **env: str) -> subprocess.CompletedProcess:
            for note in folder.glob('called.*'):
                note.unlink()
            return subprocess.run(
                ['bash', *map(str, command)], cwd=ROOT, env={**self.env, **env}, capture_output=True, text=True
            )

    return Fake()


def test_what_srun_is_asked_for(fake):
    """OpenMMLab's positions and variables; what SRUN_ARGS says comes after them, so that it holds."""
    done = fake.script('tools/slurm_train.sh', 'gpu', 'name', 'c.py', 'work dir', '--amp', '--cfg-options', 'a="b c"')
    assert done.returncode == 0, done.stderr
    tools = f'{ROOT}/tools'
    job = ['--partition=gpu', '--job-name=name', '--gres=gpu:8', '--ntasks=8', '--ntasks-per-node=8']
    job += ['--cpus-per-task=5', '--kill-on-bad-exit=1']
    door = ['py', '-u', f'{tools}/train.py', 'c.py', '--work-dir', 'work dir', '--amp', '--cfg-options', 'a="b c"']
    assert fake.called('srun') == [*job, *door, '--launcher', 'slurm']
    env = dict(GPUS='2', CPUS_PER_TASK='3', SRUN_ARGS='--gres=none -t 10')
    done = fake.script('tools/slurm_test.sh', 'gpu', 'name', 'c.py', 'w.pth', '--tta', **env)
    job = ['--partition=gpu', '--job-name=name', '--gres=gpu:2', '--ntasks=2', '--ntasks-per-node=2']
    job += ['--cpus-per-task=3', '--kill-on-bad-exit=1', '--gres=none', '-t', '10']
    assert fake.called('srun') == [
        *job,
        'py',
        '-u',
        f'{tools}/test.py',
        'c.py',
        'w.pth',
        '--tta',
        '--launcher',
        'slurm',
    ]
    done = fake.script('tools/slurm_train.sh', 'gpu', 'name', 'c.py', 'w', GPUS='16', GPUS_PER_NODE='4')
    assert fake.called('srun')[2:5] == ['--gres=gpu:4', '--ntasks=16', '--ntasks-per-node=4']
    fake.code(143)
    assert fake.script('tools/slurm_train.sh', 'gpu', 'name', 'c.py', 'w').returncode == 143
    for name in ('slurm_train', 'slurm_test', 'sbatch_train'):
        done = fake.script(f'tools/{name}.sh', 'gpu', 'name', 'c.py')
        assert (done.returncode, done.stderr.split()[:5:4]) == (2, ['usage:', 'CONFIG'])
        for variable in ('GPUS', 'GPUS_PER_NODE', 'CPUS_PER_TASK'):
            done = fake.script(f'tools/{name}.sh', 'gpu', 'name', 'c.py', 'w', **{variable: 'x'})
            said = f'error: {variable}=x: must be a whole number, 1 or more\n'
            assert (done.returncode, done.stderr) == (2, said)


def test_what_sbatch_is_asked_for(fake, tmp_path):
    work = tmp_path / 'w'
    env = dict(GPUS='16', SBATCH_ARGS='--time=24:00:00 --signal=USR1@300')
    done = fake.script('tools/sbatch_train.sh', 'gpu', 'name', 'c.py', work, '--amp', **env)
    assert done.returncode == 0, done.stderr
    tools = f'{ROOT}/tools'
    assert fake.called('sbatch') == [
        '--partition=gpu', '--job-name=name', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8',
        '--cpus-per-task=5', '--signal=USR1@120', '--requeue', '--open-mode=append', f'--output={work}/slurm-%j.log',
        '--time=24:00:00', '--signal=USR1@300', f'{tools}/_slurm_job.sh', tools, 'c.py', str(work), '--amp',
    ]  # fmt: skip
    assert work.is_dir()  # or Slurm could not write the log


@pytest.mark.parametrize(
    ('code', 'restarts', 'most', 'saves', 'requeued', 'said'),
    [
        (0, 0, None, True, False, ''),
        (1, 0, None, True, False, ''),
        (143, 0, None, True, False, ''),  # preempted: Slurm itself queues it again; cancelled: nobody
        (137, 0, None, True, False, ''),
        (75, 0, None, True, True, ''),
        (75, 99, None, True, True, ''),
        (75, 100, None, True, False, 'was queued again 100 times, and is not done; for more: MAX_REQUEUES=N'),
        (75, 2, '2', True, False, 'was queued again 2 times, and is not done; for more: MAX_REQUEUES=N'),
        (75, 0, None, False, False, "got Slurm's signal before its first step, and is not queued again"),
        (138, 1, None, False, False, "got Slurm's signal before its first step, and is not queued again"),
    ],
)
def test_when_a_job_is_queued_again(fake, tmp_path, code, restarts, most, saves, requeued, said):
    """By Slurm's signal, as often as may be, and not where nothing was gained."""
    (tmp_path / 'last_checkpoint').write_text('iter_1.pth')
    fake.code(code)
    env = dict(SLURM_JOB_ID='77', SLURM_CPUS_PER_TASK='5')
    env |= dict(SLURM_RESTART_COUNT=str(restarts)) if restarts else {}
    env |= dict(MAX_REQUEUES=most) if most else {}
    env |= dict(SAVES=f'{tmp_path}/last_checkpoint') if saves else {}
    done = fake.script('tools/_slurm_job.sh', f'{ROOT}/tools', 'c.py', tmp_path, '--amp', **env)
    assert done.returncode == code  # the stand-in for scontrol ends with it too
    assert fake.called('scontrol') == (['requeue', '77'] if requeued else None)
    job = ['--cpus-per-task=5', '--kill-on-bad-exit=1']  # srun does not take it over from sbatch
    door = ['py', '-u', f'{ROOT}/tools/train.py', 'c.py', '--work-dir', str(tmp_path), '--amp', '--resume', 'auto']
    assert fake.called('srun') == [*job, *door, '--launcher', 'slurm']
    assert done.stderr.startswith(f'error: job 77 {said}' if said else '')
    assert bool(done.stderr) == bool(said)


@pytest.mark.parametrize(('restarts', 'given'), [('0', ['--resume', 'a.pth']), ('1', ['--resume', 'auto'])])
def test_a_job_begins_as_its_user_wants_it(fake, restarts, given):
    """--resume FILE is for the first time; what is queued again goes on from its own checkpoint."""
    env = dict(SLURM_JOB_ID='77', SLURM_CPUS_PER_TASK='5', SLURM_RESTART_COUNT=restarts)
    fake.script('tools/_slurm_job.sh', f'{ROOT}/tools', 'c.py', 'w', '--resume', 'a.pth', **env)
    assert fake.called('srun')[-4:] == [*given, '--launcher', 'slurm']


def digests(work_dir: Path, rank: int = 0) -> list[str]:
    """Of the weights after each step: tests/injected.py, Digest."""
    return (work_dir / f'digest_{rank}.txt').read_text().splitlines()


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    """The weights after each of six steps of two ranks, without Slurm."""
    folder = tmp_path_factory.mktemp('reference')
    config = config_file(folder, CLASSIFY, dict(type='Digest'), **SHORT)
    with ranks_started(2, 'tools/train.py', config, '--work-dir', folder / 'w') as ranks:
        assert [rank.wait(100) for rank in ranks] == [0, 0], ranks[0].stderr()
    return digests(folder / 'w')


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    """Its environment."""
    if lacking := missing():
        pytest.skip(f'Slurm is not installed (apt-get install slurm-wlm munge): no {", ".join(lacking)}')
    with cluster(tmp_path_factory.mktemp('slurm')) as environment:
        yield environment


@pytest.mark.slow
def test_slurm_may_repeat_itself(tmp_path):
    """Preempted, a rank gets SIGTERM twice, and again when the first rank has ended: none of these is impatience."""
    signal = dict(type='SignalWhileSaving', signal='SIGTERM', times=4)
    config = config_file(tmp_path, CLASSIFY, signal, **{**SHORT, 'default_hooks.checkpoint.interval': 2})
    with door_started('tools/train.py', config, '--work-dir', tmp_path / 'w', SLURM_STEP_ID='0') as run:
        assert run.wait(60) == 143
        assert 'ending at once' not in run.stderr()
    assert read(tmp_path / 'w' / 'iter_2.pth')['meta']['iter'] == 2


def script(*command, env: dict[str, str]) -> subprocess.Popen:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env, **pipes)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_jobs_on_one_node_of_which_one_loses_a_rank(tmp_path, slurm, reference):
    """The one that is left alone takes the steps of two ranks without Slurm, to the bit. The other, on two nodes, ends
    as soon as one of its ranks is killed."""
    whole = config_file(tmp_path / 'whole', CLASSIFY, dict(type='Digest'), **SHORT)
    killed = dict(type='SignalRankAt', step=3, signal='SIGKILL', once=str(tmp_path / 'once'), rank=1)
    options = {**SHORT, 'train_cfg.max_iters': 100_000, 'default_hooks.checkpoint.interval': 2}
    faulty = config_file(tmp_path / 'faulty', CLASSIFY, killed, **options)
    nodes = dict(GPUS_PER_NODE='1', MASTER_ADDR='127.0.0.1')
    one = script('tools/slurm_train.sh', 'cpu', 'one', whole, tmp_path / 'w1', env=of_jobs(slurm))
    two = script('tools/slurm_train.sh', 'cpu', 'two', faulty, tmp_path / 'w2', env=of_jobs(slurm, **nodes))
    _, err = two.communicate(timeout=100)
    assert two.returncode in (137, 143), err  # the highest of the ranks' codes: Slurm ends the other by SIGTERM
    assert 'task 1: Killed' in err
    assert 'srun: Force Terminated' in err
    assert (tmp_path / 'w2' / 'iter_2.pth').is_file()
    out, err = one.communicate(timeout=100)
    assert one.returncode == 0, err
    assert digests(tmp_path / 'w1') == digests(tmp_path / 'w1', rank=1) == reference
    assert out.count('trained in') == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_goes_on_after_slurms_signal(tmp_path, slurm, reference):
    """SIGUSR1 by Slurm in the third step, as before the time is up: saved, queued again, gone on with to the bit."""
    signal = dict(type='RunAt', step=3, command='scancel --signal=USR1 $SLURM_JOB_ID', once=str(tmp_path / 'once'))
    config = config_file(tmp_path, CLASSIFY, dict(type='Digest'), signal, **SHORT)
    work = tmp_path / 'w'
    env = of_jobs(slurm, SBATCH_ARGS='--gres=none --wait --parsable')
    out, err = script('tools/sbatch_train.sh', 'cpu', 'name', config, work, env=env).communicate(timeout=250)
    log = (work / f'slurm-{out.strip()}.log').read_text()
    assert f'job {out.strip()} is queued again, to go on from its checkpoint (restart 1)' in log, err
    assert f'{work}: no checkpoint to resume from; starting at step 0' in log
    stopped = int(log.split('SIGUSR1: stopped after step ')[1].split()[0])
    assert 3 <= stopped < 6  # scancel may take longer than a step
    assert f'resumed epoch: 0, iter: {stopped}' in log
    assert digests(work) == digests(work, rank=1) == reference
    assert read(work / 'iter_6.pth')['meta']['iter'] == 6
    shown = subprocess.run(['scontrol', 'show', 'job', out.strip()], env=slurm, capture_output=True, text=True).stdout
    assert 'JobState=COMPLETED' in shown
    assert 'Restarts=1' in shown
