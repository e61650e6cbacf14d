"""Token views of ImageNet-1K, 112 px, without labels: data/imagenet/{train,val}/<class>/<image>.JPEG."""

train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='beit_mm.SeededInfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='beit_mm.ImageList',
        data_root='data/imagenet',
        split='train',
        with_label=False,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.TwoViewCrop', patches_size=None, tokens_size=112, flip=0.5),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=64,
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
            dict(type='beit_mm.TwoViewCrop', patches_size=None, tokens_size=112, scale=(1, 1), ratio=(1, 1)),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='beit_mm.TokenizerMetric')
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
