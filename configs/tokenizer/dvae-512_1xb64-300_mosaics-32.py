"""The miniature's discrete VAE in colour, on embedded mosaics made in memory. Ours, no paper row.

    python tools/train.py configs/tokenizer/dvae-512_1xb64-300_mosaics-32.py

Differs from dvae-512_1xb64-300_embedded-32 in the images: in colour, and mosaics of 1 to 4 materials instead of single
crops.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/mosaics_tokenizer.py']

iterations = 300
model = dict(
    type='beit_mm.DiscreteVAE',
    vocab_size=512,
    in_channels=3,
    num_downsamples=2,
    hidden_dims=48,
    code_dims=48,
    num_res_blocks=1,
    temperature=(1.0, 1 / 16, 240),
    kl_weight=(0.0, 0.0005, 200),
    balance_weight=0.01,
    reconstruction='mse',
    reconstruction_weight=40.0,
    data_preprocessor=dict(type='beit_mm.MIMDataPreprocessor', mean=[127.5, 127.5, 127.5], std=[60.0, 60.0, 60.0]),
)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, by_epoch=False, begin=30, end=iterations),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=100)
custom_hooks = [dict(type='beit_mm.CodebookInitHook', num_images=512)]
