"""mmseg's own loading of masks: it takes a mask of another size than its image, and trains on other pixels' classes."""

import functools

from mmseg.datasets.transforms import LoadAnnotations

from .failures import DataError, mask_misfit


def check_masks_of_mmseg() -> None:
    """Let mmseg's LoadAnnotations refuse coloured masks and masks of another size than their image, with the file.

    `beit_mm.LoadMask` does by itself. Later steps resize both to one size, after which nobody can tell.
    """
    original = LoadAnnotations._load_seg_map
    if getattr(original, 'checked', False):
        return

    @functools.wraps(original)
    def load(self, results: dict) -> None:
        original(self, results)
        path, image = str(results.get('seg_map_path')), str(results.get('img_path', ''))
        if why := mask_misfit(results['gt_seg_map'], results.get('ori_shape'), path, image):
            raise DataError(why)

    load.checked = True
    LoadAnnotations._load_seg_map = load
