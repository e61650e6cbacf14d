"""Linear probe of every block of BEiT-L on ImageNet-1K, by the recipe of the official run_linear_eval.py.

    torchrun --nproc_per_node=8 tools/train.py THIS_FILE --launcher pytorch --amp --load-from FILE
    python tools/train.py configs/classification/beit-large-p16_linear-probe_8xb128-100e_in1k-224.py --load-from FILE

The paper's Table 9 has 73.5 for BEiT-L by the recipe of its Appendix D (beit-large-p16_linear-probe-block14); for this
one no number is published. Not run by us. Differs from beit-base-p16_linear-probe in the backbone: 24 blocks.
"""

_base_ = ['./beit-base-p16_linear-probe_8xb128-100e_in1k-224.py']

model = dict(backbone=dict(arch='large', out_indices=list(range(24))))
