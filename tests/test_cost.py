"""Costs: against the number of the paper's model, and counted by hand on a tiny one."""

import pytest
import torch

from beit_mm.benchmark.cost import cost_of
from beit_mm.models import BEiTViT


@pytest.mark.parametrize('variant', ['beit', 'beit_plus'])
def test_base_at_224(variant):
    with torch.device('meta'):
        model, image = BEiTViT(arch='base', variant=variant), torch.zeros(1, 3, 224, 224)
    assert cost_of(model, image).macs == pytest.approx(17.56e9, abs=0.005e9)


def test_counted_by_hand():
    width, depth, mlp, patches, batch = 32, 3, 128, 16, 2
    arch = dict(embed_dims=width, num_layers=depth, num_heads=4, feedforward_channels=mlp)
    model = BEiTViT(arch=arch, img_size=16, patch_size=4, variant='beit').train()
    tokens = patches + 1
    block = tokens * width * (4 * width + 2 * mlp) + 2 * tokens * tokens * width
    cost = cost_of(model, torch.zeros(batch, 3, 16, 16))
    assert cost.macs == batch * (patches * 48 * width + depth * block)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert model.training
