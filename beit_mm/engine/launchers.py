"""Which of several processes this is, and where they meet: what torchrun, Slurm or MPI say, in torchrun's variables.

From there on there is one way: mmengine's launcher `pytorch`, with NCCL, or gloo where there is no CUDA. Its own for
Slurm calls `scontrol`, which containers lack, and takes the job's first node for that of the first process; its own for
MPI knows Open MPI only; both meet at port 29500, whoever else does.
"""

import errno
import os
import re
import socket
import zlib
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed

from .errors import ConfigError

PORTS = range(20_000, 30_000)  # below those that Linux gives out by itself (32768 and up)
DEFAULT_PORT = 29_500  # torch's
OF_A_JOB = ('PMIX_NAMESPACE', 'SLURM_CLUSTER_NAME', 'SLURM_JOB_ID', 'SLURM_STEP_ID')  # together of one mpirun or srun


class Variables(NamedTuple):
    """Names of environment variables: which process this is, of how many, and which of its node."""

    rank: str
    count: str
    local_rank: str


TORCHRUN = Variables('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
SET_BY = {  # by launcher
    'pytorch': (TORCHRUN,),
    'slurm': (Variables('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS', 'SLURM_LOCALID'),),  # of srun, not of the job
    'mpi': (
        Variables('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),  # Open MPI
        Variables('PMI_RANK', 'PMI_SIZE', 'MPI_LOCALRANKID'),  # MPICH, Intel MPI
    ),
}
ON_THIS_NODE = {'OMPI_COMM_WORLD_SIZE': 'OMPI_COMM_WORLD_LOCAL_SIZE', 'PMI_SIZE': 'MPI_LOCALNRANKS'}
STARTED_BY = {  # by launcher
    'pytorch': 'torchrun --nproc_per_node=N tools/train.py ...',
    'slurm': 'srun python tools/train.py ...',
    'mpi': 'mpirun -np N python tools/train.py ...',
}


def find_ranks(launcher: str, config: Config) -> str:
    """Set torchrun's variables to what a launcher says; returns the launcher that mmengine is to be told of.

    MASTER_ADDR and MASTER_PORT that are set stay. Raises ConfigError where the launcher did not start this process, and
    where the processes could not meet.
    """
    if launcher == 'none':
        return launcher
    names = variables_of(launcher)
    if names == TORCHRUN or is_distributed():  # they have met
        return 'pytorch'
    rank, count, local_rank = (int(os.environ[name]) for name in names)
    address = os.environ.get('MASTER_ADDR') or first_node(launcher, names)
    port = port_of(config)
    check_address(address, count)
    if rank == 0:
        check_port(port)
    where = dict(MASTER_ADDR=address, MASTER_PORT=port)
    os.environ |= {name: str(value) for name, value in where.items()}
    os.environ |= dict(zip(TORCHRUN, (str(rank), str(count), str(device_of(local_rank)))))
    return 'pytorch'


def variables_of(launcher: str) -> Variables:
    """The variables that are set here; raises ConfigError where they are not all."""
    known = SET_BY.get(launcher)
    if known is None:
        raise ConfigError(f'launcher {launcher!r} is none of: none, {", ".join(SET_BY)}')
    found = next((names for names in known if all(name in os.environ for name in names)), None)
    if found is None:
        near = next((names for names in known if names.rank in os.environ), known[0])
        missing = next(name for name in near if name not in os.environ)
        raise ConfigError(
            f'--launcher {launcher}: {missing} is not set, as it is in processes started by: {STARTED_BY[launcher]}'
        )
    return found


def first_node(launcher: str, names: Variables) -> str:
    """Where the first process is. On one node that is where all are, whatever its name resolves to."""
    if launcher == 'slurm':
        nodes = os.environ.get('SLURM_STEP_NODELIST', '')
        return first_of(nodes) if os.environ.get('SLURM_STEP_NUM_NODES', '1') != '1' else '127.0.0.1'
    if os.environ.get(ON_THIS_NODE[names.count]) == os.environ[names.count]:
        return '127.0.0.1'
    raise ConfigError(
        '--launcher mpi on several nodes: MASTER_ADDR is not set, and MPI does not say where its first process is. '
        'Give all processes the address of that node: mpirun -x MASTER_ADDR=10.0.0.1 (Open MPI), or '
        'mpiexec -genv MASTER_ADDR 10.0.0.1 (MPICH)'
    )


def first_of(nodes: str) -> str:
    """The first name of a list as Slurm writes them: 'gpu[007-009,12],cpu1' -> 'gpu007'."""
    return re.sub(r'\[(\w+)[^]]*\]', r'\1', nodes).partition(',')[0]


def port_of(config: Config) -> int:
    """MASTER_PORT; or `env_cfg.dist_cfg.port`, which mmengine reads under Slurm; or one that goes with the job, so that
    two jobs on a node do not meet; or torch's default, for an MPI that does not name its jobs."""
    wish = ((config.get('env_cfg') or {}).get('dist_cfg') or {}).pop('port', None)
    if given := os.environ.get('MASTER_PORT') or wish:
        return int(given)
    job = [os.environ[name] for name in OF_A_JOB if name in os.environ]
    return PORTS[zlib.crc32(' '.join(job).encode()) % len(PORTS)] if job else DEFAULT_PORT


def check_address(address: str, count: int) -> None:
    """Raise ConfigError for a name that this node does not know: torch would try for minutes."""
    if count == 1:
        return
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise ConfigError(
            f'{address}: the address of the node that the first process is on cannot be found from '
            f'{socket.gethostname()} ({error.strerror}). Set another one: MASTER_ADDR=10.0.0.1'
        ) from error


def check_port(port: int) -> None:
    """Raise ConfigError, on the node of the first process, for a port that is in use."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(('', port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConfigError(
                f'port {port} of {socket.gethostname()}, where the processes were to meet, is in use. Set another one: '
                f'MASTER_PORT=N'
            ) from error


def device_of(local_rank: int) -> int:
    """The CUDA device of the node's n-th process: its n-th; or the only one that it sees, where Slurm gave each process
    its own (--gpus-per-task). Raises ConfigError for more processes than devices."""
    seen = torch.cuda.device_count()
    if seen == 1:
        return 0
    if 0 < seen <= local_rank:
        raise ConfigError(
            f'process {local_rank + 1} of {socket.gethostname()} sees {seen} GPUs: one is needed for each process of a '
            f'node (GPUS_PER_NODE, --ntasks-per-node, --gres)'
        )
    return local_rank
