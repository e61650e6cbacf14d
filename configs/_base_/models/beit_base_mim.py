"""Masked image modeling with BEiT-B (`beit`, the paper's main model) on the tokens of DALL-E's encoder."""

model = dict(
    type='beit_mm.MaskedImageModel',
    data_preprocessor=dict(
        type='beit_mm.MIMDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        type='beit_mm.BEiTViT',
        arch='base',
        variant='beit',
        img_size=224,
        drop_path_rate=0.1,
        with_mask_token=True,
        final_norm=True,
        out_type='raw',
    ),
    target=dict(
        type='beit_mm.TokenTarget',
        tokenizer=dict(type='beit_mm.DALLEEncoder'),
        checkpoint='checkpoints/encoder.pkl',
    ),
    head=dict(type='beit_mm.TokenHead', embed_dims=768, vocab_size=8192),
)
