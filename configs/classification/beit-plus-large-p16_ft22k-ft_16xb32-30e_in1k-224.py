"""`beit_plus` large after intermediate fine-tuning, on ImageNet-1K at 224 px: no paper row; the official command.

    python tools/train.py configs/classification/beit-plus-large-p16_ft22k-ft_16xb32-30e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

The official README's number: 87.4 % top-1. Evaluates the official release beit_large_patch16_224_pt22k_ft22kto1k too:
tools/test.py takes it as it is. Differs from its base in what it starts from, the rate (2e-5), the length (30 epochs),
layer decay 0.9, weight decay 1e-8, drop path 0.4, the normalisation (0.5, 0.5), and in not mixing images. bf16 autocast
on CUDA, where the official code has fp16 with a loss scaler; float32 elsewhere.
"""

_base_ = ['beit-large-p16_ft_16xb64-50e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-large-p16_ft22k_32xb64-90e_in22k-224/epoch_90.pth'
load_from = pretrained
protocol = 'intermediate fine-tune'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(variant='beit_plus', drop_path_rate=0.4), train_cfg=None)
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
train_dataloader = dict(batch_size=32, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))
auto_scale_lr = dict(base_batch_size=512)
