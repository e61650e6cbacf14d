"""From a config file to a finished run: what `tools/train.py` and `tools/test.py` call."""

import copy
import functools
import logging
import tempfile
import textwrap
import time
import warnings
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import checkpoint as loading

from ..checkpoints.fit import as_ours
from ..checkpoints.load import CheckpointError, meta_of, read, state_dict_of
from .amp import with_amp, with_finite_steps
from .building import check_batches, check_trainable, explained
from .checkpointing import TO_EVALUATE, model_of, warn_of_preprocessing
from .compiling import compile_backbone, uncompile
from .configs import ConfigError
from .device import suit_device
from .launchers import find_ranks
from .recipe import SAFETY_HOOKS
from .resuming import choose_start
from .runner import Runner
from .saving import with_our_checkpoints
from .scaling import accumulate as in_parts
from .sharding import check_strategy, sharding_of, strategy_of
from .signals import ending_between_steps
from .work_dir import alone, checkpoint_folder, refuse_used, remove_leftovers, work_dir_of
from .workers import limit_collectives, plain_errors


def prepare(
    config: Config,
    work_dir: str | None = None,
    resume: bool | str | None = None,
    load_from: str | None = None,
    amp: str | None = None,
    auto_scale_lr: bool = False,
    accumulate: int | None = None,
    no_validate: bool = False,
    launcher: str = 'none',
    strategy: str | None = None,
    seed: int | None = None,
    partial_load: bool = False,
    trust_checkpoint: bool = False,
) -> Config:
    """Put the command line's wishes into the config, and find out what cannot work before anything starts.

    resume: True (from the newest checkpoint of the work_dir), 'auto' (the same, if there is one) or a file.
    accumulate: how many batches make a step, as so many times more ranks would.
    partial_load: what does not fit of `load_from` keeps its start. trust_checkpoint: that file may hold code.
    """
    name = Path(config.filename).stem if config.filename else 'run'
    config.work_dir = str(work_dir_of(config, work_dir))
    config.launcher = launcher = find_ranks(launcher, config)
    if launcher != 'none':
        limit_collectives(config)
    if strategy:
        config.strategy = strategy_of(config, strategy)
    if launcher != 'none' and sharding_of(config) is None and not torch.cuda.is_available():
        config.setdefault('model_wrapper_cfg', dict(type='beit_mm.DistributedOnCPU'))
    config.experiment_name = config.get('experiment_name') or name
    with_our_checkpoints(config)
    choose_start(config, resume, load_from, seed, trust_checkpoint)
    if config.get('optim_wrapper'):
        config.optim_wrapper = with_finite_steps(config.optim_wrapper)
    if amp:
        config.optim_wrapper = with_amp(config.optim_wrapper, amp)
    if accumulate is not None:
        in_parts(config, accumulate)
    suit_device(config)
    check_strategy(config)
    if no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if auto_scale_lr:
        if not (config.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ConfigError(
                f'{config.filename}: --auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in it, the images '
                f'of a step that its learning rate is for, or --cfg-options auto_scale_lr.base_batch_size=N'
            )
        config.auto_scale_lr['enable'] = True
    own = list(config.get('custom_hooks') or [])
    present = {hook['type'] for hook in own}
    config.custom_hooks = [*own, *(dict(hook) for hook in SAFETY_HOOKS if hook['type'] not in present)]
    if partial_load:
        next(h for h in config.custom_hooks if h['type'] == 'beit_mm.FitWeightsHook')['partial'] = True
    return config


NOISE = (  # of mmengine on the terminal; the log file has it all
    '\n------',
    'Config:',
    'Hooks will be executed',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'The prefix is not set in metric class',
    'Distributed training is not used',
    'The `resume` flag is',
    'Loads checkpoint by ',
    'The model and loaded state dict do not match exactly',  # FitWeightsHook says what is missing, in one line
)


class _Terse(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(NOISE)


def terse_terminal() -> None:
    """Keep mmengine's dumps of environment, config and hook order out of the terminal; the log file keeps them.

    Warnings and tracebacks of another rank than the first get a file beside it, when there are any: ..._rank1.log.
    """
    warnings.filterwarnings('ignore', message='``build_loss`` would be deprecated')
    warnings.filterwarnings('ignore', message='Default ``avg_non_ignore`` is False')
    warnings.filterwarnings('ignore', message='`broadcast_buffers` is deprecated')  # the wrapper's, of several ranks
    warnings.filterwarnings('ignore', message='Detected call of `scheduler.step')  # of batches that are accumulated
    warnings.filterwarnings('ignore', message='FSDP2-wrapped module')  # changed in place, which none of ours is
    warnings.filterwarnings('ignore', message='Setting (OMP|MKL)_NUM_THREADS environment variable')
    original = MMLogger.__init__
    if getattr(original, 'terse', False):
        return

    @functools.wraps(original)
    def init(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        for handler in self.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(_Terse())
        if get_rank() > 0 and kwargs.get('log_file'):  # mmengine's log is the first rank's alone
            path = Path(kwargs['log_file'])
            own = logging.FileHandler(path.with_stem(f'{path.stem}_rank{get_rank()}'), delay=True)
            own.setLevel(logging.WARNING)
            own.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
            own.addFilter(_Terse())
            self.handlers.append(own)

    init.terse = True
    MMLogger.__init__ = init
    say = loading.print_log

    @functools.wraps(say)
    def into_the_log(message, logger=None, level=logging.INFO) -> None:  # the Runner's loading prints past it
        say(message, logger or 'current', level)

    loading.print_log = into_the_log


def check_writable(folder: Path, way_out: str = 'choose another folder, for a work_dir by --work-dir') -> None:
    """Make the folder; raise PermissionError naming it if no file can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(f'{folder} cannot be written ({error.strerror}); {way_out}') from error


@ending_between_steps()
@plain_errors()
def run(config: Config, compiled: bool = False, **wishes) -> Runner:
    """Train what a checked config describes. compiled: its backbone. `wishes` are `prepare`'s arguments.

    Raises Stopped when a signal ended it between two steps, with a checkpoint.
    """
    terse_terminal()
    wishes['launcher'] = find_ranks(wishes.get('launcher', 'none'), config)
    work_dir = work_dir_of(config, wishes.get('work_dir'))
    check_writable(work_dir)
    with alone(work_dir, wishes['launcher']):
        config = prepare(config, **wishes)
        refuse_used(config)
        check_writable(checkpoint_folder(config), 'give default_hooks.checkpoint.out_dir another one')
        remove_leftovers(config)
        check_trainable(config)
        if compiled and sharding_of(config):
            raise ConfigError('--compile and --strategy fsdp2 do not go together yet: take one of them')
        with explained(config):
            runner = Runner.from_cfg(config)
            check_batches(runner)
        if compiled:
            compile_backbone(model_of(runner))
        runner.logger.info(f'seed {runner.seed}, work_dir {config.work_dir}')
        started = time.perf_counter()
        with explained(config):
            runner.train()
        runner.logger.info(f'trained in {time.perf_counter() - started:.0f} s')
        return runner


def with_tta(config: Config) -> None:
    """Test with augmentation: `tta_pipeline` makes views of each image, `tta_model` merges what is predicted for them.

    Raises ConfigError for a config without them.
    """
    lacking = [key for key in ('tta_model', 'tta_pipeline') if config.get(key) is None]
    if lacking:
        raise ConfigError(f'{config.filename}: --tta needs {" and ".join(lacking)} in it, as the ADE20K configs have')
    for part in parts_of(config.test_dataloader.dataset):
        part['pipeline'] = config.tta_pipeline
    config.protocol = f'{config.get("protocol", "segmentation")}, multi-scale and flip'


def merging(config: Config, model: torch.nn.Module) -> torch.nn.Module:
    """The config's `tta_model` around a model."""
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmengine')):
        return MODELS.build(dict(config.tta_model, module=model))


def parts_of(dataset: dict) -> list[dict]:
    """Of a data set in wrappers (repeated, concatenated), the configs of those that have the pipelines."""
    if 'pipeline' not in dataset and 'datasets' in dataset:
        return [part for one in dataset['datasets'] for part in parts_of(one)]
    if 'pipeline' not in dataset and 'dataset' in dataset:
        return parts_of(dataset['dataset'])
    return [dataset]


@plain_errors()
def evaluate(
    config: Config,
    checkpoint: str,
    tta: bool = False,
    show_dir: str | None = None,
    compiled: bool = False,
    **wishes,
) -> tuple[Runner, dict[str, float], float]:
    """Load a checkpoint (every key must fit), test, and return (runner, metrics, seconds).

    tta: over scales and flips. show_dir: write a picture of each segmented image there. compiled: the backbone.
    """
    terse_terminal()
    check_writable(work_dir_of(config, wishes.get('work_dir')))
    config.pop('strategy', None)  # without gradients and an optimizer, each rank has room for the whole model
    config = prepare(config, load_from=checkpoint, **wishes)
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if config.get(key) is None:
            raise ConfigError(f'{config.filename}: {key} is missing, which testing needs')
    if tta:
        with_tta(config)
    alone = copy.deepcopy(config)  # the caller's keeps its training: a record is of the whole recipe
    if show_dir:
        check_writable(Path(show_dir))
        alone.custom_hooks = [*alone.custom_hooks, dict(type='beit_mm.ShowSegmentationHook', out_dir=show_dir)]
    alone.train_dataloader = alone.train_cfg = alone.optim_wrapper = alone.param_scheduler = None
    alone.val_dataloader = alone.val_cfg = alone.val_evaluator = None
    alone.visualizer = None
    with explained(config):
        runner = Runner.from_cfg(alone)
    load_whole(model_of(runner), config, checkpoint)
    runner.cfg.load_from = runner._load_from = None
    runner._has_loaded = True
    if compiled:
        compile_backbone(model_of(runner), frozen=True)
    model = runner.model
    if tta:
        runner.model = merging(config, model_of(runner))
    started = time.perf_counter()
    metrics = {name: float(value) for name, value in runner.test().items()}
    runner.model = model
    uncompile(model_of(runner))
    return runner, metrics, time.perf_counter() - started


def load_whole(model: torch.nn.Module, config: Config, checkpoint: str) -> dict:
    """A test on a half-loaded model is no test: missing or unexpected keys are an error. Returns the file's `meta`."""
    content = read(checkpoint, map_location='cpu')
    warn_of_preprocessing(content, config, checkpoint, TO_EVALUATE)
    try:
        weights = state_dict_of(content)
        if hasattr(getattr(model, 'backbone', None), 'own_grid'):  # ours; what is not is loaded as it is
            weights = as_ours(weights).weights
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = [textwrap.shorten(line, 240, placeholder=' ...') for line in str(error).splitlines()[1:4]]
        raise CheckpointError(f'{checkpoint}: does not fit the model of this config: {" ".join(first)}') from error
    return meta_of(content)
