"""BEiT-L fine-tuned on ImageNet-1K at 224 px after 800 epochs of pre-training: Table 1, BEiT-L, and Table 13.

    python tools/train.py configs/classification/beit-large-p16_ft_16xb64-50e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

The paper's number: 85.2 % top-1 (Table 1). Rate 1e-3 and drop path 0.2 as in the official command for large (Table 13
has 2e-3 to 5e-3 and 0.1); no repeated augmentation (Table 13). bf16 autocast on CUDA, where the official code has fp16
with a loss scaler; float32 elsewhere.
"""

_base_ = [
    '../_base_/runtime_epochs.py',
    '../_base_/datasets/imagenet_cls.py',
    '../_base_/models/beit_base_cls.py',
]

pretrained = 'work_dirs/beit-large-p16_dalle_32xb64-800e_in1k-224/epoch_800.pth'
load_from = pretrained
protocol = 'fine-tune'
model = dict(backbone=dict(arch='large', drop_path_rate=0.2), head=dict(in_channels=1024))
train_dataloader = dict(batch_size=64, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
optim_wrapper = dict(
    type='beit_mm.AmpOptimWrapper',
    devices=['cuda'],
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.75),
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 1e-3,
        by_epoch=True,
        begin=5,
        end=50,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50, val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
