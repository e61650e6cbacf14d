"""EmbeddedDigits, enlarged from 8 to 64 px, as image classification: 1,257 labelled images to train, 540 to validate.

Normalised as the embedded scenes, on which the miniature BEiT is pre-trained.
"""

data_preprocessor = dict(type='ClsDataPreprocessor', mean=[127.5], std=[50.0], to_rgb=False, num_classes=10)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='beit_mm.EmbeddedDigits',
        split='train',
        pipeline=[
            dict(type='Resize', scale=(64, 64), interpolation='bicubic'),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=90,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='beit_mm.EmbeddedDigits',
        split='val',
        test_mode=True,
        pipeline=[
            dict(type='Resize', scale=(64, 64), interpolation='bicubic'),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
