"""A step of AdamW on BEiT-B's parameters in groups of layer decay, against mmpretrain's constructor and torch's forms.

    python benchmarks/optimizer.py

Everybody's optimizer has the same parameters, the same gradients and the recipe of fine-tuning: learning rate 4e-3,
decay 0.65 a layer, weight decay 0.05. mmpretrain's is what its constructor builds of its own fine-tuning config.
"""

import functools
from collections.abc import Callable

from harness import Case, main

ADAMW = dict(type='AdamW', lr=4e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999))


def model():
    """A classifier with BEiT-B, mmpretrain's, which both constructors can ask for its layers."""
    import beit_mm.compat  # noqa: F401, I001 - its last release imports nowhere without
    import mmpretrain.models  # noqa: F401 - registers
    import torch
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    DefaultScope.get_instance('benchmark', scope_name='mmpretrain')
    torch.manual_seed(0)
    backbone = dict(type='BEiTViT', arch='base', patch_size=16, use_rel_pos_bias=True)
    head = dict(type='LinearClsHead', num_classes=1000, in_channels=768)
    built = MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head))
    for parameter in built.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return built


def step_of(constructor: str, **form) -> Callable[[], object]:
    """Makes one candidate's step. form: of torch's optimizer."""
    from mmengine.optim import build_optim_wrapper

    built = model()
    if constructor.startswith('beit_mm'):
        import beit_mm.engine  # noqa: F401 - registers

        paramwise = dict(layer_decay_rate=0.65)
    else:
        import mmpretrain.engine  # noqa: F401 - registers

        nowhere = {name: dict(decay_mult=0.0) for name in ('.ln', '.bias', 'q_bias', 'v_bias', '.gamma')}
        paramwise = dict(layer_decay_rate=0.65, custom_keys=nowhere)
    config = dict(type='OptimWrapper', constructor=constructor, paramwise_cfg=paramwise, optimizer={**ADAMW, **form})
    return build_optim_wrapper(built, config).optimizer.step


THEIRS, OURS = 'LearningRateDecayOptimWrapperConstructor', 'beit_mm.LayerDecayOptimWrapperConstructor'
CASES = [
    Case(
        name='AdamW step, BEiT-B',
        candidates={
            'mmpretrain': functools.partial(step_of, THEIRS),
            'mmpretrain, foreach=True': functools.partial(step_of, THEIRS, foreach=True),
            'ours, fused=False': functools.partial(step_of, OURS, fused=False),
            'ours': functools.partial(step_of, OURS),
        },
        baseline='mmpretrain',
        bars={'ours': (5.0, 'mmpretrain')},
    )
]

if __name__ == '__main__':
    main(__doc__.splitlines()[0], CASES)
