"""BEiT-B (`beit`, the paper's main model) with SETR's progressive upsampling: four convolutions, each doubling the map.

Heads as in mmseg's SETR-PUP on ADE20K, on the blocks of SETR's own 12-layer model (its DeiT-B configs: 4, 7, 9 and 11;
BEiT's are not published). Positions are interpolated bilinearly (Table 14).
"""

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='beit_mm.EncoderDecoder',
    backbone=dict(
        type='beit_mm.BEiTViT',
        arch='base',
        variant='beit',
        img_size=512,
        interpolate_mode='bilinear',
        drop_path_rate=0.1,
        out_type='featmap',
        out_indices=(4, 7, 9, 11),
    ),
    decode_head=dict(
        type='SETRUPHead',
        in_channels=768,
        channels=256,
        in_index=3,
        num_convs=4,
        up_scale=2,
        kernel_size=3,
        dropout_ratio=0.0,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=[
        dict(
            type='SETRUPHead',
            in_channels=768,
            channels=256,
            in_index=i,
            num_convs=2,
            up_scale=4,
            kernel_size=3,
            dropout_ratio=0.0,
            num_classes=150,
            norm_cfg=norm_cfg,
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        )
        for i in range(3)
    ],
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
