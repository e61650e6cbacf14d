"""BEiT (arXiv 2106.08254) for OpenMMLab: tokenizer, masked image modeling, fine-tuning, leaderboard.

Importing registers everything under the scope `beit_mm`, so that `type='beit_mm.BEiTViT'` resolves.
"""

from . import compat

__version__ = '0.1.0'

compat.apply_all()
