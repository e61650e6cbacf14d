"""mmpretrain's plain ViT, of the miniature's size, in our classifier recipe on embedded scenes.

    python tools/train.py configs/classification/vit-mini-p8_mmpretrain-scratch_1xb64-100_embedded-64.py

Ours, no paper row. Expected: 32.4 top-1 (ours, seed 0, one run; beit-mini-p8_scratch on the same machine 29.7). Differs
from beit-mini-p8_scratch in the backbone, another project's; layer decay asks it for its layers.
"""

_base_ = ['./beit-mini-p8_ft_1xb64-100_embedded-64.py']

protocol = 'from scratch'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=384),
        img_size=64,
        patch_size=8,
        in_channels=1,
        drop_path_rate=0.1,
        out_type='avg_featmap',
    ),
)
