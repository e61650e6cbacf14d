"""Optimizer and schedule of Table 12: AdamW, peak 1.5e-3 for 2,048 images, 10 epochs of warm-up, cosine to 1e-5."""

optim_wrapper = dict(
    type='beit_mm.OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=3.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-5 / 1.5e-3,
        by_epoch=True,
        begin=10,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=10)
auto_scale_lr = dict(base_batch_size=2048)
