"""BEiT-B on CIFAR-10 at 224 px: Table 11's protocol on CIFAR-10; no paper row.

    python tools/train.py configs/classification/beit-base-p16_ft_8xb64-150e_cifar10-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: none for CIFAR-10. Recipe of Table 13 for CIFAR-100: 150 epochs, batch 512, 20 epochs of warm-up,
weight decay 0.3, no erasing; peak rate 4e-3 of the paper's four. The test resizes the whole image. data/cifar holds the
original pickles. Differs from its base in these.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'work_dirs/beit-base-p16_dalle_16xb128-800e_in1k-224/epoch_800.pth'
load_from = pretrained
model = dict(head=dict(num_classes=10))
optim_wrapper = dict(optimizer=dict(lr=4e-3, weight_decay=0.3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 4e-3,
        by_epoch=True,
        begin=20,
        end=150,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=150)
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True,
        type='beit_mm.CIFAR10',
        data_root='data/cifar',
        split='train',
        pipeline=[
            dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
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
        type='beit_mm.CIFAR10',
        data_root='data/cifar',
        split='test',
        test_mode=True,
        pipeline=[
            dict(type='Resize', scale=224, backend='pillow', interpolation='bicubic'),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
dataset_name = 'CIFAR10'
data_preprocessor = dict(num_classes=10, to_rgb=False)
auto_scale_lr = dict(base_batch_size=512)
