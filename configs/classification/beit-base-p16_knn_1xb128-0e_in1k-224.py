"""k nearest neighbours on every block of BEiT-B, ImageNet-1K: nothing is trained. Ours, no paper row.

    python tools/test.py configs/classification/beit-base-p16_knn_1xb128-0e_in1k-224.py FILE

FILE: any checkpoint of this backbone: pre-trained, fine-tuned, official; other architectures by --cfg-options
model.backbone.variant=beit_plus. Expected: no number is published for BEiT, and not run by us. Votes as in DINO's
eval_knn.py: k of 10, 20, 100, cosine, weights exp(similarity / 0.07); `--cfg-options model.temperature=None` counts
them alike. Differs from DINO: the mean of the patches, every block; block and k are chosen on 1 % of train that is not
in the bank. The bank takes 12 blocks x 768 numbers x 1.27 million images: 23 GB in float16. One process.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/imagenet_cls_probe.py']

protocol = 'k-NN'
train_dataloader = None
model = dict(
    type='beit_mm.KNNProbe',
    backbone=dict(
        type='beit_mm.BEiTViT', arch='base', img_size=224, variant='beit', out_type='raw', out_indices=list(range(12))
    ),
    num_classes=1000,
    features='mean',
    k=(10, 20, 100),
    bank_dtype='float16',
)
custom_hooks = [
    dict(
        type='beit_mm.ProbeHook',
        held_out=dict(
            batch_size=128,
            num_workers=8,
            pin_memory=True,
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            dataset=dict(
                type='beit_mm.LabelledShare',
                percent=1,
                dataset=dict(
                    type='CustomDataset',
                    data_root='data/imagenet',
                    data_prefix='train',
                    test_mode=True,
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
                        dict(type='CenterCrop', crop_size=224),
                        dict(type='PackInputs'),
                    ],
                ),
            ),
        ),
        bank=dict(
            batch_size=128,
            num_workers=8,
            pin_memory=True,
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
            dataset=dict(
                type='beit_mm.LabelledShare',
                percent=1,
                rest=True,
                dataset=dict(
                    type='CustomDataset',
                    data_root='data/imagenet',
                    data_prefix='train',
                    test_mode=True,
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
                        dict(type='CenterCrop', crop_size=224),
                        dict(type='PackInputs'),
                    ],
                ),
            ),
        ),
    )
]
