"""Data workers: signals are the main process's, none outlives it, and what goes wrong in one is said in plain words."""

import atexit
import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from mmengine.config import Config
from mmengine.dataset import worker_init_fn as mmengine_worker_init
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import FUNCTIONS
from torch.utils.data import DataLoader

from ..door import EXIT_CODES, LAUNCHER

TIMEOUT = 600  # seconds that a batch may take, and a collective, before the run ends with an error
PR_SET_PDEATHSIG = 1
SET_IN_RANKS = {'TORCHELASTIC_RUN_ID', 'SLURM_STEP_ID', 'OMPI_COMM_WORLD_RANK', 'PMI_RANK'}  # by torchrun, Slurm, MPI


class WorkerError(RuntimeError):
    """A data worker died or hangs; the message says which, why that happens, and what to do."""


class RankError(RuntimeError):
    """Another rank ended, hangs, or has an error of which all are to hear."""

    of_another_rank = True  # door.py


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Linux sends this signal when the process that started this one is gone, however it went."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def end_with_launcher() -> None:
    """Ask a rank to end when what started it is gone, kill -9 included; a training saves and ends.

    Linux sends the signal as often as the starter had threads: SIGUSR1, of which several mean no more than one.
    """
    if SET_IN_RANKS & os.environ.keys():
        die_with_parent(signal.SIGUSR1)
        if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):  # it is gone already
            os.kill(os.getpid(), signal.SIGUSR1)


def _begin(worker: int, init: Callable[[int], None] | None) -> None:
    """What a data worker does first.

    Signals to the whole group (Ctrl-C, Slurm, Kubernetes) are for the main process to deal with: workers that died of
    them would take it along before it could save.
    """
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
    if isinstance(threading.current_thread(), threading._MainThread):
        die_with_parent()  # Linux means the thread that forked; torch looks every 5 s whether the process is there
    if init is not None:
        init(worker)


def with_safe_workers(dataloader: dict, seed: int | None = None) -> dict:
    """A data loader's config whose workers leave signals alone, end with the main process and may not hang for ever.

    seed: as for `Runner.build_dataloader`. The config's own `worker_init_fn` and `timeout` stay in effect.
    """
    wanted = dict(dataloader)
    count = wanted.get('num_workers', 0)
    if not count:  # what only workers have, and torch refuses without them
        left_out = ('timeout', 'persistent_workers', 'prefetch_factor')
        return {key: value for key, value in wanted.items() if key not in left_out}
    wanted.setdefault('timeout', TIMEOUT)
    init = wanted.pop('worker_init_fn', None)
    silent = wanted.pop('disable_subprocess_warning', False)
    if init is not None:
        init = dict(init)
        kind = init.pop('type')
        init = functools.partial(FUNCTIONS.get(kind) if isinstance(kind, str) else kind, **init)
    elif seed is not None:
        options = dict(num_workers=count, rank=get_rank(), seed=seed, disable_subprocess_warning=silent)
        init = functools.partial(mmengine_worker_init, **options)
    wanted['worker_init_fn'] = dict(type=_begin, init=init)
    return wanted


class WatchedDataLoader(DataLoader):
    """A DataLoader whose `timeout` covers all of a batch's way. torch's is for the queue alone: a batch that is in it
    may lie in memory that a worker, stopped since, has yet to hand over, and that wait has no end."""

    def __iter__(self) -> Iterator:
        batches = super().__iter__()
        while True:
            with _at_most(self.timeout):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except (OSError, EOFError) as error:
                    if 'in DataLoader worker' in str(error) or not (dead := _dead(batches)):
                        raise
                    raise WorkerError(was_killed(*dead)) from error
            yield batch


def _dead(batches: Iterator) -> tuple[str, str] | None:
    """Of the workers of a loader's iterator one that has ended, as its process id and the signal that ended it."""
    workers = getattr(batches, '_workers', ())
    ended = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=5)  # it may be dying yet
    for worker in workers:
        if worker.sentinel in ended:
            worker.join(5)  # its files are closed a moment before its exit code is to be had
    worker = next((worker for worker in workers if worker.exitcode), None)
    if worker is None:
        return None
    return str(worker.pid), signal.strsignal(-worker.exitcode) if worker.exitcode < 0 else ''


def watched(loader: DataLoader) -> DataLoader:
    """The same loader, as a WatchedDataLoader."""
    if type(loader) is DataLoader and loader.num_workers:
        loader.__class__ = WatchedDataLoader
    return loader


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Raise WorkerError when that takes longer; where the alarm clock is in use already, or in a thread, do nothing."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not seconds or not in_main_thread or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def ring(number: int, frame) -> None:
        raise WorkerError(no_batch_for(seconds))

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again and again: what a destructor raises is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


def was_killed(process: str, by: str) -> str:
    by_signal = f' by signal: {by}' if by else ''
    why, more = 'the usual reason is that memory ran out', 'more memory'
    if by == 'Bus error':
        why, more = 'shared memory (/dev/shm) is full', 'more shared memory (docker run --shm-size=8g)'
    return (
        f'data worker {process} was killed{by_signal}. Unless somebody did it by hand, {why}: take fewer workers '
        f'(num_workers of the data loader), smaller batches or {more}; --resume goes on from the last checkpoint'
    )


def no_batch_for(seconds: float) -> str:
    return (
        f'no batch came from the data workers for {seconds:g} s: the disk or the network that the data are on may '
        f'hang. To wait longer: timeout=SECONDS of the data loader; --resume goes on from the last checkpoint'
    )


@contextlib.contextmanager
def lost_workers_later() -> Iterator[None]:
    """That a data worker was lost, which torch raises wherever the process is, is raised at the end: in the middle of
    what ranks tell each other, this one would take the answers to one question for those to another."""
    raises = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or not callable(raises):
        yield
        return
    ended: list[tuple] = []
    signal.signal(signal.SIGCHLD, lambda *told: ended.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, raises)
    if ended:
        raises(*ended[-1])


def limit_collectives(config: Config) -> None:
    """Where a config does not say how many seconds ranks wait for each other, they wait TIMEOUT: torch's half an hour
    is long for a rank that hangs."""
    ranks = config.setdefault('env_cfg', {}).setdefault('dist_cfg', dict(backend='nccl'))
    ranks.setdefault('timeout', TIMEOUT)


@atexit.register  # after multiprocessing's, so that it is called before: that one would wait for them
def end_workers() -> None:
    """Kill the daemonic children, as data workers are: SIGTERM, which multiprocessing sends them, they ignore."""
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if children and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would complain that they are killed
    for child in children:
        child.kill()


KILLED = re.compile(
    r'DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: ([\w ]+)|exited unexpectedly)'
)
TIMED_OUT = re.compile(r'DataLoader timed out after ([\d.]+) seconds')
OF_RANKS = re.compile(r'\bgloo\b|\bNCCL\b')
RANK_TIMED_OUT = re.compile(r'Timed out waiting (\d+)ms')


def in_plain_words(error: Exception) -> Exception | None:
    """The error to show instead of torch's, for workers and ranks that are gone or hang; None for all others."""
    text = str(error)
    if killed := KILLED.search(text):
        return WorkerError(was_killed(killed[1].strip(), killed[2] or ''))
    if timed_out := TIMED_OUT.search(text):
        return WorkerError(no_batch_for(float(timed_out[1])))
    if get_world_size() > 1 and isinstance(error, RuntimeError) and OF_RANKS.search(text):
        this = f'rank {get_rank()} of {get_world_size()}'
        if late := RANK_TIMED_OUT.search(text):
            return RankError(
                f'{this}: another rank has not answered for {int(late[1]) / 1000:g} s: it hangs, or needs longer than '
                f'env_cfg.dist_cfg.timeout; --resume goes on from the last checkpoint'
            )
        reason = re.sub(r'^\[\S+\] ', '', text.splitlines()[0]).partition('. ')[0]  # without gloo's place in its source
        return RankError(
            f'{this}: another rank has ended, or cannot be reached: it says why in its own output '
            f'({reason[:160]}); --resume goes on from the last checkpoint'
        )
    return None


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Around a training or an evaluation: a worker or a rank that is gone or hangs is told of in plain words."""
    try:
        yield
    except Exception as error:
        plain = in_plain_words(error)
        if plain is None:
            raise
        raise plain from error
