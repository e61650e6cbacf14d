"""Choosing a probe's block on held-out images, and what it is then worth on the images of the evaluation."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine import dist
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..models.probe import Choice, KNNProbe
from ..registry import HOOKS, METRICS
from .checkpointing import model_of


def name_of(candidate: dict[str, int]) -> str:
    """dict(block=9, k=20) -> `block9.k20`."""
    return '.'.join(f'{key}{value}' for key, value in candidate.items())


def _paths(loader: DataLoader | None) -> set[str]:
    dataset = [] if loader is None else loader.dataset
    return {str(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))}


@HOOKS.register_module()
class ProbeHook(Hook):
    """Before every evaluation: fills a KNNProbe's bank, and chooses the candidate that is best on held-out images.

    held_out, bank: configs of data loaders, as `val_dataloader` is one. No image may be in two of held-out, bank,
    training and evaluation: ValueError says which two share some. Of equally good candidates the first is chosen.
    """

    def __init__(self, held_out: dict | None = None, bank: dict | None = None) -> None:
        self.configs = dict(held_out=held_out, bank=bank)
        self.loaders: dict[str, DataLoader] = {}

    def before_val_epoch(self, runner: Runner) -> None:
        self._prepare(runner, runner.val_loop)

    def before_test_epoch(self, runner: Runner) -> None:
        self._prepare(runner, runner.test_loop)

    def _build(self, runner: Runner, evaluation) -> None:
        self.loaders = {
            name: runner.build_dataloader(config, seed=runner.seed) for name, config in self.configs.items() if config
        }
        # A loop that is not built yet, or that there is none of, has no data loader
        train = getattr(runner._train_loop, 'dataloader', None)
        evaluated, trained = _paths(evaluation.dataloader), _paths(train) if self.configs['held_out'] else set()
        held_out, bank = (_paths(self.loaders.get(name)) for name in ('held_out', 'bank'))
        for name, own, other, paths in (
            ('held_out', held_out, 'evaluation', evaluated),
            ('held_out', held_out, 'training', trained),
            ('held_out', held_out, 'bank', bank),
            ('bank', bank, 'evaluation', evaluated),
        ):
            if shared := own & paths:
                raise ValueError(
                    f'ProbeHook: {len(shared)} images of {name} are in the {other} data too, {min(shared)} first; '
                    f'take shares of one data set with beit_mm.LabelledShare, the other one with rest=True'
                )

    @torch.no_grad()
    def _prepare(self, runner: Runner, evaluation) -> None:
        model = model_of(runner)
        model.eval()
        for buffer in model.buffers():
            dist.broadcast(buffer)  # BatchNorm's are each rank's own; the first rank's are those that are saved
        if not self.loaders:
            self._build(runner, evaluation)
        if isinstance(model, KNNProbe):
            if 'bank' not in self.loaders:
                raise ValueError('ProbeHook: a KNNProbe needs a bank: give the hook bank=dict(...), a data loader')
            model.forget()
            for batch in self.loaders['bank']:
                data = model.data_preprocessor(batch, False)
                model.remember(data['inputs'], data['data_samples'])
        if 'held_out' in self.loaders:
            self._choose(runner, model)

    def _choose(self, runner: Runner, model) -> None:
        hits = np.zeros(len(model.candidates) + 1)  # the last counts the images
        for batch in self.loaders['held_out']:
            for sample in model.val_step(batch):
                hits[:-1] += sample['top'][:, 0].numpy() == sample['label']
                hits[-1] += 1
        total = torch.from_numpy(hits).to(next(model.backbone.parameters()).device)
        dist.all_reduce(total)
        *right, number = total.tolist()
        best = int(np.argmax(right))
        model.choice = Choice(best, 100 * right[best] / number)
        runner.logger.info(
            f'chosen on {int(number)} held-out images: {name_of(model.candidates[best])}, '
            f'{model.choice.held_out_top1:.2f} % top-1'
        )


@METRICS.register_module()
class ProbeAccuracy(BaseMetric):
    """Percent right, as plain floats.

    accuracy/top1, accuracy/top5: of the chosen candidate, or the only one. chosen_block (from 1), chosen_k,
    held_out_top1: the choice and its accuracy on the held-out images. top1.block9, ...: of every candidate.
    optimistic_top1, optimistic_block, optimistic_k: the best of all on these very images: what the official code
    reports (there also the best of all epochs), and more than the probe is worth.
    """

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.candidates: Sequence[dict[str, int]] = ()
        self.choice: Choice | None = None

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            self.candidates, self.choice = sample['candidates'], sample['choice']
            self.results.append((sample['top'] == sample['label']).numpy())

    def compute_metrics(self, results: list) -> dict:
        hits = np.stack(results)  # images, candidates, places
        top1, top5 = 100 * hits[..., 0].mean(axis=0), 100 * hits.any(axis=2).mean(axis=0)
        metrics = {}
        if self.choice is not None or len(self.candidates) == 1:
            chosen = 0 if self.choice is None else self.choice.index
            metrics.update({'accuracy/top1': float(top1[chosen]), 'accuracy/top5': float(top5[chosen])})
            metrics.update({f'chosen_{key}': float(value) for key, value in self.candidates[chosen].items()})
        if self.choice is not None:
            metrics['held_out_top1'] = float(self.choice.held_out_top1)
        if len(self.candidates) > 1:
            best = int(np.argmax(top1))
            metrics['optimistic_top1'] = float(top1[best])
            metrics.update({f'optimistic_{key}': float(value) for key, value in self.candidates[best].items()})
            metrics.update({f'top1.{name_of(c)}': float(value) for c, value in zip(self.candidates, top1, strict=True)})
        return metrics
