"""BEiT-B with SETR-PUP on ADE20K at 512 px, from random weights: no paper row.

    python tools/train.py configs/segmentation/beit-base-p16_setr-pup-scratch_8xb2-160k_ade20k-512.py
    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp
    python tools/test.py THIS_FILE CHECKPOINT [--tta] [--show-dir DIR]

Ours, as the floor of Table 3. Differs from its base in that no weights are loaded.
"""

_base_ = ['beit-base-p16_setr-pup_8xb2-160k_ade20k-512.py']

load_from = None
protocol = 'SETR-PUP, from scratch'
