"""A step of masked image modeling against mmpretrain, and its tokenizer alone.

    python benchmarks/mim.py --only four blocks
    python benchmarks/mim.py --only base --rounds 5

The step: tokens of the second view by DALL-E's encoder, loss and gradient of the backbone (BEiT-B with LayerScale and a
shared relative position bias: what the official code pre-trains; drop path 0.1), gradients clipped at 3.0, AdamW. Both
sides' models, optimizers and their wrappers are built as their own configs build them, in float32. Batches are
normalised already. `four blocks` is BEiT-B with four of its twelve. With cached tokens (docs/tokens.md) there is no
tokenizer to run; the share of the matrix rate counts its operations all the same, as work that was done. unilm's own
code is not here: it cannot be installed as a package.

An allocator that keeps its memory makes anybody faster; it is a setting of the process (`ALLOCATOR`), so we and
mmpretrain are timed with it and without.
"""

import functools
from collections.abc import Callable

from harness import Case, main

ALLOCATOR = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_='100000000000', MALLOC_TOP_PAD_='67108864')
WIDTH, HEADS, PATCH, SIDE, TOKENS_SIDE, VOCABULARY, MASKED = 768, 12, 16, 224, 112, 8192, 75
GRID = SIDE // PATCH
IMAGES = 2
TOKENIZER_FLOPS = 52.1e9  # of DALL-E's encoder, an image of 112 x 112: counted from its convolutions


def step_flops(blocks: int, tokenizer: bool) -> float:
    """Of a step: two for every multiplication and addition of the matrix products; a backward pass is two forward."""
    tokens = 1 + GRID**2
    block = 12 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH
    forward = GRID**2 * 3 * PATCH**2 * WIDTH + blocks * block + MASKED * WIDTH * VOCABULARY
    return IMAGES * (3 * 2.0 * forward + (TOKENIZER_FLOPS if tokenizer else 0.0))


def batch() -> dict:
    """A batch as the data preprocessor leaves it."""
    import numpy as np
    import torch

    from beit_mm.ops.masking import blockwise_mask

    torch.manual_seed(0)
    masks = [blockwise_mask(np.random.default_rng(i), (GRID, GRID), MASKED) for i in range(IMAGES)]
    return dict(
        patches=torch.randn(IMAGES, 3, SIDE, SIDE),
        tokens_view=torch.rand(IMAGES, 3, TOKENS_SIDE, TOKENS_SIDE) * 0.8 + 0.1,
        mask=torch.from_numpy(np.stack(masks)),
    )


def arch(blocks: int) -> dict:
    return dict(embed_dims=WIDTH, num_layers=blocks, num_heads=HEADS, feedforward_channels=4 * WIDTH)


def of_mmpretrain(blocks: int) -> Callable[[], object]:
    """configs/beit/beit_beit-base-p16_8xb256-amp-coslr-300e_in1k.py of mmpretrain, without its fp16."""
    import beit_mm.compat  # noqa: F401, I001 - its last release imports nowhere without
    import mmpretrain.models  # noqa: F401 - registers
    import torch
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    DefaultScope.get_instance('benchmark', scope_name='mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='BEiT',
            backbone=dict(
                type='BEiTPretrainViT',
                arch=arch(blocks),
                patch_size=PATCH,
                drop_path_rate=0.1,
                final_norm=True,
                out_type='raw',
                layer_scale_init_value=0.1,
            ),
            neck=None,
            head=dict(type='BEiTV1Head', embed_dims=WIDTH, num_embed=VOCABULARY, loss=dict(type='CrossEntropyLoss')),
            target_generator=dict(type='DALL-E'),
        )
    )
    no_decay = ('.ln', '.bias', 'q_bias', 'v_bias', '.cls_token', '.pos_embed', '.gamma')
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.999), weight_decay=0.05),
            clip_grad=dict(max_norm=3.0),
            paramwise_cfg=dict(custom_keys={name: dict(decay_mult=0.0) for name in no_decay}),
        ),
    )
    data = batch()
    samples = [DataSample().set_mask(mask) for mask in data['mask']]
    inputs = [data['patches'], data['tokens_view']]

    def step() -> None:
        losses = model.loss(inputs, samples)
        wrapper.update_params(model.parse_losses(losses)[0])

    model.train()
    return step


def of_ours(blocks: int, cached: bool) -> Callable[[], object]:
    """configs/pretrain/beit-plus-base-p16_dalle_16xb128-300e_in1k-224.py, the cached tokens as its -tokens config."""
    import torch
    from mmengine.optim import build_optim_wrapper

    import beit_mm.engine
    import beit_mm.models  # noqa: F401 - registers
    from beit_mm.registry import MODELS

    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='beit_mm.MaskedImageModel',
            backbone=dict(
                type='beit_mm.BEiTViT',
                arch=arch(blocks),
                variant='beit_plus',
                img_size=SIDE,
                drop_path_rate=0.1,
                with_mask_token=True,
                final_norm=True,
                out_type='raw',
            ),
            target=dict(
                type='beit_mm.CachedTokens' if cached else 'beit_mm.TokenTarget',
                tokenizer=dict(type='beit_mm.DALLEEncoder'),
            ),
            head=dict(type='beit_mm.TokenHead', embed_dims=WIDTH, vocab_size=VOCABULARY),
        )
    )
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='beit_mm.OptimWrapper',
            constructor='beit_mm.LayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
            clip_grad=dict(max_norm=3.0),
        ),
    )
    data = batch()
    if cached:
        del data['tokens_view']
        data['tokens'] = torch.randint(VOCABULARY, (IMAGES, GRID, GRID))

    def step() -> None:
        losses = model.loss(data)
        wrapper.update_params(model.parse_losses(losses)[0])

    model.train()
    return step


def tokenizer(whose: str) -> Callable[[], object]:
    """Makes one candidate's step: the tokens of a batch."""
    import torch

    view = batch()['tokens_view']
    torch.manual_seed(0)
    if whose == 'mmpretrain':
        import beit_mm.compat  # noqa: F401, I001
        from mmpretrain.models.selfsup import DALLEEncoder

        encoder = DALLEEncoder().eval()

        def step() -> None:
            with torch.no_grad():
                encoder(view).argmax(dim=1)

        return step
    from beit_mm.models import TokenTarget

    target = TokenTarget(dict(type='beit_mm.DALLEEncoder'))
    return lambda: target.tokens(view)


def step_case(name: str, blocks: int, bars: bool) -> Case:
    makers = {
        'mmpretrain': functools.partial(of_mmpretrain, blocks),
        'ours': functools.partial(of_ours, blocks, cached=False),
        'ours, cached tokens': functools.partial(of_ours, blocks, cached=True),
    }
    kept = {f'{candidate}, allocator': make for candidate, make in makers.items()}
    promised = {'ours': (1.25, 'mmpretrain'), 'ours, cached tokens': (1.55, 'mmpretrain')}
    return Case(
        name=name,
        candidates=makers | kept,
        baseline='mmpretrain',
        work=IMAGES,
        unit='images',
        flops=step_flops(blocks, tokenizer=True),
        bars=promised if bars else {},
        env=dict.fromkeys(kept, ALLOCATOR),
    )


WHOSE = ('mmpretrain', 'ours')
CASES = [
    step_case('MIM step, four blocks', 4, bars=False),
    step_case('MIM step, base', 12, bars=True),
    Case(
        name='tokenizer alone',
        candidates={f'{w}{end}': functools.partial(tokenizer, w) for end in ('', ', allocator') for w in WHOSE},
        baseline='mmpretrain',
        work=IMAGES,
        unit='images',
        flops=IMAGES * TOKENIZER_FLOPS,
        env={f'{w}, allocator': ALLOCATOR for w in WHOSE},
    ),
]

if __name__ == '__main__':
    main(__doc__.splitlines()[0], CASES)
