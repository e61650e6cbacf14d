"""EmbeddedScenes, 64 px in colour, as image classification: 256 labelled mosaics to train, 1,000 to validate."""

dataset_name = 'EmbeddedScenes in colour'
data_preprocessor = dict(
    type='ClsDataPreprocessor', mean=[127.5, 127.5, 127.5], std=[60.0, 60.0, 60.0], to_rgb=False, num_classes=12
)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='beit_mm.EmbeddedScenes',
        split='train',
        length=256,
        size=64,
        pipeline=[
            dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='beit_mm.EmbeddedScenes',
        split='val',
        length=1000,
        size=64,
        test_mode=True,
        pipeline=[dict(type='PackInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
