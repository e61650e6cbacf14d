"""From which checkpoint a run starts or goes on, decided before anything is built."""

import logging
import random
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoints.load import CheckpointError, read, trust
from ..checkpoints.store import newest_verified, training_checkpoints, verify
from .errors import ConfigError
from .work_dir import checkpoint_folder, first_rank


def choose_start(
    config: Config,
    resume: bool | str | None = None,
    load_from: str | None = None,
    seed: int | None = None,
    trust_checkpoint: bool = False,
) -> None:
    """Set the config's `load_from`, `resume` and `randomness.seed`, and read what the run starts from.

    resume: True goes on from the newest checkpoint of the work_dir, and there must be one; 'auto' starts at step 0 if
    there is none; else a file. seed: of the command line; a resumed run keeps its own.
    """
    if load_from:
        config.load_from = load_from
    if not resume and not load_from and config.get('resume'):  # as in mmengine
        resume = config.get('load_from') or 'auto'
    found = _to_resume(config, resume) if resume else None
    config.resume = found is not None
    if found is not None:
        config.load_from = str(found)
    if trust_checkpoint and not config.get('load_from'):
        raise ConfigError('--trust-checkpoint trusts the file of --load-from or --resume FILE, and there is none')
    if trust_checkpoint:
        trust(config.load_from)
    content = {}
    if config.get('load_from'):  # errors of reading belong before the model is built
        if resume not in (True, 'auto'):
            verify(Path(config.load_from))
        content = read(config.load_from, map_location='cpu', lazy=True)
    _choose_seed(config, seed, content if config.resume else {})


def _to_resume(config: Config, resume: bool | str) -> Path | str | None:
    """The checkpoint to go on from, whole; None to start at step 0."""
    if resume not in (True, 'auto'):
        return resume
    folder = checkpoint_folder(config)
    found = newest_verified(folder, quiet=not first_rank(config.get('launcher', 'none')))
    if found is not None:
        return found
    names = training_checkpoints(folder)
    if names:
        raise CheckpointError(
            f'{folder}: no run can go on from any of the checkpoints there ({", ".join(names[:4])}'
            f'{", ..." if len(names) > 4 else ""}); the warnings say why. To start at step 0: another --work-dir'
        )
    if resume is True:
        raise CheckpointError(
            f'{folder}: there is no checkpoint to resume from. To start at step 0 if there is none: --resume auto'
        )
    if first_rank(config.get('launcher', 'none')):
        print(f'{folder}: no checkpoint to resume from; starting at step 0', flush=True)
    return None


def _choose_seed(config: Config, seed: int | None, resumed: dict) -> None:
    config.setdefault('randomness', {})
    given = config.randomness.get('seed') if seed is None else seed
    meta = resumed.get('meta')
    own = meta.get('seed') if isinstance(meta, dict) else None
    if given is not None and own is not None and given != own:
        print_log(
            f'seed {given} was asked for, and the run that goes on has seed {own}, which it keeps: with another it '
            f'would be another run. For that, give a new --work-dir',
            logger='current',
            level=logging.WARNING,
        )
    if own is not None:
        config.randomness['seed'] = own
    elif given is not None:
        config.randomness['seed'] = given
    else:
        config.randomness['seed'] = random.SystemRandom().randrange(2**31)
