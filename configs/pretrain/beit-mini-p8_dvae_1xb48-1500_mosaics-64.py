"""Miniature BEiT in colour: masked image modeling on the tokens of our discrete VAE, on embedded mosaics.

    python tools/train.py configs/tokenizer/dvae-512_1xb64-300_mosaics-32.py
    python tools/train.py configs/pretrain/beit-mini-p8_dvae_1xb48-1500_mosaics-64.py

Ours, no paper row. Recipe as beit-mini-p8_dvae_1xb48-1500_embedded-64. Differs from it in the images: in colour,
and mosaics of 1 to 4 materials instead of single crops, so that what is hidden can be told from what is around it.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/mosaics_mim.py', '../_base_/models/beit_mini_mim.py']

tokenizer_checkpoint = 'work_dirs/dvae-512_1xb64-300_mosaics-32/iter_300.pth'
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[60.0, 60.0, 60.0]),
    backbone=dict(in_channels=3),
    target=dict(
        type='beit_mm.TokenTarget',
        checkpoint=tokenizer_checkpoint,
        tokenizer=dict(
            type='beit_mm.DiscreteVAE',
            vocab_size=512,
            in_channels=3,
            num_downsamples=2,
            hidden_dims=48,
            code_dims=48,
            num_res_blocks=1,
        ),
    ),
)
optim_wrapper = dict(
    type='beit_mm.OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=3.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-2, by_epoch=False, begin=100, end=1500),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1500, val_interval=500)
