"""ViT-B pre-trained by MAE on ImageNet-1K, with SETR-PUP on ADE20K: no paper row.

    python tools/train.py configs/segmentation/vit-base-p16_mae-setr-pup_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

Ours, no paper row: MAE came later. `pretrained` is the file of the original project (docs/checkpoints.md). Differs
from its base in the biases (a plain ViT has one for keys too) and in what it starts from.
"""

_base_ = ['beit-base-p16_setr-pup_8xb2-160k_ade20k-512.py']

pretrained = 'checkpoints/mae_pretrain_vit_base.pth'
load_from = pretrained
protocol = 'SETR-PUP, fine-tune after MAE'
model = dict(backbone=dict(bias=True))
