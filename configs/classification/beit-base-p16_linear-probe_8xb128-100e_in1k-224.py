"""Linear probe of every block of BEiT-B on ImageNet-1K, by the recipe of the official run_linear_eval.py.

    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp --load-from FILE
    python tools/train.py configs/classification/beit-base-p16_linear-probe_8xb128-100e_in1k-224.py --load-from FILE

FILE: the official beit_base_patch16_224_pt1k_800ep, or what configs/pretrain leaves; other architectures by
--cfg-options model.backbone.variant=beit_plus. The paper's Table 9 has 56.7 for BEiT-B by the recipe of its Appendix D
(beit-base-p16_linear-probe-block9); for this one no number is published. Not run by us.

Twelve heads at once on the class token and the mean of the patches of a block's raw output. Differs from the official
code: it reports the best of all blocks and epochs on val; here the block is chosen, for the weights that are tested, on
1 % of train that is not trained on (`optimistic_top1` is the best block on val). Biases of the heads do not decay.
"""

_base_ = ['../_base_/runtime.py', '../_base_/datasets/imagenet_cls_probe.py']

protocol = 'linear probe'
model = dict(
    type='beit_mm.LinearProbe',
    backbone=dict(
        type='beit_mm.BEiTViT', arch='base', img_size=224, variant='beit', out_type='raw', out_indices=list(range(12))
    ),
    num_classes=1000,
    features='both',
)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='beit_mm.LayerDecayOptimWrapperConstructor',  # what does not learn is in no group
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-4),
)
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, begin=0, end=100)]
auto_scale_lr = dict(base_batch_size=1024)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100, val_interval=10)
default_hooks = dict(checkpoint=dict(interval=10, by_epoch=True), logger=dict(log_metric_by_epoch=True))
log_processor = dict(by_epoch=True)
