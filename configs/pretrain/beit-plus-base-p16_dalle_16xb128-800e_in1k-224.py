"""`beit_plus` base on ImageNet-1K, 800 epochs: the official command for ImageNet-1K. No paper row (Table 5 has 300
epochs).

    python tools/train.py configs/pretrain/beit-plus-base-p16_dalle_16xb128-800e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

Differs from its base in the variant and the length.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

model = dict(backbone=dict(variant='beit_plus'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-5 / 1.5e-3,
        by_epoch=True,
        begin=10,
        end=800,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=800, val_interval=20)
