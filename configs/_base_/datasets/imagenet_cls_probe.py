"""ImageNet-1K for probes: 99 % of train to train on, 1 % of it, class-balanced, to choose on, val to evaluate on.

data/imagenet/{train,val}/<class>/<image>.JPEG. Crop and flip alone, as the official run_linear_eval.py; normalised as
the official models that were pre-trained on ImageNet-1K (those of ImageNet-22K: mean and std 127.5).
"""

data_preprocessor = dict(
    type='ClsDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    num_classes=1000,
)
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='beit_mm.SeededSampler', shuffle=True),
    dataset=dict(
        type='beit_mm.LabelledShare',
        percent=1,
        rest=True,
        dataset=dict(
            type='CustomDataset',
            data_root='data/imagenet',
            data_prefix='train',
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bilinear'),
                dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                dict(type='PackInputs'),
            ],
        ),
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='data/imagenet',
        data_prefix='val',
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='beit_mm.ProbeAccuracy')
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
custom_hooks = [
    dict(
        type='beit_mm.ProbeHook',
        held_out=dict(
            batch_size=128,
            num_workers=8,
            pin_memory=True,
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            dataset=dict(
                type='beit_mm.LabelledShare',
                percent=1,
                dataset=dict(
                    type='CustomDataset',
                    data_root='data/imagenet',
                    data_prefix='train',
                    test_mode=True,
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
                        dict(type='CenterCrop', crop_size=224),
                        dict(type='PackInputs'),
                    ],
                ),
            ),
        ),
    ),
]
