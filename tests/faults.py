"""Small trainings through `tools/train.py`, for the tests of what goes wrong: configs as files, faults as hooks.

A fault is injected at a step, never at a time: a hook of tests/injected.py, which the config imports.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import injected  # noqa: F401  (registers)
from tiny import tiny


def config_file(folder: Path, kind: str, *hooks: dict, imports: Sequence[str] = (), **options) -> str:
    """A tiny version of a miniature config (tiny.CLASSIFY, SEGMENT, PRETRAIN) as a file; options: `--cfg-options`,
    hooks: of tests/injected.py, such as dict(type='SignalAt', step=3, signal='SIGTERM'); imports: modules beside it."""
    config = tiny(kind, **copy.deepcopy(options))  # merging takes `_delete_` out
    config.custom_imports = dict(imports=['injected', *imports], allow_failed_imports=False)
    config.custom_hooks = [*config.get('custom_hooks', ()), *hooks]
    path = Path(folder) / f'{Path(kind).stem}.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    config.dump(path)
    return str(path)
