"""Which patches to predict: BEiT's blockwise masking (paper section 2.3, Algorithm 1) and random masking.

Every function draws from the generator that it is given and from nothing else.
"""

import functools
from collections.abc import Sequence
from math import exp, log, sqrt

import numpy as np

ATTEMPTS_PER_BLOCK = 10  # official masking_generator.py: a block that does not fit is redrawn this often
WORDS = 96  # of 64 bits, fetched for a mask at once; 75 of 14 x 14 patches take 34, and 96 do for 999 masks in 1,000
LOW = 2**32 - 1  # the lower half of a word
SAFE = LOW - 0xFFFF  # of a lower half: with any of these bits it is above every side of a grid
FROM_DIGITS = bytes.maketrans(b'01', b'\0\1')


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
    law = (num_masked, min_block, num_masked if max_block is None else max_block, log(min_aspect))
    source = rng.bit_generator
    if isinstance(source, np.random.PCG64) and not source.state['has_uint32']:
        words = source.random_raw(WORDS).tolist()
        bits, used = _from_words(words, grid, *law)
        source.advance(used - WORDS)
        if used:
            return _unpacked(bits, grid)
    return _from_calls(rng, grid, *law)


def _from_calls(
    rng: np.random.Generator, grid: tuple[int, int], num_masked: int, min_block: int, max_block: int, log_aspect: float
) -> np.ndarray:
    """The algorithm as it is meant; 50 calls of the generator and as many small arrays are what it costs."""
    height, width = grid
    mask = np.zeros(grid, dtype=bool)
    count = 0
    while count < num_masked:
        most = min(num_masked - count, max_block)
        for _ in range(ATTEMPTS_PER_BLOCK):
            area = min_block + (most - min_block) * rng.random()  # most < min_block: between the two
            aspect = exp(log_aspect * (1 - 2 * rng.random()))
            h, w = round(sqrt(area * aspect)), round(sqrt(area / aspect))
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


def _from_words(
    words: Sequence[int], grid: tuple[int, int], num_masked: int, min_block: int, max_block: int, log_aspect: float
) -> tuple[int, int]:
    """`_from_calls` on numbers that the generator made at once: the mask's bits, row by row from the lowest, and how
    many words they took; (0, 0) where there were too few, or where numpy would have drawn an integer again.

    What numpy makes of the words of PCG64: random() is the upper 53 bits of one, over 2**53; two integers in a row
    share one, lower half first, and each is the upper half of its product with the number of values (Lemire), drawn
    again where the product's lower half is small. Scaling by powers of two rounds nothing, so the numbers are equal.
    """
    height, width = grid
    blocks = _blocks(height, width)
    slope = log_aspect * 2.0**-52
    bits = count = failures = 0
    most = min(num_masked, max_block)
    step = (most - min_block) * 2.0**-53
    left = iter(words)
    for first, second in zip(left, left):  # two at a time
        area = min_block + step * (first >> 11)
        aspect = exp(slope * (2**52 - (second >> 11)))
        h, w = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if h < height and w < width:
            halves = next(left, 0)  # 0 ends it, as a draw to repeat does
            down, across = (halves & LOW) * (height - h + 1), (halves >> 32) * (width - w + 1)
            if not (down & SAFE and across & SAFE):
                break
            joined = bits | blocks[h][w] << (down >> 32) * width + (across >> 32)
            if count < joined.bit_count() <= count + most:
                bits, count, failures = joined, joined.bit_count(), 0
                if count == num_masked:
                    return bits, len(words) - left.__length_hint__()
                most = min(num_masked - count, max_block)
                step = (most - min_block) * 2.0**-53
                continue
        failures += 1
        if failures == ATTEMPTS_PER_BLOCK:
            return bits, len(words) - left.__length_hint__()
    return 0, 0


@functools.cache
def _blocks(height: int, width: int) -> list[list[int]]:
    """[h][w]: the bits of a block of h x w patches in the corner of a grid."""
    columns = [sum(1 << row * width for row in range(h)) for h in range(height)]
    return [[column * ((1 << w) - 1) for w in range(width)] for column in columns]


def _unpacked(bits: int, grid: tuple[int, int]) -> np.ndarray:
    digits = bytearray(f'{bits:0{grid[0] * grid[1]}b}'[::-1], 'ascii')  # np.unpackbits takes half as long again
    return np.frombuffer(digits.translate(FROM_DIGITS), bool).reshape(grid)


def random_mask(rng: np.random.Generator, grid: tuple[int, int], num_masked: int) -> np.ndarray:
    """Exactly `num_masked` patches chosen uniformly: (h, w) bool, True = predict (the Table 4 ablation)."""
    size = grid[0] * grid[1]
    if not 0 <= num_masked <= size:
        raise ValueError(f'num_masked={num_masked} must be in 0..{size} for a {grid[0]} x {grid[1]} grid')
    mask = np.zeros(size, dtype=bool)
    mask[rng.choice(size, num_masked, replace=False)] = True
    return mask.reshape(grid)
