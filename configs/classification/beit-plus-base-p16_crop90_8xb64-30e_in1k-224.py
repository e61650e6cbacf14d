"""The test of timm and PASSL for `beit_plus` base at 224 px: crop ratio 0.9 instead of 0.875. No paper row.

    python tools/test.py configs/classification/beit-plus-base-p16_crop90_8xb64-30e_in1k-224.py CHECKPOINT
    python tools/train.py configs/classification/beit-plus-base-p16_crop90_8xb64-30e_in1k-224.py

Their numbers for the official weights: 85.24 % (timm), 85.21 % (PASSL) top-1. At 384 and 512 px their crop is the whole
image, as in the configs for these sizes. Differs from beit-plus-base-p16_ft22k-ft_8xb64-30e_in1k-224 in the test alone.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-base-p16_ft22k_16xb256-90e_in22k-224/epoch_90.pth'
load_from = pretrained
protocol = 'intermediate fine-tune, crop 0.9'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(variant='beit_plus'), train_cfg=None)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.85), optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 2e-5,
        by_epoch=True,
        begin=5,
        end=30,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=30)
train_dataloader = dict(batch_size=64, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
auto_scale_lr = dict(base_batch_size=512)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=249, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
