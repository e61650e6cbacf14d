"""The same segmentor from random weights: same recipe, same number of steps, same 256 labelled images.

    python tools/train.py configs/segmentation/beit-mini-p8_upernet-scratch_1xb32-150_embedded-64.py

Differs from beit-mini-p8_upernet in nothing but that no weights are loaded.
"""

_base_ = ['./beit-mini-p8_upernet_1xb32-150_embedded-64.py']

protocol = 'from scratch'
