"""Which patches to predict: BEiT's blockwise masking (paper section 2.3, Algorithm 1) and random masking.

Every function draws from the generator that it is given and from nothing else.
"""

import math

import numpy as np

ATTEMPTS_PER_BLOCK = 10  # official masking_generator.py: a block that does not fit is redrawn this often


def blockwise_mask(
    rng: np.random.Generator,
    grid: tuple[int, int],
    num_masked: int,
    min_block: int = 16,
    max_block: int | None = None,
    min_aspect: float = 0.3,
) -> np.ndarray:
    """Mask rectangles of patches until `num_masked` are covered: (h, w) bool, True = predict.

    A block covers `min_block` to `max_block` patches (default: as many as are still wanted) and its
    height : width is log-uniform in [min_aspect, 1 / min_aspect]. As in the official generator the count
    never exceeds `num_masked` and may stop short of it, when ten draws in a row do not fit: on a 14 x 14
    grid with 75 wanted, a third of the masks have fewer (64 at least in 20,000).
    Source: official masking_generator.py.
    """
    height, width = grid
    if not 0 < num_masked <= height * width:
        raise ValueError(f'num_masked={num_masked} must be in 1..{height * width} for a {height} x {width} grid')
    max_block = num_masked if max_block is None else max_block
    log_aspect = math.log(min_aspect)
    mask = np.zeros(grid, dtype=bool)
    count = 0
    while count < num_masked:
        most = min(num_masked - count, max_block)
        for _ in range(ATTEMPTS_PER_BLOCK):
            area = min_block + (most - min_block) * rng.random()  # most < min_block: between the two
            aspect = math.exp(log_aspect * (1 - 2 * rng.random()))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= height or w >= width:
                continue
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            block = mask[top : top + h, left : left + w]
            new = block.size - int(np.count_nonzero(block))
            if 0 < new <= most:
                block[...] = True
                count += new
                break
        else:
            break  # nothing fits any more
    return mask


def random_mask(rng: np.random.Generator, grid: tuple[int, int], num_masked: int) -> np.ndarray:
    """Exactly `num_masked` patches chosen uniformly: (h, w) bool, True = predict (the Table 4 ablation)."""
    size = grid[0] * grid[1]
    if not 0 <= num_masked <= size:
        raise ValueError(f'num_masked={num_masked} must be in 0..{size} for a {grid[0]} x {grid[1]} grid')
    mask = np.zeros(size, dtype=bool)
    mask[rng.choice(size, num_masked, replace=False)] = True
    return mask.reshape(grid)
