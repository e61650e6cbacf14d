"""What `tools/analyze.py` shows, one question per file: each takes what the user named and returns text to print."""

from pathlib import Path

from mmengine.logging import MMLogger

from ...engine.configs import load_config, parse_overrides
from ...engine.launch import terse_terminal


class AnalysisError(ValueError):
    """Something to look at that is not there, or a file that it cannot be written to; the message names it."""


def run(command: str, options: dict) -> str:
    """What a command of `tools/analyze.py` prints. options: its arguments, by name."""
    from . import browse, confusion, flops, schedule, training

    terse_terminal()
    if command == 'curves':
        return training.show(**options)
    overrides = parse_overrides(options.pop('cfg_options', None))
    name = options.pop('source' if command == 'per-class' else 'config')
    if command == 'per-class':
        return confusion.per_class(Path(name) if name.endswith('.json') else load_config(name, overrides), **options)
    config = load_config(name, overrides)
    if command == 'confusion':
        return confusion.show(config, **options)
    MMLogger.get_instance('analysis', log_level='WARNING')  # what models and data say while they are built
    return {'flops': flops, 'browse': browse, 'schedule': schedule}[command].show(config, **options)
