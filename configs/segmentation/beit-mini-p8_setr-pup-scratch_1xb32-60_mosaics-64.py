"""The same segmentor from random weights: same recipe, same steps, same 256 labelled images.

    python tools/train.py configs/segmentation/beit-mini-p8_setr-pup-scratch_1xb32-60_mosaics-64.py

Differs from beit-mini-p8_setr-pup in nothing but that no weights are loaded.
"""

_base_ = ['./beit-mini-p8_setr-pup_1xb32-60_mosaics-64.py']

protocol = 'SETR-PUP, from scratch'
