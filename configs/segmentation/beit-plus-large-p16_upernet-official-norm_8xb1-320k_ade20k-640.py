"""`beit_plus` large with UPerNet at 640 px exactly as the official code trains it: Table 7, BEiT-L+.

    python tools/train.py configs/segmentation/beit-plus-large-p16_upernet-official-norm_8xb1-320k_ade20k-640.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The paper's number: 56.7 mIoU (Table 7), 57.0 by multi-scale testing. tools/test.py takes the official release
(beit_large_patch16_640_pt22k_ft22ktoade20k.pth) as it is. Differs from beit-plus-large-p16_upernet-ft22k at 640 px in
nothing but the normalisation: ImageNet's mean and deviation on weights that were pre-trained with 0.5. bf16 autocast on
CUDA, where the official code has fp16 by apex; float32 elsewhere.
"""

_base_ = ['beit-plus-base-p16_upernet-ft22k_8xb2-160k_ade20k-640.py']

pretrained = 'work_dirs/beit-plus-large-p16_ft22k_32xb64-90e_in22k-224/epoch_90.pth'
load_from = pretrained
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, out_indices=(7, 11, 15, 23)),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(
    type='beit_mm.AmpOptimWrapper',
    devices=['cuda'],
    accumulative_counts=2,
    paramwise_cfg=dict(layer_decay_rate=0.95),
    optimizer=dict(lr=2e-5),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=3000),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=3000, end=320000),
]
train_cfg = dict(max_iters=320000)
