"""The pictures on the page of a suite, from configs and models of its stages: what pictures/ draws, as PNG bytes."""

from mmengine.config import Config
from mmengine.model import BaseModel

from ..apis import build_model
from .pictures import attention, images, reconstruction, segmentation
from .pictures.models import load_stage

__all__ = ['attention_panel', 'build_model', 'load_stage', 'reconstruction_panel', 'segmentation_panel']


def reconstruction_panel(config: Config, model: BaseModel, indices: list[int]) -> bytes:
    """image | what the backbone saw | the masked patches as predicted | what the target says they hold."""
    return reconstruction.reconstruction_panel(model, images.packed_samples(config, indices)).png


def segmentation_panel(named: dict[str, tuple[Config, BaseModel]], indices: list[int]) -> bytes:
    """image | truth | each model's prediction, laid over the image, with a legend."""
    return segmentation.segmentation_panel(named, indices).png


def attention_panel(
    config: Config, model: BaseModel, indices: list[int], judged: int = 200, masks_from: Config | None = None
) -> tuple[bytes, dict[str, float]]:
    """image with the query | the mean over heads | each head; and the Jaccard indices over `judged` images.

    masks_from: a config whose test images have masks, where the model's own, such as files for pre-training, have none;
    without any mask the query is the centre, and there is no `attended` among the numbers.
    """
    source = images.from_config(masks_from or config)
    backbone = model.backbone.eval()
    size = min(backbone.own_grid) * backbone.patch_size if masks_from else None
    chosen = source.chosen(indices)
    number = (source.load(i) for i in range(min(judged, source.count) if chosen[0].mask is not None else 0))
    panel = attention.attention_panel(backbone, config, chosen, number, size=size)
    return panel.png, panel.numbers
