"""ViT-B trained by Google with the labels of ImageNet-22K, in BEiT's fine-tuning recipe: Table 1, ViT384-B, at 224 px.

    python tools/train.py configs/classification/vit-base-p16_vit-ft_8xb128-100e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: 84.0 % top-1 at 384 px (Table 1, ViT384-B), in the recipe of that work. `pretrained` is the file of
the original project (docs/checkpoints.md). Differs from its base in the biases (a plain ViT has one for keys too), the
normalisation and in what it starts from.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'checkpoints/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz'
load_from = pretrained
protocol = 'fine-tune after supervised ImageNet-22K'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(backbone=dict(bias=True))
