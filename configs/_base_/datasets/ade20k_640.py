"""ADE20K (SceneParse150) in crops of 640 px, with the augmentation and the test scales of the official code.

data/ade/ADEChallengeData2016/{images,annotations}/{training,validation}/, as ADEChallengeData2016.zip unpacks;
`python tools/prepare_data.py verify data/ade/ADEChallengeData2016 --format ade20k` says whether it is.
tta_pipeline: six scales, the short side never below the crop (official SETR_Resize), each as it is and mirrored.
"""

dataset_name = 'ADE20K'
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size=(640, 640),
    pad_val=0,
    seg_pad_val=255,
)
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='beit_mm.ADE20K',
        data_root='data/ade/ADEChallengeData2016',
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[
            dict(type='beit_mm.LoadImage', channel_order='bgr'),
            dict(type='beit_mm.LoadMask'),
            dict(type='RandomResize', scale=(2560, 640), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(640, 640), cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='beit_mm.ADE20K',
        data_root='data/ade/ADEChallengeData2016',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        test_mode=True,
        pipeline=[
            dict(type='beit_mm.LoadImage', channel_order='bgr'),
            dict(type='Resize', scale=(2560, 640), keep_ratio=True),
            dict(type='beit_mm.LoadMask'),  # after the resizing: it is judged at its own size
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
                dict(type='ResizeShortestEdge', scale=max(int(640 * ratio), 640), max_size=100_000)
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='beit_mm.LoadMask')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
val_evaluator = dict(type='beit_mm.IoUMetric')
test_evaluator = val_evaluator
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
