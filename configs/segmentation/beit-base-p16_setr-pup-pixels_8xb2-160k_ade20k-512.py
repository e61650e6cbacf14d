"""BEiT-B with SETR-PUP on ADE20K at 512 px, from a pre-training of Table 4.

    python tools/train.py configs/segmentation/beit-base-p16_setr-pup-pixels_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

The paper's number: 41.38 mIoU (Table 4, "- visual tokens, recover masked pixels"). Differs from its base in what it
starts from.
"""

_base_ = ['beit-base-p16_setr-pup_8xb2-160k_ade20k-512.py']

pretrained = 'work_dirs/beit-base-p16_pixels_16xb128-300e_in1k-224/epoch_300.pth'
load_from = pretrained
protocol = 'SETR-PUP, fine-tune, pixels'
