"""Intermediate fine-tuning of `beit_plus` large on the labels of ImageNet-22K: the official command; Tables 6 and 7 go
on.

    python tools/train.py configs/classification/beit-plus-large-p16_ft22k_32xb64-90e_in22k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

From tar shards (docs/shards.md):

    python tools/train.py THIS_FILE --cfg-options \
        train_dataloader.dataset.type=beit_mm.TarShards \
        train_dataloader.dataset.data_root=data/imagenet22k-shards \
        train_dataloader.sampler.type=beit_mm.ShardSampler

As beit-plus-base-p16_ft22k_16xb256-90e_in22k-224, with the rate of 2e-3, layer decay 0.75, and clip 1.0 of the official
command for large. Differs from its base in the data, the rates, and in not mixing images. bf16 autocast on CUDA, where
the official code has fp16 with a loss scaler; float32 elsewhere.
"""

_base_ = ['beit-large-p16_ft_16xb64-50e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-large-p16_dalle_32xb64-150e_in22k-224/iter_1039800.pth'
load_from = pretrained
protocol = 'intermediate fine-tune, the labels of ImageNet-22K'
data_preprocessor = dict(num_classes=21841, mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(variant='beit_plus', drop_path_rate=0.2), head=dict(num_classes=21841), train_cfg=None)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay_rate=0.75), optimizer=dict(lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=1.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 2e-3,
        by_epoch=True,
        begin=5,
        end=90,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=90)
train_dataloader = dict(
    batch_size=64,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(data_root='data/imagenet22k', split=''),
)
val_dataloader = None
val_evaluator = None
val_cfg = None
test_dataloader = None
test_evaluator = None
test_cfg = None
auto_scale_lr = dict(base_batch_size=2048)
