"""`beit_plus` large with UPerNet on ADE20K at 512 px, from self-supervised weights alone: no paper row.

    python tools/train.py configs/segmentation/beit-plus-large-p16_upernet-pt22k_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

No number and no official config is published. Differs from its base in size, what it starts from, and drop path 0.2;
the rate and layer decay (2e-4, 0.75) are ours, in the proportions of the classifiers' (Table 13). bf16 autocast on
CUDA, where the official code has fp16 by apex; float32 elsewhere.
"""

_base_ = ['beit-plus-base-p16_upernet-pt22k_8xb2-160k_ade20k-512.py']

pretrained = 'work_dirs/beit-plus-large-p16_dalle_32xb64-150e_in22k-224/iter_1039800.pth'
load_from = pretrained
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, out_indices=(7, 11, 15, 23)),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(
    type='beit_mm.AmpOptimWrapper',
    devices=['cuda'],
    paramwise_cfg=dict(layer_decay_rate=0.75),
    optimizer=dict(lr=2e-4),
)
