"""What the Runner costs beyond a bare loop, with every safety hook of ours; and what keeping freed memory gains.

    python benchmarks/runner.py [--only 50] [--rounds 9] [--markdown]

The model is two linear layers, so that an iteration is little more than what surrounds it. `ours` is what
tools/train.py runs: the default hooks of configs/_base_/runtime.py, all safety hooks, the optimizer wrapper and log
processor of ours, files and TensorBoard. `mmengine` is its Runner with nothing but its own defaults.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable

import harness

WIDTH, BATCH, IMAGES = 256, 8, 64
MOST_OVERHEAD = 0.6  # ms an iteration beyond the bare loop, at the interval that the configs have
INTERVAL = 50  # of the log, as in configs/_base_/runtime.py
MALLOC = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_='100000000000', MALLOC_TOP_PAD_='67108864')


def parts() -> tuple:
    """(model, data set) of all candidates, also to be named by a config."""
    import torch
    from mmengine.model import BaseModel
    from mmengine.registry import DATASETS, MODELS
    from torch import nn

    @MODELS.register_module()
    class TwoLayers(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))

        def forward(self, inputs, labels, mode='tensor'):
            return dict(loss=nn.functional.cross_entropy(self.layers(inputs), labels))

    @DATASETS.register_module()
    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return IMAGES

        def __getitem__(self, index: int) -> dict:
            return dict(inputs=torch.full((WIDTH,), index / IMAGES), labels=index % 10)

    torch.manual_seed(0)
    return TwoLayers(), Pairs()


def bare() -> Callable[[], object]:
    """The loop that one writes by hand."""
    import torch

    model, dataset = parts()
    loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.train()

    def batches():
        while True:
            yield from loader

    batch = batches()

    def step() -> None:
        loss = model(**model.data_preprocessor(next(batch), True), mode='loss')['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def runner(ours: bool, interval: int) -> Callable[[], object]:
    """An iteration of IterBasedTrainLoop, as its `run` does it, of a Runner that has begun to train."""
    from mmengine.config import Config
    from mmengine.runner import IterBasedTrainLoop, Runner

    from beit_mm.engine.launch import prepare, terse_terminal

    class Begun(IterBasedTrainLoop):
        def run(self) -> None:
            self.runner.call_hook('before_train')
            self.runner.call_hook('before_train_epoch')

        def step(self) -> None:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()

    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    parts()
    config = dict(
        model=dict(type='TwoLayers'),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', fused=True)),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=10**6, by_epoch=False)],
        train_cfg=dict(by_epoch=False, max_iters=10**6),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=interval)),
    )
    if ours:
        config = {**Config.fromfile('configs/_base_/runtime.py').to_dict(), **config}
        config['optim_wrapper']['type'] = 'beit_mm.OptimWrapper'
        config['default_hooks']['checkpoint'] = dict(type='CheckpointHook', interval=10**6, by_epoch=False)
        config = prepare(Config(config), work_dir=folder, seed=0).to_dict()
        config['custom_hooks'] = [hook for hook in config['custom_hooks'] if hook['type'] != 'beit_mm.PreflightHook']
    terse_terminal()
    loader = dict(batch_size=BATCH, num_workers=0, sampler=dict(type='InfiniteSampler'))
    loader.update(dataset=dict(type='Pairs'), collate_fn=dict(type='default_collate'))
    made = Runner.from_cfg(Config({**config, 'work_dir': folder, 'train_dataloader': loader}))
    made._train_loop = Begun(made, made._train_dataloader, max_iters=10**6)
    made.train()
    return made.train_loop.step


def block(kept: bool) -> Callable[[], object]:
    """A training step of one block of BEiT-B on four images."""
    import torch

    from beit_mm.engine.memory import keep_freed_memory
    from beit_mm.models import BEiTViT

    if kept and not keep_freed_memory():
        raise RuntimeError('this process does not keep its freed memory: no glibc, CUDA, or MALLOC_* is set')
    size = dict(embed_dims=768, num_layers=1, num_heads=12, feedforward_channels=3072)
    backbone = BEiTViT(arch=size, img_size=224, patch_size=16).train()
    images = torch.randn(4, 3, 224, 224)

    def step() -> None:
        backbone(images)[-1].square().mean().backward()

    return step


def loops(interval: int) -> harness.Case:
    return harness.Case(
        name=f'runner, log every {interval}',
        candidates={
            'bare': bare,
            'mmengine': lambda: runner(False, interval),
            'ours': lambda: runner(True, interval),
        },
        baseline='bare',
        overheads={'ours': MOST_OVERHEAD} if interval == INTERVAL else {},
    )


CASES = [
    loops(INTERVAL),
    loops(1),
    harness.Case(
        name='allocator',
        candidates={'untouched': lambda: block(False), 'variables': lambda: block(False), 'tools': lambda: block(True)},
        baseline='untouched',
        env={'variables': MALLOC},
    ),
]

if __name__ == '__main__':
    harness.main(__doc__, CASES)
