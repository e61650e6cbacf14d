"""Table 5, the row "+ relative position bias": `beit_plus` (LayerScale 0.1, a shared bias), ImageNet-1K, 300 epochs.

    python tools/train.py configs/pretrain/beit-plus-base-p16_dalle_16xb128-300e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's numbers after fine-tuning: 83.22 % top-1, 45.70 mIoU with UPerNet (Table 5). mmpretrain's 83.10 % is this
model. A log of the official code ends at a loss of 6.30 and a token accuracy of 5.0 % (microsoft/unilm issue 383).
Differs from its base in the variant: relative positions instead of absolute ones, and LayerScale.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

model = dict(backbone=dict(variant='beit_plus'))
