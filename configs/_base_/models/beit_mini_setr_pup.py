"""The miniature `beit` in colour with SETR's progressive upsampling, at half the steps of the paper's: 8 px patches."""

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='beit_mm.EncoderDecoder',
    backbone=dict(
        type='beit_mm.BEiTViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=64,
        patch_size=8,
        variant='beit',
        interpolate_mode='bilinear',
        drop_path_rate=0.1,
        out_type='featmap',
        out_indices=(1, 2, 3),
    ),
    decode_head=dict(
        type='SETRUPHead',
        in_channels=96,
        channels=64,
        in_index=2,
        num_convs=3,
        up_scale=2,
        kernel_size=3,
        dropout_ratio=0.0,
        num_classes=12,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=[
        dict(
            type='SETRUPHead',
            in_channels=96,
            channels=64,
            in_index=i,
            num_convs=1,
            up_scale=2,
            kernel_size=3,
            dropout_ratio=0.0,
            num_classes=12,
            norm_cfg=norm_cfg,
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        )
        for i in range(2)
    ],
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(42, 42)),
)
