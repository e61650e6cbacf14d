"""`beit_plus` base with UPerNet on ADE20K at 640 px, after intermediate fine-tuning: Table 7, BEiT-B+.

    python tools/train.py configs/segmentation/beit-plus-base-p16_upernet-ft22k_8xb2-160k_ade20k-640.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The paper's number: 53.6 mIoU (Table 7), 54.2 by multi-scale testing (--tta). The official config
upernet_beit_base_12_640_slide_160k_ade20k_pt2ft. Differs from the official code in the normalisation (0.5, 0.5),
which is that of the weights. To test the official release, which was trained with ImageNet's:
beit-plus-base-p16_upernet-official-norm.
"""

_base_ = [
    '../_base_/runtime_segmentation.py',
    '../_base_/segmentation_schedule.py',
    '../_base_/datasets/ade20k_640.py',
    '../_base_/models/beit_base_upernet.py',
]

pretrained = 'work_dirs/beit-plus-base-p16_ft22k_16xb256-90e_in22k-224/epoch_90.pth'
load_from = pretrained
protocol = 'UPerNet, intermediate fine-tune, 640 px'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(
    backbone=dict(img_size=640),
    test_cfg=dict(crop_size=(640, 640), stride=(426, 426)),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.9), optimizer=dict(lr=3e-5))
