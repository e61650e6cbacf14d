"""torchrun, for people: dist_train.sh and dist_test.sh start it.

    python tools/_torchrun.py --nproc_per_node=2 tools/train.py CONFIG --launcher pytorch

torchrun's own options, with defaults of ours, and an agent (_agent.py) that says once what went wrong. Its exit code is
1 whatever happened; here it is 143, 130 or 75 if a signal ended the run (see docs/reliability.md), and otherwise that
of the rank that failed first.
"""

import logging
import os
import sys
import tempfile

from _door import light

door = light('door')
DEFAULTS = {
    'PET_SIGNALS_TO_HANDLE': 'SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1',  # SIGUSR1 reaches the ranks too
    'PET_SHUTDOWN_TIMEOUT': '300',  # seconds that ranks which were asked to end have to save
    # or ranks that are started again find the addresses of those before them (torch 2.13)
    'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1',
    'OMP_NUM_THREADS': '1',  # as torchrun has it, without six lines about it
}
NOISE = {  # by logger of torch: of ranks that end; what they say themselves, and what the agent says, is clearer
    'torch.distributed.elastic.multiprocessing.api': ('Sending process', 'failed (exitcode', 'Unable to shutdown'),
    'torch.distributed.elastic.agent.server.api': ('Received',),
}
CPP_LOG = 'TORCH_CPP_LOG_LEVEL'


def main() -> int:
    os.environ.update({name: os.environ.get(name, value) for name, value in DEFAULTS.items()})
    os.environ[door.LAUNCHER] = str(os.getpid())
    wish = os.environ.setdefault(CPP_LOG, 'FATAL')  # stack traces of sockets that cannot connect
    from _agent import Agent, by_node_rank, say
    from torch import cuda
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError, rendezvous_handler_registry
    from torch.distributed.launcher import api
    from torch.distributed.run import parse_args, run

    if wish == 'FATAL':
        del os.environ[CPP_LOG]  # the ranks speak as ever
    for name, starts in NOISE.items():
        logging.getLogger(name).addFilter(lambda record, starts=starts: not record.getMessage().startswith(starts))
    args = parse_args(sys.argv[1:])
    count = cuda.device_count()
    if count and args.nproc_per_node.isdigit() and int(args.nproc_per_node) > count:
        say(f'error: GPUS={args.nproc_per_node}: there are {count} here (CUDA_VISIBLE_DEVICES can hide some)')
        return 2
    api.LocalElasticAgent = Agent
    rendezvous_handler_registry.register('by_node_rank', by_node_rank)
    if args.rdzv_backend == 'by_node_rank':
        say(f'{args.nnodes} machines meet at {args.rdzv_endpoint}')
    try:
        with tempfile.TemporaryDirectory(prefix='beit_mm-ranks-') as folder:
            args.log_dir = args.log_dir or folder
            run(args)
    except SignalException as stopped:
        code = door.EXIT_CODES.get(stopped.sigval, 128 + stopped.sigval)
        say(f'{stopped.sigval.name}: the ranks were asked to end, and have ended; exit code {code}')
        return code
    except ChildFailedError as failed:
        failure = next(iter(failed.failures.values()))  # the agent has put what caused it first
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except RendezvousClosedError:
        say('\nerror: the ranks of another machine have ended for good, and say why there')
        return 1
    except (RendezvousError, DistError) as error:
        reason = str(error.__cause__ or error).splitlines() or ['not all came in time']
        say(f'\nerror: {args.nnodes} machines have not met at {args.rdzv_endpoint}: {reason[0][:200]}')
        say('Each needs its own NODE_RANK from 0 on, and all the same NNODES, MASTER_ADDR and PORT')
        return 1
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # torchrun handles signals from the start of the ranks on
        print('interrupted', file=sys.stderr)
        sys.exit(130)
