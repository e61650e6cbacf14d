"""Tables 4 and 5 of the paper in miniature, and linear probes of what came out, on embedded data.

    python tools/benchmark.py configs/suites/miniature_tables.py --seeds 3 --jobs 3

Table 4 asks what blockwise masking, visual tokens and hiding are worth, Table 5 what LayerScale and relative positions
add. Each row is a pre-training of 500 steps (`longer`: 1,333, as 800 epochs are to 300) and the same fine-tuning on 256
labelled images. Ours; the paper's numbers are beside ours in docs/miniature.md.
"""

title = 'Tables 4 and 5 in miniature, on embedded data'
note = (
    'Embedded data: photographs that ship with scikit-image and scikit-learn, not ImageNet. All rows share the '
    'tokenizer of their seed, the fine-tuning and its 256 labelled images; pre-training saw unlabelled crops only.'
)
root = 'work_dirs/miniature-tables'

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


def _row(name, config, options, steps=500, tuned=None):
    """A pre-training and the classifier that starts from it; tuned: overrides of the classifier."""
    if config == _tokens:
        options = {**options, 'model.target.checkpoint': '{tokenizer}'}
    return [
        dict(name=name, kind='pretrain', config=config, options={**_steps(steps), **options}, fast=_fast),
        dict(
            name=f'classify-{name}',
            kind='classification',
            config=_classify,
            start=name,
            options={'protocol': f'fine-tune after {name}', **(tuned or {})},
            fast=_fast,
        ),
    ]


_scaled = {'model.backbone.layer_scale_init_value': 0.1}
_relative = {**_scaled, 'model.backbone.use_abs_pos_emb': False}


def _probe(start, data):
    """A linear probe of every block of a pre-trained backbone; the block is chosen on held-out training images."""
    return [
        dict(
            name=f'probe-{start}-{data}',
            kind='classification',
            config=f'configs/classification/beit-mini-p8_linear-probe_1xb64-300_{data}-64.py',
            start=start,
            options={'protocol': f'linear probe of {start}'},
            fast={'train_cfg.max_iters': 10, 'train_cfg.val_interval': 10, 'default_hooks.checkpoint.interval': 10},
        )
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
    *_row('layer-scale', _tokens, _scaled, tuned=_scaled),
    *_row(
        'relative-bias',
        _tokens,
        {**_relative, 'model.backbone.use_shared_rel_pos_bias': True},
        tuned={**_relative, 'model.backbone.use_rel_pos_bias': True},
    ),
    *_probe('beit', 'embedded'),
    *_probe('longer', 'embedded'),
    *_probe('pixels', 'embedded'),
    *_probe('beit', 'digits'),
    *_probe('pixels', 'digits'),
]
