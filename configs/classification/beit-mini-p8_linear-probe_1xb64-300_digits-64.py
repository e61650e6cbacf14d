"""Linear probe of every block of the miniature BEiT, on hand-written digits. Ours, no paper row.

    python tools/train.py configs/classification/beit-mini-p8_linear-probe_1xb64-300_digits-64.py \
        --load-from work_dirs/beit-mini-p8_dvae_1xb48-1500_embedded-64/iter_1500.pth

Expected: 54.4 top-1 by block 3, on random weights 26.3 (ours, one run each, 38 s on one core).
As beit-mini-p8_linear-probe on embedded scenes; the block is chosen on a tenth of the training images.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/digits_cls.py']

protocol = 'linear probe'
model = dict(
    type='beit_mm.LinearProbe',
    backbone=dict(
        type='beit_mm.BEiTViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=64,
        patch_size=8,
        in_channels=1,
        variant='beit',
        out_type='raw',
        out_indices=(0, 1, 2, 3),
    ),
    num_classes=10,
    features='both',
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='beit_mm.LabelledShare',
        percent=10,
        rest=True,
        dataset=dict(
            type='beit_mm.EmbeddedDigits',
            split='train',
            pipeline=[
                dict(type='Resize', scale=(64, 64), interpolation='bicubic'),
                dict(type='PackInputs'),
            ],
        ),
    )
)
val_evaluator = dict(_delete_=True, type='beit_mm.ProbeAccuracy')
test_evaluator = dict(_delete_=True, type='beit_mm.ProbeAccuracy')
custom_hooks = [
    dict(
        type='beit_mm.ProbeHook',
        held_out=dict(
            batch_size=64,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            dataset=dict(
                type='beit_mm.LabelledShare',
                percent=10,
                dataset=dict(
                    type='beit_mm.EmbeddedDigits',
                    split='train',
                    test_mode=True,
                    pipeline=[
                        dict(type='Resize', scale=(64, 64), interpolation='bicubic'),
                        dict(type='PackInputs'),
                    ],
                ),
            ),
        ),
    )
]
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=1e-4, fused=True),
)
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False, begin=0, end=300)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=300, val_interval=100)
