"""The backbone against mmpretrain, timm and Hugging Face: inference, inference compiled, a training step.

    python benchmarks/backbone.py --only base4 224 eval

`base4` is BEiT-B with four of its twelve blocks: the same work per block, a third of the time. All have LayerScale, a
relative position bias per block and mean pooling (what the official code fine-tunes). unilm's own code is not here: it
cannot be installed as a package.

An allocator that keeps its memory makes anybody faster; it is a setting of the process (`ALLOCATOR`), so we and
mmpretrain are timed with it and without.
"""

import functools
from collections.abc import Callable

from harness import Case, main

ALLOCATOR = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_='100000000000', MALLOC_TOP_PAD_='67108864')
FREEZING = dict(TORCHINDUCTOR_FREEZING='1')
MODELS = {  # width, blocks, heads
    'base4': (768, 4, 12),
    'tiny': (192, 12, 3),
}
PATCH = 16


def flops(model: str, side: int, images: int) -> float:
    """Of a forward pass: two for every multiplication and addition of the matrix products."""
    width, blocks, _ = MODELS[model]
    patches = (side // PATCH) ** 2
    tokens = 1 + patches
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    return 2.0 * images * (patches * 3 * PATCH**2 * width + blocks * block)


def of_mmpretrain(model: str, side: int, drop_path: float):
    from mmpretrain.models.backbones import BEiTViT

    width, blocks, heads = MODELS[model]
    arch = dict(embed_dims=width, num_layers=blocks, num_heads=heads, feedforward_channels=4 * width)
    backbone = BEiTViT(arch, img_size=side, drop_path_rate=drop_path)
    return backbone, lambda images: backbone(images)[0]


def of_timm(model: str, side: int, drop_path: float):
    from timm.models.beit import Beit

    width, blocks, heads = MODELS[model]
    backbone = Beit(
        img_size=side,
        patch_size=PATCH,
        num_classes=0,
        embed_dim=width,
        depth=blocks,
        num_heads=heads,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        drop_path_rate=drop_path,
    )
    return backbone, backbone


def of_hugging_face(model: str, side: int, drop_path: float):
    from transformers import BeitConfig, BeitModel

    width, blocks, heads = MODELS[model]
    config = BeitConfig(
        image_size=side,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        layer_scale_init_value=0.1,
        use_relative_position_bias=True,
        drop_path_rate=drop_path,
        attn_implementation='sdpa',
    )
    backbone = BeitModel(config)
    return backbone, lambda images: backbone(images).pooler_output


def of_ours(model: str, side: int, drop_path: float):
    from beit_mm.models.backbone import BEiTViT

    width, blocks, heads = MODELS[model]
    arch = dict(embed_dims=width, num_layers=blocks, num_heads=heads, feedforward_channels=4 * width)
    backbone = BEiTViT(arch, img_size=side, drop_path_rate=drop_path)
    return backbone, lambda images: backbone(images)[0]


WHOSE = {'mmpretrain': of_mmpretrain, 'timm': of_timm, 'Hugging Face': of_hugging_face, 'ours': of_ours}


def inference(whose: str, model: str, side: int, images: int, compiled: bool = False) -> Callable[[], object]:
    """Makes one candidate's step: features of a batch."""
    import torch

    import beit_mm  # noqa: F401 - its workarounds let the peers be imported; everybody pays for it

    torch.manual_seed(0)
    backbone, run = WHOSE[whose](model, side, 0.0)
    backbone.eval()
    batch = torch.randn(images, 3, side, side)
    if compiled:
        run = torch.compile(run)

    def step() -> None:
        with torch.no_grad():
            run(batch)

    return step


def training(
    whose: str, model: str, side: int, images: int, drop_path: float = 0.0, compiled: bool = False
) -> Callable[[], object]:
    """Makes one candidate's step: features, and the gradient of everything."""
    import torch

    import beit_mm  # noqa: F401 - its workarounds let the peers be imported; everybody pays for it

    torch.manual_seed(0)
    backbone, run = WHOSE[whose](model, side, drop_path)
    backbone.train()
    batch = torch.randn(images, 3, side, side)
    if compiled:
        run = torch.compile(run)

    def step() -> None:
        backbone.zero_grad(set_to_none=True)
        run(batch).square().mean().backward()

    return step


def case(name: str, make, model: str, side: int, images: int, bars: dict, **how) -> Case:
    """All peers and us, as they come; mmpretrain and us with the allocator too."""
    candidates = {whose: functools.partial(make, whose, model, side, images, **how) for whose in WHOSE}
    tuned = {f'{whose}, allocator': candidates[whose] for whose in ('mmpretrain', 'ours')}
    return Case(
        name,
        candidates | tuned,
        baseline='mmpretrain',
        work=images,
        unit='images',
        flops=flops(model, side, images) * (3 if make is training else 1),
        bars=bars,
        env=dict.fromkeys(tuned, ALLOCATOR),
    )


def compiled_case(model: str, images: int) -> Case:
    """Compiled with freezing (weights become constants), and mmpretrain as it comes, for it does not compile."""
    make = functools.partial(inference, model=model, side=224, images=images)
    candidates = {'mmpretrain': functools.partial(make, 'mmpretrain')}
    for whose in ('timm', 'ours'):
        candidates[f'{whose}, compiled'] = functools.partial(make, whose, compiled=True)
    candidates['ours, compiled, allocator'] = candidates['ours, compiled']
    env = {name: FREEZING for name in candidates if 'compiled' in name}
    env['ours, compiled, allocator'] = FREEZING | ALLOCATOR
    return Case(
        f'{model} 224 eval compiled',
        candidates,
        baseline='mmpretrain',
        work=images,
        unit='images',
        flops=flops(model, 224, images),
        bars={'ours, compiled, allocator': (1.55, 'mmpretrain'), 'ours, compiled': (1.0, 'timm, compiled')},
        env=env,
    )


def bars(least: float) -> dict:
    return {'ours, allocator': (least, 'mmpretrain'), 'ours': (1.0, 'Hugging Face')}


CASES = [
    case('base4 224 eval', inference, 'base4', 224, 4, bars(1.4)),
    case('tiny 224 eval', inference, 'tiny', 224, 4, bars(1.25)),
    case('base4 512 eval', inference, 'base4', 512, 1, bars(2.0)),
    case('base4 224 train', training, 'base4', 224, 4, bars(1.1)),
    case('tiny 224 train', training, 'tiny', 224, 4, bars(1.15)),
    case('base4 224 train drop path 0.2', training, 'base4', 224, 8, {}, drop_path=0.2),
    compiled_case('base4', 4),
    compiled_case('tiny', 4),
]

if __name__ == '__main__':
    main(__doc__.partition('\n')[0], CASES)
