"""model-index.yml and the metafiles: every recipe is listed once, with its size and the paper's numbers."""

import ast
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.registry import MODELS, DefaultScope
from test_configs import LEAVES, ROOT

from beit_mm.engine.configs import load_config

INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
LISTED = [model for file in INDEX for model in yaml.safe_load((ROOT / file).read_text()).get('Models', [])]


def test_every_recipe_is_listed_once():
    assert sorted(model['Config'] for model in LISTED) == [str(path) for path in LEAVES]
    for model in LISTED:
        assert Path(model['Config']).stem == model['Name']
        assert model['Results'] is None  # nothing was trained at full size


def test_the_papers_numbers_are_those_of_the_recipes():
    quoted = [model for model in LISTED if 'Paper' in model]
    assert len(quoted) > 25
    for model in quoted:
        note = ' '.join(ast.get_docstring(ast.parse((ROOT / model['Config']).read_text())).split())
        assert model['Paper'] in note, model['Name']
        assert 'Table' in model['Paper']


@pytest.mark.slow
@pytest.mark.parametrize('task', ['tokenizer', 'pretrain', 'classification', 'segmentation'])
def test_sizes_are_those_of_the_models(task):
    for model in LISTED:
        if Path(model['Config']).parent.name != task:
            continue
        config = load_config(model['Config'])
        built = dict(config.model)
        if (built.get('target') or {}).get('checkpoint'):
            built['target'] = dict(built['target'], checkpoint=None)
        with torch.device('meta'), DefaultScope.overwrite_default_scope(config.default_scope):
            parameters = sum(p.numel() for p in MODELS.build(built).parameters())
        assert parameters == model['Metadata']['Parameters'], model['Name']
        train = config.get('train_cfg') or {}  # nearest neighbours have none
        assert model['Metadata'].get('Epochs') == train.get('max_epochs'), model['Name']
        assert model['Metadata'].get('Iterations') == train.get('max_iters'), model['Name']


def test_official_sizes():
    """Parameters of the official models, as their own code counts them."""
    sizes = {model['Name']: model['Metadata']['Parameters'] for model in LISTED}
    assert sizes['beit-plus-base-p16_dalle_16xb128-300e_in1k-224'] == 91_965_776
    assert sizes['beit-base-p16_dalle_16xb128-800e_in1k-224'] == 92_089_856
    assert sizes['beit-plus-large-p16_dalle_32xb64-150e_in22k-224'] == 311_534_016
    assert sizes['beit-plus-base-p16_ft_8xb128-100e_in1k-224'] == 86_530_984
    assert sizes['beit-plus-base-p16_ft22k-ft_8xb64-30e_in1k-384'] == 86_744_104
    assert sizes['beit-plus-large-p16_ft22k-ft_16xb32-30e_in1k-384'] == 304_998_888
    assert sizes['beit-plus-large-p16_ft22k-ft_16xb32-30e_in1k-512'] == 305_674_728
