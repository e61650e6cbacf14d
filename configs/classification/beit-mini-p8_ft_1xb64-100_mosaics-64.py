"""Fine-tune the miniature BEiT to classify embedded mosaics in colour, on 256 labelled images.

    python tools/train.py configs/classification/beit-mini-p8_ft_1xb64-100_mosaics-64.py \
        --load-from work_dirs/beit-mini-p8_dvae_1xb48-1500_mosaics-64/iter_1500.pth

Ours, no paper row; recipe: Table 13 in small (AdamW, layer decay, label smoothing 0.1, drop path 0.1). Differs from
beit-mini-p8_ft on grey images in the channels and the layer decay. From scratch rates of 2e-3 to 6e-3 and decays of
0.75 and 0.9 gave 44.4 to 45.3 top-1 on seed 3. Without --load-from this is that row; it has a config of its own,
beit-mini-p8_scratch.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/mosaics_cls.py', '../_base_/models/beit_mini_cls.py']

protocol = 'fine-tune'
model = dict(backbone=dict(in_channels=3))
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=10),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-2, by_epoch=False, begin=10, end=100),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=100, val_interval=25)
