"""Every shipped config is loaded, checked, built and trained for two steps, evaluated, and resumed for one more."""

import ast
import copy
import json
import re
from pathlib import Path

import pytest
import torch
from scenes import on_scenes

from beit_mm.checkpoints.load import read
from beit_mm.data.export import export
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import run

pytestmark = pytest.mark.usefixtures('no_pretty_printing')
ROOT = Path(__file__).parents[1]
LEAVES = sorted(
    p.relative_to(ROOT) for p in (ROOT / 'configs').glob('*/*.py') if p.parent.name not in ('_base_', 'suites')
)
TINY = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'train_dataloader.batch_size': 4,
    'default_hooks.checkpoint.interval': 2,
    'default_hooks.logger.interval': 1,
    'visualizer.vis_backends': [{'type': 'LocalVisBackend'}],
}


# What makes a model small, by its type
SMALL = {'beit_mm.DiscreteVAE': {'vocab_size': 64, 'hidden_dims': 16, 'code_dims': 16}}
HOOKS = {'beit_mm.CodebookInitHook': {'num_images': 8}, 'beit_mm.DeadCodesHook': {'interval': 2, 'revive': True}}


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Path:
    """data/ as the configs expect it below the working directory, filled with embedded scenes."""
    root = tmp_path_factory.mktemp('data')
    export(root / 'imagenet', 'imagefolder', train=8, val=4, size=48)
    return root


def tiny(path: Path, folders: Path) -> dict:
    config = load_config(path)
    if '::' in path.read_text():  # it inherits from another project
        return on_scenes(config)
    options = dict(TINY)
    for name, length in (('train_dataloader', 8), ('val_dataloader', 4)):
        if config.get(name) is None:
            continue
        options[f'{name}.batch_size'] = 4
        options[f'{name}.num_workers'] = 0
        options[f'{name}.persistent_workers'] = False
        if 'data_root' in config[name].dataset:
            options[f'{name}.dataset.data_root'] = str(folders / Path(config[name].dataset.data_root).name)
        else:
            options[f'{name}.dataset.length'] = length
    options.update({f'model.{key}': value for key, value in SMALL.get(config.model.type, {}).items()})
    for i, hook in enumerate(config.get('custom_hooks') or []):
        options.update({f'custom_hooks.{i}.{key}': value for key, value in HOOKS.get(hook.type, {}).items()})
    if config.model.get('target', {}).get('checkpoint'):
        options['model.target.checkpoint'] = None
    return options


@pytest.mark.parametrize('path', LEAVES, ids=[p.stem for p in LEAVES])
def test_trains_evaluates_and_resumes(path, tmp_path, folders):
    options = tiny(path, folders)
    runner = run(load_config(path, copy.deepcopy(options)), work_dir=str(tmp_path), seed=0)
    lines = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 2
    assert all(torch.isfinite(torch.tensor(loss)) for loss in losses)
    assert runner.iter == 2
    meta = read(tmp_path / 'iter_2.pth')['meta']  # weights_only=True: nothing but tensors and plain types
    assert meta['seed'] == 0
    assert meta['beit_mm']['revision']['version']

    options['train_cfg.max_iters'] = 3
    resumed = run(load_config(path, options), work_dir=str(tmp_path), resume='auto', seed=0)
    assert resumed.iter == 3
    assert resumed._resume


def test_leaves_are_lab_notes():
    """Each leaf says what it is, how to run it (by its own name), and which row of the paper it is, if any."""
    for path in LEAVES:
        note = ast.get_docstring(ast.parse((ROOT / path).read_text()))
        assert note, path
        assert f'python tools/train.py {path}' in note, path
        assert re.search(r'Table \d+|no paper row|Differs from', note), path


def test_inheritance_is_at_most_two_deep():
    def depth(path: Path) -> int:
        tree = ast.parse(path.read_text())
        bases = [n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '_base_']
        names = ast.literal_eval(bases[0]) if bases else []
        # what is below another project's config is its own affair
        return max((1 if '::' in name else 1 + depth((path.parent / name).resolve()) for name in names), default=0)

    assert max(depth(ROOT / path) for path in LEAVES) <= 2


def test_names_follow_the_recipe():
    for path in LEAVES:
        assert re.fullmatch(r'[a-z0-9-]+_[a-z0-9-]*_?\d+xb\d+-\d+[a-z]*_[a-z0-9]+-\d+', path.stem), path.stem


def test_bf16_on_the_cpu_and_fp16_refused(tmp_path, folders):
    path = next(p for p in LEAVES if 'scratch_1xb64' in p.stem)
    runner = run(load_config(path, tiny(path, folders)), work_dir=str(tmp_path), amp='bf16', seed=0)
    assert type(runner.optim_wrapper).__module__ == 'beit_mm.engine.amp'
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='--amp fp16 needs a CUDA device'):
            run(load_config(path, tiny(path, folders)), work_dir=str(tmp_path), amp='fp16', seed=0)
