"""BEiT-L fine-tuned on ImageNet-1K at 384 px, 10 epochs after the 224 px run: Table 1, BEiT384-L.

    python tools/train.py configs/classification/beit-large-p16_ft_16xb32-10e_in1k-384.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

The paper's number: 86.3 % top-1 (Table 1). As beit-base-p16_ft_8xb64-10e_in1k-384, with the layer decay of 0.9 of the
official commands for large. Differs from its base in the size, the rates, and in neither mixing images nor erasing.
bf16 autocast on CUDA, where the official code has fp16 with a loss scaler; float32 elsewhere.
"""

_base_ = ['beit-large-p16_ft_16xb64-50e_in1k-224.py']

pretrained = 'work_dirs/beit-large-p16_ft_16xb64-50e_in1k-224/epoch_50.pth'
load_from = pretrained
protocol = 'fine-tune, 384 px'
model = dict(backbone=dict(img_size=384), train_cfg=None)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9), optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 2e-5,
        by_epoch=True,
        begin=1,
        end=10,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=10)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=384, backend='pillow', interpolation='bicubic'),
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
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=384, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=384),
            dict(type='PackInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
auto_scale_lr = dict(base_batch_size=512)
