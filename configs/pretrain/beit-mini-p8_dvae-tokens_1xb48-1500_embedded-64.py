"""Miniature BEiT on tokens that are computed before training, four views of each image. No paper row.

    python tools/train.py configs/tokenizer/dvae-512_1xb64-300_embedded-32.py
    python tools/prepare_data.py tokens configs/pretrain/beit-mini-p8_dvae-tokens_1xb48-1500_embedded-64.py
    python tools/train.py configs/pretrain/beit-mini-p8_dvae-tokens_1xb48-1500_embedded-64.py

Differs from its base in where tokens come from, and so in the views: crop and flip of an image are the same again after
four epochs, its mask is not (docs/tokens.md).
"""

_base_ = ['beit-mini-p8_dvae_1xb48-1500_embedded-64.py']

token_cache = 'data/tokens/beit-mini-p8_dvae-tokens_1xb48-1500_embedded-64'
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='beit_mm.TokensFromCache', cache=token_cache, views=4),
            dict(type='beit_mm.TwoViewCrop', patches_size=64, tokens_size=32, scale=(0.36, 1.0), flip=0.5),
            dict(type='beit_mm.MaskPatches', grid=(8, 8), num_masked=26, min_block=4),
            dict(type='beit_mm.PackMIM'),
        ],
    ),
)
model = dict(target=dict(type='beit_mm.CachedTokens'))
