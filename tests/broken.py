"""What users bring that cannot work: small data sets on disk, configs of ours and of OpenMMLab's own parts on them."""

from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

SIDE = 32  # pixels of an image


def class_folders(root: Path, classes: str | tuple = 'abc', images: int = 8, splits: tuple = ('train', 'val')) -> Path:
    """root/<split>/<class>/<number>.png; returns root."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            for i in range(images):
                path = Path(root) / split / name / f'{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(path)
    return Path(root)


def mask_folders(root: Path, classes: int = 3, images: int = 8, splits: tuple = ('train', 'val')) -> Path:
    """root/images/<split>/<number>.png with root/masks/<split>/<number>.png; returns root."""
    rng = np.random.default_rng(0)
    for split in splits:
        for i in range(images):
            for kind, array in (
                ('images', rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)),
                ('masks', rng.integers(0, classes, (SIDE, SIDE), np.uint8)),
            ):
                path = Path(root) / kind / split / f'{i:03}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return Path(root)


def _runtime(scope: str, train: dict, val: dict, evaluator: dict, steps: int, workers: int) -> dict:
    def loader(dataset: dict, shuffle: bool) -> dict:
        sampler = dict(type='InfiniteSampler' if shuffle else 'DefaultSampler', shuffle=shuffle)
        return dict(batch_size=4, num_workers=workers, dataset=dataset, sampler=sampler)

    return dict(
        default_scope=scope,
        train_dataloader=loader(train, True),
        val_dataloader=loader(val, False),
        val_evaluator=evaluator,
        val_cfg=dict(type='ValLoop'),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=steps),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=steps),
        ),
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
    )


ARCH = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)


def classifier(root: Path, stock: bool, classes: int = 3, steps: int = 2, workers: int = 0) -> dict:
    """Of `class_folders`: mmpretrain's ResNet on CustomDataset, or BEiTViT on ImageList."""
    scope = 'mmpretrain'
    pack = [dict(type='Resize', scale=SIDE), dict(type='PackInputs')]
    if stock:
        load, kind = dict(type='LoadImageFromFile'), 'CustomDataset'
        backbone, width = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8), 64
        neck = dict(type='GlobalAveragePooling')
    else:
        load, kind = dict(type='beit_mm.LoadImage'), 'beit_mm.ImageList'
        backbone, width = dict(type='beit_mm.BEiTViT', arch=ARCH, img_size=SIDE, patch_size=8), 24
        neck = None
    train, val = (
        dict(type=kind, data_root=str(root), data_prefix=split, pipeline=[load, *pack]) for split in ('train', 'val')
    )
    head = dict(type='LinearClsHead', num_classes=classes, in_channels=width)
    return dict(
        model=dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=neck,
            head=head,
            data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.0] * 3, std=[64.0] * 3, num_classes=classes),
        ),
        **_runtime(scope, train, val, dict(type='Accuracy'), steps, workers),
    )


def segmentor(root: Path, stock: bool, classes: int = 3, steps: int = 2, workers: int = 0) -> dict:
    """Of `mask_folders`: mmseg's ResNet and FCN on BaseSegDataset, or BEiTViT on MaskFolder."""
    names = [f'class{i}' for i in range(classes)]
    if stock:
        loads = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')
        kind = dict(type='BaseSegDataset', img_suffix='.png', seg_map_suffix='.png')
        backbone = dict(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8, strides=(1, 1, 1, 1))
        backbone.update(norm_cfg=dict(type='BN'))
        head = dict(type='FCNHead', in_channels=64, in_index=3, num_convs=1)
    else:
        loads = dict(type='beit_mm.LoadImage'), dict(type='beit_mm.LoadMask')
        kind = dict(type='beit_mm.MaskFolder')
        backbone = dict(type='beit_mm.BEiTViT', arch=ARCH, img_size=SIDE, patch_size=8, out_type='featmap')
        head = dict(type='FCNHead', in_channels=24, in_index=0, num_convs=1)
    head.update(channels=8, num_classes=classes, norm_cfg=dict(type='BN'))
    resize = dict(type='Resize', scale=(SIDE, SIDE))
    train, val = (
        dict(
            kind,
            data_root=str(root),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'masks/{split}'),
            metainfo=dict(classes=names),
            pipeline=[*steps_, dict(type='PackSegInputs')],
        )
        for split, steps_ in (('train', [*loads, resize]), ('val', [loads[0], resize, loads[1]]))
    )
    return dict(
        model=dict(
            type='EncoderDecoder',
            backbone=backbone,
            decode_head=head,
            test_cfg=dict(mode='whole'),
            data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.0] * 3, std=[64.0] * 3, size=(SIDE, SIDE)),
        ),
        **_runtime('mmseg', train, val, dict(type='IoUMetric'), steps, workers),
    )


def written(config: dict, folder: Path, name: str = 'mine') -> str:
    """A config as a file; its path."""
    path = Path(folder) / f'{name}.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    Config(config).dump(path)
    return str(path)


def _rewritten(path: Path, **options) -> None:
    Image.open(path).convert(options.pop('mode', 'RGB')).save(path, **options)


def cut(path: Path) -> None:
    """Half of the file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_jpeg(path: Path) -> None:
    """A JPEG under the file's name, the second half missing."""
    _rewritten(path, format='JPEG')
    cut(path)


def text(path: Path) -> None:
    path.write_text('this is no image\n')


def empty(path: Path) -> None:
    path.write_bytes(b'')


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def missing(path: Path) -> None:
    path.unlink()


UNREADABLE = dict(cut=cut, cut_jpeg=cut_jpeg, text=text, empty=empty, directory=directory)
