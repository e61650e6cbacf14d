"""`beit_plus` large on ImageNet-1K with DALL-E's tokens, 800 epochs: no paper row.

    python tools/train.py configs/pretrain/beit-plus-large-p16_dalle_32xb64-800e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

No number of the paper's is known. Differs from its base in the size, the gradient clip of 1.0 (Table 12), the variant
(LayerScale 1e-5), and the length. bf16 autocast on CUDA, where the official code has fp16 with a loss scaler; float32
elsewhere.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

model = dict(backbone=dict(arch='large', variant='beit_plus'), head=dict(embed_dims=1024))
optim_wrapper = dict(type='beit_mm.AmpOptimWrapper', devices=['cuda'], clip_grad=dict(max_norm=1.0))
train_dataloader = dict(batch_size=64)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-5 / 1.5e-3,
        by_epoch=True,
        begin=10,
        end=800,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=800, val_interval=20)
