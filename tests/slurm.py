"""A Slurm of our own for tests: munged, slurmctld and two slurmd, as two nodes of this machine, on the loopback.

Debian: apt-get install slurm-wlm munge. What it starts is gone when it ends.
"""

import contextlib
import functools
import getpass
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ranks import free_port

from beit_mm.engine.workers import die_with_parent

NEEDED = ('munged', 'slurmctld', 'slurmd', 'srun', 'sbatch', 'scancel', 'scontrol')
WHERE = f'{os.environ["PATH"]}:/usr/sbin'
# The cluster's name is its own, for jobs of two clusters on one machine may have one number
CONFIG = """
ClusterName=test{ports[0]}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
PlugStackConfig={folder}/plugstack.conf
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
KillWait=10
MpiDefault=none
NodeName=node1 NodeHostname=127.0.0.1 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=cpu Nodes=node1,node2 MaxTime=INFINITE
"""


def missing() -> list[str]:
    """The commands that are not installed here."""
    return [name for name in NEEDED if shutil.which(name, path=WHERE) is None]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find it; its partition is `cpu`."""
    for name in ('state', 'spool'):
        (folder / name).mkdir()
    (folder / 'plugstack.conf').touch()
    key = folder / 'munge.key'
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    config = folder / 'slurm.conf'
    config.write_text(CONFIG.format(ports=[free_port() for _ in range(3)], user=getpass.getuser(), folder=folder))
    environment = {**os.environ, 'SLURM_CONF': str(config), 'PATH': WHERE}
    munge = {name: folder / f'munge.{name}' for name in ('pid', 'log', 'seed')}
    munge_options = [f'--{name}-file={path}' for name, path in {**munge, 'key': key}.items()]
    daemons = [
        ['munged', '--foreground', '--force', f'--socket={folder}/munge.sock', *munge_options],
        ['slurmctld', '-D', '-f', config],
        *(['slurmd', '-D', '-f', config, '-N', node] for node in ('node1', 'node2')),
    ]
    ask = functools.partial(subprocess.run, env=environment, capture_output=True, text=True)
    with contextlib.ExitStack() as started:
        for command in daemons:
            quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
            daemon = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
            started.callback(daemon.wait)
            started.callback(daemon.terminate)
            if command[0] == 'munged':
                _wait_until((folder / 'munge.sock').exists, folder)
        _wait_until(lambda: ask(['sinfo', '-h', '-o', '%T']).stdout.split() == ['idle'], folder)
        try:
            yield environment
        finally:
            ask(['scancel', '--signal=KILL', '--full', '--user', getpass.getuser()])
            _wait_until(lambda: not ask(['squeue', '-h']).stdout.strip(), folder)


def _wait_until(true, folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            logs = '\n'.join(f'{path}:\n{path.read_text()[-1500:]}' for path in folder.glob('*.log'))
            raise TimeoutError(f'Slurm does not answer as it should.\n{logs}')
        time.sleep(0.1)


def of_jobs(environment: dict[str, str], **more: str) -> dict[str, str]:
    """For the scripts in tools/: two processes without GPUs, by this interpreter, which finds what configs import."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])  # injected.py
    ours = dict(GPUS='2', CPUS_PER_TASK='1', OMP_NUM_THREADS='1', PYTHON=sys.executable, PYTHONPATH=path)
    return {**environment, **ours, 'SRUN_ARGS': '--gres=none', 'SBATCH_ARGS': '--gres=none', **more}
