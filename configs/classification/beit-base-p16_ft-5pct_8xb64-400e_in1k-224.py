"""BEiT-B fine-tuned on 5 % of ImageNet-1K's labels: 64,058 images, 64 or 65 of a class. Ours, no paper row.

    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/train.py configs/classification/beit-base-p16_ft-5pct_8xb64-400e_in1k-224.py

Expected: no number is published, and not run by us. The images are drawn class by class with seed 0: 1 % is inside 5 %,
5 % inside 10 %. SimCLR's lists instead: --cfg-options train_dataloader.dataset.percent=None
train_dataloader.dataset.file=FILE. Differs from beit-base-p16_ft in the images, the batch (512, and half the rate) and
the length, which is not tuned.
"""

_base_ = ['./beit-base-p16_ft_8xb128-100e_in1k-224.py']

protocol = 'fine-tune, 5 % of the labels'
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True, type='beit_mm.LabelledShare', percent=5, file=None, dataset=_base_.train_dataloader.dataset
    ),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-6 / 2e-3,
        by_epoch=True,
        begin=20,
        end=400,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=400, val_interval=20)
auto_scale_lr = dict(base_batch_size=512)
