"""BEiT-B with SETR-PUP on ADE20K at 512 px, after fine-tuning on ImageNet-1K: Table 3.

    python tools/train.py configs/segmentation/beit-base-p16_setr-pup-after-in1k_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The paper's number: 47.7 mIoU (Table 3, BEiT + intermediate fine-tuning). Differs from its base in what it starts
from: the classifier of Table 1, whose head is left out.
"""

_base_ = ['beit-base-p16_setr-pup_8xb2-160k_ade20k-512.py']

pretrained = 'work_dirs/beit-base-p16_ft_8xb128-100e_in1k-224/epoch_100.pth'
load_from = pretrained
protocol = 'SETR-PUP, intermediate fine-tune'
