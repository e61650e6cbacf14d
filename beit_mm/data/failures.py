"""A sample that could not be made, in words: its file, the step of the pipeline, the reason, and the way out."""

import os
from types import TracebackType

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose

from .loading import UnreadableImage, read_image

PATHS = ('img_path', 'seg_map_path')
LONGEST = 300  # characters of a reason


class DataError(ValueError):
    """Data that cannot be trained on; the message names the files, the values and the way out."""


def named(error: Exception, dataset, index: int) -> Exception:
    """What a data set raised for a sample, as a DataError that names the file; an error of ours, which does, as it is.

    dataset: any that has `get_data_info`, wrappers too. The original is the `__cause__`. It is made of one
    argument, so that it comes out of a data worker as what it is.
    """
    if _ours(error):
        return error
    what, remedy = in_words(error, dataset, index)
    failure = DataError(f'{what}. {remedy}')
    failure.__cause__ = error
    return failure


def _ours(error: Exception) -> bool:
    return type(error).__module__.partition('.')[0] == 'beit_mm'


def in_words(error: Exception, dataset, index: int) -> tuple[str, str]:
    """(file, step and reason; the way out) of what a data set raised for a sample."""
    if _ours(error):
        return str(error), ''
    step, info = _where(error.__traceback__)
    if not any(isinstance(info.get(key), str) for key in PATHS):
        info = _listed(dataset, index)
    path = file_at_fault(step, info)
    by = f' in {type(step).__name__}' if step is not None else ''
    if path is None:
        return (
            f'image {int(index)} of {type(dataset).__name__}{by}: {_first_line(error)}',
            'Mend the image or that step',
        )
    if not (type(step).__name__.startswith('Load') or isinstance(error, OSError)):
        return f'{path}{by}: {_first_line(error, path)}', 'Mend the file or that step of the pipeline'
    if path == info.get('seg_map_path') and path != info.get('img_path'):
        remedy = 'Replace the mask, or take its image out of the data set'
    else:
        remedy = "Replace or remove it; to train without such files: dict(type='beit_mm.LoadImage', on_error='skip')"
    return f'{path}: {why_unreadable(path, error)}', remedy


def _where(trace: TracebackType | None) -> tuple[object | None, dict]:
    """The innermost step of a pipeline that a traceback goes through, and the sample that it was given."""
    step, info = None, {}
    while trace is not None:
        local = trace.tb_frame.f_locals
        owner = local.get('self')
        if isinstance(owner, Compose) and 't' in local:
            step, info = local['t'], local.get('data') or {}
        elif isinstance(owner, BaseTransform):
            step = owner
            info = local['results'] if isinstance(local.get('results'), dict) else info
        trace = trace.tb_next
    return step, info if isinstance(info, dict) else {}


def _listed(dataset, index: int) -> dict:
    """What a data set lists of an image, {} where it cannot say."""
    try:
        info = dataset.get_data_info(int(index))
    except Exception:  # of any project's data set, which has just failed
        return {}
    return info if isinstance(info, dict) else {}


def file_at_fault(step, info: dict) -> str | None:
    """The mask where a loading step came after the image's, else the image; None for a sample that is no file."""
    order = PATHS[::-1] if type(step).__name__.startswith('Load') and 'img' in info else PATHS
    return next((info[key] for key in order if isinstance(info.get(key), str)), None)


def why_unreadable(path: str, error: Exception | None = None) -> str:
    """Why a file could not be read, in one line: what is seen of the file itself, else what the loader said."""
    if '://' not in path:
        if not os.path.exists(path):
            return 'there is no such file'
        if os.path.isdir(path):
            return 'is a folder, not a file'
        try:
            read_image(path)
        except UnreadableImage as found:
            return str(found).removeprefix(f'{path}: ')
        except OSError as found:
            return found.strerror or str(found)
    return _first_line(error, path) if error is not None else 'cannot be read'


def _first_line(error: Exception, path: str = '') -> str:
    """An error's first line, with its type where its text alone says little."""
    text = str(error).strip()
    line = ' '.join((text.splitlines() or [''])[0].split())
    if path:
        line = line.removeprefix(f'{path}: ')
    kind = '' if type(error) in (ValueError, RuntimeError, AssertionError) and line else f'{type(error).__name__}: '
    line = f'{kind}{line}' if line else kind.removesuffix(': ')
    return line[:LONGEST].rstrip('.')


def mask_misfit(mask: np.ndarray, shape: tuple | None, path: str, image: str = '') -> str:
    """Why a mask (H, W) cannot be one of an image of this shape, in words; '' if it can. shape: (H, W) or None."""
    if mask.ndim != 2:
        return f'{path}: the mask has {mask.shape[-1]} bands, and a mask has one number per pixel'
    if shape is not None and mask.shape != tuple(shape[:2]):
        return (
            f'{path}: the mask is {mask.shape[0]} x {mask.shape[1]} pixels (height x width), its image '
            f'{f"{image} " if image else ""}{shape[0]} x {shape[1]}: they must be of one size'
        )
    return ''
