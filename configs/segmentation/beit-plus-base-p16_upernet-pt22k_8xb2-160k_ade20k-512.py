"""`beit_plus` base with UPerNet on ADE20K at 512 px, from self-supervised weights alone: no paper row.

    python tools/train.py configs/segmentation/beit-plus-base-p16_upernet-pt22k_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The official config upernet_beit_base_12_512_slide_160k_ade20k_pt, whose number is not published. `pretrained` is what
the pre-training on ImageNet-22K leaves, or the official release beit_base_patch16_224_pt22k. Differs from the
official code in the normalisation (0.5, 0.5), which is that of the pre-training; the official code takes ImageNet's
mean and deviation for these weights.
"""

_base_ = [
    '../_base_/runtime_segmentation.py',
    '../_base_/segmentation_schedule.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/models/beit_base_upernet.py',
]

pretrained = 'work_dirs/beit-plus-base-p16_dalle_16xb128-150e_in22k-224/iter_1039800.pth'
load_from = pretrained
protocol = 'UPerNet, fine-tune'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
