"""BEiT-B with SETR-PUP on ADE20K at 512 px, after 800 epochs on ImageNet-1K: Table 3, BEiT, and Table 14.

    python tools/train.py configs/segmentation/beit-base-p16_setr-pup_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The paper's number: 45.6 mIoU (Table 3; 45.58 in Table 4), single scale. Neither code nor config of this experiment is
published: recipe and rate (1e-3) are Table 14's, the heads mmseg's SETR-PUP, on the blocks that SETR's own 12-layer
model takes. `pretrained` may also be the official release beit_base_patch16_224_pt1k_800ep.
"""

_base_ = [
    '../_base_/runtime_segmentation.py',
    '../_base_/segmentation_schedule.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/models/beit_base_setr_pup.py',
]

pretrained = 'work_dirs/beit-base-p16_dalle_16xb128-800e_in1k-224/epoch_800.pth'
load_from = pretrained
protocol = 'SETR-PUP, fine-tune'
optim_wrapper = dict(optimizer=dict(lr=1e-3))
