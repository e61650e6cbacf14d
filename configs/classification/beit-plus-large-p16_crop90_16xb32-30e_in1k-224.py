"""The test of timm and PASSL for `beit_plus` large at 224 px: crop ratio 0.9 instead of 0.875. No paper row.

    python tools/test.py configs/classification/beit-plus-large-p16_crop90_16xb32-30e_in1k-224.py CHECKPOINT
    python tools/train.py configs/classification/beit-plus-large-p16_crop90_16xb32-30e_in1k-224.py

Their numbers for the official weights: 87.49 % (timm), 87.48 % (PASSL) top-1. At 384 and 512 px their crop is the whole
image, as in the configs for these sizes. Differs from beit-plus-large-p16_ft22k-ft_16xb32-30e_in1k-224 in the test
alone. bf16 autocast on CUDA, where the official code has fp16 with a loss scaler; float32 elsewhere.
"""

_base_ = ['beit-large-p16_ft_16xb64-50e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-large-p16_ft22k_32xb64-90e_in22k-224/epoch_90.pth'
load_from = pretrained
protocol = 'intermediate fine-tune, crop 0.9'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(variant='beit_plus', drop_path_rate=0.4), train_cfg=None)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9), optimizer=dict(lr=2e-5, weight_decay=1e-8))
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
train_dataloader = dict(batch_size=32, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
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
