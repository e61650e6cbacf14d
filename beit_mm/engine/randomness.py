"""Randomness of a training step that depends on (seed, step, rank) alone, so that nothing of it needs to be saved.

Drop path, mixup, dropout and Gumbel noise draw from the global generators: they are seeded before each step. What a
data worker draws depends on the sample: data/sampling.py. So a run that goes on from a checkpoint takes the very steps
that it would have taken, whatever validation drew in between.
"""

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..checkpoints.load import of_beit_mm
from ..registry import HOOKS
from .accumulation import seed_step


@HOOKS.register_module()
class CountedRandomnessHook(Hook):
    """Seeds the global generators before each step, and writes into checkpoints how far the data were read."""

    priority = 'LOWEST'  # checkpoints: after PlainCheckpointHook, which writes `meta` anew

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        seed_step(runner.seed, runner.iter, get_rank())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta = checkpoint['meta']
        if hasattr(runner.train_loop, 'images_at'):
            meta['beit_mm']['images'] = runner.train_loop.images_at(meta['epoch'], meta['iter'])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            runner.train_loop.images = of_beit_mm(checkpoint).get('images')
