"""engine/launchers.py: what Slurm and MPI say, in torchrun's variables; and mpirun, where it is installed."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from faults import config_file
from mmengine.config import Config
from processes import ROOT, door_started
from ranks import free_port
from test_slurm import SHORT, digests
from tiny import CLASSIFY

from beit_mm.engine import launchers
from beit_mm.engine.configs import ConfigError
from beit_mm.engine.launchers import device_of, find_ranks, first_of

SLURM = dict(SLURM_PROCID='3', SLURM_STEP_NUM_TASKS='4', SLURM_LOCALID='1', SLURM_STEP_NUM_NODES='2')
SLURM |= dict(SLURM_STEP_NODELIST='localhost,node9', SLURM_NTASKS='8', SLURM_NODELIST='node7,localhost,node9')
SLURM |= dict(SLURM_JOB_ID='4711', SLURM_STEP_ID='0')
OPEN_MPI = dict(OMPI_COMM_WORLD_RANK='1', OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_LOCAL_RANK='1')
OPEN_MPI |= dict(OMPI_COMM_WORLD_LOCAL_SIZE='2', PMIX_NAMESPACE='761397249')
MPICH = dict(PMI_RANK='1', PMI_SIZE='2', MPI_LOCALRANKID='1', MPI_LOCALNRANKS='2')
TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


@pytest.fixture
def told(monkeypatch):
    """Call find_ranks in an environment; returns what it set of torchrun's variables."""

    def told(launcher: str, config: Config | None = None, **env: str) -> list[str | None]:
        known = {name for names in launchers.SET_BY.values() for variables in names for name in variables}
        for name in {*known, *TORCHRUN, *launchers.OF_A_JOB, *SLURM}:
            monkeypatch.setenv(name, '')  # so that it is put back
            monkeypatch.delenv(name)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        assert find_ranks(launcher, config or Config()) == ('none' if launcher == 'none' else 'pytorch')
        return [os.environ.get(name) for name in TORCHRUN]

    return told


def test_what_each_launcher_says(told):
    """Slurm: of the step, not of the job, which may be larger; on one node, no names are asked for."""
    assert told('none', **SLURM) == [None] * 5
    *three, address, port = told('slurm', **SLURM)
    assert (three, address) == (['3', '4', '1'], 'localhost')
    assert int(port) in launchers.PORTS
    assert told('slurm', **{**SLURM, 'SLURM_STEP_NUM_NODES': '1', 'SLURM_STEP_NODELIST': '?'})[3] == '127.0.0.1'
    assert told('mpi', **OPEN_MPI)[:4] == ['1', '2', '1', '127.0.0.1']
    assert told('mpi', **MPICH) == ['1', '2', '1', '127.0.0.1', '29500']
    assert told('pytorch', RANK='1', WORLD_SIZE='2', LOCAL_RANK='0') == ['1', '2', '0', None, None]
    assert told('slurm', **SLURM, LOCAL_RANK='0')[2] == '1'  # the doors set it to that of --local-rank
    assert told('slurm', **SLURM, MASTER_ADDR='127.0.0.2', MASTER_PORT='1234')[3:] == ['127.0.0.2', '1234']


def test_jobs_do_not_meet(told):
    """Each job and each step of a job has a port of its own, the same on all its ranks; or its config's."""
    ports = {told('slurm', **{**SLURM, 'SLURM_JOB_ID': str(job)})[4] for job in range(100)}
    ports |= {told('slurm', **{**SLURM, 'SLURM_STEP_ID': str(step)})[4] for step in range(1, 50)}
    assert len(ports) > 145  # of 149
    assert told('slurm', **SLURM)[4] == told('slurm', **{**SLURM, 'SLURM_PROCID': '2'})[4]
    assert told('slurm', **SLURM)[4] != told('slurm', **SLURM, SLURM_CLUSTER_NAME='other')[4]
    assert told('mpi', **OPEN_MPI)[4] != told('mpi', **{**OPEN_MPI, 'PMIX_NAMESPACE': '761397250'})[4]
    config = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl', port=4321))))
    assert told('slurm', config, **SLURM)[4] == '4321'
    assert config.env_cfg.dist_cfg == dict(backend='nccl')  # torch's function does not know it


@pytest.mark.parametrize(
    ('nodes', 'first'),
    [
        ('node1', 'node1'), ('a,b', 'a'), ('gpu[007-009,12],cpu1', 'gpu007'), ('gpu[3,5-7]-ib', 'gpu3-ib'),
        ('rack[1-2]n[04-05]', 'rack1n04'), ('10.0.0.[1-4]', '10.0.0.1'),
    ],
)  # fmt: skip
def test_the_first_node_of_a_list(nodes, first):
    assert first_of(nodes) == first


def test_what_cannot_meet_is_refused(told):
    with pytest.raises(ConfigError, match=r'--launcher slurm: SLURM_STEP_NUM_TASKS is not set, .* by: srun python'):
        told('slurm', SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NTASKS='8')  # a batch script, without srun
    with pytest.raises(ConfigError, match=r'--launcher mpi: OMPI_COMM_WORLD_RANK is not set, .* by: mpirun -np N'):
        told('mpi')
    with pytest.raises(ConfigError, match='--launcher mpi: MPI_LOCALRANKID is not set'):
        told('mpi', PMI_RANK='0', PMI_SIZE='2')
    with pytest.raises(ConfigError, match='--launcher mpi on several nodes: MASTER_ADDR is not set'):
        told('mpi', **{**OPEN_MPI, 'OMPI_COMM_WORLD_LOCAL_SIZE': '1'})
    with pytest.raises(ConfigError, match="launcher 'dist' is none of: none, pytorch, slurm, mpi"):
        told('dist')
    with pytest.raises(
        ConfigError, match=r'no-such-host\.invalid: the address of the node that the first process is on'
    ):
        told('slurm', **{**SLURM, 'SLURM_STEP_NODELIST': 'no-such-host.invalid,b'})
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert told('slurm', **SLURM, MASTER_PORT=port)[4] == port  # rank 3 does not listen
        with pytest.raises(ConfigError, match=f'port {port} of .* is in use. Set another one: MASTER_PORT=N'):
            told('slurm', **{**SLURM, 'SLURM_PROCID': '0'}, MASTER_PORT=port)


def test_which_gpu_is_whose(monkeypatch):
    """The node's n-th process has its n-th GPU; the only one that it sees, with --gpus-per-task=1; none on a CPU."""
    for seen, of_third in ((0, 2), (1, 0), (8, 2)):
        monkeypatch.setattr(launchers.torch.cuda, 'device_count', lambda seen=seen: seen)
        assert device_of(2) == of_third
    monkeypatch.setattr(launchers.torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(ConfigError, match=r'process 3 of .* sees 2 GPUs: one is needed for each process of a node'):
        device_of(2)


@pytest.mark.slow
def test_ranks_of_each_launcher_are_the_same_run(tmp_path):
    """Without srun and mpirun, by what these set: who started the ranks makes no difference, to the bit."""
    config = config_file(tmp_path, CLASSIFY, dict(type='Digest'), **SHORT)
    said: dict[str, list[dict[str, str]]] = dict(pytorch=[], slurm=[], mpi=[])
    meeting = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    slurm = {**SLURM, 'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NUM_NODES': '1', 'SLURM_JOB_ID': str(tmp_path)}
    mpi = {**OPEN_MPI, 'PMIX_NAMESPACE': str(tmp_path)}
    for rank in ('0', '1'):
        said['pytorch'].append(dict(RANK=rank, WORLD_SIZE='2', LOCAL_RANK=rank, **meeting))
        said['slurm'].append({**slurm, 'SLURM_PROCID': rank, 'SLURM_LOCALID': rank})
        said['mpi'].append({**mpi, 'OMPI_COMM_WORLD_RANK': rank, 'OMPI_COMM_WORLD_LOCAL_RANK': rank})
    with contextlib.ExitStack() as stack:
        for launcher, both in said.items():
            args = ('tools/train.py', config, '--work-dir', tmp_path / launcher, '--launcher', launcher)
            ranks = [stack.enter_context(door_started(*args, '--local-rank=0', **one)) for one in both]
            assert [rank.wait(100) for rank in ranks] == [0, 0], ranks[0].stderr() + ranks[1].stderr()
    weights = [digests(tmp_path / launcher, rank) for launcher in said for rank in (0, 1)]
    assert len(weights[0]) == 6
    assert weights == weights[:1] * 6


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.skipif(shutil.which('mpirun.openmpi') is None, reason='apt-get install openmpi-bin')
def test_mpirun(tmp_path):
    """Open MPI hands SIGUSR1 on; its exit code is that of the ranks, which have saved one checkpoint."""
    signal = dict(type='SignalRankAt', step=3, signal='SIGUSR1', once=str(tmp_path / 'once'), parent=True)
    config = config_file(tmp_path, CLASSIFY, dict(type='Digest'), signal, **{**SHORT, 'train_cfg.max_iters': 100_000})
    work = tmp_path / 'w'
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])
    command = ['mpirun.openmpi', '--allow-run-as-root', '--oversubscribe', '-np', '2', sys.executable, 'tools/train.py']
    command += [config, '--work-dir', str(work), '--launcher', 'mpi']
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': path}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 75, done.stderr
    (saved,) = work.glob('*.pth')
    assert digests(work) == digests(work, rank=1)
    assert len(digests(work)) == int(saved.stem[5:]) >= 3
    assert done.stdout.count(f'saved as {saved}') == 1
    assert '━' not in done.stdout  # no progress bar, though mpirun gives rank 0 a terminal
