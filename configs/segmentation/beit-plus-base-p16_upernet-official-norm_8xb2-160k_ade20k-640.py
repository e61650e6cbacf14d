"""`beit_plus` base with UPerNet at 640 px exactly as the official code trains it: Table 7, BEiT-B+.

    python tools/train.py configs/segmentation/beit-plus-base-p16_upernet-official-norm_8xb2-160k_ade20k-640.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The paper's number: 53.6 mIoU (Table 7), 54.2 by multi-scale testing; the official log: 53.61 mIoU, 64.82 mAcc, 84.62
aAcc, and 54.26, 65.28, 84.9. tools/test.py takes the official release (beit_base_patch16_640_pt22k_ft22ktoade20k.pth)
as it is. Differs from its base in the normalisation: ImageNet's mean and deviation on weights that were pre-trained
with 0.5.
"""

_base_ = ['beit-plus-base-p16_upernet-ft22k_8xb2-160k_ade20k-640.py']

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
