"""ViT-B supervised by DeiT on ImageNet-1K, in BEiT's fine-tuning recipe: Table 11, DeiT.

    python tools/train.py configs/classification/vit-base-p16_deit-ft_8xb128-100e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: 81.8 % top-1 (Table 1, DeiT-B, trained so from the start), in the recipe of that work. `pretrained`
is the file of the original project (docs/checkpoints.md). Differs from its base in the biases (a plain ViT has one for
keys too) and in what it starts from.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'checkpoints/deit_base_patch16_224-b5f2ef4d.pth'
load_from = pretrained
protocol = 'fine-tune after DeiT'
model = dict(backbone=dict(bias=True))
