"""Fine-tune the miniature BEiT on 1 % of the hand-written digits' labels: 13 images. Ours, no paper row.

    python tools/train.py configs/classification/beit-mini-p8_ft-1pct_1xb64-100_digits-64.py \
        --load-from work_dirs/beit-mini-p8_dvae_1xb48-1500_embedded-64/iter_1500.pth

Expected: 25.7 top-1, without --load-from 14.8 (ours, one run each, 30 s on one core).
Differs from beit-mini-p8_ft-10pct in the share of the labels.
"""

_base_ = ['./beit-mini-p8_ft-10pct_1xb64-100_digits-64.py']

protocol = 'fine-tune, 1 % of the labels'
train_dataloader = dict(dataset=dict(percent=1))
