"""torchrun's agent, for people: what ended the ranks is said once, and they are started again only if that may help.

A rank hands what went wrong over as a file (beit_mm/door.py), and prints nothing itself.
"""

import contextlib
import signal
import sys
import time
from datetime import timedelta

from _door import light
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout
from torch.distributed.elastic.utils.distributed import get_free_port

door = light('door')
WRONG_ARGUMENTS = 2  # argparse's exit code
MOST_ERRORS = 3  # that are told, where ranks ended for different reasons
GRACE = 2  # seconds in which those that lost one to talk to end by themselves, before they are asked to


class Cause:
    """Why a rank ended. message: '' where it has said so itself. lasting: it would end so again."""

    def __init__(self, failure: ProcessFailure, by_itself: bool) -> None:
        """by_itself: before it was asked to end because another one had."""
        report = failure.error_file_data
        self.failure, self.hung = failure, not by_itself and failure.exitcode == -signal.SIGKILL
        self.message, self.lasting, self.is_consequence = '', False, not by_itself
        if 'lasting' in report:
            self.message, self.lasting = report['message'], report['lasting']
            self.is_consequence = report['consequence']
        elif failure.exitcode in (WRONG_ARGUMENTS, *door.EXIT_CODES.values()):
            self.lasting = True
        elif failure.exitcode < 0:
            self.message = f'process {failure.pid} was ended by {failure.signal_name()}'
            if failure.exitcode == -signal.SIGKILL:
                self.message += '. Unless somebody did it by hand, memory ran out (dmesg says so)'
            self.message += '; --resume goes on from the last checkpoint'
        else:
            self.message = f'process {failure.pid} ended with exit code {failure.exitcode}, and said no more than this'


class Agent(LocalElasticAgent):
    """Of one machine."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ended = self._ended()
        result = super()._monitor_workers(worker_group)  # asks the others to end, and kills them after 30 s
        if not result.is_failed():
            return result
        causes = {
            rank: Cause(failure, not ended or failure.local_rank in ended)
            for rank, failure in sorted(result.failures.items())
        }
        first = {rank: cause for rank, cause in causes.items() if not cause.is_consequence}
        if not first:  # what began it is on another machine, or hangs: who noticed first says so
            heard = {rank: cause for rank, cause in causes.items() if cause.failure.local_rank in ended}
            first = dict(sorted(heard.items(), key=lambda item: ended.index(item[1].failure.local_rank))[:1])
        tell(first, worker_group.workers[0].world_size)
        for rank, cause in causes.items():
            if cause.hung:
                say(f'rank {rank} (process {cause.failure.pid}) did not end when it was asked to, and was killed')
        if self._remaining_restarts > 0 and any(cause.lasting for cause in first.values()):
            self._remaining_restarts = 0
            say('the ranks are not started again: they would end in the same way')
        elif self._remaining_restarts > 0:
            most = worker_group.spec.max_restarts
            say(f'the ranks are started again ({most - self._remaining_restarts + 1} of MAX_RESTARTS={most})')
        return RunResult(result.state, failures={rank: cause.failure for rank, cause in {**first, **causes}.items()})

    def _ended(self) -> list[int]:
        """Local ranks that have failed by themselves, in that order; the others have a moment to notice."""
        handlers, failed = self._pcontext.subprocess_handlers, []
        deadline = time.monotonic() + GRACE
        while True:
            codes = {rank: handler.proc.poll() for rank, handler in handlers.items()}
            failed += [rank for rank, code in codes.items() if code and rank not in failed]
            if not failed or None not in codes.values() or time.monotonic() > deadline:
                return failed
            time.sleep(0.05)


def tell(causes: dict[int, Cause], ranks: int) -> None:
    """Each message once, by the first rank that has it."""
    messages = {}
    for rank, cause in causes.items():
        said = cause.message.split(door.TRACEBACK)[0]  # the same of all ranks, where each has a log of its own
        messages.setdefault(said, (cause.message, rank))
    messages.pop('', None)
    for message, rank in list(messages.values())[:MOST_ERRORS]:
        own = message.startswith('rank ') or (rank == 0 and not message.startswith('process '))
        say(f'\nerror: {"" if own else f"rank {rank} of {ranks}: "}{message}')
    if len(messages) > MOST_ERRORS:
        say(f'... and other errors of {len(messages) - MOST_ERRORS} ranks more, in their logs')


def say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


class ByNodeRank(DynamicRendezvousHandler):
    """torch's meeting of several machines. Each keeps its NODE_RANK, where torch would sort them by name, and finds the
    first one at the MASTER_ADDR that it was given, not at the name that the first one has for itself."""

    node_rank, master_addr = 0, ''

    def get_backend(self) -> str:
        return 'by_node_rank'

    def next_rendezvous(self) -> RendezvousInfo:
        met = super().next_rendezvous()
        if met.store.add(f'node_rank_{self.node_rank}', 1) > 1:
            raise RendezvousError(f'two machines have NODE_RANK={self.node_rank}')
        if self.node_rank == 0:
            met.store.set('port', str(get_free_port()))
        place = RendezvousStoreInfo(self.master_addr, int(met.store.get('port')))
        return RendezvousInfo(met.store, self.node_rank, met.world_size, place)


def by_node_rank(params: RendezvousParameters) -> RendezvousHandler:
    """Made by --rdzv_backend=by_node_rank, with node_rank, is_host and read_timeout in --rdzv_conf."""
    backend, store = create_backend(params)
    wait = RendezvousTimeout(join=timedelta(seconds=params.get_as_int('read_timeout')))
    handler = ByNodeRank.from_backend(params.run_id, store, backend, params.min_nodes, params.max_nodes, timeout=wait)
    handler.node_rank, handler.master_addr = params.get_as_int('node_rank'), params.endpoint.rpartition(':')[0]
    return handler
