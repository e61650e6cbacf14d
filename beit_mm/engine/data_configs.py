"""YAML and JSON configs: data, which may name what is registered, and nothing that runs code of its own.

A Python config is a program, and is run as one: see SECURITY.md.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import mmengine
from mmengine import registry as root
from mmengine.registry import Registry

from ..closed import WAY_OUT, DataFileError
from .errors import ConfigError

PACKAGES = ('beit_mm', 'mmengine', 'mmcv', 'mmpretrain', 'mmseg', 'mmdet')
NAMES = ('type', 'constructor')  # keys whose value is looked up in a registry, and then called


def check_mapping(path: Path) -> None:
    """Raise ConfigError where a YAML or JSON config is not valid, or is no mapping."""
    try:
        content = mmengine.load(str(path))
    except DataFileError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: holds a {type(content).__name__}, and a config is a mapping of names to values')


def check_names(config: dict, path: Path) -> None:
    """Import what a config of data says, and raise ConfigError for modules of others, and for types that are not
    registered: mmengine calls any function of any module whose full name is given as a type.
    """
    imports = config.get('custom_imports') or {}
    names = imports.get('imports') if isinstance(imports, dict) else imports
    for name in names if isinstance(names, (list, tuple)) else [names] if names else []:
        if str(name).partition('.')[0] not in PACKAGES:
            raise ConfigError(
                f'{path}: custom_imports runs what it imports, {name!r}, and a config of data may import from '
                f'{", ".join(PACKAGES)} only. {WAY_OUT}'
            )
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(f'{path}: custom_imports: {name!r} cannot be imported: {error}') from error
    for where, name in _names(config):
        if '.' in name and not _registered(name):
            raise ConfigError(
                f'{path}: {where}={name!r} is not registered, and a config of data may name nothing else. {WAY_OUT}'
            )


def _names(node, where: str = '') -> Iterator[tuple[str, str]]:
    """(dotted path, value) of all that names a type."""
    if isinstance(node, dict):
        for key, value in node.items():
            below = f'{where}.{key}' if where else str(key)
            if key in NAMES and isinstance(value, str):
                yield below, value
            yield from _names(value, below)
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _names(value, f'{where}[{i}]')


def _registered(name: str) -> bool:
    scope, _, bare = name.partition('.')
    for registry in (value for value in vars(root).values() if isinstance(value, Registry)):
        owner = registry if scope == registry.scope else registry.children.get(scope)
        if owner is not None:
            owner.import_from_location()
            if bare in owner.module_dict:
                return True
    return False
