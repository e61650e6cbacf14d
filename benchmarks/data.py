"""The data pipelines: two views of masked image modeling, decoding of JPEG, masks of segmentation.

    python benchmarks/data.py [--only two views] [--rounds 9]

Images are crops of scikit-image's photographs, 500 x 375 pixels, written as JPEG of quality 92 (45 KiB on average) into
a temporary folder; a step reads each of them once. Everything has one thread, as in a data worker. `simplejpeg` takes
part where it is installed.
"""

import atexit
import functools
import importlib
import itertools
import shutil
import tempfile
from pathlib import Path

from harness import Case, main

WIDTH, HEIGHT, QUALITY = 500, 375, 92
PHOTOGRAPHS = ('astronaut', 'coffee', 'chelsea', 'rocket')  # of skimage.data, inside its wheel
IMAGES = 16  # a step
BLOCKS = dict(input_size=(14, 14), num_masking_patches=75, max_num_patches=None, min_num_patches=16)


@functools.cache
def jpegs() -> list[str]:
    """Paths of the images."""
    import numpy as np
    import skimage.data
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix='beit_mm-benchmark-'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        photograph = Image.fromarray(getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])())
        share = rng.uniform(0.7, 1)
        w = share * min(photograph.width, photograph.height * WIDTH / HEIGHT)
        h = w * HEIGHT / WIDTH
        left, top = rng.uniform(0, photograph.width - w), rng.uniform(0, photograph.height - h)
        view = photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        view.save(folder / f'{number}.jpg', quality=QUALITY)
    return [str(path) for path in sorted(folder.iterdir())]


def _as_a_worker() -> None:
    """One thread each for OpenCV, as mmengine's env_cfg sets it, and for torch, as its DataLoader does."""
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    importlib.import_module('beit_mm')  # mmpretrain, mmseg and torchvision need it to import today


def _pipeline(steps: list[dict]):
    _as_a_worker()
    importlib.import_module('mmpretrain.datasets.transforms')
    from mmengine.dataset import Compose
    from mmpretrain.registry import TRANSFORMS

    from beit_mm.data.sampling import Draw

    run = Compose([TRANSFORMS.build(step) for step in steps])
    samples = itertools.count()

    def step():
        for path in jpegs():
            number = next(samples)
            run(dict(img_path=path, sample_idx=Draw(number, (0, 0, number))))

    return step


def mmpretrains(backend: str):
    """Its config beit_beit-base-p16_8xb256-amp-coslr-300e_in1k, with OpenCV (its default) or Pillow."""
    jitter = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0, backend=backend)
    crop = dict(size=224, second_size=112, interpolation='bicubic', second_interpolation='lanczos', scale=(0.08, 1.0))
    return _pipeline(
        [
            dict(type='LoadImageFromFile', imdecode_backend=backend),
            dict(type='ColorJitter', **jitter),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='RandomResizedCropAndInterpolationWithTwoPic', **crop),
            dict(type='BEiTMaskGenerator', **BLOCKS),
            dict(type='PackInputs'),
        ]
    )


def torchvisions():
    """What the official code does, by torchvision and Pillow; its masks by mmpretrain's generator."""
    _as_a_worker()
    import random

    import numpy as np
    import torch
    from mmpretrain.datasets.transforms import BEiTMaskGenerator
    from PIL import Image
    from torchvision import transforms
    from torchvision.transforms import functional as F

    jitter, masking = transforms.ColorJitter(0.4, 0.4, 0.4), BEiTMaskGenerator(**BLOCKS)
    views = ((224, Image.Resampling.BICUBIC), (112, Image.Resampling.LANCZOS))

    def step():
        for path in jpegs():
            picture = jitter(Image.open(path).convert('RGB'))
            picture = F.hflip(picture) if random.random() < 0.5 else picture
            box = transforms.RandomResizedCrop.get_params(picture, (0.08, 1.0), (3 / 4, 4 / 3))
            for size, kernel in views:
                view = F.resized_crop(picture, *box, (size, size), kernel)
                torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()
            masking.transform({})

    return step


def ours(decoder: str = '', exact: bool = False):
    load = dict(type='beit_mm.LoadImage', channel_order='bgr', decoder=decoder)
    return _pipeline(
        [
            load if decoder else dict(type='LoadImageFromFile'),
            dict(type='beit_mm.ColorJitter', channel_order='bgr', exact=exact),
            dict(type='beit_mm.TwoViewCrop', patches_size=224, tokens_size=112, flip=0.5, exact=exact),
            dict(type='beit_mm.MaskPatches', grid=(14, 14), num_masked=75),
            dict(type='beit_mm.PackMIM'),
        ]
    )


def decoding(**step):
    return _pipeline([step])


def segmentation(step: str):
    """A mask of 683 x 512 pixels and 150 classes, as ADE20K has them."""
    _as_a_worker()
    importlib.import_module('mmseg.datasets.transforms')
    import numpy as np
    from mmseg.registry import TRANSFORMS
    from PIL import Image

    regions = np.random.default_rng(0).integers(0, 151, (16, 22), dtype=np.uint8)
    mask = np.asarray(Image.fromarray(regions).resize((683, 512), Image.Resampling.NEAREST))
    file = Path(jpegs()[0]).with_suffix('.png')
    Image.fromarray(mask).save(file)
    transform = TRANSFORMS.build(dict(type=step))
    sample = dict(seg_map_path=str(file), reduce_zero_label=True, label_map=None, ori_shape=(512, 683), num_classes=150)
    return lambda: transform(dict(sample, seg_fields=[]))


CASES = [
    Case(
        'two views',
        {
            'mmpretrain': functools.partial(mmpretrains, 'cv2'),
            'mmpretrain, Pillow': functools.partial(mmpretrains, 'pillow'),
            'torchvision': torchvisions,
            'ours': ours,
            'ours, simplejpeg': functools.partial(ours, 'simplejpeg'),
            'ours, exact': functools.partial(ours, exact=True),
        },
        'mmpretrain',
        work=IMAGES,
        unit='images',
        bars={'ours': (3.0, 'mmpretrain'), 'ours, simplejpeg': (3.0, 'mmpretrain')},
    ),
    Case(
        'decode',
        {
            'mmcv': functools.partial(decoding, type='LoadImageFromFile'),
            'ours, Pillow': functools.partial(decoding, type='beit_mm.LoadImage'),
            'ours, OpenCV': functools.partial(decoding, type='beit_mm.LoadImage', decoder='opencv'),
            'ours, simplejpeg': functools.partial(decoding, type='beit_mm.LoadImage', decoder='simplejpeg'),
        },
        'mmcv',
        work=IMAGES,
        unit='images',
    ),
    Case(
        'segmentation masks',
        {
            'mmseg': functools.partial(segmentation, 'LoadAnnotations'),
            'ours': functools.partial(segmentation, 'beit_mm.LoadMask'),
        },
        'mmseg',
        unit='masks',
        bars={'ours': (1.0, 'mmseg')},
    ),
]

if __name__ == '__main__':
    main('Data pipelines, timed side by side', CASES)
