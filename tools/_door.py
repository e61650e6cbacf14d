"""What a door needs before its arguments are read: modules of beit_mm that import nothing heavy, taken by their files.

Importing the package imports torch and OpenMMLab, which takes seconds; --help and a wrong argument need neither. So a
door reads its arguments first, with what is here, and imports the package after that, inside of `main`.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

found = importlib.util.find_spec('beit_mm')  # not imported
if found is None:
    sys.exit(f'beit_mm is not installed for {sys.executable}: see README.md, or take the interpreter that has it')
PACKAGE = Path(found.origin).parent


def light(name: str) -> ModuleType:
    """A module of constants, such as `checkpoints/formats`, without the package around it."""
    spec = importlib.util.spec_from_file_location(f'beit_mm_light.{name.replace("/", ".")}', PACKAGE / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


door = light('door').door
