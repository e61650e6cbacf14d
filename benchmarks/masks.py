"""Masks of BEiT, 75 of 14 x 14 patches: mmpretrain's generator, the official law, ours.

    python benchmarks/masks.py [--only blockwise] [--rounds 9]

The candidates of `blockwise masks` draw from one generator, as mmpretrain's draws from NumPy's global one. `of a
training run` is what a pipeline calls: ours makes a generator for each sample, so that its mask depends on nothing but
seed, epoch and index; mmpretrain's depends on the order in which its worker got the samples.
"""

import importlib
import itertools

from harness import Case, main

GRID, MASKED, SMALLEST = (14, 14), 75, 16
MASKS = 200  # a step


def mmpretrains():
    importlib.import_module('beit_mm')  # mmpretrain needs it to import today
    from mmpretrain.datasets.transforms import BEiTMaskGenerator

    masking = BEiTMaskGenerator(GRID, MASKED, min_num_patches=SMALLEST)
    return lambda: [masking.transform({})['mask'] for _ in range(MASKS)]


def plain():
    """The official law in loops over patches, as it is usually written."""
    import math
    import random

    import numpy as np

    def draw():
        (rows, columns), mask, count = GRID, np.zeros(GRID, dtype=int), 0
        while count < MASKED:
            wanted, before = MASKED - count, count
            for _ in range(10):
                area, ratio = random.uniform(SMALLEST, wanted), math.exp(random.uniform(math.log(0.3), -math.log(0.3)))
                h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if h >= rows or w >= columns:
                    continue
                top, left = random.randint(0, rows - h), random.randint(0, columns - w)
                if 0 < h * w - mask[top : top + h, left : left + w].sum() <= wanted:
                    for place in itertools.product(range(top, top + h), range(left, left + w)):
                        count += 1 - mask[place]
                        mask[place] = 1
                    break
            if count == before:
                return mask
        return mask

    return lambda: [draw() for _ in range(MASKS)]


def ours():
    import numpy as np

    from beit_mm.ops.masking import blockwise_mask

    rng = np.random.default_rng(0)
    return lambda: [blockwise_mask(rng, GRID, MASKED, SMALLEST) for _ in range(MASKS)]


def our_transform():
    from beit_mm.data.sampling import Draw
    from beit_mm.data.transforms import MaskPatches

    masking = MaskPatches(GRID, MASKED)
    samples = itertools.count()
    return lambda: [masking.draw(Draw(i, (0, 0, i))) for i in itertools.islice(samples, MASKS)]


CASES = [
    Case(
        'blockwise masks',
        {'mmpretrain': mmpretrains, 'official law': plain, 'ours': ours},
        'mmpretrain',
        work=MASKS,
        unit='masks',
        bars={'ours': (8.0, 'mmpretrain')},
    ),
    Case(
        'masks of a training run',
        {'mmpretrain': mmpretrains, 'ours': our_transform},
        'mmpretrain',
        work=MASKS,
        unit='masks',
    ),
]

if __name__ == '__main__':
    main('Masks of BEiT, timed side by side', CASES)
