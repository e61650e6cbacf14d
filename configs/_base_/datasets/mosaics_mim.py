"""Two views, 64 px for the backbone and 32 px for the tokenizer, of embedded mosaics in colour.

The pool: 5,000 mosaics of 1 to 4 materials, 80 px, without masks, cut from the training parts of the photographs; no
labelled image is among them. 26 of 8 x 8 patches are masked.
"""

dataset_name = 'EmbeddedScenes in colour'
train_dataloader = dict(
    batch_size=48,
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
            dict(type='beit_mm.TwoViewCrop', patches_size=64, tokens_size=32, scale=(0.36, 1.0), flip=0.5),
            dict(type='beit_mm.MaskPatches', grid=(8, 8), num_masked=26, min_block=4),
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
            dict(type='beit_mm.TwoViewCrop', patches_size=64, tokens_size=32, scale=(1, 1), ratio=(1, 1)),
            dict(type='beit_mm.MaskPatches', grid=(8, 8), num_masked=26, min_block=4, seed=0),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='beit_mm.MaskedAccuracy')
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
