"""A discrete VAE for ImageNet-1K: 8,192 codes for cells of 8 x 8 pixels, 112 px to 14 x 14, DALL-E's recipe.

    torchrun --nproc_per_node=8 tools/train.py configs/tokenizer/dvae-8192_8xb64-3000k_in1k-112.py --launcher pytorch
    python tools/train.py configs/tokenizer/dvae-8192_8xb64-3000k_in1k-112.py

What Table 8 calls "our re-implementation" (the paper's: error 0.0880, BEiT-B after it 82.70 % top-1, against 0.0856
and 82.86 % with DALL-E's): the paper says no more than 8,192 codes and ImageNet-1K. Not trained here. Loss, schedules,
optimizer, batch and averaging are DALL-E's (arXiv 2102.12092, Appendix A.2). Differs from DALL-E in the network (about
a seventh of the size), in the images (BEiT's crops as the token view sees them, not 256 px), and in the data.

Codes that nobody uses are reported every 5,000 steps; `custom_hooks.1.revive=True` splits busy codes for them.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/imagenet_tokenizer.py']

iterations = 3_000_000
model = dict(
    type='beit_mm.DiscreteVAE',
    vocab_size=8192,
    num_downsamples=3,
    hidden_dims=256,
    code_dims=512,
    num_res_blocks=2,
    temperature=(1.0, 1 / 16, 150_000),
    # The paper's weight is of an image's sum over cells beside its sum over values: 8 x 8 x 3 values a cell.
    kl_weight=(0.0, 6.6 / (8 * 8 * 3), 5_000),
    balance_weight=0.0,
    reconstruction='logit_laplace',
    reconstruction_weight=1.0,
    data_preprocessor=dict(
        type='beit_mm.MIMDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4, fused=True),
)
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=1.25e-6, by_epoch=False, begin=0, end=1_200_000)]
auto_scale_lr = dict(base_batch_size=512)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=50_000)
default_hooks = dict(checkpoint=dict(interval=50_000))
custom_hooks = [
    dict(type='EMAHook', momentum=0.001),  # what is evaluated and saved as state_dict is the average
    dict(type='beit_mm.DeadCodesHook', interval=5_000, revive=False, end=2_500_000),
]
