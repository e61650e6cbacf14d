"""Multi-scale testing on ADE20K: the views that tta_pipeline makes have the official sizes."""

import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image

from beit_mm.engine.configs import load_config

LEAVES = {
    512: 'configs/segmentation/beit-base-p16_setr-pup_8xb2-160k_ade20k-512.py',
    640: 'configs/segmentation/beit-plus-base-p16_upernet-official-norm_8xb2-160k_ade20k-640.py',
}
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def setr_resize(height: int, width: int, short: int, crop: int) -> tuple[int, int]:
    """Official mmcv_custom/resize_transform.py by its law: the short side is `short`, at least the crop; no limit of
    the long side; mmcv.imrescale rounds to the nearest."""
    factor = max(short, crop) / min(height, width)
    return int(height * factor + 0.5), int(width * factor + 0.5)


@pytest.mark.parametrize('crop', LEAVES)
@pytest.mark.parametrize('size', [(120, 160), (97, 61), (64, 400)])
def test_sizes_are_those_of_setr_resize(tmp_path, crop, size):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / 'x.png')
    Image.fromarray(rng.integers(0, 151, size, dtype=np.uint8)).save(tmp_path / 'm.png')
    config = load_config(LEAVES[crop])
    with DefaultScope.overwrite_default_scope('mmseg'):
        pipeline = Compose(config.tta_pipeline)
    views = pipeline(
        dict(img_path=str(tmp_path / 'x.png'), seg_map_path=str(tmp_path / 'm.png'), reduce_zero_label=True)
    )
    sizes = [tuple(image.shape[1:]) for image in views['inputs']]
    expected = [setr_resize(*size, int(crop * ratio), crop) for ratio in RATIOS for _ in (0, 1)]
    assert sizes == expected
    assert min(min(s) for s in sizes) == crop  # no view is smaller than a window
    flips = [sample.metainfo['flip'] for sample in views['data_samples']]
    assert flips == [False, True] * 6
    for plain, mirrored in zip(views['inputs'][::2], views['inputs'][1::2], strict=True):
        assert bool((plain.flip(-1) == mirrored).all())
    for sample in views['data_samples']:
        assert tuple(sample.gt_sem_seg.shape) == size  # judged at the image's own size
        assert sample.metainfo['ori_shape'] == size
