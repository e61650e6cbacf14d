"""models/pyramid.py against the official segmentation backbone and mmseg's Feature2Pyramid."""

import pytest
import torch
from mmseg.models.necks import Feature2Pyramid
from official import backbone_arguments, golden

from beit_mm.models.backbone import BEiTViT
from beit_mm.models.pyramid import ViTPyramid


def test_equals_official_segmentation_backbone():
    meta, weights, io = golden('seg_backbone_relpos')
    backbone = BEiTViT(**backbone_arguments(meta), out_type='featmap', out_indices=meta['out_indices']).eval()
    neck = ViTPyramid(meta['embed_dim']).eval()
    renames = {'fpn1.': 'upsample_4x.', 'fpn2.': 'upsample_2x.'}
    of_neck = {renames[k[:5]] + k[5:]: v for k, v in weights.items() if k.startswith('fpn')}
    neck.load_state_dict(of_neck)
    backbone.load_state_dict({k: v for k, v in weights.items() if not k.startswith('fpn')})
    for i, feature in enumerate(neck(backbone(io['image']))):
        torch.testing.assert_close(feature, io[f'feature_{i}'], atol=1e-5, rtol=2e-6)  # features reach 10


@pytest.mark.parametrize('grid', [(4, 6), (7, 5)])
@pytest.mark.parametrize(('patch', 'rescales'), [(16, [4, 2, 1, 0.5]), (8, [2, 1, 0.5, 0.25])])
def test_equals_mmseg_and_shares_its_keys(patch, rescales, grid):
    """Training mode, so that BatchNorm's statistics and all gradients are compared too."""
    ours, theirs = ViTPyramid(8, patch), Feature2Pyramid(8, rescales, norm_cfg=dict(type='BN'))
    theirs.load_state_dict(ours.state_dict())
    maps = [torch.randn(2, 8, *grid, requires_grad=True) for _ in range(4)]
    for a, b in zip(ours(maps), theirs(maps), strict=True):
        assert torch.equal(a, b)
        for out in (a, b):
            out.square().mean().backward(retain_graph=True)
    for (name, one), (_, two) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_patch_8_and_mistakes():
    maps = [torch.randn(1, 8, 8, 4) for _ in range(4)]
    out = ViTPyramid(8, patch_size=8)(maps)
    assert [tuple(m.shape[2:]) for m in out] == [(16, 8), (8, 4), (4, 2), (2, 1)]
    assert torch.equal(out[3], torch.nn.functional.max_pool2d(maps[3], 4))
    with pytest.raises(ValueError, match='takes four maps; the backbone gives 3'):
        ViTPyramid(8)(maps[:3])
    with pytest.raises(ValueError, match=r'embed_dim=12, and a map of the backbone is \(1, 8, 8, 4\)'):
        ViTPyramid(12)(maps)
    with pytest.raises(ValueError, match="out_type='featmap'"):
        ViTPyramid(8)([torch.zeros(1, 17, 8)] * 4)
