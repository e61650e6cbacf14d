"""k nearest neighbours on every block of the miniature BEiT, on embedded scenes. Ours, no paper row.

    python tools/test.py configs/classification/beit-mini-p8_knn_1xb64-0e_embedded-64.py \
        work_dirs/beit-mini-p8_dvae_1xb48-1500_embedded-64/iter_1500.pth

Expected: 19.6 top-1 by block 1, k = 20 (ours, one run, 12 s); the best of all on val would be 25.4, by block 4.
Nothing is trained. Block and k are chosen on training images that are not in the bank.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/embedded_cls.py']

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
    num_classes=12,
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
                percent=50,
                dataset=dict(
                    type='beit_mm.EmbeddedScenes',
                    split='train',
                    length=512,
                    size=64,
                    grey=True,
                    test_mode=True,
                    pipeline=[dict(type='PackInputs')],
                ),
            ),
        ),
        bank=dict(
            batch_size=64,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            dataset=dict(
                type='beit_mm.LabelledShare',
                percent=50,
                rest=True,
                dataset=dict(
                    type='beit_mm.EmbeddedScenes',
                    split='train',
                    length=512,
                    size=64,
                    grey=True,
                    test_mode=True,
                    pipeline=[dict(type='PackInputs')],
                ),
            ),
        ),
    )
]
