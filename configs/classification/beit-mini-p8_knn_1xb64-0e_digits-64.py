"""k nearest neighbours on every block of the miniature BEiT, on hand-written digits. Ours, no paper row.

    python tools/test.py configs/classification/beit-mini-p8_knn_1xb64-0e_digits-64.py \
        work_dirs/beit-mini-p8_dvae_1xb48-1500_embedded-64/iter_1500.pth

Expected: 51.1 top-1 by block 1, k = 5 (ours, one run, 12 s); the best of all on val would be 52.8.
Nothing is trained. Block and k are chosen on training images that are not in the bank.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/digits_cls.py']

protocol = 'k-NN'
train_dataloader = None
model = dict(
    type='beit_mm.KNNProbe',
    backbone=dict(
        type='beit_mm.BEiTViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=64,
        patch_size=8,
        in_channels=1,
        variant='beit',
        out_type='raw',
        out_indices=(0, 1, 2, 3),
    ),
    num_classes=10,
    features='mean',
    k=(1, 5, 20),
)
val_evaluator = dict(_delete_=True, type='beit_mm.ProbeAccuracy')
test_evaluator = dict(_delete_=True, type='beit_mm.ProbeAccuracy')
custom_hooks = [
    dict(
        type='beit_mm.ProbeHook',
        held_out=dict(
            batch_size=64,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            dataset=dict(
                type='beit_mm.LabelledShare',
                percent=10,
                dataset=dict(
                    type='beit_mm.EmbeddedDigits',
                    split='train',
                    test_mode=True,
                    pipeline=[
                        dict(type='Resize', scale=(64, 64), interpolation='bicubic'),
                        dict(type='PackInputs'),
                    ],
                ),
            ),
        ),
        bank=dict(
            batch_size=64,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            dataset=dict(
                type='beit_mm.LabelledShare',
                percent=10,
                rest=True,
                dataset=dict(
                    type='beit_mm.EmbeddedDigits',
                    split='train',
                    test_mode=True,
                    pipeline=[
                        dict(type='Resize', scale=(64, 64), interpolation='bicubic'),
                        dict(type='PackInputs'),
                    ],
                ),
            ),
        ),
    )
]
