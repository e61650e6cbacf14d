"""What benchmarks/gpu.py compares, the most telling first and what compiles last."""

import dataclasses
import functools
from collections.abc import Callable

from gpu_attention import WAYS, attention, flops_attention
from gpu_steps import (
    PURE,
    TRAINING,
    WINDOWS,
    classify,
    flops_classify,
    flops_mim,
    flops_segment,
    segment,
    train_classifier,
    train_mim,
    train_segmentor,
)
from peers import BACKBONES, Setting, Size, Step

GRIDS = (14, 24, 32)  # of patches: 224, 384 and 512 pixels
TINY_GRIDS = (4,)
TOKENS = 128 * 197  # in a batch of attention alone
IMAGES, CROPS, ONE = 'images', 'crops', 'one'  # batches


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Candidates that do the same work.

    candidates: {name: make(size, setting, batch), which returns the step}; ratios are over the first that can be built.
    batch: of whole images, of crops, one image, or a number.
    flops: {name: operations of an image, counted when asked for}; `''` stands for all others.
    same: all give the same up to rounding, drop path or not.
    brief: its steps are so short that a fifth of the time is enough.
    """

    name: str
    candidates: dict[str, Callable[[Size, Setting, int], Step]]
    batch: str | int
    flops: dict[str, Callable[[], float]]
    same: bool = False
    brief: bool = False

    def flops_of(self, name: str) -> float:
        return self.flops.get(name, self.flops[''])()


def comparisons(size: Size) -> list[Comparison]:
    """Of one model; what is not compiled first."""
    forward = {'': lambda: flops_classify(size)}
    training = {'': lambda: TRAINING * flops_classify(size)}
    cached = dict.fromkeys(('ours cached tokens', 'ours cached tokens compiled'), lambda: flops_mim(size, cached=True))
    mim = {'': lambda: flops_mim(size), **cached}
    both_heads = {'': lambda: TRAINING * flops_segment(size, ('decode_head', 'auxiliary_head'))}
    one_head = {'': lambda: WINDOWS * flops_segment(size, ('decode_head',))}
    learns, infers = functools.partial(partials, train_classifier), functools.partial(partials, classify)
    pretrains = functools.partial(partials, train_mim)
    everyone = {whose: dict(whose=whose) for whose in BACKBONES}
    mmseg = {whose: dict(whose=whose) for whose in ('mmseg', 'ours')}
    peer, our = dict(whose='mmpretrain'), dict(whose='ours')

    found = [
        Comparison(f'{size.name} training', learns(everyone), IMAGES, training),
        Comparison(f'{size.name} inference', infers(everyone), IMAGES, forward, same=True),
        Comparison(
            f'{size.name} pre-training',
            pretrains(
                {
                    'mmpretrain': peer,
                    'mmpretrain fp32 tokens': dict(peer, tokens='fp32'),
                    'ours': our,
                    'ours cached tokens': dict(our, tokens='cached'),
                }
            ),
            IMAGES,
            mim,
        ),
        Comparison(f'{size.name} UPerNet {size.crop} training', partials(train_segmentor, mmseg), CROPS, both_heads),
        Comparison(
            f'{size.name} UPerNet {size.crop} slide inference', partials(segment, mmseg), ONE, one_head, same=True
        ),
        Comparison(
            f'{size.name} inference, pure bf16',
            infers({whose: dict(given, precision=PURE) for whose, given in everyone.items()}),
            IMAGES,
            forward,
            same=True,
        ),
    ]
    plain = {'mmpretrain': peer, 'ours': our}
    for how, whom in {
        'compiled': ('ours', 'timm', 'hf', 'mmpretrain'),
        'reduce-overhead': ('ours',),
        'max-autotune': ('ours',),
    }.items():
        given = {**plain, **{f'{whose} {how}': dict(whose=whose, how=how) for whose in whom}}
        found.append(Comparison(f'{size.name} training, {how}', learns(given), IMAGES, training))
        found.append(Comparison(f'{size.name} inference, {how}', infers(given), IMAGES, forward, same=True))
        if how == 'compiled':
            given = {
                **plain,
                'ours compiled': dict(our, how=how),
                'ours cached tokens compiled': dict(our, tokens='cached', how=how),
            }
            found.append(Comparison(f'{size.name} pre-training, compiled', pretrains(given), IMAGES, mim))
    return found


def partials(make: Callable[..., Step], candidates: dict[str, dict]) -> dict[str, Callable]:
    return {name: functools.partial(make, **given) for name, given in candidates.items()}


def of_attention(size: Size, grids: tuple[int, ...]) -> list[Comparison]:
    """With the heads of one model, on batches of as many tokens each."""
    return [
        Comparison(
            f'attention {grid} x {grid} {"forward and backward" if backward else "forward"}',
            partials(attention, {way: dict(way=way, grid=grid, backward=backward) for way in WAYS}),
            max(1, TOKENS // (grid * grid + 1)),
            {'': functools.partial(flops_attention, grid, backward, size)},
            same=True,
            brief=True,
        )
        for grid in grids
        for backward in (False, True)
    ]


def of_all(sizes: list[Size], smoke: bool) -> list[Comparison]:
    """Each model's, then attention, then what compiles."""
    each = [comparison for size in sizes for comparison in comparisons(size)]
    slow = [c for c in each if any('how' in make.keywords for make in c.candidates.values())]
    return [c for c in each if c not in slow] + of_attention(sizes[0], TINY_GRIDS if smoke else GRIDS) + slow
