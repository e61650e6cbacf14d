"""`beit_plus` base with UPerNet on ADE20K at 512 px, after intermediate fine-tuning on ImageNet-22K: no paper row.

    python tools/train.py configs/segmentation/beit-plus-base-p16_upernet-ft22k_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The official config upernet_beit_base_12_512_slide_160k_ade20k_pt2ft, whose number is not published. Differs from its
base in what it starts from, the rate (3e-5) and layer decay 0.9: weights that have seen labels are changed less.
"""

_base_ = ['beit-plus-base-p16_upernet-pt22k_8xb2-160k_ade20k-512.py']

pretrained = 'work_dirs/beit-plus-base-p16_ft22k_16xb256-90e_in22k-224/epoch_90.pth'
load_from = pretrained
protocol = 'UPerNet, intermediate fine-tune'
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9), optimizer=dict(lr=3e-5))
