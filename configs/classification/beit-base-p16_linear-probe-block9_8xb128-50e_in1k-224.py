"""Linear probe of the ninth block of BEiT-B on ImageNet-1K: Table 9, "BEiT-B", by the recipe of Appendix D.

    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp --load-from FILE
    python tools/train.py configs/classification/beit-base-p16_linear-probe-block9_8xb128-50e_in1k-224.py \
        --load-from FILE

The paper's number: 56.7 % top-1 (Table 9, BEiT-B); DINO-B has 78.2 there, MoCo v3-B 76.7. Not run by us. FILE: as in
beit-base-p16_linear-probe. Differs from that: the mean of the patches of block 9 alone (the paper's choice), 50
epochs, all of train. The paper gives no start of the head; it is the official code's.
"""

_base_ = ['./beit-base-p16_linear-probe_8xb128-100e_in1k-224.py']

model = dict(backbone=dict(out_indices=8), features='mean')
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/imagenet',
        data_prefix='train',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bilinear'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ],
    )
)
custom_hooks = []  # one block: there is nothing to choose
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, begin=0, end=50)]
train_cfg = dict(max_epochs=50)
