"""Fine-tune the miniature BEiT with UPerNet to segment embedded scenes, on 256 labelled images.

    python tools/train.py configs/segmentation/beit-mini-p8_upernet_1xb32-150_embedded-64.py \
        --load-from work_dirs/beit-mini-p8_dvae_1xb48-1500_embedded-64/iter_1500.pth

Ours, no paper row; recipe: the official UPerNet's in small (AdamW, layer decay, linear decay to 0, drop path 0.1).
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/embedded_seg.py', '../_base_/models/beit_mini_upernet.py']

default_scope = 'mmseg'
protocol = 'fine-tune'
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.75),
    optimizer=dict(type='AdamW', lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=15),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=15, end=150),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=150, val_interval=50)
