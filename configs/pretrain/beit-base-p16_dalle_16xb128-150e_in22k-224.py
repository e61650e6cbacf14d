"""`beit` base on ImageNet-22K with DALL-E's tokens, 150 epochs: no paper row: its models on ImageNet-22K are all
`beit_plus`.

    python tools/train.py configs/pretrain/beit-base-p16_dalle_16xb128-150e_in22k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch

From tar shards (docs/shards.md):

    python tools/train.py THIS_FILE --cfg-options \
        train_dataloader.dataset.type=beit_mm.TarShards \
        train_dataloader.dataset.data_root=data/imagenet22k-shards \
        train_dataloader.sampler.type=beit_mm.ShardInfiniteSampler

data/imagenet22k holds one folder per class, whose names are not read: 14,197,122 images are 6,932 steps of 2,048 an
epoch. Differs from its base in the data, the length, 10,000 steps of warm-up, the normalisation (0.5, 0.5 as the
official command's), and that nothing is evaluated. bf16 autocast on CUDA, where the official code has fp16 with a loss
scaler; float32 elsewhere.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

iterations = 150 * 6932
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
)
optim_wrapper = dict(type='beit_mm.AmpOptimWrapper', devices=['cuda'])
train_dataloader = dict(
    sampler=dict(type='beit_mm.SeededInfiniteSampler', shuffle=True),
    dataset=dict(data_root='data/imagenet22k', split=''),
)
val_dataloader = None
val_evaluator = None
val_cfg = None
test_dataloader = None
test_evaluator = None
test_cfg = None
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=False, begin=0, end=10_000),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-5 / 1.5e-3, by_epoch=False, begin=10_000, end=iterations),
]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=iterations)
default_hooks = dict(checkpoint=dict(interval=7000, by_epoch=False), logger=dict(log_metric_by_epoch=False))
log_processor = dict(by_epoch=False)
