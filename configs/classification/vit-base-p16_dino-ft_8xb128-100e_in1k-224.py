"""ViT-B pre-trained by DINO on ImageNet-1K, in BEiT's fine-tuning recipe: Table 1, DINO-B.

    python tools/train.py configs/classification/vit-base-p16_dino-ft_8xb128-100e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: 82.8 % top-1 (Table 1, DINO-B), in the recipe of that work. `pretrained` is the file of the original
project (docs/checkpoints.md). Differs from its base in the biases (a plain ViT has one for keys too) and in what it
starts from.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'checkpoints/dino_vitbase16_pretrain.pth'
load_from = pretrained
protocol = 'fine-tune after DINO'
model = dict(backbone=dict(bias=True))
