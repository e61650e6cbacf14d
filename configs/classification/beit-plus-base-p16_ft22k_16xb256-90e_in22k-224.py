"""Intermediate fine-tuning of `beit_plus` base on the labels of ImageNet-22K: the official command; Tables 6 and 7 go
on.

    python tools/train.py configs/classification/beit-plus-base-p16_ft22k_16xb256-90e_in22k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

From tar shards (docs/shards.md):

    python tools/train.py THIS_FILE --cfg-options \
        train_dataloader.dataset.type=beit_mm.TarShards \
        train_dataloader.dataset.data_root=data/imagenet22k-shards \
        train_dataloader.sampler.type=beit_mm.ShardSampler

data/imagenet22k/<class>/: 21,841 classes, 14,197,122 images. No number of its own: nothing is evaluated, as in the
official run. Differs from its base in the data, the rate (3e-3), the length (90 epochs, 5 of warm-up), drop path 0.2,
the gradient clip of 3.0 (which the official command asks for and its DeepSpeed run ignores), and in not mixing images.
bf16 autocast on CUDA, where the official code has fp16 with a loss scaler; float32 elsewhere.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-base-p16_dalle_16xb128-150e_in22k-224/iter_1039800.pth'
load_from = pretrained
protocol = 'intermediate fine-tune, the labels of ImageNet-22K'
data_preprocessor = dict(num_classes=21841, mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(variant='beit_plus', drop_path_rate=0.2), head=dict(num_classes=21841), train_cfg=None)
optim_wrapper = dict(
    type='beit_mm.AmpOptimWrapper',
    devices=['cuda'],
    paramwise_cfg=dict(layer_decay_rate=0.65), optimizer=dict(lr=3e-3, weight_decay=0.05), clip_grad=dict(max_norm=3.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 3e-3,
        by_epoch=True,
        begin=5,
        end=90,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=90)
train_dataloader = dict(
    batch_size=256,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(data_root='data/imagenet22k', split=''),
)
val_dataloader = None
val_evaluator = None
val_cfg = None
test_dataloader = None
test_evaluator = None
test_cfg = None
auto_scale_lr = dict(base_batch_size=4096)
