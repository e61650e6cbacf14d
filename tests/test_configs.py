"""Every shipped config is loaded, checked, built, trained for two steps and evaluated; and some are resumed."""

import ast
import copy
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from scenes import on_scenes

from beit_mm.checkpoints.load import read, write
from beit_mm.data.datasets import CIFAR10, CIFAR100
from beit_mm.data.export import export
from beit_mm.engine.configs import load_config
from beit_mm.engine.launch import evaluate, run
from beit_mm.engine.token_maker import make
from beit_mm.registry import MODELS

pytestmark = pytest.mark.usefixtures('no_pretty_printing')
ROOT = Path(__file__).parents[1]
LEAVES = sorted(
    p.relative_to(ROOT) for p in (ROOT / 'configs').glob('*/*.py') if p.parent.name not in ('_base_', 'suites')
)
TRAINED = [path for path in LEAVES if '_knn_' not in path.stem]
TINY = {
    'train_dataloader.batch_size': 4,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.logger.interval': 1,
    'visualizer.vis_backends': [{'type': 'LocalVisBackend'}],
}


# What makes a model small, by its type
SMALL = {
    'beit_mm.DiscreteVAE': {'vocab_size': 64, 'hidden_dims': 16, 'code_dims': 16},
    'beit_mm.LinearProbe': {'backbone.out_indices': (0, 1)},
    'beit_mm.KNNProbe': {'backbone.out_indices': (0, 1), 'k': (1, 5)},
    'beit_mm.BEiTViT': {'arch': dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48, _delete_=True)},
    'beit_mm.TokenHead': {'embed_dims': 24},
    'beit_mm.PixelHead': {'embed_dims': 24},
    'LinearClsHead': {'in_channels': 24},
}
SEGMENTOR = {  # of BEiT-B or -L on ADE20K, in crops of 32 px
    'backbone.img_size': 32,
    'backbone.out_indices': (0, 1, 2, 3),
    'backbone.arch': dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48, _delete_=True),
    'neck.embed_dim': 24,
    'decode_head.channels': 8,
    'test_cfg.crop_size': (32, 32),
    'test_cfg.stride': (21, 21),
}
SMALL_TOKENIZER = {'beit_mm.DALLEEncoder': {'n_hid': 4}, 'beit_mm.DiscreteVAE': {'hidden_dims': 8, 'code_dims': 8}}
HOOKS = {'beit_mm.CodebookInitHook': {'num_images': 8}, 'beit_mm.DeadCodesHook': {'interval': 2, 'revive': True}}


RESUMED = ['beit-plus-base-p16_dalle_16xb128-300e_in1k-224', 'beit-base-p16_ft_8xb128-100e_in1k-224']  # by epochs


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Path:
    """data/ as the configs expect it below the working directory, filled with embedded scenes."""
    root = tmp_path_factory.mktemp('data')
    export(root / 'imagenet', 'imagefolder', train=8, val=4, size=48)
    export(root / 'shared' / 'imagenet', 'imagefolder', train=48, val=4, size=48)  # all classes in half of it
    (root / 'imagenet22k').symlink_to(root / 'imagenet' / 'train')
    export(root / 'ADEChallengeData2016', 'ade20k', train=8, val=4, size=48)
    export(root / 'scenes', 'ade20k', train=8, val=4, size=64)
    for kind in (CIFAR10, CIFAR100):
        write_cifar(root / 'cifar' / kind.FOLDER, kind)
    return root


def write_cifar(folder: Path, kind: type) -> None:
    """Two steps of four images, of as many classes as CIFAR has, under its names and keys."""
    folder.mkdir(parents=True)
    count = {CIFAR10: 10, CIFAR100: 100}[kind]
    images = 8 // len(kind.FILES['train']) + 1
    for i, name in enumerate([*kind.FILES['train'], *kind.FILES['test']]):
        pixels = np.random.default_rng(i).integers(0, 256, (images, 3072), dtype=np.uint8)
        labels = [(i + 7 * j) % count for j in range(images)]
        (folder / name).write_bytes(pickle.dumps({'data': pixels, kind.LABELS: labels}, protocol=2))
    name, key = kind.META
    (folder / name).write_bytes(pickle.dumps({key: [f'class {i}' for i in range(count)]}, protocol=2))


def tiny_loader(where: str, loader: dict, length: int, folders: Path) -> dict:
    options = {f'{where}.batch_size': 4, f'{where}.num_workers': 0}
    if loader.get('persistent_workers'):
        options[f'{where}.persistent_workers'] = False
    dataset, folder, at = loader['dataset'], folders, f'{where}.dataset'
    if 'percent' in dataset:  # two steps of half of the images
        options.update({f'{at}.percent': 50, f'{where}.batch_size': 12})
        dataset, folder, length, at = dataset['dataset'], folders / 'shared', 48, f'{at}.dataset'
    if 'data_root' in dataset:
        options[f'{at}.data_root'] = str(folder / Path(dataset['data_root']).name)
        if 'CIFAR' in dataset['type']:
            options[f'{at}.md5s'] = {}
        if 'indices' in dataset:
            options[f'{at}.indices'] = length
        if dataset.type == 'beit_mm.ImageList':
            options[f'{at}.allow_empty'] = True
    else:
        options[f'{at}.length' if 'length' in dataset else f'{at}.indices'] = length
    return options


def tiny(path: Path, folders: Path) -> dict:
    config = load_config(path)
    if '::' in path.read_text():  # it inherits from another project
        return on_scenes(config)
    options = {key: value for key, value in TINY.items() if config.get(key.partition('.')[0]) is not None}
    if config.get('train_cfg') is None:
        pass
    elif config.train_cfg.get('max_epochs') or config.train_cfg.get('by_epoch'):
        options['train_cfg.max_epochs'] = 1  # of two steps
    else:
        options['train_cfg.max_iters'] = 2
        options['default_hooks.checkpoint.interval'] = 2
    if config.get('train_cfg') is not None and config.get('val_dataloader') is not None:
        options['train_cfg.val_interval'] = options.get('train_cfg.max_iters', 1)
    if config.get('load_from'):
        options['load_from'] = None
    for name, length in (('train_dataloader', 8), ('val_dataloader', 4), ('test_dataloader', 4)):
        if config.get(name) is not None:
            options.update(tiny_loader(name, config[name], length, folders))
    # what is made for the embedded images is small as it is
    real = not re.search('mini|embedded|scenes|mosaics', path.stem)
    if 'ade20k' in path.stem:
        options.update(tiny_segmentor(config))
    elif real:
        model = config.model
        for where, part in {'': model, '.backbone': model.get('backbone'), '.head': model.get('head')}.items():
            small = SMALL.get((part or {}).get('type'), {})
            options.update({f'model{where}.{key}': value for key, value in small.items()})
        tokenizer = (config.model.get('target') or {}).get('tokenizer') or {}
        small = SMALL_TOKENIZER.get(tokenizer.get('type'), {})
        options.update({f'model.target.tokenizer.{key}': value for key, value in small.items()})
    for i, hook in enumerate(config.get('custom_hooks') or []):
        options.update({f'custom_hooks.{i}.{key}': value for key, value in HOOKS.get(hook.type, {}).items()})
        for name in ('held_out', 'bank'):
            if hook.get(name):
                options.update(tiny_loader(f'custom_hooks.{i}.{name}', hook[name], 8, folders))
    if config.model.get('target', {}).get('checkpoint'):
        options['model.target.checkpoint'] = None
    if config.get('token_cache'):
        options.update(with_cache(path, options, folders / 'tokens'))
    return options


def with_cache(path: Path, options: dict, folder: Path) -> dict:
    """Of a recipe with cached tokens: the weights of a tokenizer, and two views of each image by it."""
    at = 'train_dataloader.dataset.pipeline.0'
    options = {**options, f'{at}.cache': str(folder / path.stem), f'{at}.views': 2}
    tokenizer = MODELS.build(load_config(path, copy.deepcopy(options)).model.target.tokenizer)
    folder.mkdir(exist_ok=True)
    write(dict(state_dict=tokenizer.state_dict()), folder / f'{path.stem}.pth')
    options['model.target.checkpoint'] = str(folder / f'{path.stem}.pth')
    make(load_config(path, copy.deepcopy(options)), jobs=0)
    return options


def tiny_segmentor(config) -> dict:
    """The model, the crops and the scales of an ADE20K recipe; its 150 classes, augmentation and schedule stay."""
    options = {f'model.{key}': value for key, value in SEGMENTOR.items()}
    if config.model.get('neck') is None:
        del options['model.neck.embed_dim']
    wide = [24] * 4 if isinstance(config.model.decode_head.in_channels, list) else 24
    options['model.decode_head.in_channels'] = wide
    heads = config.model.auxiliary_head
    several = isinstance(heads, list)
    for i, _ in enumerate(heads if several else [heads]):
        at = f'model.auxiliary_head.{i}' if several else 'model.auxiliary_head'
        options.update({f'{at}.in_channels': 24, f'{at}.channels': 8})
    at = 'train_dataloader.dataset.pipeline'
    options.update({f'{at}.2.scale': (128, 32), f'{at}.3.crop_size': (32, 32), 'data_preprocessor.size': (32, 32)})
    options.update({f'{name}_dataloader.dataset.pipeline.1.scale': (128, 32) for name in ('val', 'test')})
    options.update({f'tta_pipeline.1.transforms.0.{i}.scale': size for i, size in enumerate((32, 32, 32, 40, 48, 56))})
    options['train_dataloader.batch_size'] = 2  # one image is refused: test_data_check.py
    return options


def with_few_classes(config: Config) -> Config:
    """The heads of the recipe are for more classes than the folders here have, which is refused otherwise."""
    hook = dict(type='beit_mm.PreflightHook', classes=False)
    config.custom_hooks = [*(config.get('custom_hooks') or []), hook]
    return config


@pytest.mark.parametrize('path', TRAINED, ids=[p.stem for p in TRAINED])
def test_trains_evaluates_and_resumes(path, tmp_path, folders):
    options = tiny(path, folders)
    runner = run(with_few_classes(load_config(path, copy.deepcopy(options))), work_dir=str(tmp_path), seed=0)
    lines = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 2
    assert all(torch.isfinite(torch.tensor(loss)) for loss in losses)
    assert runner.iter == 2
    evaluated = [line for line in lines if 'loss' not in line]
    assert bool(evaluated) == (runner.cfg.get('val_dataloader') is not None), lines
    last = (tmp_path / 'last_checkpoint').read_text()
    meta = read(tmp_path / last)['meta']  # weights_only=True: nothing but tensors and plain types
    assert meta['seed'] == 0
    assert meta['beit_mm']['revision']['version']
    if 'embedded' not in path.stem and path.stem not in RESUMED:
        return
    counted = 'train_cfg.max_iters' if 'iter_' in last else 'train_cfg.max_epochs'
    options[counted] = options[counted] + 1 if counted in options else 3
    resumed = run(with_few_classes(load_config(path, options)), work_dir=str(tmp_path), resume='auto', seed=0)
    assert resumed.iter == (3 if counted.endswith('iters') else 4)
    assert resumed._resume


@pytest.mark.parametrize('path', [p for p in LEAVES if p not in TRAINED], ids=lambda p: p.stem)
def test_evaluates_what_was_pretrained(path, tmp_path, folders):
    config = load_config(path, tiny(path, folders))
    pretrained = MODELS.build(dict(config.model.backbone, with_mask_token=True, final_norm=True)).state_dict()
    weights = {f'backbone.{key}': value for key, value in pretrained.items()}
    torch.save(dict(state_dict=dict(weights, **{'head.cls_head.bias': torch.zeros(8)})), tmp_path / 'pretrained.pth')
    _, metrics, _ = evaluate(config, str(tmp_path / 'pretrained.pth'), work_dir=str(tmp_path), seed=0)
    assert 0 <= metrics['accuracy/top1'] <= metrics['optimistic_top1'] <= 100


def test_leaves_are_lab_notes():
    """Each leaf says what it is, how to run it (by its own name), and which row of the paper it is, if any."""
    for path in LEAVES:
        note = ast.get_docstring(ast.parse((ROOT / path).read_text()))
        assert note, path
        door = 'train' if path in TRAINED else 'test'
        assert f'python tools/{door}.py {path}' in note, path
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


def test_bf16_and_fp16_where_they_are_to_be_had(tmp_path, folders):
    path = next(p for p in LEAVES if 'scratch_1xb64' in p.stem)
    runner = run(load_config(path, tiny(path, folders)), work_dir=str(tmp_path), amp='bf16', seed=0)
    assert type(runner.optim_wrapper).__module__ == 'beit_mm.engine.amp'
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    if not torch.cuda.is_available():
        runner = run(load_config(path, tiny(path, folders)), work_dir=str(tmp_path / 'fp16'), amp='fp16', seed=0)
        assert type(runner.optim_wrapper).__name__ == 'OptimWrapper'
        said = sum(log.read_text().count('fp16 needs a CUDA device') for log in tmp_path.rglob('*.log'))
        assert said <= 1
