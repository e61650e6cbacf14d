"""BEiT-B on ImageNet-1K with DALL-E's tokens, 800 epochs: the paper's main model (Tables 1, 3, 9, 11), Table 12.

    python tools/train.py configs/pretrain/beit-base-p16_dalle_16xb128-800e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's numbers after fine-tuning: 83.2 % top-1 at 224 px, 84.6 % at 384 px (Table 1), 45.58 mIoU with SETR-PUP
(Table 4, "800 epochs"; 45.6 in Table 3). The official release beit_base_patch16_224_pt1k_800ep is this model. Differs
from its base in its length.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-5 / 1.5e-3,
        by_epoch=True,
        begin=10,
        end=800,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=800, val_interval=20)
