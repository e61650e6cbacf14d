"""BEiT-B on ImageNet-1K with DALL-E's tokens computed before training, 16 views of each image. No paper row.

    python tools/prepare_data.py tokens configs/pretrain/beit-base-p16_dalle-tokens_16xb128-300e_in1k-224.py
    python tools/train.py configs/pretrain/beit-base-p16_dalle-tokens_16xb128-300e_in1k-224.py

The tokens take 8 GB: 196 of two bytes for each of 16 views of 1.28 million images. Differs from its base in where
tokens come from, and so in the views: crop, flip and colours of an image are the same again after 16 epochs, its mask
is not (docs/tokens.md). What that does to accuracy has not been measured.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

token_cache = 'data/tokens/beit-base-p16_dalle-tokens_16xb128-300e_in1k-224'
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='beit_mm.TokensFromCache', cache=token_cache, views=16),
            dict(type='LoadImageFromFile'),
            dict(type='beit_mm.ColorJitter', channel_order='bgr'),
            dict(type='beit_mm.TwoViewCrop', patches_size=224, tokens_size=112, flip=0.5),
            dict(type='beit_mm.MaskPatches', grid=(14, 14), num_masked=75),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
model = dict(target=dict(type='beit_mm.CachedTokens'))
