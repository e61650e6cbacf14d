"""The same ViT-B from scratch on ImageNet-1K, DeiT's recipe: Table 1, DeiT-B.

    python tools/train.py configs/classification/deit-base-p16_scratch_16xb64-300e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number, quoted from DeiT: 81.8 % top-1 (Table 1). AdamW 1e-3 for 1,024 images, 300 epochs, 5 of warm-up,
weight decay 0.05, drop path 0.1, repeated augmentation, class token output, no layer decay (arXiv 2012.12877, Table 9).
Differs from it in the start of the weights, which is BEiT's fine-tuning start.
"""

_base_ = [
    '../_base_/runtime_epochs.py',
    '../_base_/datasets/imagenet_cls.py',
    '../_base_/models/beit_base_cls.py',
]

protocol = 'from scratch'
model = dict(
    backbone=dict(bias=True, out_type='cls_token', final_norm=True),
    head=dict(init_cfg=[dict(type='TruncNormal', layer='Linear', std=0.02)]),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=1.0),
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, fused=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-5 / 1e-3,
        by_epoch=True,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
