"""BEiT-B on CIFAR-100 at 224 px: Table 11.

    python tools/train.py configs/classification/beit-base-p16_ft_8xb64-150e_cifar100-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: 90.1 % top-1 (Table 11, BEiT). Recipe of Table 13 for CIFAR-100: 150 epochs, batch 512, 20 epochs of
warm-up, weight decay 0.3, no erasing; peak rate 4e-3 of the paper's four. The test resizes the whole image. data/cifar
holds the original pickles.
"""

_base_ = [
    '../_base_/runtime_epochs.py',
    '../_base_/datasets/cifar100_224.py',
    '../_base_/models/beit_base_cls.py',
]

pretrained = 'work_dirs/beit-base-p16_dalle_16xb128-800e_in1k-224/epoch_800.pth'
load_from = pretrained
protocol = 'fine-tune'
model = dict(head=dict(num_classes=100))
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.65),
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3, fused=True),
)
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
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=150, val_interval=1)
auto_scale_lr = dict(base_batch_size=512)
