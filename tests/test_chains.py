"""Recipes that go on from another one: the checkpoint is the one that it leaves, and every key of the backbone fits."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from test_configs import LEAVES, ROOT

from beit_mm.checkpoints.fit import fit
from beit_mm.checkpoints.load import CheckpointError
from beit_mm.engine.checkpointing import preprocessing_of
from beit_mm.engine.configs import ConfigError, load_config
from beit_mm.engine.launch import prepare

STARTS = {path: re.search(r"^(?:pretrained|tokenizer_checkpoint) = '(work_dirs/.*)'$", (ROOT / path).read_text(), re.M)
          for path in LEAVES}  # fmt: skip
STARTS = {path: Path(found[1]) for path, found in STARTS.items() if found}
WEIGHTS = {path: start for path, start in STARTS.items() if path.parent.name in ('classification', 'segmentation')}


def of_stage(start: Path):
    (path,) = (ROOT / 'configs').glob(f'*/{start.parent.name}.py')
    return load_config(path)


def built(config):
    model = dict(config.model)
    if (model.get('target') or {}).get('checkpoint'):
        model['target'] = dict(model['target'], checkpoint=None)
    with torch.device('meta'), DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(model)


def test_there_are_chains():
    assert len(STARTS) > 18
    lengths = {path: len(list(chain(path))) for path in STARTS}
    assert max(lengths.values()) == 3  # pre-training, labels of ImageNet-22K, ImageNet-1K


def chain(path: Path):
    yield path
    if path in STARTS:
        (before,) = (p for p in LEAVES if p.stem == STARTS[path].parent.name)
        yield from chain(before)


@pytest.mark.parametrize('path', STARTS, ids=[path.stem for path in STARTS])
def test_it_starts_from_the_last_checkpoint_of_a_recipe(path):
    stage = of_stage(STARTS[path])
    length = stage.train_cfg.get('max_epochs') or stage.train_cfg.max_iters
    unit = 'epoch' if 'max_epochs' in stage.train_cfg else 'iter'
    assert STARTS[path].name == f'{unit}_{length}.pth'


@pytest.mark.parametrize('path', WEIGHTS, ids=[path.stem for path in WEIGHTS])
def test_the_backbone_fits_and_sees_the_same_images(path):
    """On the meta device: names and shapes. The normalisation is that of the stage before."""
    stage, config = of_stage(WEIGHTS[path]), load_config(path)
    before, model = built(stage), built(config)
    fitted, report = fit(before.state_dict(), model.state_dict(), model.backbone.own_grid)
    kept = [key for key in model.state_dict() if key.startswith('backbone.') and not key.startswith('backbone.ln2')]
    assert set(kept) <= set(fitted)
    assert not report.refused
    if 'official-norm' in path.stem:  # what the official code does
        assert preprocessing_of(stage)['mean'] != preprocessing_of(config)['mean']
        return
    for key in ('mean', 'std'):
        assert preprocessing_of(stage)[key] == preprocessing_of(config)[key]


@pytest.mark.parametrize(('launcher', 'variable'), [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID')])
def test_a_launcher_that_started_nothing_is_refused(launcher, variable, tmp_path, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    config = load_config(next(path for path in WEIGHTS if 'in1k-384' in path.name))
    with pytest.raises(ConfigError, match=f'--launcher {launcher}: {variable} is not set'):
        prepare(config, work_dir=str(tmp_path), launcher=launcher)


def test_a_missing_stage_is_named_with_its_command(tmp_path):
    config = load_config(next(path for path in WEIGHTS if 'in1k-384' in path.name))
    with pytest.raises(CheckpointError, match=r'no such checkpoint.*It is what this leaves: python tools/train\.py'):
        prepare(config, work_dir=str(tmp_path))
    config.load_from = str(tmp_path / 'elsewhere.pth')
    with pytest.raises(CheckpointError, match=r'elsewhere\.pth: there is no such checkpoint$'):
        prepare(config, work_dir=str(tmp_path))
