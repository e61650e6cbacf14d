"""The same classifier from random weights: same recipe, same number of steps, same 256 labelled images.

    python tools/train.py configs/classification/beit-mini-p8_scratch_1xb64-100_mosaics-64.py

Differs from beit-mini-p8_ft in nothing but that no weights are loaded.
"""

_base_ = ['./beit-mini-p8_ft_1xb64-100_mosaics-64.py']

protocol = 'from scratch'
