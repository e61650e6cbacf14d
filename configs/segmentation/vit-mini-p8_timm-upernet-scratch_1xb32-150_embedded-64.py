"""timm's plain ViT, of the miniature's size, with four scales by our pyramid and UPerNet, on embedded scenes.

    python tools/train.py configs/segmentation/vit-mini-p8_timm-upernet-scratch_1xb32-150_embedded-64.py

Ours, no paper row. Expected: 33.4 mIoU (ours, seed 0, one run). Differs from beit-mini-p8_upernet-scratch in the
backbone, another project's; layer decay asks it for its layers.
"""

_base_ = ['./beit-mini-p8_upernet_1xb32-150_embedded-64.py']

protocol = 'from scratch'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.TIMMBackbone',
        model_name='vit_tiny_patch16_224',
        features_only=True,
        out_indices=(0, 1, 2, 3),
        img_size=64,
        patch_size=8,
        in_channels=1,
        embed_dim=96,
        depth=4,
        num_heads=3,
        drop_path_rate=0.1,
    ),
)
