"""As dvae-8192_8xb64-3000k_in1k-112, for token views as large as the patches: 224 px to 14 x 14, 16 x 16 pixels a cell.

    torchrun --nproc_per_node=8 tools/train.py configs/tokenizer/dvae-8192-p16_8xb64-3000k_in1k-224.py --launcher pytorch
    python tools/train.py configs/tokenizer/dvae-8192-p16_8xb64-3000k_in1k-224.py

Ours, no paper row: one code stands for the patch itself, at its own resolution. Not trained here. Differs from its base
in one more downsampling, and in the weight of the divergence, which is per cell.
"""

_base_ = ['dvae-8192_8xb64-3000k_in1k-112.py']

model = dict(num_downsamples=4, kl_weight=(0.0, 6.6 / (16 * 16 * 3), 5_000))
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.TwoViewCrop', patches_size=None, tokens_size=224, flip=0.5),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.TwoViewCrop', patches_size=None, tokens_size=224, scale=(1, 1), ratio=(1, 1)),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
test_dataloader = val_dataloader
