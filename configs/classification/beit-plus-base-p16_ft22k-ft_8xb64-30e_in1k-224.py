"""`beit_plus` base after intermediate fine-tuning, on ImageNet-1K at 224 px: no paper row; the official command.

    python tools/train.py configs/classification/beit-plus-base-p16_ft22k-ft_8xb64-30e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The official README's number: 85.2 % top-1. Evaluates the official release beit_base_patch16_224_pt22k_ft22kto1k too:
tools/test.py takes it as it is. Differs from its base in what it starts from, the rate (2e-5), the length (30 epochs),
layer decay 0.85, weight decay 1e-8, drop path 0.1, the normalisation (0.5, 0.5), and in not mixing images.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-base-p16_ft22k_16xb256-90e_in22k-224/epoch_90.pth'
load_from = pretrained
protocol = 'intermediate fine-tune'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(variant='beit_plus'), train_cfg=None)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.85), optimizer=dict(lr=2e-5, weight_decay=1e-8))
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
train_dataloader = dict(batch_size=64, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
auto_scale_lr = dict(base_batch_size=512)
