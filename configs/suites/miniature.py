"""The whole road on embedded mosaics in colour: what `make demo` runs. Ours, no paper row.

    python tools/benchmark.py configs/suites/miniature.py --seeds 3
"""

title = 'BEiT in miniature, on embedded data'
note = (
    'Embedded data: mosaics of photographs that ship with scikit-image and scikit-learn, in colour; not ADE20K, not '
    'ImageNet. Pre-trained and from-scratch models share recipe, steps and the same 256 labelled images; tokenizer and '
    'pre-training saw other mosaics, without labels, of the training parts of the photographs.'
)
root = 'work_dirs/demo'


def _fast(iterations):
    """Overrides that shorten a stage to a check."""
    return {
        'train_cfg.max_iters': iterations,
        'train_cfg.val_interval': iterations,
        'default_hooks.checkpoint.interval': iterations,
        'param_scheduler.1.end': iterations,
        'param_scheduler.0.end': 5,
        'param_scheduler.1.begin': 5,
        'val_dataloader.dataset.length': 100,
        'test_dataloader.dataset.length': 100,
    }


_classify = 'configs/classification/beit-mini-p8_{}_1xb64-100_mosaics-64.py'
_segment = 'configs/segmentation/beit-mini-p8_{}_1xb32-60_mosaics-64.py'
stages = [
    dict(
        name='tokenizer',
        kind='tokenizer',
        config='configs/tokenizer/dvae-512_1xb64-300_mosaics-32.py',
        fast={**_fast(20), 'custom_hooks.0.num_images': 64},
    ),
    dict(
        name='pretrain',
        kind='pretrain',
        config='configs/pretrain/beit-mini-p8_dvae_1xb48-1500_mosaics-64.py',
        options={'model.target.checkpoint': '{tokenizer}'},
        fast=_fast(10),
    ),
    dict(
        name='classify',
        kind='classification',
        config=_classify.format('ft'),
        start='pretrain',
        fast=_fast(10),
    ),
    dict(name='classify-scratch', kind='classification', config=_classify.format('scratch'), fast=_fast(10)),
    dict(name='segment', kind='segmentation', config=_segment.format('setr-pup'), start='pretrain', fast=_fast(10)),
    dict(name='segment-scratch', kind='segmentation', config=_segment.format('setr-pup-scratch'), fast=_fast(10)),
]
