"""`beit_plus` large after intermediate fine-tuning, on ImageNet-1K at 512 px: Table 6, BEiT-L+ at 512 px; the official
command.

    python tools/train.py configs/classification/beit-plus-large-p16_ft22k-ft_16xb32-30e_in1k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

The paper's number: 88.6 % top-1 (Table 6). Evaluates the official release beit_large_patch16_512_pt22k_ft22kto1k too:
tools/test.py takes it as it is. Differs from its base in what it starts from, the rate (2e-5), the length (30 epochs),
layer decay 0.9, weight decay 1e-8, drop path 0.4, the normalisation (0.5, 0.5), the size, and in not mixing images.
bf16 autocast on CUDA, where the official code has fp16 with a loss scaler; float32 elsewhere.
"""

_base_ = ['beit-large-p16_ft_16xb64-50e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-large-p16_ft22k_32xb64-90e_in22k-224/epoch_90.pth'
load_from = pretrained
protocol = 'intermediate fine-tune, 512 px'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(variant='beit_plus', drop_path_rate=0.4, img_size=512), train_cfg=None)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9), optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 2e-5,
        by_epoch=True,
        begin=5,
        end=30,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=30)
train_dataloader = dict(
    batch_size=32,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=512, backend='pillow', interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(
                type='RandAugment',
                policies='timm_increasing',
                num_policies=2,
                total_level=10,
                magnitude_level=9,
                magnitude_std=0.5,
                hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
            ),
            dict(
                type='RandomErasing',
                erase_prob=0.25,
                mode='rand',
                min_area_ratio=0.02,
                max_area_ratio=1 / 3,
                fill_color=[103.53, 116.28, 123.675],
                fill_std=[57.375, 57.12, 58.395],
            ),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=512, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=512),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
