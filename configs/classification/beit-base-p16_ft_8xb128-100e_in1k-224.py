"""BEiT-B fine-tuned on ImageNet-1K at 224 px after 800 epochs of pre-training: Table 1, BEiT-B, and Table 13.

    python tools/train.py configs/classification/beit-base-p16_ft_8xb128-100e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: 83.2 % top-1 (Table 1; 83.19 in Table 4). `pretrained` is where
configs/pretrain/beit-base-p16_dalle_16xb128-800e_in1k-224.py leaves its weights; the official release
beit_base_patch16_224_pt1k_800ep fits as well. Repeated augmentation is the paper's (Table 13); the official code has
none. Peak rate: 4e-3, of the paper's four.
"""

_base_ = [
    '../_base_/runtime_epochs.py',
    '../_base_/datasets/imagenet_cls.py',
    '../_base_/models/beit_base_cls.py',
]

pretrained = 'work_dirs/beit-base-p16_dalle_16xb128-800e_in1k-224/epoch_800.pth'
load_from = pretrained
protocol = 'fine-tune'
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.65),
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 4e-3,
        by_epoch=True,
        begin=20,
        end=100,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
