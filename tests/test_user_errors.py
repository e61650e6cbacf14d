"""What users bring that cannot work, through `tools/train.py`: named, in at most 15 lines, with an exit code.

Data, checkpoints and configs that are wrong in the ways that mmengine, mmpretrain and mmseg pass over or answer with a
traceback. One table: what is done to a good run, and what its error must say. Checks A18 to A21 and A31 to A35.
"""

import re
import shutil
from pathlib import Path

import broken
import numpy as np
import pytest
from PIL import Image
from processes import call

pytestmark = pytest.mark.slow
LINES = 15  # of an error, at most
CLASSES = dict(type='beit_mm.PreflightHook', classes=False)
UNSEEN = dict(type='beit_mm.PreflightHook', sample=0)  # what a look before the first step did not see
EMA = dict(type='EMAHook', momentum=0.1)
VIT = dict(type='VisionTransformer', arch=broken.ARCH, img_size=broken.SIDE, patch_size=8)


def trained(config: dict, folder: Path, *args) -> tuple[int, str]:
    """(exit code, what is on the terminal behind the dump) of a training, which must not print a traceback."""
    path = config if isinstance(config, str) else broken.written(config, folder / 'config')
    code, out, err = call('tools/train.py', path, '--work-dir', folder / 'work', *args)
    assert 'Traceback' not in out + err, out + err
    assert len(err.strip().splitlines()) <= LINES, err
    return code, err


def refused(config: dict, folder: Path, said: str, *args) -> None:
    code, err = trained(config, folder, *args)
    assert code == 1, err
    assert re.search(said, err), err
    assert not list((folder / 'work').glob('*.pth'))


def mask(root: Path, change, path: str = 'masks/train/003.png') -> None:
    Image.fromarray(change(np.array(Image.open(root / path)))).save(root / path)


def with_id(value: int):
    def change(array: np.ndarray) -> np.ndarray:
        array[3, 4] = value
        return array

    return change


STOCK = pytest.mark.parametrize('stock', [True, False], ids=['stock', 'ours'])


@pytest.mark.parametrize(
    ('damage', 'stock'),
    [
        *((d, True) for d in ('cut', 'cut_jpeg', 'text', 'empty', 'missing', 'directory')),
        ('cut', False),
        ('missing', False),
    ],
)
def test_a18_unreadable_images_are_named(tmp_path, damage, stock):
    root = broken.class_folders(tmp_path / 'data')
    config = broken.classifier(root, stock)
    listed = [f'{name}/{i}.png {label}\n' for label, name in enumerate('abc') for i in range(8)]
    (root / 'list.txt').write_text(''.join(listed))
    config['train_dataloader']['dataset']['ann_file'] = 'list.txt'
    getattr(broken, damage)(root / 'train/b/3.png')
    refused(config, tmp_path, r'train: 1 unfit:\n +\S+/train/b/3\.png: (not a readable|there is no|is a folder)')


@pytest.mark.parametrize(('damage', 'stock'), [('cut', True), ('text', True), ('empty', True), ('cut', False)])
def test_a18_unreadable_masks_are_named(tmp_path, damage, stock):
    root = broken.mask_folders(tmp_path / 'data')
    getattr(broken, damage)(root / 'masks/train/003.png')
    refused(broken.segmentor(root, stock), tmp_path, r'\n +\S+/masks/train/003\.png: not a readable')


@STOCK
def test_a18_a20_masks_of_another_size_are_refused_by_a_data_worker(tmp_path, stock):
    """What the look before the first step did not see: in the step, from another process, in one line."""
    root = broken.mask_folders(tmp_path / 'data')
    Image.open(root / 'masks/train/003.png').resize((30, 32)).save(root / 'masks/train/003.png')
    config = broken.segmentor(root, stock, steps=6, workers=2)
    said = r'\nerror: \S+/masks/train/003\.png: the mask is 32 x 30 pixels \(height x width\), its image \S+ 32 x 32: '
    refused(dict(config, custom_hooks=[UNSEEN]), tmp_path, said)
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'Original Traceback' in log  # whole


@pytest.mark.parametrize(('split', 'stock'), [('train', True), ('val', True), ('train', False)])
def test_a20_masks_of_another_size_are_refused_before_the_first_step(tmp_path, stock, split):
    root = broken.mask_folders(tmp_path / 'data')
    Image.open(root / f'masks/{split}/003.png').resize((30, 32)).save(root / f'masks/{split}/003.png')
    refused(broken.segmentor(root, stock), tmp_path, rf'{split}/003\.png: the mask is 32 x 30 pixels')


@STOCK
@pytest.mark.parametrize(
    ('line', 'stocks', 'our'),
    [
        ('b/3.png 9', r'train/b/3\.png: label 9 in \S+list\.txt; the classes .* 0 to 2', ''),
        ('b/3.png -1', r'train/b/3\.png: label -1 in \S+list\.txt', r'list\.txt, line 12: label -1'),
        ('b/3.png dog', r"list\.txt, line 12: 'b/3\.png dog' has no label", ''),
        ('b/3.png', r"list\.txt, line 12: 'b/3\.png' has no label", ''),
    ],
)
def test_a19_labels_of_a_list(tmp_path, line, stocks, our, stock):
    root = broken.class_folders(tmp_path / 'data')
    listed = [f'{name}/{i}.png {label}' for label, name in enumerate('abc') for i in range(8)]
    (root / 'list.txt').write_text('\n'.join(line if one.startswith('b/3') else one for one in listed))
    config = broken.classifier(root, stock)
    config['train_dataloader']['dataset']['ann_file'] = 'list.txt'
    refused(config, tmp_path, stocks if stock or not our else our)


@STOCK
@pytest.mark.parametrize('before', [True, False], ids=['before', 'at_the_step'])
def test_a19_a_masks_id(tmp_path, stock, before):
    root = broken.mask_folders(tmp_path / 'data')
    mask(root, with_id(77))
    config = broken.segmentor(root, stock, steps=6)
    config['custom_hooks'] = [] if before else [UNSEEN]
    refused(config, tmp_path, r'(ids? 77.*003\.png|003\.png: has the id 77|003\.png: holds 77).*')


@STOCK
@pytest.mark.parametrize(
    ('change', 'said'),
    [(lambda a: a + 1, r'(hold the ids 3|holds 3); '), (lambda a: np.full_like(a, 255), 'is 255, which is ignored')],
    ids=['shifted', 'all_255'],
)
def test_a19_masks_that_are_all_wrong(tmp_path, change, said, stock):
    root = broken.mask_folders(tmp_path / 'data')
    for i in range(8):
        mask(root, change, f'masks/train/00{i}.png')
    refused(broken.segmentor(root, stock), tmp_path, said.replace('; ', '[,;] '))


@pytest.mark.parametrize(
    ('change', 'classes', 'said'),
    [
        (None, 4, r'train: the data set names 3 classes \(a, b, c\), the head tells 4 apart'),
        (None, 2, r'train: the data set names 3 classes \(a, b, c\), the head tells 2 apart'),
        ('val/a', 3, r"val: names 2 classes \(b, c\), train 3 \(a, b, c\): label 0 is 'a' in train, 'b' in val"),
        ('train/a', 3, r'train: the data set names 2 classes \(b, c\), the head tells 3 apart'),
        ('val/d', 3, r"val: names 4 classes \(a, b, c, d\), train 3 \(a, b, c\): label 3 is none in train, 'd' in val"),
    ],
)
def test_a21_classes_of_folders(tmp_path, change, classes, said):
    root = broken.class_folders(tmp_path / 'data')
    if change and (root / change).exists():
        shutil.rmtree(root / change)
    elif change:
        shutil.copytree(root / 'val/a', root / change)
    refused(broken.classifier(root, stock=change != 'val/a', classes=classes), tmp_path, said)


def test_a21_an_empty_class_folder(tmp_path):
    root = broken.class_folders(tmp_path / 'data')
    for path in (root / 'train/b').iterdir():
        path.unlink()
    said = r'images of 2 classes, and the head tells 3 apart: no image of b\n    do:  add images .*classes=False'
    refused(broken.classifier(root, True), tmp_path, said)


def test_a21_more_classes_on_purpose(tmp_path):
    config = broken.classifier(broken.class_folders(tmp_path / 'data'), True, classes=4)
    code, err = trained(dict(config, custom_hooks=[CLASSES]), tmp_path)
    assert (code, err) == (0, '')


@STOCK
def test_a21_classes_of_masks(tmp_path, stock):
    root = broken.mask_folders(tmp_path / 'data')
    config = broken.segmentor(root, stock)
    config['val_dataloader']['dataset']['metainfo'] = dict(classes=['class0', 'class2', 'class1'])
    refused(config, tmp_path, r"val: names 3 .*: label 1 is 'class1' in train, 'class2' in val")
    config = broken.segmentor(root, stock)
    config['model']['decode_head']['num_classes'] = 5
    refused(config, tmp_path, 'train: the data set names 3 classes .*, the head tells 5 apart')


def test_room_for_two_checkpoints(tmp_path):
    """The disk is looked at before the first step; less is enough where the check is left out."""
    config = broken.classifier(broken.class_folders(tmp_path / 'data'), False)
    config['custom_imports'] = dict(imports=['injected'], allow_failed_imports=False)
    config['custom_hooks'] = [dict(type='mmengine.DiskOf', free=300_000)]
    said = r'work: 300\.0 kB are free on its disk, and the checkpoints of this run need 3\d\d\.\d kB\. Make room, '
    refused(config, tmp_path, said)
    config['custom_hooks'].append(dict(type='beit_mm.PreflightHook', room=False))
    assert trained(config, tmp_path)[0] == 0


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints after two steps: of BEiTViT, with and without averages, of mmpretrain's ViT and ResNet."""
    root = tmp_path_factory.mktemp('runs')
    broken.class_folders(root / 'data')
    made = {}
    for name in ('beit', 'averaged', 'vit', 'resnet'):
        assert trained(model_of(root, name), root / name)[0] == 0
        made[name] = root / name / 'work/iter_2.pth'
    return {'': root, **made}


def model_of(root: Path, name: str, averages: bool = False, head: int = 3, **arch) -> dict:
    config = broken.classifier(root / 'data', name in ('vit', 'resnet'), classes=head)
    if name == 'vit':
        config['model'].update(backbone=VIT, neck=None, head=dict(config['model']['head'], in_channels=24))
    elif name != 'resnet':
        config['model']['backbone']['arch'] = dict(broken.ARCH, **arch)
        config['model']['head']['in_channels'] = dict(broken.ARCH, **arch)['embed_dims']
    config['custom_hooks'] = [CLASSES, *([EMA] if averages or name == 'averaged' else [])]
    return config


@pytest.mark.parametrize(
    ('source', 'name', 'arch', 'said'),
    [
        ('beit', 'beit', dict(embed_dims=48), 'embed_dims is 24 in the checkpoint and 48 here'),
        ('averaged', 'beit', dict(num_layers=3), 'num_layers is 2 in the checkpoint and 3 here'),
        ('beit', 'vit', {}, r'does not fit the backbone of this config: backbone\.pos_embed is not in it'),
        ('averaged', 'resnet', {}, r'does not fit the backbone of this config: backbone\.conv1\.weight is not in it'),
        ('vit', 'beit', {}, 'absolute positions is yes in the checkpoint and no here'),
        ('resnet', 'beit', {}, 'no BEiT in a known format'),
    ],
)
def test_a31_load_from_another_model(runs, tmp_path, source, name, arch, said):
    config = model_of(runs[''], name, averages=source != 'beit', **arch)
    refused(config, tmp_path, rf'iter_2\.pth: .*{said}', '--load-from', runs[source])


@pytest.mark.parametrize(('name', 'arch'), [('beit', dict(embed_dims=48)), ('beit', dict(head=5)), ('resnet', {})])
def test_a31_resume_of_another_model(runs, tmp_path, name, arch):
    config = model_of(runs[''], name, **arch)
    refused(config, tmp_path, 'is of another model than this config: .*--load-from', '--resume', runs['beit'])


@pytest.mark.parametrize(
    ('source', 'prefix', 'said'),
    [
        ('resnet', None, r"has 0 of the 60 weights of ResNet.* prefix='backbone\.' of init_cfg"),
        ('beit', 'backbone.', 'has 0 of the 60 weights of ResNet.* It is of another model'),
    ],
)
def test_a31_no_key_of_init_cfg_matches(runs, tmp_path, source, prefix, said):
    config = model_of(runs[''], 'resnet')
    config['model']['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint=str(runs[source]), prefix=prefix)
    refused(config, tmp_path, said)


@pytest.mark.parametrize('averages', [False, True], ids=['plain', 'averaged'])
def test_a32_a_table_of_another_size_is_resized(runs, tmp_path, averages):
    config = model_of(runs[''], 'beit', averages)
    config['model']['backbone']['img_size'] = 64
    for split in ('train', 'val'):
        config[f'{split}_dataloader']['dataset']['pipeline'][1]['scale'] = 64
    assert trained(config, tmp_path, '--load-from', runs['averaged']) == (0, '')
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert '2 resized' in log


@pytest.mark.parametrize('averages', [False, True], ids=['plain', 'averaged'])
@pytest.mark.parametrize('source', ['beit', 'averaged'])
def test_a33_another_head_starts_anew_and_is_listed(runs, tmp_path, source, averages):
    config = model_of(runs[''], 'beit', averages, head=5)
    assert trained(config, tmp_path, '--load-from', runs[source]) == (0, '')
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert '2 reinitialised (head.fc.weight, head.fc.bias)' in log


WRONG_OPTIONS = {
    'train_cfg.max_iters=abc': ": --cfg-options train_cfg.max_iters='abc': must be a whole number",
    'train_cfg.max_epochs=3': "train_cfg.max_epochs=3: IterBasedTrainLoop has no argument 'max_epochs'",
    'train_dataloader.batch_size=0': 'train_dataloader.batch_size=0: must be a whole number, 1 or more',
    'train_dataloader.num_workers=-1': 'train_dataloader.num_workers=-1: must be a whole number, 0 or more',
    'train_dataloader.persistent_workers=True': 'persistent_workers=True, and num_workers=0',
    'optim_wrapper.optimizer.lr=fast': "optim_wrapper.optimizer.lr='fast': must be a number",
    'optimizer.lr=1': 'there is no `optimizer` in the config; did you mean `optim_wrapper`?',
    'optim_wrapperr.optimizer.lr=1': 'there is no `optim_wrapperr` in the config; did you mean `optim_wrapper`?',
    'model.backbone.depht=18': 'there is no `depht` in model.backbone; did you mean `model.backbone.depth`?',
    'model.backbone.type=ResNett': "'ResNett' is not registered in scope 'mmpretrain'; did you mean 'ResNet'?",
    'model.backbone.depth=19': 'model.backbone cannot be built: ResNet(base_channels=8, depth=19, stem_channels=8): '
    'KeyError: invalid depth 19 for resnet',
    'model=5': 'model=5: must be a dict',
    'param_scheduler.end=3': 'must be a dict with a type, or a list of them',
    'train_cfg=None': 'has no train_cfg, which a training needs',
    'train_dataloader.dataset.data_root=/nowhere': 'train_dataloader.dataset cannot be built: CustomDataset('
    "data_prefix='train', data_root='/nowhere'): there is no /nowhere/train",
    'lr': '--cfg-options lr: write key=value',
}


@pytest.mark.parametrize('option', WRONG_OPTIONS)
def test_a34_overrides(runs, tmp_path, option):
    said = re.escape(WRONG_OPTIONS[option])
    refused(model_of(runs[''], 'resnet'), tmp_path, said, '--cfg-options', option)


WRONG_LINES = {
    'optim_wraper = dict(optimizer=dict(lr=1))': 'line 3: `optim_wraper` is read by nobody; did you mean',
    'model = dict(backbone=dict(depht=18))': "line 3: model.backbone.depht=18: ResNet has no argument 'depht'; did you",
    "train_dataloader = dict(batch_size='4')": "line 3: train_dataloader.batch_size='4': must be a whole number",
    'model = dict(': "line 3: not valid Python: '(' was never closed",
    'x = 1 / 0': 'line 3: cannot be read: division by zero',
    'import nowhere': "line 3: cannot be read: No module named 'nowhere'",
    "model = dict(train_cfg=dict(augments=[dict(type='Mixup')]))": 'Mixup() cannot be built: ',
    "train_dataloader = dict(drop_last=True, batch_size=100, sampler=dict(type='DefaultSampler'))": '24 images do not '
    'fill one batch of 100, and drop_last=True drops what is not full: batch_size=24 or less, or drop_last=False',
}


@pytest.mark.parametrize('line', WRONG_LINES)
def test_a34_lines_of_a_config(runs, tmp_path, line):
    base = broken.written(model_of(runs[''], 'resnet'), tmp_path, 'base')
    mine = tmp_path / 'mine.py'
    mine.write_text(f'"""A run."""\n_base_ = [{base!r}]\n{line}\n')
    refused(str(mine), tmp_path, re.escape(WRONG_LINES[line]).replace(r'Mixup\(\)', 'Mixup'))


def test_a34_files_that_are_not_there(tmp_path):
    base = broken.written(broken.classifier(tmp_path, True), tmp_path, 'base')
    (tmp_path / 'mine.py').write_text("_base_ = ['bas.py']\n")
    refused(base.replace('base', 'bass'), tmp_path, rf'bass\.py: there is no such config.*\n    {base}')
    refused(str(tmp_path / 'mine.py'), tmp_path, rf'mine\.py: cannot be read: there is no \S+/bas\.py.*\n    {base}')
    refused(str(tmp_path), tmp_path, 'is a folder')
    (tmp_path / 'mine.py').write_text('')
    refused(str(tmp_path / 'mine.py'), tmp_path, 'mine.py: has no model, train_dataloader, train_cfg, optim_wrapper')


@STOCK
def test_a35_empty_data_sets(tmp_path, stock):
    root = broken.mask_folders(tmp_path / 'masks')
    for path in root.glob('*/train/*'):
        path.unlink()
    refused(broken.segmentor(root, stock), tmp_path, r'(cannot be built: \w+\(.*\): it has no image|no image in it)')
    (tmp_path / 'folders/train').mkdir(parents=True)
    said = r"(Couldn't find any class folder|Found 0 files|has no class folders)"
    refused(broken.classifier(tmp_path / 'folders', stock), tmp_path, said)


@pytest.mark.parametrize('option', ['--load-from', '--resume'])
def test_a35_a_checkpoint_that_is_not_there(runs, tmp_path, option):
    refused(model_of(runs[''], 'beit'), tmp_path, r'nowhere\.pth: there is no such checkpoint', option, '/nowhere.pth')
