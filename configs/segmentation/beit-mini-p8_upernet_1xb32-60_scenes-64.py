"""Miniature BEiT with UPerNet on embedded scenes in ADE20K's layout, by the same commands as on ADE20K.

    python tools/prepare_data.py export data/scenes --format ade20k --train 4000 --val 1000
    python tools/prepare_data.py verify data/scenes --format ade20k --partial
    python tools/train.py configs/tokenizer/dvae-512_1xb64-300_scenes-32.py
    python tools/train.py configs/pretrain/beit-mini-p8_dvae_1xb48-1500_scenes-64.py
    python tools/train.py configs/segmentation/beit-mini-p8_upernet_1xb32-60_scenes-64.py
    python tools/test.py THIS_FILE work_dirs/beit-mini-p8_upernet_1xb32-60_scenes-64/iter_60.pth [--tta] [--show-dir DIR]

Ours, no paper row: 256 labelled images, 60 steps. docs/segmentation.md has what it gave.
"""

_base_ = [
    '../_base_/runtime.py',
    '../_base_/datasets/scenes_seg.py',
    '../_base_/models/beit_mini_upernet.py',
]

default_scope = 'mmseg'
pretrained = 'work_dirs/beit-mini-p8_dvae_1xb48-1500_scenes-64/iter_1500.pth'
load_from = pretrained
protocol = 'UPerNet, fine-tune'
model = dict(
    type='beit_mm.EncoderDecoder',
    backbone=dict(in_channels=3),
    test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(42, 42)),
)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
    optimizer=dict(type='AdamW', lr=3e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=10),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=10, end=60),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=60, val_interval=60)
