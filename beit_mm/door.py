"""How a tool ends: a mistake in a few lines on stderr and exit code 1, with its traceback in a log file.

Imports nothing heavy, so that a tool can read its arguments before anything else: tools/_door.py.
"""

import atexit
import contextlib
import functools
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

MOST_LINES = 10  # of an error, on the terminal


def door(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a tool's main: a mistake ends in a few lines on stderr and exit code 1, its traceback in a log file."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
            _end_as_one_of_several()
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            with contextlib.suppress(BrokenPipeError):
                mistake = type(error).__module__.startswith('beit_mm') or isinstance(error, OSError)
                place = _write_traceback(traceback.format_exc(), mistake)
                kind = '' if mistake else f'{type(error).__name__}: '
                lines = str(error).strip().splitlines()
                more = [f'... {len(lines) - MOST_LINES} lines more, in the log'] if len(lines) > MOST_LINES else []
                message = '\n'.join([*lines[:MOST_LINES], *more])
                where = f'\n(the traceback is in {place})' if place else ''
                print(f'\nerror: {kind}{message}{where}', file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # not sys.exit: data workers that wait for a batch would hold it up

    return wrapped


def _end_as_one_of_several() -> None:
    """Where it is a rank of several, the process ends here, tidily: gloo has threads that may abort it on the usual way
    out ("terminate called without an active exception", torch 2.13), and torchrun then calls the run failed."""
    distributed = sys.modules.get('torch.distributed')
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    if distributed.get_backend() == 'nccl':
        distributed.destroy_process_group()
    atexit._run_exitfuncs()  # logs are closed, data workers ended
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _write_traceback(text: str, mistake: bool) -> str:
    """Put a traceback where its reader will look: the run's log file, else a file of its own. A mistake of the user's,
    which its message explains, gets no file of its own: returns ''.
    """
    logs = sys.modules.get('mmengine.logging')
    for logger in logs.MMLogger._instance_dict.values() if logs else ():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                with open(handler.baseFilename, 'a') as file:
                    file.write(text)
                return handler.baseFilename
    if mistake:
        return ''
    with tempfile.NamedTemporaryFile('w', prefix='beit_mm-', suffix='.log', delete=False) as file:
        file.write(text)
    return file.name
