"""Fine-tune the miniature BEiT on 10 % of the hand-written digits' labels: 126 images. Ours, no paper row.

    python tools/train.py configs/classification/beit-mini-p8_ft-10pct_1xb64-100_digits-64.py \
        --load-from work_dirs/beit-mini-p8_dvae_1xb48-1500_embedded-64/iter_1500.pth

Expected: 61.3 top-1, without --load-from 42.2 (ours, one run each, 30 s on one core).
The recipe of beit-mini-p8_ft. The images are drawn class by class with seed 0: 1 % is inside 5 %, 5 % inside 10 %.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/digits_cls.py', '../_base_/models/beit_mini_cls.py']

protocol = 'fine-tune, 10 % of the labels'
model = dict(head=dict(num_classes=10))
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='beit_mm.LabelledShare',
        percent=10,
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
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.75),
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-2, by_epoch=False, begin=10, end=100),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=100, val_interval=25)
