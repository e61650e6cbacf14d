"""`beit` base (the paper's "ViT") with UPerNet on ADE20K, after 300 epochs on ImageNet-1K: Table 5, ViT.

    python tools/train.py configs/segmentation/beit-base-p16_upernet-pt1k_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The paper's number: 44.86 mIoU (Table 5). The paper does not say the crop and the rate of this table; they are those
of the official config for self-supervised weights. Differs from its base in what it starts from and its
normalisation, and in having neither LayerScale nor relative positions, but absolute ones.
"""

_base_ = ['beit-plus-base-p16_upernet-pt22k_8xb2-160k_ade20k-512.py']

pretrained = 'work_dirs/beit-base-p16_dalle_16xb128-300e_in1k-224/epoch_300.pth'
load_from = pretrained
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
model = dict(backbone=dict(variant='beit'))
