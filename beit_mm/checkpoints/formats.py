"""The names that seven projects give to the weights of one BEiT: tables {theirs: ours}, read in both directions.

An eighth format is the plain vision transformer of DeiT, timm, DINO, MoCo v3 and MAE, which a BEiTViT with
bias=True and variant='beit' equals.

`{i}` stands for a number, `*` for `weight` or `bias`, `**` for anything. A format has one table per layout that its
files come in; a file is of a layout when that knows every one of its keys.
"""

import re
from dataclasses import dataclass, field

BLOCK = {  # official modeling_finetune.py: ours
    'norm1.*': 'ln1.*',
    'norm2.*': 'ln2.*',
    'gamma_1': 'gamma_1',
    'gamma_2': 'gamma_2',
    'attn.qkv.*': 'attn.qkv.*',
    'attn.q_bias': 'attn.q_bias',
    'attn.v_bias': 'attn.v_bias',
    'attn.proj.*': 'attn.proj.*',
    'attn.relative_position_bias_table': 'attn.relative_position_bias_table',
    'mlp.fc1.*': 'ffn.layers.0.0.*',
    'mlp.fc2.*': 'ffn.layers.1.*',
}
BACKBONE = {
    'cls_token': 'cls_token',
    'mask_token': 'mask_token',
    'pos_embed': 'pos_embed',
    'patch_embed.proj.*': 'patch_embed.projection.*',
    'rel_pos_bias.relative_position_bias_table': 'rel_pos_bias.relative_position_bias_table',
    'norm.*': 'ln1.*',
    'fc_norm.*': 'ln2.*',
    **{f'blocks.{{i}}.{theirs}': f'layers.{{i}}.{ours}' for theirs, ours in BLOCK.items()},
}
OWN_BACKBONE = {ours: ours for ours in BACKBONE.values()}
CLASS_HEADS = {'head.*': 'head.fc.*', 'lm_head.*': 'head.cls_head.*'}
OWN_HEADS = {'head.**': 'head.**', 'neck.**': 'neck.**'}
SEGMENTATION_HEADS = {'decode_head.**': 'decode_head.**', 'auxiliary_head.**': 'auxiliary_head.**'}
PYRAMID_16 = {'fpn1.{i}.**': 'neck.upsample_4x.{i}.**', 'fpn2.{i}.**': 'neck.upsample_2x.{i}.**'}
PYRAMID_8 = {'fpn1.{i}.**': 'neck.upsample_2x.{i}.**'}
ONLY_IN_PYRAMID_16 = ('fpn1.3.weight', 'neck.upsample_4x.3.weight')  # theirs, ours: patch 8 upsamples once

HF_BLOCK = {  # the names in files of any version, and in memory until version 4
    'layernorm_before.*': 'ln1.*',
    'layernorm_after.*': 'ln2.*',
    'lambda_1': 'gamma_1',
    'lambda_2': 'gamma_2',
    'attention.attention.qkv.weight': 'attn.qkv.weight',  # of query, key, value; see Format.split
    'attention.attention.query.bias': 'attn.q_bias',
    'attention.attention.value.bias': 'attn.v_bias',
    'attention.output.dense.*': 'attn.proj.*',
    'attention.attention.relative_position_bias.relative_position_bias_table': 'attn.relative_position_bias_table',
    'intermediate.dense.*': 'ffn.layers.0.0.*',
    'output.dense.*': 'ffn.layers.1.*',
}
HF_BACKBONE = {
    'embeddings.cls_token': 'cls_token',
    'embeddings.mask_token': 'mask_token',
    'embeddings.position_embeddings': 'pos_embed',
    'embeddings.patch_embeddings.projection.*': 'patch_embed.projection.*',
    'encoder.relative_position_bias.relative_position_bias_table': 'rel_pos_bias.relative_position_bias_table',
    'layernorm.*': 'ln1.*',
    'pooler.layernorm.*': 'ln2.*',
    **{f'encoder.layer.{{i}}.{theirs}': f'layers.{{i}}.{ours}' for theirs, ours in HF_BLOCK.items()},
}
HF5_BLOCK = {  # the names in memory from version 5 on
    'layernorm_before.*': 'ln1.*',
    'layernorm_after.*': 'ln2.*',
    'lambda_1': 'gamma_1',
    'lambda_2': 'gamma_2',
    'attention.qkv_proj.weight': 'attn.qkv.weight',
    'attention.q_proj.bias': 'attn.q_bias',
    'attention.v_proj.bias': 'attn.v_bias',
    'attention.o_proj.*': 'attn.proj.*',
    'relative_position_bias.relative_position_bias_table': 'attn.relative_position_bias_table',
    'mlp.fc1.*': 'ffn.layers.0.0.*',
    'mlp.fc2.*': 'ffn.layers.1.*',
}
HF5_BACKBONE = {
    **{theirs: ours for theirs, ours in HF_BACKBONE.items() if not theirs.startswith('encoder.')},
    'shared_position_bias.relative_position_bias_table': 'rel_pos_bias.relative_position_bias_table',
    **{f'layers.{{i}}.{theirs}': f'layers.{{i}}.{ours}' for theirs, ours in HF5_BLOCK.items()},
}
HF_CLASSIFIER = {'classifier.*': 'head.fc.*'}
HF_MASKED = {'lm_head.*': 'head.cls_head.*', 'layernorm.*': 'backbone.ln1.*'}
HF_SEGMENTOR = {
    **PYRAMID_16,
    'decode_head.classifier.*': 'decode_head.conv_seg.*',
    'auxiliary_head.classifier.*': 'auxiliary_head.conv_seg.*',
    **{
        f'{head}.{part}.**': f'{head}.{part}.**'
        for head, parts in {
            'decode_head': ('psp_modules', 'bottleneck', 'lateral_convs', 'fpn_convs', 'fpn_bottleneck'),
            'auxiliary_head': ('convs',),
        }.items()
        for part in parts
    },
}
HF5_CONVOLUTIONS = {  # theirs: ours, each with `convolution` for `conv` and `normalization` for `bn`
    'decode_head.psp_modules.blocks.{i}.conv': 'decode_head.psp_modules.{i}.1',
    'decode_head.psp_bottleneck': 'decode_head.bottleneck',
    'decode_head.lateral_convs.{i}': 'decode_head.lateral_convs.{i}',
    'decode_head.fpn_convs.{i}': 'decode_head.fpn_convs.{i}',
    'decode_head.fpn_bottleneck': 'decode_head.fpn_bottleneck',
    'auxiliary_head.convs.{i}': 'auxiliary_head.convs.{i}',
}
HF5_SEGMENTOR = {
    'fpn.fpn1.conv_transpose1.*': 'neck.upsample_4x.0.*',
    'fpn.fpn1.normalization.**': 'neck.upsample_4x.1.**',
    'fpn.fpn1.conv_transpose2.*': 'neck.upsample_4x.3.*',
    'fpn.fpn2.*': 'neck.upsample_2x.0.*',
    'decode_head.classifier.*': 'decode_head.conv_seg.*',
    'auxiliary_head.classifier.*': 'auxiliary_head.conv_seg.*',
    **{f'{theirs}.convolution.**': f'{ours}.conv.**' for theirs, ours in HF5_CONVOLUTIONS.items()},
    **{f'{theirs}.normalization.**': f'{ours}.bn.**' for theirs, ours in HF5_CONVOLUTIONS.items()},
}


def prefixed(table: dict[str, str], theirs: str, ours: str = 'backbone.') -> dict[str, str]:
    """The table with both sides below something."""
    return {theirs + key: ours + value for key, value in table.items()}


def without(table: dict[str, str], *names: str) -> dict[str, str]:
    """The table less the keys that start with one of the names."""
    return {key: value for key, value in table.items() if not key.startswith(names)}


@dataclass(frozen=True)
class Format:
    """One project's names.

    split: the last parts of the names of query, key and value weights where those are three matrices, and of the
    one that stands for them in the tables. transposed: matrices are stored (in, out). index_buffers: files hold
    `relative_position_index`. ignored: keys that are no weights of a BEiT. lacks: what its BEiT has no place for,
    {our key: whether that may be left out}.
    """

    name: str
    layouts: tuple[dict[str, str], ...]
    split: tuple[tuple[str, str, str], str] | None = None
    transposed: bool = False
    index_buffers: bool = False
    ignored: tuple[str, ...] = ()
    lacks: dict[str, bool] = field(default_factory=dict)


OF_BEIT_ONLY = ('mask_token', 'rel_pos_bias.', 'blocks.{i}.gamma_', 'blocks.{i}.attn.q_', 'blocks.{i}.attn.v_')
PLAIN = without(BACKBONE, *OF_BEIT_ONLY, 'blocks.{i}.attn.rel')
UNILM_WHOLE = {**prefixed(BACKBONE, ''), **CLASS_HEADS}
OWN_WHOLE = {**prefixed(OWN_BACKBONE, 'backbone.'), **OWN_HEADS, **SEGMENTATION_HEADS}
FORMATS = {
    form.name: form
    for form in (
        Format('beit_mm', (OWN_WHOLE, prefixed(OWN_BACKBONE, ''))),
        Format(
            'unilm',
            (
                UNILM_WHOLE,
                {**prefixed(BACKBONE, 'backbone.'), **prefixed(PYRAMID_16, 'backbone.', ''), **SEGMENTATION_HEADS},
                {**prefixed(BACKBONE, 'backbone.'), **prefixed(PYRAMID_8, 'backbone.', ''), **SEGMENTATION_HEADS},
            ),
            index_buffers=True,
        ),
        Format(
            'mmpretrain',
            (OWN_WHOLE, prefixed(OWN_BACKBONE, '')),
            index_buffers=True,
            ignored=('target_generator.**', 'data_preprocessor.**'),
        ),
        Format(
            'mmseg',
            (OWN_WHOLE, prefixed(OWN_BACKBONE, '')),
            index_buffers=True,
            ignored=('patch_embed.proj.*', 'backbone.patch_embed.proj.*'),  # strays of beit2mmseg.py
            lacks={'backbone.pos_embed': False, 'backbone.mask_token': True, 'head.cls_head.*': True},
        ),
        Format('timm', (UNILM_WHOLE,), lacks={'backbone.mask_token': True, 'head.cls_head.*': True}),
        Format(
            'vit',
            (
                {**prefixed(PLAIN, ''), 'head.*': 'head.fc.*', 'pre_logits.fc.*': 'head.pre_logits.*'},
                prefixed(PLAIN, 'backbone.'),  # DINO's full checkpoints
                prefixed(PLAIN, 'base_encoder.', 'backbone.'),  # MoCo v3's
            ),
            ignored=(
                'mask_token',  # MAE's is of its decoder
                'decoder_**',
                'backbone.head.**',  # projections, which were trained with the backbone and are of no use after
                'head.mlp.**',
                'head.last_layer.**',
                'base_encoder.head.**',
                'momentum_encoder.**',
                'predictor.**',
            ),
        ),
        Format(
            'hf',
            (
                {**prefixed(HF_BACKBONE, 'beit.'), **HF_CLASSIFIER},
                {**prefixed(without(HF_BACKBONE, 'layernorm.'), 'beit.'), **HF_MASKED},
                {**prefixed(HF_BACKBONE, 'beit.'), **HF_SEGMENTOR},
                prefixed(HF_BACKBONE, ''),
            ),
            split=(('query.weight', 'key.weight', 'value.weight'), 'qkv.weight'),
        ),
        Format(
            'hf5',
            (
                {**prefixed(HF5_BACKBONE, 'beit.'), **HF_CLASSIFIER},
                {**prefixed(without(HF5_BACKBONE, 'layernorm.'), 'beit.'), **HF_MASKED},
                {**prefixed(HF5_BACKBONE, 'beit.'), **HF5_SEGMENTOR},
                prefixed(HF5_BACKBONE, ''),
            ),
            split=(('q_proj.weight', 'k_proj.weight', 'v_proj.weight'), 'qkv_proj.weight'),
        ),
        Format(
            'passl',
            (
                {
                    **prefixed(BACKBONE, 'backbone.'),
                    'head.fc_cls.*': 'head.fc.*',
                    'backbone.lm_head.*': 'head.cls_head.*',
                },
                {**prefixed(BACKBONE, 'backbone.'), 'head.head.*': 'head.fc.*'},
            ),
            transposed=True,
            index_buffers=True,
        ),
    )
}
WILDCARDS = {r'\{i\}': r'(\d+)', r'\*\*': '(.+)', r'\*': '(weight|bias)'}
INDEX, TABLE = 'relative_position_index', 'relative_position_bias_table'


def pattern(name: str) -> re.Pattern:
    """The regular expression of a name with wildcards."""
    text = re.escape(name)
    for wildcard, expression in WILDCARDS.items():
        text = text.replace(wildcard, expression)
    return re.compile(text)


def filled(name: str, parts: tuple[str, ...]) -> str:
    """The name with its wildcards replaced, in order."""
    for part in parts:
        name = re.sub(r'\{i\}|\*\*|\*', lambda _, part=part: part, name, count=1)
    return name


class Renaming:
    """A table that can be asked for a key's new name."""

    def __init__(self, table: dict[str, str]) -> None:
        self.exact = {old: new for old, new in table.items() if '{' not in old and '*' not in old}
        self.patterns = [(pattern(old), new) for old, new in table.items() if old not in self.exact]

    def __call__(self, key: str) -> str | None:
        """The new name, or None for a key that the table does not know."""
        if key in self.exact:
            return self.exact[key]
        for expression, new in self.patterns:
            if found := expression.fullmatch(key):
                return filled(new, found.groups())
        return None
