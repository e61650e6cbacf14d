"""Costs: against the number of the paper's model, and counted by hand on a tiny one."""

import pytest
import torch

from beit_mm.benchmark.cost import build_on_meta, cost_of
from beit_mm.engine.configs import load_config
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


@pytest.mark.parametrize(
    'config',
    [
        'pretrain/beit-mini-p8_dvae_1xb48-1500_embedded-64.py',
        'classification/beit-mini-p8_ft_1xb64-100_embedded-64.py',
        'tokenizer/dvae-512_1xb64-300_embedded-32.py',
    ],
)
def test_a_config_is_as_before_when_its_model_was_built(config):
    """mmpretrain's classifiers write into what they are built of; a suite's digests are taken of it afterwards."""
    config = load_config(f'configs/{config}')
    before = config.to_dict()
    assert all(parameter.is_meta for parameter in build_on_meta(config).parameters())
    assert config.to_dict() == before
