"""ImageNet-1K for masked image modeling, without labels: 224 px for the backbone, 112 px for DALL-E's tokens, 75 of
14 x 14 patches masked. data/imagenet/{train,val}/<class>/<image>.JPEG."""

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='beit_mm.SeededSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='beit_mm.ImageList',
        data_root='data/imagenet',
        split='train',
        with_label=False,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.ColorJitter', channel_order='bgr'),
            dict(type='beit_mm.TwoViewCrop', patches_size=224, tokens_size=112, flip=0.5),
            dict(type='beit_mm.MaskPatches', grid=(14, 14), num_masked=75),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='beit_mm.ImageList',
        data_root='data/imagenet',
        split='val',
        with_label=False,
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.TwoViewCrop', patches_size=224, tokens_size=112, scale=(1, 1), ratio=(1, 1)),
            dict(type='beit_mm.MaskPatches', grid=(14, 14), num_masked=75, seed=0),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='beit_mm.MaskedAccuracy')
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
