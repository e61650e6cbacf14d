"""BEiT-B fine-tuned on 10 % of ImageNet-1K's labels: 128,117 images, 128 or 129 of a class. Ours, no paper row.

    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/train.py configs/classification/beit-base-p16_ft-10pct_8xb64-200e_in1k-224.py

Expected: no number is published, and not run by us. The images are drawn class by class with seed 0: 1 % is inside 5 %,
5 % inside 10 %. SimCLR's lists instead: --cfg-options train_dataloader.dataset.percent=None
train_dataloader.dataset.file=FILE. Differs from beit-base-p16_ft in the images, the batch (512, and half the rate) and
the length, which is not tuned.
"""

_base_ = ['./beit-base-p16_ft_8xb128-100e_in1k-224.py']

protocol = 'fine-tune, 10 % of the labels'
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True, type='beit_mm.LabelledShare', percent=10, file=None, dataset=_base_.train_dataloader.dataset
    ),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 2e-3,
        by_epoch=True,
        begin=10,
        end=200,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=200, val_interval=10)
auto_scale_lr = dict(base_batch_size=512)
