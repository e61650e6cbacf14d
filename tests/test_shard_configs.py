"""The recipes on ImageNet-22K, from tar shards: with the options that their own docstrings give."""

from pathlib import Path

import pytest
import torch
from shards import packed, write_images
from test_configs import LEAVES, ROOT, tiny, with_few_classes

from beit_mm.data.shard_sampler import ShardSampler
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import run

RECIPES = [path for path in LEAVES if '_in22k-' in path.stem]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    write_images(root / 'src', count=8, classes=2, size=48)
    packed(root / 'src', root / 'imagenet22k-shards', per_shard=3)
    (root / 'imagenet22k').symlink_to(root / 'src/train')
    return root


def options_of(path: Path) -> dict[str, str]:
    """As one copies them out of the file."""
    note = (ROOT / path).read_text().split('"""')[1]
    command = note.partition('--cfg-options \\\n')[2].partition('\n\n')[0]
    return dict(option.strip(' \\').split('=') for option in command.splitlines())


@pytest.mark.usefixtures('no_pretty_printing')
@pytest.mark.parametrize(
    'path',
    [RECIPES[0], *(pytest.param(path, marks=pytest.mark.slow) for path in RECIPES[1:])],
    ids=lambda path: path.stem,
)
def test_trains_from_shards(path, tmp_path, data):
    own = options_of(path)
    assert own['train_dataloader.dataset.data_root'] == 'data/imagenet22k-shards'
    options = tiny(path, data)
    del options['train_dataloader.dataset.allow_empty']
    options.update(own, **{'train_dataloader.dataset.data_root': str(data / 'imagenet22k-shards')})
    runner = run(with_few_classes(load_config(path, options)), work_dir=str(tmp_path), seed=0)
    assert runner.iter == 2
    loader = runner.train_dataloader
    assert isinstance(loader.sampler, ShardSampler)
    assert loader.sampler.endless == (path.parent.name == 'pretrain')
    assert all(torch.isfinite(parameter).all() for parameter in runner.model.parameters())


def test_there_are_six():
    assert len(RECIPES) == 6
