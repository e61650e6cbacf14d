"""BEiT-B+ with a four-scale pyramid, UPerNet, and an FCN auxiliary head: the official segmentor, at 512 px."""

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='beit_mm.EncoderDecoder',
    backbone=dict(
        type='beit_mm.BEiTViT',
        arch='base',
        variant='beit_plus',
        img_size=512,
        drop_path_rate=0.1,
        out_type='featmap',
        out_indices=(3, 5, 7, 11),
    ),
    neck=dict(type='beit_mm.ViTPyramid', embed_dim=768, patch_size=16),
    decode_head=dict(
        type='UPerHead',
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=768,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
