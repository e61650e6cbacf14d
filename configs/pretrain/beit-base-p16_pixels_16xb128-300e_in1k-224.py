"""Table 4, the row "- visual tokens": BEiT-B on ImageNet-1K, 300 epochs.

    python tools/train.py configs/pretrain/beit-base-p16_pixels_16xb128-300e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's numbers after fine-tuning: 81.04 % top-1 and 41.38 mIoU with SETR-PUP (Table 4; BEiT itself: 82.86 and
44.65). Differs from its base in what is predicted: the pixels of a masked patch, normalised by mean and standard
deviation of ImageNet, by mean squared error.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

model = dict(
    target=dict(_delete_=True, type='beit_mm.PixelTarget', patch_size=16),
    head=dict(_delete_=True, type='beit_mm.PixelHead', embed_dims=768, num_pixels=16 * 16 * 3),
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.ColorJitter', channel_order='bgr'),
            dict(type='beit_mm.TwoViewCrop', patches_size=224, tokens_size=None, flip=0.5),
            dict(type='beit_mm.MaskPatches', grid=(14, 14), num_masked=75),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.TwoViewCrop', patches_size=224, tokens_size=None, scale=(1, 1), ratio=(1, 1)),
            dict(type='beit_mm.MaskPatches', grid=(14, 14), num_masked=75, seed=0),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
test_dataloader = val_dataloader
