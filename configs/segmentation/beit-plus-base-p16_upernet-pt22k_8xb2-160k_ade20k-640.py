"""`beit_plus` base with UPerNet on ADE20K at 640 px, from self-supervised weights alone: no paper row.

    python tools/train.py configs/segmentation/beit-plus-base-p16_upernet-pt22k_8xb2-160k_ade20k-640.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

No number is published. Differs from its base in what it starts from, and in the rate (7e-4) and layer decay (0.65) of
the official configs for such weights.
"""

_base_ = ['beit-plus-base-p16_upernet-ft22k_8xb2-160k_ade20k-640.py']

pretrained = 'work_dirs/beit-plus-base-p16_dalle_16xb128-150e_in22k-224/iter_1039800.pth'
load_from = pretrained
protocol = 'UPerNet, fine-tune, 640 px'
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.65), optimizer=dict(lr=7e-4))
