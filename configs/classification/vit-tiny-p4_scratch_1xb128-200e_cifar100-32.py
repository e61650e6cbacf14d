"""ViT-Tiny from scratch on CIFAR-100 at its own 32 px, patches of 4: a protocol of ours. No paper row.

    python tools/train.py configs/classification/vit-tiny-p4_scratch_1xb128-200e_cifar100-32.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

Not the protocol of Table 11, which is at 224 px: the two are not to be compared. AdamW 1e-3 for 128 images, 200 epochs,
padding by 4, flips, RandAugment, mixup and cutmix. Not trained here.
"""

_base_ = [
    '../_base_/runtime_epochs.py',
    '../_base_/datasets/imagenet_cls.py',
    '../_base_/models/beit_base_cls.py',
]

protocol = 'from scratch'
model = dict(
    backbone=dict(arch='deit-tiny', img_size=32, patch_size=4),
    head=dict(num_classes=100, in_channels=192, init_cfg=[dict(type='TruncNormal', layer='Linear', std=0.02)]),
)
train_dataloader = dict(
    batch_size=128,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(
        _delete_=True,
        type='beit_mm.CIFAR100',
        data_root='data/cifar',
        split='train',
        pipeline=[
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(
                type='RandAugment',
                policies='timm_increasing',
                num_policies=2,
                total_level=10,
                magnitude_level=9,
                magnitude_std=0.5,
                hparams=dict(pad_val=[124, 116, 104], interpolation='bicubic'),
            ),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='beit_mm.CIFAR100',
        data_root='data/cifar',
        split='test',
        test_mode=True,
        pipeline=[
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
dataset_name = 'CIFAR100'
data_preprocessor = dict(num_classes=100, to_rgb=False)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0),
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-5 / 1e-3,
        by_epoch=True,
        begin=10,
        end=200,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=200, val_interval=1)
auto_scale_lr = dict(base_batch_size=128)
