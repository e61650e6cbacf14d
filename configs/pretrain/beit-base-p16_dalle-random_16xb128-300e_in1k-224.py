"""Table 4, the row "- blockwise masking": BEiT-B on ImageNet-1K, 300 epochs.

    python tools/train.py configs/pretrain/beit-base-p16_dalle-random_16xb128-300e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's numbers after fine-tuning: 82.77 % top-1 and 42.93 mIoU with SETR-PUP (Table 4; BEiT itself: 82.86 and
44.65). Differs from its base in where the 75 masked patches are: anywhere.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.ColorJitter', channel_order='bgr'),
            dict(type='beit_mm.TwoViewCrop', patches_size=224, tokens_size=112, flip=0.5),
            dict(type='beit_mm.MaskPatches', grid=(14, 14), num_masked=75, kind='random'),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.TwoViewCrop', patches_size=224, tokens_size=112, scale=(1, 1), ratio=(1, 1)),
            dict(type='beit_mm.MaskPatches', grid=(14, 14), num_masked=75, kind='random', seed=0),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
test_dataloader = val_dataloader
