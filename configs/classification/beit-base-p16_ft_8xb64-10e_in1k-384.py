"""BEiT-B fine-tuned on ImageNet-1K at 384 px, 10 epochs after the 224 px run: Table 1, BEiT384-B.

    python tools/train.py configs/classification/beit-base-p16_ft_8xb64-10e_in1k-384.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: 84.6 % top-1 (Table 1). The paper says 10 more epochs and DeiT's settings for high resolution; rate,
layer decay and weight decay are those of the official commands at 384 px (2e-5, 0.85, 1e-8), our reading. Differs from
its base in these, in the size, and in neither mixing images nor erasing.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'work_dirs/beit-base-p16_ft_8xb128-100e_in1k-224/epoch_100.pth'
load_from = pretrained
protocol = 'fine-tune, 384 px'
model = dict(backbone=dict(img_size=384), train_cfg=None)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.85), optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 2e-5,
        by_epoch=True,
        begin=1,
        end=10,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=10)
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=384, backend='pillow', interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(
                type='RandAugment',
                policies='timm_increasing',
                num_policies=2,
                total_level=10,
                magnitude_level=9,
                magnitude_std=0.5,
                hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
            ),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=384, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=384),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
