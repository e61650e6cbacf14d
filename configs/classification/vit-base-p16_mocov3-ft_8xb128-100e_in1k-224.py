"""ViT-B pre-trained by MoCo v3 on ImageNet-1K, in BEiT's fine-tuning recipe: Table 1, MoCo v3-B.

    python tools/train.py configs/classification/vit-base-p16_mocov3-ft_8xb128-100e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: 83.2 % top-1 (Table 1, MoCo v3-B), in the recipe of that work. `pretrained` is the file of the
original project (docs/checkpoints.md). Differs from its base in the biases (a plain ViT has one for keys too) and in
what it starts from.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'checkpoints/vit-b-300ep.pth.tar'
load_from = pretrained
protocol = 'fine-tune after MoCo v3'
model = dict(backbone=dict(bias=True))
