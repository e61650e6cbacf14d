"""ViT-B pre-trained by MAE on ImageNet-1K, in BEiT's fine-tuning recipe: no paper row.

    python tools/train.py configs/classification/vit-base-p16_mae-ft_8xb128-100e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: none: MAE came later (its own paper: 83.6 %), in the recipe of that work. `pretrained` is the file
of the original project (docs/checkpoints.md). Differs from its base in the biases (a plain ViT has one for keys too)
and in what it starts from.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'checkpoints/mae_pretrain_vit_base.pth'
load_from = pretrained
protocol = 'fine-tune after MAE'
model = dict(backbone=dict(bias=True))
