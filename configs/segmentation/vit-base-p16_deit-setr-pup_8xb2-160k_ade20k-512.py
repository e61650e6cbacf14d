"""ViT-B pre-trained by DeiT (supervised) on ImageNet-1K, with SETR-PUP on ADE20K: Table 3, supervised pre-training.

    python tools/train.py configs/segmentation/vit-base-p16_deit-setr-pup_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The paper's number: 45.3 mIoU (Table 3, supervised pre-training on ImageNet; which weights it does not say).
`pretrained` is the file of the original project (docs/checkpoints.md). Differs from its base in the biases (a plain
ViT has one for keys too) and in what it starts from.
"""

_base_ = ['beit-base-p16_setr-pup_8xb2-160k_ade20k-512.py']

pretrained = 'checkpoints/deit_base_patch16_224-b5f2ef4d.pth'
load_from = pretrained
protocol = 'SETR-PUP, supervised pre-training'
model = dict(backbone=dict(bias=True))
