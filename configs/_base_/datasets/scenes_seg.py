"""Embedded scenes in colour, as files in ADE20K's layout: the first 256 training images with masks, 1,000 to validate.

The pipelines are those of ade20k_512.py with crops of 64 px, without the distortion of colours: images are enlarged by
1 to 1.6 to train, as in pre-training, and by 1.25 to test, in sliding windows.
"""

embedded = True
dataset_name = 'EmbeddedScenes as files'
classes = (
    'brick', 'grass', 'gravel', 'cell', 'cat', 'galaxies', 'retina', 'rocket', 'ink', 'pagoda', 'foliage', 'dahlia',
)  # fmt: skip
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.5, 127.5, 127.5],
    std=[60.0, 60.0, 60.0],
    bgr_to_rgb=True,
    size=(64, 64),
    pad_val=0,
    seg_pad_val=255,
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='beit_mm.MaskFolder',
        data_root='data/scenes',
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        metainfo=dict(classes=classes),
        reduce_zero_label=True,
        indices=256,
        pipeline=[
            dict(type='beit_mm.LoadImage', channel_order='bgr'),
            dict(type='beit_mm.LoadMask'),
            dict(type='RandomResize', scale=(256, 64), ratio_range=(1.0, 1.6), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(64, 64), cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='beit_mm.MaskFolder',
        data_root='data/scenes',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        metainfo=dict(classes=classes),
        reduce_zero_label=True,
        test_mode=True,
        pipeline=[
            dict(type='beit_mm.LoadImage', channel_order='bgr'),
            dict(type='Resize', scale=(320, 80), keep_ratio=True),
            dict(type='beit_mm.LoadMask'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type='beit_mm.LoadImage', channel_order='bgr'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='ResizeShortestEdge', scale=max(int(80 * ratio), 64), max_size=100_000)
                for ratio in (0.75, 1.0, 1.25)
            ],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='beit_mm.LoadMask')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
tta_model = dict(type='beit_mm.SegTTAModel')
val_evaluator = dict(type='beit_mm.IoUMetric')
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
