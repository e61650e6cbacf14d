"""EmbeddedScenes, 64 px in colour, as semantic segmentation: 256 labelled mosaics to train, 1,000 to validate."""

dataset_name = 'EmbeddedScenes in colour'
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5, 127.5, 127.5],
    std=[60.0, 60.0, 60.0],
    bgr_to_rgb=False,
    size=(64, 64),
    pad_val=0,
    seg_pad_val=255,
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='beit_mm.EmbeddedScenes',
        split='train',
        length=256,
        size=64,
        pipeline=[
            dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='beit_mm.EmbeddedScenes',
        split='val',
        length=1000,
        size=64,
        test_mode=True,
        pipeline=[dict(type='PackSegInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='beit_mm.IoUMetric')
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
