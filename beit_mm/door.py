"""How a tool ends: a mistake in a few lines on stderr and exit code 1, with its traceback in a log file.

Imports nothing heavy, so that a tool can read its arguments before anything else: tools/_door.py.
"""

import argparse
import atexit
import contextlib
import errno
import functools
import json
import logging
import os
import re
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

MOST_LINES, LONGEST_LINE = 10, 600  # of an error, on the terminal; characters
READER_GONE = 141  # exit code, as of a program that SIGPIPE ends
TRACEBACK = '\n(the traceback is in '  # what follows an error that has one
LAUNCHER = 'BEIT_MM_LAUNCHER'  # environment variable: the process that says what went wrong in its children
PATIENCE = 3  # seconds in which whatever started several ranks has ended the others of one that failed
# By launcher: the variable that says which process this is, before there is a group; the same for those of its machine
RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}
LOCAL_RANKS = {'pytorch': 'LOCAL_RANK', 'slurm': 'SLURM_LOCALID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}
LASTING = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
}
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}  # of a training that a signal ended


def door(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a tool's main: a mistake ends in a few lines on stderr and exit code 1, its traceback in a log file."""

    @functools.wraps(main)
    def wrapped() -> None:
        _log_on_without_a_reader()
        if _place(LOCAL_RANKS):  # all have the same arguments: the first says what is wrong with them
            argparse.ArgumentParser._print_message = lambda parser, message, file=None: None
        try:
            main()
            sys.stdout.flush()
            if _is_one_of_several():
                _end(0)
        except KeyboardInterrupt as stopped:
            if code := getattr(stopped, 'exit_code', 0):  # engine/signals.py; it has said what there is to say
                _end(code)
            print('interrupted', file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_is_gone():  # `| head`: there is nobody to tell
                os._exit(READER_GONE)
            with contextlib.suppress(BrokenPipeError):
                mistake = type(error).__module__.startswith('beit_mm') or isinstance(error, OSError)
                place = _write_traceback(traceback.format_exc(), mistake)
                where = f'{TRACEBACK}{place})' if place else ''
                kind = '' if mistake else f'{type(error).__name__}: '
                _tell(error, f'{kind}{shown(error)}{where}')
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(1)  # not sys.exit: data workers that wait for a batch would hold it up

    return wrapped


def _place(variables: dict[str, str]) -> int:
    """Of this process among the ranks of its run, or of its machine; 0 of one that is alone."""
    launcher = re.search(r' --launcher[ =](\w+)', ' '.join(sys.argv))
    return int(os.environ.get(variables.get(launcher[1], ''), 0)) if launcher else 0


def _tell(error: Exception, text: str) -> None:
    """Say what ended this process: of several ranks to what started them, if that listens, so that it is said once.

    Else the first rank says it, and the others only if nothing has ended them a moment later: then it is their own.
    """
    is_consequence = getattr(error, 'of_another_rank', False)
    if os.environ.get(LAUNCHER) == str(os.getppid()) and (place := os.environ.get('TORCHELASTIC_ERROR_FILE')):
        user = type(error).__module__.startswith('beit_mm') and isinstance(error, ValueError)
        lasting = user or (isinstance(error, OSError) and error.errno in LASTING)
        told = dict(message=text, timestamp=int(time.time()), consequence=is_consequence, lasting=lasting)
        with contextlib.suppress(OSError):
            with open(f'{place}.part', 'w') as file:
                json.dump(told, file)
            os.replace(f'{place}.part', place)
            return
    rank = _place(RANKS)
    if rank or is_consequence:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(PATIENCE)
    whose = f'rank {rank}: ' if rank and not text.startswith('rank ') else ''
    print(f'\nerror: {whose}{text}', file=sys.stderr)


def shown(error: Exception) -> str:
    """What the terminal gets of an error: the words of its maker, at most MOST_LINES lines.

    torch brings an error of a data worker as the text of its traceback, whose last lines those words are.
    """
    text = str(error).strip()
    if text.startswith('Caught ') and '\nOriginal Traceback' in text:
        name = text.split(maxsplit=2)[1]
        *_, last = re.split(rf'^(?:[\w.]+\.)?{re.escape(name)}(?:: |$)', text, flags=re.MULTILINE)
        text = last.strip() or name
    lines = [line if len(line) <= LONGEST_LINE else f'{line[:LONGEST_LINE]} ...' for line in text.splitlines()]
    more = [f'... {len(lines) - MOST_LINES} lines more, in the log'] if len(lines) > MOST_LINES else []
    return '\n'.join([*lines[:MOST_LINES], *more])


def _reader_is_gone() -> bool:
    """Whether what reads this process's output has ended; what is printed from here on goes nowhere."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _log_on_without_a_reader() -> None:
    """A training goes on, and into its log file, when what reads its output has ended (`| head`, a lost terminal);
    logging would put a traceback on stderr for every line."""
    report = logging.Handler.handleError

    def handle(handler: logging.Handler, record: logging.LogRecord) -> None:
        if not (isinstance(sys.exception(), BrokenPipeError) and _reader_is_gone()):
            report(handler, record)

    logging.Handler.handleError = handle


def _is_one_of_several() -> bool:
    distributed = sys.modules.get('torch.distributed')
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _end(code: int) -> None:
    """End the process here, tidily: as a rank of several, gloo has threads that may abort it on the usual way out
    ("terminate called without an active exception", torch 2.13), and torchrun then calls the run failed."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)  # torchrun sends one to all ranks as soon as the first has ended
    if _is_one_of_several() and sys.modules['torch.distributed'].get_backend() == 'nccl':
        sys.modules['torch.distributed'].destroy_process_group()
    atexit._run_exitfuncs()  # logs are closed, data workers ended
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _write_traceback(text: str, mistake: bool) -> str:
    """Put a traceback where its reader will look: the run's log file, else a file of its own. A mistake of the user's,
    which its message explains, gets no file of its own: returns ''.
    """
    logs = sys.modules.get('mmengine.logging')
    for logger in logs.MMLogger._instance_dict.values() if logs else ():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                with contextlib.suppress(OSError):  # the disk is full, or the folder gone: that may be the mistake
                    with open(handler.baseFilename, 'a') as file:
                        file.write(text)
                    return handler.baseFilename
    if mistake:
        return ''
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile('w', prefix='beit_mm-', suffix='.log', delete=False) as file:
            file.write(text)
        return file.name
    return ''
