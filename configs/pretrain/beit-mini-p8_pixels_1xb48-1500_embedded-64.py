"""Miniature of Table 4, "- visual tokens (recover masked pixels)", on embedded data.

    python tools/train.py configs/pretrain/beit-mini-p8_pixels_1xb48-1500_embedded-64.py

Differs from beit-mini-p8_dvae in the target (normalised pixels of a patch) and the head.
"""

_base_ = ['./beit-mini-p8_dvae_1xb48-1500_embedded-64.py']

model = dict(
    target=dict(_delete_=True, type='beit_mm.PixelTarget', patch_size=8),
    head=dict(_delete_=True, type='beit_mm.PixelHead', embed_dims=96, num_pixels=64),
)
