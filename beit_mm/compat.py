"""What OpenMMLab's last releases (mmengine 0.10.7, mmcv 2.1, mmseg 1.2.2, mmpretrain 1.2.0) need to live on
today's PyTorch: one function per workaround, each a no-op where it is not needed.

Nothing else in beit_mm looks at a version. `python tools/doctor.py` prints which workarounds are active.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .closed import (
    annotation_files_are_data,
    checkpoints_read_closed,
    data_configs_inherit_data,
    files_of_others_read_closed,
)

CONFIG_ROOT = Path(__file__).parent / '.mim' / 'configs'

TESTED = {  # distribution: what the tests ran on. Others may work; the doctor says when one differs.
    'torch': '2.13.0',
    'torchvision': '0.28.0',
    'numpy': '2.4.6',
    'scipy': '1.17.1',
    'mmengine': '0.10.7',
    'mmcv-lite': '2.1.0',
    'mmsegmentation': '1.2.2',
    'mmpretrain': '1.2.0',
    'timm': '1.0.31',
    'setuptools': '80.10.2',
    'ftfy': '6.3.1',
    'regex': '2026.11.15',
}

_kept_alive: list = []  # torch.library handles: their definitions go when they are collected


def torchvision_without_compiled_ops() -> str:
    """A CPU build of torch beside torchvision's default wheel: the compiled half does not load, the import dies."""
    if 'torchvision' in sys.modules or importlib.util.find_spec('torchvision') is None:
        return ''
    try:
        importlib.import_module('torchvision')
        return ''
    except RuntimeError as error:
        if 'torchvision::nms' not in str(error):
            raise
    import torch

    for name in [n for n in sys.modules if n.split('.')[0] == 'torchvision']:
        del sys.modules[name]
    library = torch.library.Library('torchvision', 'DEF')
    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _kept_alive.append(library)
    importlib.import_module('torchvision')
    return 'torchvision imports; its compiled operators (nms) do not run'


def mmcv_without_compiled_ops() -> str:
    """`mmseg.models` imports mmcv.ops, whose binary mmcv-lite lacks: a stand-in that raises when an op is called."""
    if importlib.util.find_spec('mmcv') is None or importlib.util.find_spec('mmcv._ext') is not None:
        return ''
    import mmcv

    class MissingOps(types.ModuleType):
        def __getattr__(self, name: str):
            if name.startswith('__'):
                raise AttributeError(name)

            def missing(*_, **__):
                raise RuntimeError(
                    f'mmcv op {name!r} needs the compiled mmcv, and mmcv-lite is installed. No part of beit_mm '
                    f'calls it: another part of your config does. pip install mmcv=={mmcv.__version__}'
                )

            return missing

    stand_in = MissingOps('mmcv._ext')
    stand_in.__spec__ = importlib.util.spec_from_loader('mmcv._ext', loader=None)
    sys.modules['mmcv._ext'] = mmcv._ext = stand_in
    return 'mmcv.ops imports; a compiled op raises when called'


def optimizers_without_transformers() -> str:
    """mmengine imports transformers, which takes a second or more, to register its Adafactor: now when one is built."""
    name = 'transformers'
    if {name, 'mmengine.optim'} & set(sys.modules) or importlib.util.find_spec(name) is None:
        return ''
    sys.modules[name] = None  # importing it is an ImportError, as if it were not installed
    try:
        from mmengine.optim.optimizer import builder
    finally:
        del sys.modules[name]

    def adafactor(params, **options):
        """transformers' Adafactor."""
        from transformers import Adafactor

        return Adafactor(params, **options)

    builder.OPTIMIZERS.register_module(name='Adafactor', module=adafactor)
    builder.TRANSFORMERS_OPTIMIZERS.append('Adafactor')
    return 'transformers is imported when its Adafactor is built, not with mmengine'


def mmpretrain_without_language_models() -> str:
    """With transformers and pycocotools (mmdet needs it) installed, mmpretrain imports its language models, and
    transformers 5 has moved what they inherit from: `mmpretrain.models` and `mmdet.models` die.
    """
    names = ('mmpretrain', 'transformers', 'pycocotools')
    if 'mmpretrain.models' in sys.modules or any(importlib.util.find_spec(name) is None for name in names):
        return ''
    if int(importlib.metadata.version('transformers').partition('.')[0]) < 5:
        return ''
    from mmpretrain.utils import dependency

    if not dependency.WITH_MULTIMODAL:
        return ''
    dependency.WITH_MULTIMODAL = False
    return 'mmpretrain imports; its language models are left out, as they need transformers < 5'


def configs_by_package() -> str:
    """`_base_='beit_mm::...'`: mmengine knows a closed list of packages, and marks what it inherits so with
    `_scope_='beit_mm'`, in which mmpretrain's and mmseg's types do not resolve. Put the file's own scope there.
    """
    from mmengine.config import Config

    original = Config._get_cfg_path
    if getattr(original, 'knows_beit_mm', False):
        return ''

    @functools.wraps(original)
    def get_cfg_path(cfg_path: str, filename: str):
        package, _, relative = cfg_path.partition('::')
        if package != 'beit_mm' or not relative:
            return original(cfg_path, filename)
        path = CONFIG_ROOT / relative
        if not path.is_file():
            raise FileNotFoundError(f'{filename}: _base_={cfg_path!r}: there is no {path}')
        return str(path), Config.fromfile(path).get('default_scope')

    get_cfg_path.knows_beit_mm = True
    Config._get_cfg_path = staticmethod(get_cfg_path)
    return "_base_='beit_mm::...' resolves, in the scope of the file it names"


def collate_without_scope() -> str:
    """What is inherited by package has `_scope_` in every typed dict, and a collate function gets it as an argument."""
    from mmengine.runner import Runner

    original = Runner.build_dataloader
    if getattr(original, 'drops_scope', False):
        return ''

    @functools.wraps(original)
    def build_dataloader(dataloader, *args, **kwargs):
        if isinstance(dataloader, dict) and isinstance(dataloader.get('collate_fn'), dict):
            collate = {key: value for key, value in dataloader['collate_fn'].items() if key != '_scope_'}
            dataloader = {**dataloader, 'collate_fn': collate}
        return original(dataloader, *args, **kwargs)

    build_dataloader.drops_scope = True
    Runner.build_dataloader = staticmethod(build_dataloader)
    return "a data loader inherited by `_base_='package::...'` may name its collate function"


def checkpoints_written_whole() -> str:
    """mmengine writes checkpoints in place, so a kill leaves half a file under the final name."""
    import mmengine.runner
    from mmengine.runner import checkpoint, runner

    from .checkpoints.gathering import holds_shards, save_by_ranks
    from .checkpoints.store import save

    original = checkpoint.save_checkpoint
    if getattr(original, '__module__', '') == __name__:
        return ''

    def save_checkpoint(checkpoint, filename, file_client_args=None, backend_args=None):
        if '://' in str(filename):  # no disk of ours
            return original(checkpoint, filename, file_client_args, backend_args)
        return save_by_ranks(checkpoint, filename) if holds_shards(checkpoint) else save(checkpoint, filename)

    for module in (mmengine.runner, runner, checkpoint):
        module.save_checkpoint = save_checkpoint
    return 'checkpoints appear under their name only when complete, and checkpoints.json says what they must be'


def newest_checkpoint_verified() -> str:
    """mmengine resumes from the file that `last_checkpoint` names by an absolute path, whether it is there or not."""
    import mmengine.runner
    from mmengine.runner import checkpoint, runner

    from .checkpoints.store import folders_of, newest_verified

    original = checkpoint.find_latest_checkpoint
    if getattr(original, '__module__', '') == __name__:
        return ''

    def find_latest_checkpoint(path: str) -> str | None:
        found = next(filter(None, map(newest_verified, folders_of(Path(path)))), None)
        if found is None and (pointed := original(path)):  # without its optimizer, or damaged, which reading it says
            found = Path(path, pointed)
        return str(found) if found and found.exists() else None

    for module in (mmengine.runner, runner, checkpoint):
        module.find_latest_checkpoint = find_latest_checkpoint
    return 'a run resumes from the newest checkpoint that is whole'


class _Room:
    """Arrays of one length with as much room again at their ends; `views` are what of them is in use."""

    def __init__(self, views: tuple) -> None:
        import numpy as np

        self.end = len(views[0])
        self.arrays = tuple(np.concatenate([view, np.empty(max(self.end, 64))]) for view in views)
        self.views: tuple = ()

    def holds(self, views: tuple) -> bool:
        """Whether these are its own, as it left them, and one more fits."""
        own = len(self.views) == len(views) and all(a is b for a, b in zip(self.views, views))
        return own and self.end < len(self.arrays[0])

    def append(self, values: tuple, most: int) -> tuple:
        """The views with a value more each, of which the last `most` are kept."""
        for array, value in zip(self.arrays, values):
            array[self.end] = value
        self.end += 1
        kept = min(most, len(self.views[0]) + 1 if self.views else self.end)
        self.views = tuple(array[self.end - kept : self.end] for array in self.arrays)
        return self.views


def histories_grow_in_place() -> str:
    """mmengine copies the whole history of every scalar at every step: 0.1 ms a scalar after 100,000 steps, 1.5 ms
    after a million. The arrays get room to grow; what is in them, and what is saved of them, is the same."""
    import weakref

    from mmengine.logging import HistoryBuffer

    original = HistoryBuffer.update
    if getattr(original, 'in_place', False):
        return ''
    rooms: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # beside the buffers, which are copied and pickled

    @functools.wraps(original)
    def update(self, log_val, count=1) -> None:
        views = self._log_history, self._count_history
        if not all(isinstance(value, (int, float)) for value in (log_val, count)) or any(
            len(view) == 0 or view.dtype != float for view in views
        ):
            original(self, log_val, count)
            return
        room = rooms.get(self)
        if room is None or not room.holds(views):
            room = rooms[self] = _Room(views)
        self._log_history, self._count_history = room.append((log_val, count), self.max_length)

    update.in_place = True
    HistoryBuffer.update = update
    return 'a training step takes as long after a million steps as after one'


def launcher_without_cuda() -> str:
    """`init_dist` calls torch.cuda.set_device on machines that have no CUDA."""
    import torch
    from mmengine.dist import utils

    if torch.cuda.is_available() or getattr(utils._init_dist_pytorch, '__module__', '') == __name__:
        return ''

    def init_dist_pytorch(backend: str, init_backend: str = 'torch', **kwargs) -> None:
        torch.distributed.init_process_group(backend='gloo', **kwargs)

    utils._init_dist_pytorch = init_dist_pytorch
    return '--launcher pytorch runs on the CPU with gloo'


class Workaround(NamedTuple):
    """`apply()` mends and returns what it did, or an empty string where nothing was needed."""

    apply: Callable[[], str]
    needed: str
    upstream: str


WORKAROUNDS = (
    Workaround(torchvision_without_compiled_ops, 'torchvision wheel for another build of torch', 'pytorch/vision#8985'),
    Workaround(mmcv_without_compiled_ops, 'mmseg 1.2.2 with mmcv-lite', 'open-mmlab/mmcv#3310'),
    Workaround(
        optimizers_without_transformers,
        'mmengine 0.10 with transformers',
        'no issue; mmengine/optim/optimizer/builder.py register_transformers_optimizers',
    ),
    Workaround(
        mmpretrain_without_language_models,
        'mmpretrain 1.2.0 and mmdet with transformers 5',
        'no issue; mmpretrain/models/multimodal/blip/language_model.py',
    ),
    Workaround(configs_by_package, 'mmengine 0.10', 'no issue; mmengine/config/utils.py MODULE2PACKAGE'),
    Workaround(collate_without_scope, 'mmengine 0.10', 'no issue; mmengine/runner/runner.py build_dataloader'),
    Workaround(checkpoints_read_closed, 'mmengine 0.10 with torch >= 2.6', 'open-mmlab/mmengine#1655'),
    Workaround(
        annotation_files_are_data,
        'mmengine 0.10',
        'no issue; mmengine/fileio/handlers/yaml_handler.py and pickle_handler.py',
    ),
    Workaround(data_configs_inherit_data, 'mmengine 0.10', 'no issue; mmengine/config/config.py _get_cfg_path'),
    Workaround(
        files_of_others_read_closed,
        'mmpretrain 1.2.0, mmseg 1.2.2, mmengine 0.10',
        'no issue; mmpretrain/datasets/utils.py and the others of OPENERS in beit_mm/closed.py',
    ),
    Workaround(checkpoints_written_whole, 'mmengine 0.10', 'no issue; mmengine/runner/checkpoint.py save_checkpoint'),
    Workaround(
        newest_checkpoint_verified, 'mmengine 0.10', 'no issue; mmengine/runner/checkpoint.py find_latest_checkpoint'
    ),
    Workaround(histories_grow_in_place, 'mmengine 0.10', 'no issue; mmengine/logging/history_buffer.py update'),
    Workaround(launcher_without_cuda, 'mmengine 0.10 without CUDA', 'no issue; mmengine/dist/utils.py'),
)
ACTIVE: dict[str, str] = {}


def apply_all() -> None:
    """Apply every workaround once; `import beit_mm` does."""
    _require_pkg_resources()
    for workaround in WORKAROUNDS:
        done = workaround.apply()
        if done:
            ACTIVE[workaround.apply.__name__] = done


def _require_pkg_resources() -> None:
    """mmengine 0.10 imports pkg_resources, which setuptools dropped in 81."""
    if importlib.util.find_spec('pkg_resources') is None:
        raise ImportError(
            'mmengine 0.10 needs pkg_resources, which setuptools >= 81 no longer has: pip install "setuptools<81"'
        )


def versions() -> dict[str, str]:
    """Installed version of everything in TESTED; an empty string for what is missing."""
    found = {}
    for name in TESTED:
        names = ('mmcv-lite', 'mmcv') if name == 'mmcv-lite' else (name,)
        found[name] = ''
        for candidate in names:
            try:
                found[name] = importlib.metadata.version(candidate)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def mending_command(found: dict[str, str]) -> str:
    """The one pip line that brings the installed versions to the tested ones; empty when they are."""
    wrong = [name for name, version in found.items() if version.split('+')[0] != TESTED[name]]
    return 'pip install ' + ' '.join(f'{name}=={TESTED[name]}' for name in wrong) if wrong else ''
