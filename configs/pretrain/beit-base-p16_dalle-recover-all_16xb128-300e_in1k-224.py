"""Table 4, the row "+ recover 100 % of visual tokens": BEiT-B on ImageNet-1K, 300 epochs.

    python tools/train.py configs/pretrain/beit-base-p16_dalle-recover-all_16xb128-300e_in1k-224.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp

The paper's numbers after fine-tuning: 82.59 % top-1 and 40.93 mIoU with SETR-PUP (Table 4; BEiT itself: 82.86 and
44.65). Differs from its base in which patches cost: all, masked or not.
"""

_base_ = ['beit-base-p16_dalle_16xb128-300e_in1k-224.py']

model = dict(predict='all')
