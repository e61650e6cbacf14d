"""BEiT-B (`beit`, the paper's main model) as a classifier: mean of the patch features, LayerNorm, one linear layer."""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='beit_mm.BEiTViT',
        arch='base',
        variant='beit',
        img_size=224,
        drop_path_rate=0.1,
        out_type='avg_featmap',
    ),
    neck=None,
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=[dict(type='TruncNormal', layer='Linear', std=2e-5)],
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
