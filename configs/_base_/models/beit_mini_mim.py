"""Masked image modeling with the miniature `beit` (absolute positions, no LayerScale, no relative bias)."""

model = dict(
    type='beit_mm.MaskedImageModel',
    data_preprocessor=dict(type='beit_mm.MIMDataPreprocessor', mean=[127.5], std=[50.0]),
    backbone=dict(
        type='beit_mm.BEiTViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=64,
        patch_size=8,
        in_channels=1,
        use_abs_pos_emb=True,
        use_rel_pos_bias=False,
        layer_scale_init_value=0.0,
        with_mask_token=True,
        final_norm=True,
        out_type='raw',
    ),
    head=dict(type='beit_mm.TokenHead', embed_dims=96, vocab_size=512),
)
