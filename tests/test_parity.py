"""BEiTViT beside timm, mmpretrain and mmseg, live: outputs and every gradient to 1e-5 in float32.

Their known defects do not show here: eval-mode arithmetic is right everywhere (see test_defects.py for the rest).
"""

import pytest
import torch
from mmpretrain.models.backbones import BEiTViT as MMPretrainBEiT
from mmpretrain.models.selfsup.beit import BEiTPretrainViT as MMPretrainMIM
from mmseg.models.backbones import BEiT as MMSegBEiT
from timm.models.beit import Beit as TimmBeit
from torch import nn

from beit_mm.models.backbone import BEiTViT

SIZES = [  # width, depth, heads, image, patch
    (48, 3, 3, (64, 64), 16),
    (40, 2, 5, (32, 32), 8),
    (64, 5, 2, (48, 96), 16),
]
RENAMES = [  # ours -> timm's
    ('ffn.layers.0.0', 'mlp.fc1'),
    ('ffn.layers.1', 'mlp.fc2'),
    ('layers.', 'blocks.'),
    ('.ln1', '.norm1'),
    ('.ln2', '.norm2'),
    ('patch_embed.projection', 'patch_embed.proj'),
]


def arch(width, depth, heads):
    return dict(embed_dims=width, num_layers=depth, num_heads=heads, feedforward_channels=4 * width)


def in_timm(key: str) -> str:
    if key.startswith('ln'):
        return key.replace('ln1.', 'norm.').replace('ln2.', 'fc_norm.')
    for own, other in RENAMES:
        key = key.replace(own, other)
    return key


def randomised(model: nn.Module) -> nn.Module:
    """Weights that matter, at a trained model's scale: tables, gammas and biases away from their start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if name.endswith(('ln1.weight', 'ln2.weight')) else 0.5 if 'gamma' in name else 0.0
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and 'layers' in name else 0.2
            parameter.copy_(centre + spread * noise)
    return model


def compare(ours: nn.Module, theirs: nn.Module, rename, run_ours, run_theirs, size) -> None:
    """Same output, and the same gradient of every parameter and of the image, of a random linear loss."""
    state = {rename(key): value for key, value in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith('relative_position_index') for key in missing), missing
    torch.manual_seed(2)
    images = [torch.randn(2, 3, *size).requires_grad_()]
    images.append(images[0].detach().clone().requires_grad_())
    outputs = [run_ours(images[0]), run_theirs(images[1])]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(outputs[0]) / outputs[0].shape[-1]
    for output in outputs:
        (output * direction).sum().backward()
    torch.testing.assert_close(images[0].grad, images[1].grad, atol=1e-5, rtol=1e-5)
    their_grads = {name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, their_grads[rename(name)], atol=1e-5, rtol=1e-5, msg=name)
        compared += 1
    assert compared == len(list(theirs.parameters()))


POSITIONS = {
    'none': {},
    'absolute': dict(use_abs_pos_emb=True),
    'per block': dict(use_rel_pos_bias=True),
    'shared': dict(use_shared_rel_pos_bias=True),
    'absolute and per block': dict(use_abs_pos_emb=True, use_rel_pos_bias=True),
}
NO_POSITIONS = dict(use_abs_pos_emb=False, use_rel_pos_bias=False, use_shared_rel_pos_bias=False)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('positions', POSITIONS)
def test_timm(positions, size):
    width, depth, heads, image, patch = size
    kind = {**NO_POSITIONS, **POSITIONS[positions]}
    scale = 0.1 if 'block' in positions else 0.0
    for pooled in (True, False):
        ours = BEiTViT(
            arch(width, depth, heads), img_size=image, patch_size=patch, **kind, layer_scale_init_value=scale,
            out_type='avg_featmap' if pooled else 'cls_token', final_norm=not pooled,
        )  # fmt: skip
        theirs = TimmBeit(
            img_size=image, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0,
            init_values=scale or None, global_pool='avg' if pooled else 'token', **kind,
        )  # fmt: skip
        compare(randomised(ours), theirs, in_timm, lambda x, m=ours: m(x)[0], theirs, image)


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('positions', ['absolute', 'per block', 'shared'])
def test_mmpretrain(positions, size):
    width, depth, heads, image, patch = size
    kind = dict(
        {**NO_POSITIONS, **POSITIONS[positions]}, arch=arch(width, depth, heads), img_size=image, patch_size=patch
    )
    ours, theirs = randomised(BEiTViT(**kind)), MMPretrainBEiT(**kind)
    assert set(ours.state_dict()) == {k for k in theirs.state_dict() if not k.endswith('relative_position_index')}
    compare(ours, theirs, str, lambda x: ours(x)[0], lambda x: theirs(x)[0], image)
    ours.load_state_dict(theirs.state_dict())  # their index buffers are tolerated


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('positions', ['absolute', 'shared'])
def test_mmpretrain_masked(positions, size):
    """With masked patches: the mask token's gradient too."""
    width, depth, heads, image, patch = size
    kind = dict(
        {**NO_POSITIONS, **POSITIONS[positions]}, arch=arch(width, depth, heads), img_size=image, patch_size=patch,
        out_type='raw', final_norm=True,
    )  # fmt: skip
    ours, theirs = randomised(BEiTViT(**kind, with_mask_token=True)), MMPretrainMIM(**kind)
    mask = torch.rand(2, image[0] // patch, image[1] // patch) < 0.4
    compare(ours, theirs, str, lambda x: ours(x, mask)[0], lambda x: theirs(x, mask.flatten(1))[0], image)


# As in mmseg's configs/_base_/models/upernet_beit.py, every argument of it
MMSEG = dict(
    img_size=(64, 64), patch_size=16, in_channels=3, embed_dims=48, num_layers=4, num_heads=3, mlp_ratio=4,
    out_indices=(0, 1, 2, 3), qv_bias=True, attn_drop_rate=0.0, drop_path_rate=0.1,
    norm_cfg=dict(type='LN', eps=1e-6), act_cfg=dict(type='GELU'), norm_eval=False, init_values=0.1,
)  # fmt: skip


def test_a_prefix_is_enough_for_mmseg():
    """mmseg's arguments as they are give mmseg's keys, feature maps and gradients."""
    ours, theirs = randomised(BEiTViT(**MMSEG)).eval(), MMSegBEiT(**MMSEG)
    theirs.eval()
    assert set(ours.state_dict()) == {k for k in theirs.state_dict() if not k.endswith('relative_position_index')}
    compare(ours, theirs, str, lambda x: torch.cat(ours(x)), lambda x: torch.cat(theirs(x)), (64, 64))
    with pytest.raises(ValueError, match='patch_norm=True: every BEiT has patch_norm=False'):
        BEiTViT(**{**MMSEG, 'patch_norm': True})


def test_a_prefix_is_enough_for_mmpretrain():
    """Every argument of mmpretrain's class, at its default, means the same here."""
    import inspect

    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(MMPretrainBEiT.__init__).parameters.items()
        if name != 'self'
    }
    with torch.device('meta'):
        ours, theirs = BEiTViT(**defaults), MMPretrainBEiT(**defaults)
    shapes = [{k: v.shape for k, v in m.named_parameters()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.out_type == 'avg_featmap'
    for name, value in dict(with_cls_token=False, layer_cfgs=dict(norm_cfg=dict(type='BN'))).items():
        with torch.device('meta'), pytest.raises(ValueError, match=f'every BEiT has {name}='):
            BEiTViT(**{name: value})
