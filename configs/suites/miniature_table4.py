"""Table 4 of the paper in miniature: what blockwise masking, visual tokens and hiding are worth, on embedded data.

    python tools/benchmark.py configs/suites/miniature_table4.py --seeds 3 --jobs 2

Each row is a pre-training of 500 steps (the last: 1,333, as 800 epochs are to 300) and the same fine-tuning on 256
labelled images. Ours; the paper's numbers are beside ours in docs/miniature.md.
"""

title = 'Table 4 in miniature, on embedded data'
note = (
    'Embedded data: photographs that ship with scikit-image and scikit-learn, not ImageNet. All rows share the '
    'tokenizer of their seed, the fine-tuning and its 256 labelled images; pre-training saw unlabelled crops only.'
)
root = 'work_dirs/miniature-table4'

_tokens = 'configs/pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py'
_pixels = 'configs/pretrain/beit-mini-p8_pixels_1xb48-1500_embedded-64.py'
_random = {'train_dataloader.dataset.pipeline.1.kind': 'random', 'val_dataloader.dataset.pipeline.1.kind': 'random'}


def _steps(steps):
    """Overrides for the length of a pre-training."""
    return {
        'train_cfg.max_iters': steps,
        'train_cfg.val_interval': steps,
        'default_hooks.checkpoint.interval': steps,
        'param_scheduler.1.end': steps,
    }


_fast = {
    **_steps(10),
    'param_scheduler.0.end': 5,
    'param_scheduler.1.begin': 5,
    'val_dataloader.dataset.length': 100,
    'test_dataloader.dataset.length': 100,
}


def _row(name, config, options, steps=500):
    """A pre-training and the classifier that starts from it."""
    if config == _tokens:
        options = {**options, 'model.target.checkpoint': '{tokenizer}'}
    return [
        dict(name=name, kind='pretrain', config=config, options={**_steps(steps), **options}, fast=_fast),
        dict(
            name=f'classify-{name}',
            kind='classification',
            config=_classify,
            start=name,
            options={'protocol': f'fine-tune after {name}'},
            fast=_fast,
        ),
    ]


_classify = 'configs/classification/beit-mini-p8_ft_1xb64-100_embedded-64.py'
stages = [
    dict(
        name='tokenizer',
        kind='tokenizer',
        config='configs/tokenizer/dvae-512_1xb64-300_embedded-32.py',
        fast={**_fast, 'custom_hooks.0.num_images': 64},
    ),
    dict(
        name='classify-scratch',
        kind='classification',
        config='configs/classification/beit-mini-p8_scratch_1xb64-100_embedded-64.py',
        fast=_fast,
    ),
    *_row('beit', _tokens, {}),
    *_row('random', _tokens, _random),
    *_row('pixels', _pixels, {}),
    *_row('pixels-random', _pixels, _random),
    *_row('recover-all', _tokens, {'model.predict': 'all'}),
    *_row('no-masking', _tokens, {'model.predict': 'all', 'model.hide': False}),
    *_row('longer', _tokens, {}, steps=1333),
]
