"""Token views, 32 px in colour, of embedded mosaics: the unlabelled pool to train, validation scenes to judge.

The pool is cut from the training parts of the photographs only.
"""

dataset_name = 'EmbeddedScenes in colour'
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='beit_mm.SeededInfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='beit_mm.EmbeddedScenes',
        split='pool',
        length=5000,
        size=80,
        mosaic=True,
        pipeline=[
            dict(type='beit_mm.TwoViewCrop', patches_size=None, tokens_size=32, scale=(0.36, 1.0), flip=0.5),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='beit_mm.EmbeddedScenes',
        split='val',
        length=1000,
        size=64,
        test_mode=True,
        pipeline=[
            dict(type='beit_mm.TwoViewCrop', patches_size=None, tokens_size=32, scale=(1, 1), ratio=(1, 1)),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='beit_mm.TokenizerMetric')
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
