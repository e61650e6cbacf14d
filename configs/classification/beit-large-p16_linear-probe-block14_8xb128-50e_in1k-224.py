"""Linear probe of the fourteenth block of BEiT-L on ImageNet-1K: Table 9, "BEiT-L", by the recipe of Appendix D.

    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp --load-from FILE
    python tools/train.py configs/classification/beit-large-p16_linear-probe-block14_8xb128-50e_in1k-224.py \
        --load-from FILE

The paper's number: 73.5 % top-1 (Table 9, BEiT-L); MoCo v3-L has 77.6 there. Not run by us. FILE: a BEiT-L.
Differs from beit-base-p16_linear-probe: BEiT-L, the mean of the patches of block 14 alone (the paper's choice), 50
epochs, all of train. The paper gives no start of the head; it is the official code's.
"""

_base_ = ['./beit-base-p16_linear-probe_8xb128-100e_in1k-224.py']

model = dict(backbone=dict(arch='large', out_indices=13), features='mean')
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
