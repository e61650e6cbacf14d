"""Optimizer and schedule of the official UPerNet from self-supervised weights, and of Table 14: 160,000 steps of 16.

AdamW, layer decay 0.65, 1,500 steps of warm-up, then linearly to 0. The rate is UPerNet's.
"""

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.65),
    optimizer=dict(type='AdamW', lr=7e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
auto_scale_lr = dict(base_batch_size=16)
