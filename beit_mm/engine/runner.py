"""MMEngine's Runner, where it loses something: the one that `tools/train.py` and `tools/test.py` run."""

from pathlib import Path

from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.hooks import EMAHook
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoints.files import FOLDER
from ..checkpoints.load import read
from ..checkpoints.sharded import like_parameters, read_shards
from ..data.samples import seed_samples
from ..registry import RUNNERS
from .averages import average_shards
from .device import norms_of_device
from .scaling import scale_lr
from .sharding import check_even, is_sharded, shard_as, sharding_of, take_whole_state
from .workers import watched, with_safe_workers

OURS = {'EpochBasedTrainLoop': 'beit_mm.EpochBasedTrainLoop', 'IterBasedTrainLoop': 'beit_mm.IterBasedTrainLoop'}


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's Runner, whose runs go on exactly as if they had never stopped."""

    def set_randomness(self, seed, diff_rank_seed: bool = False, deterministic: bool = False) -> None:
        """All ranks take the seed of the first: where none was given, each has drawn its own."""
        seeds = [seed]
        broadcast_object_list(seeds)
        self._randomness_cfg['seed'] = seeds[0]
        super().set_randomness(seeds[0], diff_rank_seed, deterministic)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As mmengine's for DDP; with strategy fsdp2 the model itself, in shards, which have their first values."""
        sharding = sharding_of(self.cfg)
        if sharding is None or not self.distributed:
            return super().wrap_model(model_wrapper_cfg, model)
        model = model.to(get_device())
        if self.cfg.get('sync_bn'):
            model = convert_sync_batchnorm(model, self.cfg.sync_bn)
        self.model = norms_of_device(model)
        super()._init_model_weights()
        return shard_as(self.model, sharding, self.cfg)

    def register_hook(self, hook, priority=None) -> None:
        super().register_hook(hook, priority)
        for own in self.hooks:
            if isinstance(own, EMAHook):
                average_shards(own, self.model)

    def _init_model_weights(self) -> None:
        if not is_sharded(self.model):
            super()._init_model_weights()

    def build_optim_wrapper(self, optim_wrapper):
        built = super().build_optim_wrapper(optim_wrapper)
        if is_sharded(self.model) and built is not optim_wrapper:
            take_whole_state(built.optimizer)
        return built

    @staticmethod
    def build_dataloader(dataloader, seed: int | None = None, diff_rank_seed: bool = False) -> DataLoader:
        """As mmengine's, with indices that know what they were drawn for and can begin anywhere, and with workers that
        leave signals to this process."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        wanted = dict(dataloader)
        if isinstance(wanted['sampler'], dict):
            wanted['sampler'] = dict(type='beit_mm.keyed_sampler', of=wanted['sampler'])
            if diff_rank_seed and seed is not None:  # mmengine has the first rank draw one, another at each start
                wanted['sampler']['seed'] = seed - get_rank()
        if isinstance(wanted.get('batch_sampler'), dict):
            wanted['batch_sampler'] = dict(type='beit_mm.ResumableBatchSampler', of=wanted['batch_sampler'])
        loader = MMEngineRunner.build_dataloader(with_safe_workers(wanted, seed), seed, diff_rank_seed)
        seed_samples(loader.dataset)
        return watched(loader)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """As mmengine's, with loops that go on in the middle."""
        if isinstance(loop, dict):
            loop = dict(loop)
            kind = loop.pop('by_epoch', None)
            if kind is not None and 'type' not in loop:
                loop['type'] = 'EpochBasedTrainLoop' if kind else 'IterBasedTrainLoop'
            loop['type'] = OURS.get(loop['type'], loop['type'])
        return super().build_train_loop(loop)

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """As mmengine's; with a sharded model, one that all ranks end together."""
        built = super().build_val_loop(loop)
        if is_sharded(self.model):
            check_even(built.dataloader)
        return built

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """As mmengine's, of what a step really has, and it says so; see engine/scaling.py."""
        scale_lr(self, optim_wrapper, auto_scale_lr)

    def save_checkpoint(self, *args, **kwargs) -> None:
        """As mmengine's; of a sharded model by all ranks together."""
        if is_sharded(self.model):
            MMEngineRunner.save_checkpoint.__wrapped__(self, *args, **kwargs)
        else:
            super().save_checkpoint(*args, **kwargs)

    def resume(self, filename: str, *args, **kwargs) -> None:
        """As mmengine's; what is made shards of is not put on the device whole."""
        if is_sharded(self.model):
            kwargs['map_location'] = 'cpu'
        super().resume(filename, *args, **kwargs)

    def _load_shards(self, folder: Path) -> dict:
        """What is of another shape than the model's is read whole, for hooks to resize or to refuse."""
        saved = read(folder, lazy=True)
        own, there = self.model.state_dict(), saved.get('state_dict', {})
        weights = {name: value for name, value in own.items() if name in there and there[name].shape == value.shape}
        like = dict(state_dict=weights, ema_state_dict={f'module.{name}': value for name, value in weights.items()})
        if self._resume and 'optimizer' in saved:
            parameters = [p for group in self.optim_wrapper.param_groups for p in group['params']]
            like['optimizer'] = like_parameters(saved['optimizer'], parameters)
        checkpoint = read_shards(folder, like, without=() if self._resume else ('optimizer', 'ema_state_dict'))
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        load_state_dict(self.model, checkpoint['state_dict'])
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {folder}')
        return checkpoint

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """As mmengine's, without the text in `meta.config`, which mmengine's `resume` would run as Python: also where
        a hook has put it back after reading (closed.py). Into a sharded model, each rank reads its part of a folder."""
        if is_sharded(self.model) and Path(filename).suffix == FOLDER:
            checkpoint = self._load_shards(Path(filename))
        else:
            checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        if isinstance(checkpoint.get('meta'), dict):
            checkpoint['meta'].pop('config', None)
        return checkpoint

    def dump_config(self) -> None:
        """A test's into the folder of its log: the one in the work_dir is the training's."""
        if self._train_loop is not None:
            super().dump_config()
        else:
            self.cfg.dump(Path(self._log_dir) / Path(self.cfg.filename or 'config.py').name)
