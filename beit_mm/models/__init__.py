"""Models. Importing registers them under the scope `beit_mm`."""

from .backbone import BEiTViT
from .dvae import DiscreteVAE, KMeansTokenizer
from .heads import PixelHead, TokenHead
from .pretrain import MaskedImageModel
from .probe import KNNProbe, LinearProbe
from .pyramid import ViTPyramid
from .segmentor import EncoderDecoder, SegTTAModel
from .targets import CachedTokens, PixelTarget, TokenTarget
from .unilm_vae import UnilmDiscreteVAE

from . import dalle  # isort: skip  (registers DALLEEncoder and DALLEDecoder)

__all__ = [
    'BEiTViT',
    'CachedTokens',
    'DiscreteVAE',
    'EncoderDecoder',
    'KMeansTokenizer',
    'KNNProbe',
    'LinearProbe',
    'MaskedImageModel',
    'PixelHead',
    'PixelTarget',
    'SegTTAModel',
    'TokenHead',
    'TokenTarget',
    'UnilmDiscreteVAE',
    'ViTPyramid',
    'dalle',
]
