"""MMEngine's Runner, where it loses something: the one that `tools/train.py` and `tools/test.py` run."""

from pathlib import Path

from mmengine.dist import broadcast_object_list, get_rank
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner.base_loop import BaseLoop
from torch.utils.data import DataLoader

from ..data.samples import seed_samples
from ..registry import RUNNERS
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

    def load_checkpoint(self, *args, **kwargs) -> dict:
        """As mmengine's, without the text in `meta.config`, which mmengine's `resume` would run as Python: also where
        a hook has put it back after reading (closed.py)."""
        checkpoint = super().load_checkpoint(*args, **kwargs)
        if isinstance(checkpoint.get('meta'), dict):
            checkpoint['meta'].pop('config', None)
        return checkpoint

    def dump_config(self) -> None:
        """A test's into the folder of its log: the one in the work_dir is the training's."""
        if self._train_loop is not None:
            super().dump_config()
        else:
            self.cfg.dump(Path(self._log_dir) / Path(self.cfg.filename or 'config.py').name)
