"""torchrun, which ends as the ranks ended: dist_train.sh and dist_test.sh start it.

    python tools/_torchrun.py --nproc_per_node=2 tools/train.py CONFIG --launcher pytorch

torchrun's own options, with two defaults of ours: SIGUSR1 reaches the ranks too, and ranks that were asked to end have
five minutes to save. Its exit code is 1 whatever happened; here it is 143, 130 or 75 if a signal ended the run (see
docs/reliability.md), and otherwise that of the rank that failed first.
"""

import logging
import os
import sys

from _door import light
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

EXIT_CODES = light('door').EXIT_CODES
DEFAULTS = {
    'PET_SIGNALS_TO_HANDLE': 'SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1',
    'PET_SHUTDOWN_TIMEOUT': '300',  # seconds
    # or ranks that are started again find the addresses of those before them (torch 2.13)
    'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1',
    'OMP_NUM_THREADS': '1',  # as torchrun has it, without six lines about it
}
NOISE = {  # by logger of torch: of each rank that is asked to end; what the ranks say themselves is clearer
    'torch.distributed.elastic.multiprocessing.api': 'Sending process',
    'torch.distributed.elastic.agent.server.api': 'Received',
}


def main() -> int:
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name, start in NOISE.items():
        logging.getLogger(name).addFilter(lambda record, start=start: not record.getMessage().startswith(start))
    try:
        run(parse_args(sys.argv[1:]))
    except SignalException as stopped:
        code = EXIT_CODES.get(stopped.sigval, 128 + stopped.sigval)
        print(f'{stopped.sigval.name}: the ranks were asked to end, and have ended; exit code {code}', file=sys.stderr)
        return code
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f'rank {rank} (process {failure.pid}) ended first, with exit code {code}', file=sys.stderr)
        return code
    return 0


if __name__ == '__main__':
    sys.exit(main())
