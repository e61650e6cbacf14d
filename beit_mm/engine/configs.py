"""Loading configs, and refusing what would be ignored: unknown types, unknown keys, misspelt overrides.

Every error names the file, the key, the value and the nearest name that exists.
"""

import ast
import difflib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..closed import DATA_CONFIGS, DataFileError
from .data_configs import check_mapping, check_names
from .errors import ConfigError
from .places import place_of
from .schedules import check_schedules
from .values import wrong_values

NEAR_TYPE, NEAR_FIELD = 0.6, 0.85  # difflib ratios; the second gave no false alarm on mmpretrain's 530 configs
RUNNER_FIELDS = frozenset(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
OTHER_FIELDS = frozenset(
    {'custom_imports', 'auto_scale_lr', 'sync_bn', 'find_unused_parameters', 'model_wrapper_cfg', 'compile', 'strategy'}
)
OF_TTA = {'tta_model', 'tta_pipeline'}  # of tools/test.py --tta
BUILT_ELSEWHERE = ('_cfg', '_cfgs')  # norm_cfg, act_cfg, ...: their builders take keys that the class does not
# Keys that mmengine's builders take out before the class sees the rest
TAKEN_BY_BUILDER = frozenset({'type', '_scope_', '_delete_', 'init_cfg', 'convert_to_iter_based', 'clip_grad'})
TAKEN_BELOW = {'custom_hooks': 'priority', 'default_hooks': 'priority', 'policies': 'magnitude_key'}
# {type: its argument in which `type` is a name of another library, or of a layer}
NOT_REGISTERED_IN = {'Albu': 'transforms', 'Albumentations': 'transforms', 'LoRAModel': 'targets'}
# Classes that hand what they do not know to another library: timm, Hugging Face
FOR_ANOTHER_LIBRARY = frozenset({'TIMMBackbone', 'TimmClassifier', 'HuggingFaceClassifier'})
FIELDS_OF = {
    'optim_wrapper': {
        'type',
        'optimizer',
        'constructor',
        'paramwise_cfg',
        'clip_grad',
        'accumulative_counts',
        'micro_batches',
        'dtype',
    },
    'train_cfg': {'type', 'by_epoch', 'max_epochs', 'max_iters', 'val_begin', 'val_interval', 'dynamic_intervals'},
    'val_cfg': {'type', 'fp16'},
    'test_cfg': {'type', 'fp16'},
    'randomness': {'seed', 'deterministic', 'diff_rank_seed'},
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
    **dict.fromkeys(
        ('train_dataloader', 'val_dataloader', 'test_dataloader'),
        set(inspect.signature(DataLoader.__init__).parameters) - {'self'} | {'num_batch_per_epoch'},
    ),
}


def load_config(path: str | Path, overrides: dict | None = None) -> Config:
    """Read a config, apply `--cfg-options`, import what it names, and check it.

    Raises ConfigError for a missing file, Python that does not run, an unknown type, key or override.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f'{path}: is a folder' if path.is_dir() else f'{path}: there is no such config{_nearest(path)}'
        )
    data = path.suffix.lower() in DATA_CONFIGS
    if data:
        check_mapping(path)
    try:
        config = Config.fromfile(path, import_custom_modules=not data)
    except SyntaxError as error:
        raise ConfigError(f'{_running(error, path)}: not valid Python: {error.msg}') from error
    except DataFileError as error:
        raise ConfigError(f'{path}: {error.reason}') from error
    except Exception as error:  # a config is Python: it can raise anything
        if isinstance(error, FileNotFoundError) and error.filename:
            missing = Path(error.filename)
            raise ConfigError(f'{path}: cannot be read: there is no {missing}{_nearest(missing)}') from error
        raise ConfigError(f'{_running(error, path)}: cannot be read: {error}') from error
    try:
        if data:
            check_names(config.to_dict(), path)
        if overrides:
            _check_overrides(config, overrides, path)
            config.merge_from_dict(overrides)
        check_config(config, path, overrides)
    except ConfigError:
        raise
    except Exception as error:  # a value of any kind in any place makes what expects another raise anything
        reason = f'{type(error).__name__}: {error}'
        raise ConfigError(f'{path}: a value is of another kind than it must be ({reason})') from error
    return config


def _nearest(path: Path) -> str:
    """Names of configs that are like one that is not there, in its folder and below configs/."""
    known = [*path.parent.glob('*.py'), *(Path('configs').rglob('*.py') if Path('configs').is_dir() else ())]
    near = difflib.get_close_matches(str(path), sorted({str(p) for p in known}), n=3, cutoff=0.5)
    return '. The nearest names are:' + ''.join(f'\n    {name}' for name in near) if near else ''


def _running(error: Exception, path: Path) -> str:
    """`file, line 3` that was read, or run, when a config raised an error; mmengine runs them under no name."""
    file, line, trace = path, getattr(error, 'lineno', None), error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == '_file2dict':
            file = Path(trace.tb_frame.f_locals.get('filename', path))
        elif code.co_name == '<module>' and code.co_filename in ('', str(file)):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f'{file}, line {line}' if line else str(file)


def parse_overrides(pairs: list[str] | None) -> dict:
    """`['a.b=1', 'c=[1,2]']` -> {'a.b': 1, 'c': [1, 2]}: Python literals where they parse, else text."""
    overrides = {}
    for pair in pairs or []:
        key, equals, text = pair.partition('=')
        if not equals or not key:
            raise ConfigError(f'--cfg-options {pair}: write key=value, as in optim_wrapper.optimizer.lr=1e-3')
        try:
            overrides[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            overrides[key] = {'true': True, 'false': False, 'none': None}.get(text.lower(), text)
    return overrides


def check_config(config: Config, path: str | Path, overrides: dict | None = None) -> None:
    """Raise ConfigError for a top-level name that nobody reads and is close to a known one, for unknown types and
    arguments anywhere below, for values of the wrong kind, and for schedules that do something else than they seem to.

    overrides: that are in it already; an error says so of what they gave.
    """

    def place(where: str) -> str:
        dotted = where.replace('[', '.').replace(']', '')
        given = next((key for key in overrides or () if f'{dotted}.'.startswith(f'{key}.')), None)
        return f'{path}: --cfg-options {given}' if given else place_of(path, where)

    known = RUNNER_FIELDS | OTHER_FIELDS
    for name in config:
        near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR_FIELD)
        if name not in known | OF_TTA and near:
            raise ConfigError(f'{place(name)}: `{name}` is read by nobody; did you mean `{near[0]}`?')
    for where, what in wrong_values(config.to_dict()):
        said = place(where)
        said = said.removesuffix(where) if said.endswith(f' {where}') else f'{said}: '  # `what` begins with it
        raise ConfigError(f'{said}{what}')
    scope = config.get('default_scope', 'mmengine')
    with DefaultScope.overwrite_default_scope(scope):
        read = known | OF_TTA  # the rest are helper variables
        read = {key: value for key, value in config.to_dict().items() if key in read}
        for where, node in typed_nodes(read):
            _check_node(node, where, place, scope)
    check_schedules(config, path)
    _check_pretrained(config, path)
    _check_heads(config, path)


def _check_pretrained(config: Config, path: str | Path) -> None:
    """mmengine loads what happens to match, and of another project's file nothing does.

    mmseg's segmentors hand `pretrained` to the backbone, and ours makes it fit.
    """
    model = config.get('model') or {}
    start = model.get('init_cfg') or {}
    ours = str((model.get('backbone') or {}).get('type')).endswith('BEiTViT')
    segmentor = getattr(resolve(str(model.get('type')), config.get('default_scope')), '__module__', '')
    pretrained = model.get('pretrained') and not segmentor.startswith('mmseg.')
    if ours and (pretrained or (isinstance(start, dict) and start.get('type') == 'Pretrained')):
        where = 'model.pretrained' if pretrained else 'model.init_cfg'
        raise ConfigError(
            f'{path}: {where} would load whatever happens to match, without a word about the rest. Write '
            f"load_from=FILE for the whole model, or model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE)"
        )


def _check_heads(config: Config, path: str | Path) -> None:
    """A softmax over one class is always 1: its loss is 0 from the first step, and mmseg trains on."""
    model = config.get('model') or {}
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name) or []
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            if head.get('num_classes') == 1:
                raise ConfigError(
                    f'{path}: model.{name}.num_classes=1: one class leaves nothing to tell apart; the loss is 0. For '
                    f'an object and its background: num_classes=2, with 0 and 1 in the masks (black and white masks, 0 '
                    f'and 255: beit_mm.MaskFolder with mask_values=(0, 255))'
                )


def typed_nodes(node, where: str = '') -> Iterator[tuple[str, dict]]:
    """Every dict with a `type` below `node`, with its dotted path; parts that other builders own are left out."""
    if isinstance(node, dict):
        if isinstance(node.get('type'), str):
            yield where, node
        foreign = NOT_REGISTERED_IN.get(str(node.get('type')).rsplit('.', 1)[-1])
        for key, value in node.items():
            elsewhere = isinstance(key, str) and key.endswith(BUILT_ELSEWHERE) and isinstance(value, dict) and where
            if key != foreign and not elsewhere:
                yield from typed_nodes(value, f'{where}.{key}' if where else str(key))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from typed_nodes(value, f'{where}[{i}]')


def _roots() -> list[Registry]:
    """mmengine's registries, and those of other projects that are below none: mmpretrain's batch augmentations."""
    of_others = [sys.modules[name] for name in ('mmpretrain.registry', 'mmseg.registry') if name in sys.modules]
    alone = [v for module in of_others for v in vars(module).values() if isinstance(v, Registry) and v.parent is None]
    return [*(value for value in vars(root).values() if isinstance(value, Registry)), *alone]


_resolved: dict[tuple[str, str | None], object] = {}  # what was found: registries that do not know a name try imports


def resolve(type_name: str, scope: str | None = None):
    """The class or function that any registry knows under this name in this scope, or None."""
    if (type_name, scope) in _resolved:
        return _resolved[type_name, scope]
    for registry in _roots():
        try:
            found = registry.get(f'{scope}.{type_name}' if scope and '.' not in type_name else type_name)
        except (KeyError, ImportError, ValueError):
            continue
        if found is not None:
            return _resolved.setdefault((type_name, scope), found)
    return None


def known_types(scope: str) -> list[str]:
    """Every name that can be written as a `type` in this scope."""
    names: set[str] = set()
    for registry in _roots():
        names |= set(registry.module_dict)
        for child_scope, child in registry.children.items():
            child.import_from_location()
            names |= {f'{child_scope}.{n}' for n in child.module_dict}
            if child_scope == scope:
                names |= set(child.module_dict)
    return sorted(names)


def _check_node(node: dict, where: str, place: Callable[[str], str], scope: str) -> None:
    type_name = node['type']
    found = resolve(type_name, node.get('_scope_', scope)) or resolve(type_name)
    if found is None:
        near = difflib.get_close_matches(type_name, known_types(scope), n=1, cutoff=NEAR_TYPE)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ConfigError(
            f'{place(f"{where}.type")}: {where}.type={type_name!r} is not registered in scope {scope!r}{hint}'
        )
    arguments = _arguments(found)
    if arguments is None:
        return
    for key in node:
        if where.endswith('backbone.init_cfg') and key == 'partial':
            continue  # BEiTViT's own argument of `Pretrained`
        loop = where == 'train_cfg'  # given with its type, it takes that one's arguments only
        if key not in arguments and key not in TAKEN_BY_BUILDER and (loop or not _field_of(where, key)):
            near = difflib.get_close_matches(key, arguments, n=1, cutoff=NEAR_TYPE)
            hint = f'; did you mean {near[0]!r}?' if near else f'. It takes: {", ".join(sorted(arguments))}'
            at = place(f'{where}.{key}')
            raise ConfigError(f'{at}: {where}.{key}={node[key]!r}: {type_name} has no argument {key!r}{hint}')


def _field_of(where: str, key: str) -> bool:
    """Whether `key` is taken by the place before the class sees it: a field of `train_cfg`, a hook's priority."""
    first, last = (part.partition('[')[0] for part in (where.partition('.')[0], where.rsplit('.', 1)[-1]))
    return key in FIELDS_OF.get(last, ()) or key in (TAKEN_BELOW.get(first), TAKEN_BELOW.get(last))


def _arguments(found) -> set[str] | None:
    """Names of a callable's arguments, its parents' included where it passes on; None where all are taken."""
    if not inspect.isclass(found):
        parameters = inspect.signature(found).parameters.values()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return None if takes_all else {p.name for p in parameters}
    if found.__name__ in FOR_ANOTHER_LIBRARY:
        return None
    names: set[str] = set(getattr(found, 'also_takes', ()))
    for parent in inspect.getmro(found):
        if '__init__' not in vars(parent) or parent is object:
            continue
        parameters = list(inspect.signature(parent.__init__).parameters.values())[1:]
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return None


def _check_overrides(config: Config, overrides: dict, path: str | Path) -> None:
    """An override must address something that is there, or that its owner takes."""
    scope = config.get('default_scope', 'mmengine')
    for dotted in overrides:
        node, walked = config.to_dict(), ''
        for part in dotted.split('.'):
            if isinstance(node, (list, tuple)):
                if not part.isdigit() or int(part) >= len(node):
                    raise ConfigError(
                        f'--cfg-options {dotted}: {walked} is a list of {len(node)}; {part!r} is no index of it'
                    )
                node, walked = node[int(part)], f'{walked}.{part}'
                continue
            if not isinstance(node, dict):
                raise ConfigError(f'--cfg-options {dotted}: {walked}={node!r} has no keys')
            if part not in node:
                beside = {'type': overrides[f'{walked}.type']} if f'{walked}.type' in overrides else {}
                _check_new_key({**node, **beside}, walked, part, dotted, path, scope)
                break
            node, walked = node[part], f'{walked}.{part}' if walked else part


def _check_new_key(node: dict, walked: str, part: str, dotted: str, path: str | Path, scope: str) -> None:
    choices = set(node)
    if not walked:
        choices |= RUNNER_FIELDS | OTHER_FIELDS
    choices |= FIELDS_OF.get(walked.rsplit('.', 1)[-1], set())
    if isinstance(node.get('type'), str):
        found = resolve(node['type'], node.get('_scope_', scope)) or resolve(node['type'])
        arguments = _arguments(found) if found is not None else None
        if arguments is None:
            return
        choices |= arguments
    if part in choices:
        return
    near = difflib.get_close_matches(part, choices, n=1, cutoff=0.5)
    hint = f'; did you mean `{walked + "." if walked else ""}{near[0]}`?' if near else ''
    if not near and walked:
        hint = f'; there are {", ".join(sorted(choices))}'
    raise ConfigError(f'{path}: --cfg-options {dotted}: there is no `{part}` in {walked or "the config"}{hint}')
