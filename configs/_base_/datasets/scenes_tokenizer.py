"""Token views, 32 px in colour, of embedded scenes that lie as files in ADE20K's layout: data/scenes/images/..."""

embedded = True
dataset_name = 'EmbeddedScenes as files'
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='beit_mm.SeededInfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='beit_mm.ImageList',
        data_root='data/scenes',
        data_prefix='images/training',
        with_label=False,
        pipeline=[
            dict(type='beit_mm.LoadImage'),
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
        type='beit_mm.ImageList',
        data_root='data/scenes',
        data_prefix='images/validation',
        with_label=False,
        test_mode=True,
        pipeline=[
            dict(type='beit_mm.LoadImage'),
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
