"""`beit_plus` base fine-tuned on ImageNet-1K at 224 px: Table 5, the row "+ relative position bias".

    python tools/train.py configs/classification/beit-plus-base-p16_ft_8xb128-100e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's number: 83.22 % top-1 (Table 5, after 300 epochs of pre-training). The official command for ImageNet-1K but
for repeated augmentation, which it lacks and Table 13 has. Differs from its base in the variant and what it starts
from.
"""

_base_ = ['beit-base-p16_ft_8xb128-100e_in1k-224.py']

pretrained = 'work_dirs/beit-plus-base-p16_dalle_16xb128-300e_in1k-224/epoch_300.pth'
load_from = pretrained
model = dict(backbone=dict(variant='beit_plus'))
