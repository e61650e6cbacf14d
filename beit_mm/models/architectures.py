"""How a BEiT is described: mmpretrain's presets, the two variants, and mmseg's keywords for the same things."""

import difflib
from collections.abc import Iterable

# mmpretrain's presets under mmpretrain's names; its `small` keeps its (odd) meaning.
ARCHITECTURES = {
    'deit-tiny': dict(embed_dims=192, num_layers=12, num_heads=3, feedforward_channels=768),
    'deit-small': dict(embed_dims=384, num_layers=12, num_heads=6, feedforward_channels=1536),
    'small': dict(embed_dims=768, num_layers=8, num_heads=8, feedforward_channels=2304),
    'base': dict(embed_dims=768, num_layers=12, num_heads=12, feedforward_channels=3072),
    'large': dict(embed_dims=1024, num_layers=24, num_heads=16, feedforward_channels=4096),
}
ALIASES = {
    'deit-t': 'deit-tiny',
    'deit-s': 'deit-small',
    'deit-b': 'base',
    'deit-base': 'base',
    's': 'small',
    'b': 'base',
    'l': 'large',
}
# The four arguments that tell the paper's main model from the one that the official code trains.
VARIANTS = {
    'beit': dict(
        use_abs_pos_emb=True, use_rel_pos_bias=False, use_shared_rel_pos_bias=False, layer_scale_init_value=0.0
    ),
    'beit_plus': dict(
        use_abs_pos_emb=False, use_rel_pos_bias=True, use_shared_rel_pos_bias=False, layer_scale_init_value=0.1
    ),
}
DEEP, DEEP_LAYER_SCALE = 24, 1e-5  # official commands: LayerScale starts at 0.1 for base, at 1e-5 for large
# mmpretrain's arguments that every BEiT sets to one value (or that are empty unless something else is changed).
MMPRETRAIN_FIXED = {'with_cls_token': (True,), 'patch_cfg': ({}, {'padding': 0}), 'layer_cfgs': ({},)}
MMSEG_TRANSLATED = ('embed_dims', 'num_layers', 'num_heads', 'mlp_ratio', 'qv_bias', 'init_values', 'pretrained')
# Of mmseg's arguments, those that every BEiT sets to one value; `norm_eval` is about BatchNorm, which it has not.
MMSEG_FIXED = {'patch_norm': (False,), 'num_fcs': (2,), 'act_cfg': (dict(type='GELU'),), 'norm_eval': (False, True)}


def architecture(arch: str | dict) -> dict:
    """embed_dims, num_layers, num_heads, feedforward_channels of a preset's name, or of a dict of just these."""
    if isinstance(arch, str):
        name = ALIASES.get(arch.lower(), arch.lower())
        if name not in ARCHITECTURES:
            near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(f'BEiTViT: arch={arch!r} is none of {", ".join(ARCHITECTURES)}{hint}')
        return dict(ARCHITECTURES[name])
    wanted = set(ARCHITECTURES['base'])
    if set(arch) != wanted:
        raise ValueError(f'BEiTViT: a custom arch is a dict of {", ".join(sorted(wanted))}; got {", ".join(arch)}')
    return dict(arch)


def variant_arguments(variant: str, num_layers: int, pretraining: bool, given: tuple) -> tuple:
    """What `variant` stands for, in the order of VARIANTS; `beit_plus` shares one table in pre-training.

    given: the same four as they were passed. One that was changed by hand as well is an error.
    """
    if variant not in VARIANTS:
        raise ValueError(f'BEiTViT: variant={variant!r} is none of {", ".join(VARIANTS)}')
    for (name, default), value in zip(VARIANTS['beit_plus'].items(), given, strict=True):
        if value != default:
            raise ValueError(f'BEiTViT: variant={variant!r} decides {name}, and {name}={value!r} is given; drop one')
    chosen = dict(VARIANTS[variant])
    if variant == 'beit_plus':
        chosen.update(use_rel_pos_bias=not pretraining, use_shared_rel_pos_bias=pretraining)
        if num_layers >= DEEP:
            chosen['layer_scale_init_value'] = DEEP_LAYER_SCALE
    return tuple(chosen.values())


def variant_of(backbone: dict) -> str:
    """`beit`, `beit_plus`, `vit` (a bias for keys too) or `beit, mixed`: what the arguments of a BEiTViT amount to."""
    if backbone.get('bias') is True:
        return 'vit'
    if 'variant' in backbone:
        return backbone['variant']
    biased = backbone.get('use_rel_pos_bias', True) or backbone.get('use_shared_rel_pos_bias', False)
    scaled = (backbone.get('layer_scale_init_value', 0.1) or 0) > 0
    return {(False, False): 'beit', (True, True): 'beit_plus'}.get((bool(biased), scaled), 'beit, mixed')


def refuse_changed(given: dict) -> dict:
    """Arguments of mmpretrain that no BEiT changes: taken at their one value, else an error. Returns the rest."""
    for name, values in MMPRETRAIN_FIXED.items():
        if name in given and given[name] not in values:
            raise ValueError(f'BEiTViT: {name}={given[name]!r}: every BEiT has {name}={values[0]!r}')
    return {name: value for name, value in given.items() if name not in MMPRETRAIN_FIXED}


def translate_mmseg(given: dict, own_arguments: Iterable[str], arch: str | dict, bias: str | bool, layer_scale: float):
    """mmseg's BEiT describes its architecture by keywords; translate them, refuse what neither project knows.

    Returns (arch, bias, layer_scale).
    """
    for name, value in given.items():
        if name in MMSEG_FIXED and value not in MMSEG_FIXED[name]:
            raise ValueError(f'BEiTViT: {name}={value!r}: every BEiT has {name}={MMSEG_FIXED[name][0]!r}')
        if name not in MMSEG_FIXED and name not in MMSEG_TRANSLATED:
            near = difflib.get_close_matches(name, own_arguments, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise TypeError(f'BEiTViT: unexpected argument {name!r}{hint}')
    settings = dict(architecture(arch))
    for key in ('embed_dims', 'num_layers', 'num_heads'):
        settings[key] = given.get(key, settings[key])
    if 'embed_dims' in given or 'mlp_ratio' in given:
        settings['feedforward_channels'] = int(settings['embed_dims'] * given.get('mlp_ratio', 4))
    if given.get('qv_bias') is False:
        bias = False
    if 'init_values' in given:
        layer_scale = given['init_values'] or 0.0
    return settings, bias, layer_scale
