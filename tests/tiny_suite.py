"""A suite of four stages that take seconds: tokenizer, pre-training, and two classifiers, one of them from scratch."""

from pathlib import Path

SUITE = """
title = 'tiny'
note = 'a test'
root = 'unused'
_tiny = {{
    'train_cfg.max_iters': {steps}, 'train_cfg.val_interval': {steps}, 'default_hooks.checkpoint.interval': {interval},
    'train_dataloader.dataset.length': 60, 'train_dataloader.batch_size': 4, 'val_dataloader.dataset.length': 4,
    'test_dataloader.dataset.length': {images}, 'default_hooks.logger.interval': 1,
}}
stages = [
    dict(name='tokenizer', options=_tiny, config='configs/tokenizer/dvae-512_1xb64-300_embedded-32.py'),
    dict(name='pretrain', config='configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py',
         options={{**_tiny, 'model.target.checkpoint': '{{tokenizer}}'}}),
    dict(name='classify', start='pretrain',
         config='configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py', options=_tiny),
    dict(name='classify-scratch',
         config='configs/classification/beit-mini-p8_scratch_1xb64-100_embedded-64.py', options=_tiny),
]
{more}
"""


def tiny_suite(
    folder: Path, steps: int = 2, interval: int = 1, images: int = 4, more: str = '', name: str = 'suite.py'
) -> Path:
    """Write it; more: Python after it."""
    path = folder / name
    path.write_text(SUITE.format(steps=steps, interval=interval, images=images, more=more))
    return path
