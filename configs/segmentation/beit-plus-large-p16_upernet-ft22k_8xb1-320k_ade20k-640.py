"""`beit_plus` large with UPerNet on ADE20K at 640 px, after intermediate fine-tuning: Table 7, BEiT-L+.

    python tools/train.py configs/segmentation/beit-plus-large-p16_upernet-ft22k_8xb1-320k_ade20k-640.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The paper's number: 56.7 mIoU (Table 7), 57.0 by multi-scale testing (--tta). The official config
upernet_beit_large_24_640_slide_160k_ade20k_pt2ft: 320,000 iterations of one image on each of 8 GPUs, of which two make
a step; the rate falls over all 320,000 (in mmseg's copy it is 0 from 160,000 on). Differs from its base in size, what
it starts from, the rate (2e-5), layer decay 0.95, drop path 0.2, and in the accumulation. One image on one GPU cannot
be trained on: the head normalises over the batch. bf16 autocast on CUDA, where the official code has fp16 by apex;
float32 elsewhere.
"""

_base_ = ['beit-plus-base-p16_upernet-ft22k_8xb2-160k_ade20k-640.py']

pretrained = 'work_dirs/beit-plus-large-p16_ft22k_32xb64-90e_in22k-224/epoch_90.pth'
load_from = pretrained
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
