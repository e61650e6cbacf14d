"""The doors of OpenMMLab through which a file could run code, closed: checkpoints and the text in them, annotation
files, data sets that are pickles, archives.

Each public function without arguments is a workaround of compat.py. What is promised: SECURITY.md.
"""

import ast
import importlib.abc
import importlib.util
import io
import pickle
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

DATA_CONFIGS = ('.yaml', '.yml', '.json')
WAY_OUT = 'What needs more is written as a Python config, which is a program'
DEEPEST = 200  # values inside of each other in a YAML file
MOST_NODES = 10_000_000  # of a YAML file with its aliases written out; ImageNet's annotations have fewer


class DataFileError(ValueError):
    """A file of data that asks for code to be run, or that is damaged. `reason` is the message without the name."""

    def __init__(self, reason: str, name: str = '') -> None:
        super().__init__(f'{name}: {reason}' if name else reason)
        self.reason = reason


# Checkpoints


class _ClosedTorch:
    """torch, whose `load` reads weights and runs nothing."""

    def __getattr__(self, name: str):
        import torch

        return getattr(torch, name)

    def load(self, file, map_location=None, **_):
        from .checkpoints.load import content_of, unpickle

        named = isinstance(file, (str, Path))
        return without_program(content_of(file, map_location) if named else unpickle(file, map_location))


def without_program(checkpoint):
    """A checkpoint less `meta.config`: the text of a config, which mmengine executes as Python on resuming."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)
    return checkpoint


def load_from_weights_only(filename: str, map_location=None) -> dict:
    """The loader of `checkpoints_read_closed`; mmengine says "by ... backend" with what follows `load_from_` here."""
    from .checkpoints.load import read

    return without_program(read(filename, map_location))


def checkpoints_read_closed() -> str:
    """mmengine opens checkpoints by torch.load's default, which since torch 2.6 refuses mmengine's own files, and which
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD turns into running whatever they hold; and resuming executes the text in
    `meta.config`. Ours is always weights_only, and that text is left out before anything sees it.
    """
    from mmengine.runner import checkpoint
    from mmengine.runner.checkpoint import CheckpointLoader
    from mmengine.utils import dl_utils

    loader = load_from_weights_only
    if CheckpointLoader._schemes.get('') is loader:
        return ''
    CheckpointLoader.register_scheme(prefixes=('', 'http://', 'https://'), loader=loader, force=True)
    checkpoint.load_from_http = loader  # for torchvision://, mmcls:// and the like, which look an address up
    checkpoint.torch = _ClosedTorch()  # openmmlab:// and s3:// open files by torch.load
    checkpoint.load_url = dl_utils.load_url = loader  # torch.hub's, which does not say weights_only
    return 'checkpoints are read with weights_only=True, and no text in them is executed'


def literal_config(text: str) -> dict:
    """The values of a config that is text in a checkpoint: assignments of literals and `dict(key=literal, ...)`, as
    mmengine prints a config. Nothing is executed. Raises DataFileError for anything else.
    """
    values: dict = {}
    try:
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
                raise ValueError(f'line {statement.lineno} is no assignment')
            values[statement.targets[0].id] = ast.literal_eval(_AsLiteral().visit(statement.value))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise DataFileError(f'the config in it is no list of plain values ({reason}), and is not executed') from error
    return values


class _AsLiteral(ast.NodeTransformer):
    """`dict(a=1)` and `dict({'a': 1})` as `{'a': 1}`, which ast.literal_eval takes; it refuses every other call."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        plain = isinstance(node.func, ast.Name) and node.func.id == 'dict' and not (node.args and node.keywords)
        if plain and len(node.args) == 1 and isinstance(node.args[0], ast.Dict):
            return node.args[0]  # dict({...}): of keys that are no identifiers
        if not plain or node.args or any(keyword.arg is None for keyword in node.keywords):
            return node
        return ast.Dict([ast.Constant(k.arg) for k in node.keywords], [k.value for k in node.keywords])


class _LiteralConfig:
    """mmengine's Config, for the module that takes one from a checkpoint and would execute it."""

    def __getattr__(self, name: str):
        from mmengine.config import Config

        return getattr(Config, name)

    def __call__(self, *args, **kwargs):
        from mmengine.config import Config

        return Config(*args, **kwargs)

    @staticmethod
    def fromstring(text: str, file_format: str = '.py'):
        from mmengine.config import Config

        return Config(literal_config(text))


# Annotation files


def annotation_files_are_data() -> str:
    """mmengine.load unpickles .pkl, and its YAML loader makes any Python object that a file asks for."""
    import mmengine.fileio
    from mmengine.fileio.handlers import pickle_handler, yaml_handler

    original = mmengine.fileio.load
    if getattr(original, 'closed', False):
        return ''
    yaml_handler.YamlHandler.load_from_fileobj = lambda self, file, **options: _read_yaml(file)
    pickle_handler.PickleHandler.load_from_fileobj = _refuse_pickle

    def load(file, *args, **kwargs):
        try:
            return original(file, *args, **kwargs)
        except (ValueError, RecursionError) as error:  # a JSONDecodeError is a ValueError
            name = str(file) if isinstance(file, (str, Path)) else ''
            reason = getattr(error, 'reason', None)
            raise DataFileError(reason if isinstance(reason, str) else str(error), name) from error

    load.__doc__, load.closed = original.__doc__, True
    for module in [m for name, m in sys.modules.items() if name.partition('.')[0] in ('mmengine', 'mmcv')]:
        for name in ('load', 'load_file'):
            if vars(module).get(name) is original:
                setattr(module, name, load)
    return 'annotation files and YAML configs are read as data; pickles are refused'


def _read_yaml(file):
    import yaml

    class PlainLoader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
        """Plain values, and tuples, which mmengine writes into configs as !!python/tuple."""

    PlainLoader.add_constructor(
        'tag:yaml.org,2002:python/tuple', lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
    )
    try:
        text, depth = file.read(), 0
        for event in yaml.parse(text, PlainLoader):  # libyaml's own recursion has no end but that of the stack
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise DataFileError(
                    f'line {event.start_mark.line + 1}: more than {DEEPEST} values inside of each other'
                )
        content = yaml.load(text, PlainLoader)
    except yaml.constructor.ConstructorError as error:
        line = f'line {error.problem_mark.line + 1}: ' if error.problem_mark else ''
        problem = str(error.problem).replace('tag:yaml.org,2002:', '!!')
        raise DataFileError(f'{line}{problem}; files of data hold plain values, and nothing in them is run') from error
    except yaml.YAMLError as error:
        raise DataFileError(f'not valid YAML: {" ".join(str(error).split())}') from error
    if _size(content, {}) > MOST_NODES:
        raise DataFileError(f'its aliases stand for more than {MOST_NODES} values')
    return content


def _size(value, known: dict[int, float]) -> float:
    """How many values these are when everything that is shared is written out; infinite for what is inside itself."""
    if not isinstance(value, (dict, list, tuple, set)):
        return 1
    if id(value) not in known:
        known[id(value)] = float('inf')
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(one, known) for one in inside)
    return known[id(value)]


def _refuse_pickle(self, file, **options):
    raise DataFileError(
        'a pickle, and reading one runs whatever code is in it. If you know where it comes from, write it as JSON: '
        "python -c \"import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb')), open(sys.argv[2], 'w'))"
        '" FILE.pkl FILE.json'
    )


def data_configs_inherit_data() -> str:
    """A YAML or JSON config may inherit from a Python file, which is then run. What it inherits from an installed
    package (`beit_mm::...`) is that package's."""
    from mmengine.config import Config

    original = Config._get_cfg_path
    if getattr(original, 'of_data', False):
        return ''

    def get_cfg_path(cfg_path: str, filename: str):
        package, _, relative = cfg_path.rpartition('::')
        inside = not PurePosixPath(relative).is_absolute() and '..' not in PurePosixPath(relative).parts
        if filename.endswith(DATA_CONFIGS) and not (inside if package else relative.endswith(DATA_CONFIGS)):
            raise DataFileError(
                f'_base_={cfg_path!r}: a config of data inherits from YAML, JSON and the configs of installed packages '
                f'(package::path) only. {WAY_OUT}',
                filename,
            )
        return original(cfg_path, filename)

    vars(get_cfg_path).update(vars(original), of_data=True)
    Config._get_cfg_path = staticmethod(get_cfg_path)
    return 'YAML and JSON configs inherit from data'


# Modules that unpickle, unpack or evaluate on their own; mended when they are imported


class _ArraysOnly:
    """pickle, whose `load` and `loads` read containers and arrays of numbers, and run nothing."""

    def __getattr__(self, name: str):
        return getattr(pickle, name)

    def load(self, file, *, encoding: str = 'ASCII', **_):
        from .checkpoints.arrays import ArraysOnly

        try:
            return ArraysOnly(file, encoding=encoding).load()
        except Exception as error:  # damaged bytes make pickle raise IndexError, struct.error, KeyError, ...
            raise DataFileError(f'not a pickle of arrays alone ({error}), and nothing else is read') from error

    def loads(self, data: bytes, *, encoding: str = 'ASCII', **_):
        return self.load(io.BytesIO(data), encoding=encoding)


class _TarInside(tarfile.TarFile):
    """Python 3.14's default: no member outside of the target, no link that leads there, no device."""

    extraction_filter = staticmethod(tarfile.data_filter)


def _close_archives(module: types.ModuleType) -> None:
    original = module.extract_archive
    module.tarfile = types.SimpleNamespace(open=_TarInside.open)

    def extract_archive(from_path, to_path=None, remove_finished=False):
        check_archive(from_path, to_path or Path(from_path).parent)
        original(from_path, to_path, remove_finished)

    module.extract_archive = extract_archive


def check_archive(archive: str | Path, target: str | Path) -> None:
    """Raise DataFileError for a tar or zip that has anything outside of the target, before any of it is unpacked."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                for name in opened.namelist():
                    inside = PurePosixPath(name.replace('\\', '/'))
                    if inside.is_absolute() or '..' in inside.parts:
                        raise DataFileError(f'{name!r} would be written outside of {target}', str(archive))
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened:
                for member in opened:
                    tarfile.data_filter(member, str(target))
    except tarfile.FilterError as error:
        raise DataFileError(f'nothing of it is unpacked: {error}', str(archive)) from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataFileError(f'not a whole archive ({error})', str(archive)) from error


def _close_cifar(module: types.ModuleType) -> None:
    module.pickle = _ArraysOnly()
    original = module.CIFAR10.load_data_list

    def load_data_list(self):
        try:
            return original(self)
        except DataFileError as error:
            raise DataFileError(error.reason, f'{self.data_prefix["root"]}/{self.base_folder}') from error

    module.CIFAR10.load_data_list = load_data_list


def _close_processing(module: types.ModuleType) -> None:
    def str_to_torch_dtype(name: str):
        import torch

        found = getattr(torch, str(name), None)
        if not isinstance(found, torch.dtype):
            raise DataFileError(f'dtype={name!r} is no dtype of torch, such as float32')
        return found

    module._str_to_torch_dtype = str_to_torch_dtype


def _with(**names) -> Callable[[types.ModuleType], None]:
    """Gives a module other things under these names."""
    return lambda module: vars(module).update(names)


OPENERS = {  # module: what closes it
    'mmengine.infer.infer': _with(Config=_LiteralConfig()),
    'mmengine.utils.dl_utils.hub': _with(load_url=load_from_weights_only),
    'mmpretrain.apis.multimodal_retrieval': _with(torch=_ClosedTorch()),
    'mmpretrain.datasets.cifar': _close_cifar,
    'mmpretrain.datasets.transforms.processing': _close_processing,
    'mmpretrain.datasets.utils': _close_archives,
    'mmpretrain.engine.hooks.swav_hook': _with(torch=_ClosedTorch()),
    'mmpretrain.models.multimodal.ram.openset_utils': _with(torch=_ClosedTorch()),
    'mmpretrain.models.multimodal.ram.ram': _with(pickle=_ArraysOnly()),
    'mmpretrain.models.retrievers.image2image': _with(torch=_ClosedTorch()),
    'mmpretrain.models.utils.vector_quantizer': _with(torch=_ClosedTorch()),
    'mmseg.utils.io': _with(pickle=_ArraysOnly()),
}


class _Closing(importlib.abc.MetaPathFinder):
    """Closes the modules of OPENERS as they are imported, which for most is never."""

    def find_spec(self, name: str, path, target=None):
        if name not in OPENERS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, 'find_spec'))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                execute(module)
                OPENERS[name](module)

            spec.loader.exec_module = exec_module
        return spec


def files_of_others_read_closed() -> str:
    """Parts of mmpretrain, mmseg and mmengine unpickle their files, unpack tar archives as Python did before 3.14
    (outside of the target, through links), or evaluate text, each on its own."""
    if any(isinstance(finder, _Closing) for finder in sys.meta_path):
        return ''
    sys.meta_path.insert(0, _Closing())
    for name in OPENERS.keys() & sys.modules.keys():
        OPENERS[name](sys.modules[name])
    return 'their pickles are read as arrays, their archives stay inside of their target'
