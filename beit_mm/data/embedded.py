"""Real images that need no download: photographs inside the scikit-image and scikit-learn wheels.

Three sources, each a pure function of (seed, split, index):

- `scene`: a Voronoi mosaic of 2 to 4 materials (one material = one photograph) with its exact mask;
  the image label is the material with the largest area.
- `pool_crop`: an unlabelled random crop of one photograph, for tokenizers and masked image modeling.
- `load_digits`: scikit-learn's 1,797 hand-written digits.

Training data comes from the left 70 % of every photograph and validation data from the right 30 %, so no
pixel is in both. Tables made from these data call them "embedded": they are not ADE20K and not CIFAR.
"""

import functools
import hashlib
from importlib import util as importlib_util
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

TRAIN_SHARE = 0.7  # of the width of every photograph; the rest is validation
SPLITS = ('train', 'val', 'pool')
MOST_MATERIALS = 4  # in a mosaic
GREY_MEAN, GREY_STD = 127.5, 50.0  # what a contrast-normalised crop is brought to, on 0..255
GREY_STD_FLOOR = 4.0  # a flat crop keeps its flatness: below this its noise is not blown up further
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class Photograph(NamedTuple):
    """One material: where its file is, what it must be, and whom to thank.

    box: (top, left, bottom, right) in pixels of the file: the part that shows the material; None is all of it.
    shrink: an integer factor; blocks of shrink x shrink pixels are averaged on loading.
    """

    name: str
    package: str
    file: str
    sha256: str
    licence: str
    credit: str
    box: tuple[int, int, int, int] | None = None
    shrink: int = 1


PHOTOGRAPHS = (
    Photograph(
        'brick',
        'skimage',
        'data/brick.png',
        '7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf',
        'CC0 1.0',
        'CC0Textures, Bricks25',
        None,
        2,
    ),
    Photograph(
        'grass',
        'skimage',
        'data/grass.png',
        'b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89',
        'CC0 1.0',
        'linolafett, Grass 01',
    ),
    Photograph(
        'gravel',
        'skimage',
        'data/gravel.png',
        'c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12',
        'CC0 1.0',
        'CC0Textures, Gravel04',
    ),
    Photograph(
        'cell',
        'skimage',
        'data/cell.png',
        '8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515',
        'CC0 1.0',
        'P. Mueller et al., 2018',
    ),
    Photograph(
        'cat',
        'skimage',
        'data/chelsea.png',
        '596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb',
        'CC0 1.0',
        'Stefan van der Walt, Chelsea',
        (0, 20, 175, 300),
    ),
    Photograph(
        'galaxies',
        'skimage',
        'data/hubble_deep_field.jpg',
        '3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4',
        'public domain',
        'NASA, Hubble',
        None,
        2,
    ),
    Photograph(
        'retina',
        'skimage',
        'data/retina.jpg',
        '38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6',
        'CC0 1.0',
        'Mikael Haggstrom',
        (240, 210, 1180, 1200),
        2,
    ),
    Photograph(
        'rocket',
        'skimage',
        'data/rocket.jpg',
        'c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c',
        'public domain',
        'SpaceX Photos',
    ),
    Photograph(
        'ink',
        'skimage',
        'data/text.png',
        'bd84aa3a6e3c9887850d45d606c96b2e59433fbef50338570b63c319e668e6d1',
        'public domain',
        'Wikipedia, Corner.png',
    ),
    Photograph(
        'pagoda',
        'sklearn',
        'datasets/images/china.jpg',
        '8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29',
        'CC BY 2.0',
        'danielbuechele (Flickr)',
        (120, 110, 330, 330),
    ),
    Photograph(
        'foliage',
        'sklearn',
        'datasets/images/china.jpg',
        '8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29',
        'CC BY 2.0',
        'danielbuechele (Flickr)',
        (330, 0, 427, 640),
    ),
    Photograph(
        'dahlia',
        'sklearn',
        'datasets/images/flower.jpg',
        'a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638',
        'CC BY 2.0',
        'vultilion (Flickr)',
        (90, 195, 330, 415),
    ),
)
CLASSES = tuple(p.name for p in PHOTOGRAPHS)
PALETTE = (
    (181, 82, 58),
    (96, 153, 60),
    (150, 150, 150),
    (64, 78, 110),
    (222, 165, 90),
    (36, 26, 76),
    (226, 98, 74),
    (58, 110, 190),
    (236, 230, 205),
    (38, 128, 116),
    (30, 80, 30),
    (245, 186, 140),
)
DIGIT_CLASSES = tuple('0123456789')


class Scene(NamedTuple):
    """image (H, W, 3) or (H, W, 1) uint8; mask (H, W) uint8 of class indices; label: the largest region's class."""

    image: np.ndarray
    mask: np.ndarray
    label: int


def _package_file(photograph: Photograph) -> Path:
    spec = importlib_util.find_spec(photograph.package)
    if spec is None:
        wheel = {'skimage': 'scikit-image', 'sklearn': 'scikit-learn'}[photograph.package]
        raise FileNotFoundError(
            f'the embedded data need photographs that ship inside {wheel}, which is not installed: pip install {wheel}'
        )
    return Path(spec.submodule_search_locations[0]) / photograph.file


@functools.cache
def load_photograph(index: int) -> np.ndarray:
    """Photograph `index` as (H, W, 3) uint8, verified against its sha256 and shrunk.

    Raises ValueError when the installed file is not the one this data set was frozen on.
    """
    photograph = PHOTOGRAPHS[index]
    path = _package_file(photograph)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != photograph.sha256:
        raise ValueError(
            f'{path}: sha256 is {digest}, but EmbeddedScenes was frozen on {photograph.sha256}; '
            f'install the versions of requirements.txt'
        )
    pixels = np.asarray(Image.open(path).convert('RGB'))
    if photograph.box is not None:
        top, left, bottom, right = photograph.box
        pixels = pixels[top:bottom, left:right]
    k = photograph.shrink
    if k > 1:
        height, width = (s // k * k for s in pixels.shape[:2])
        blocks = pixels[:height, :width].reshape(height // k, k, width // k, k, 3)
        pixels = np.round(blocks.mean(axis=(1, 3))).astype(np.uint8)
    return pixels


@functools.cache
def _half(index: int, split: str) -> np.ndarray:
    """The part of a photograph that a split may see: the left 70 %, or the right 30 % for val."""
    pixels = load_photograph(index)
    border = int(pixels.shape[1] * TRAIN_SHARE)
    return pixels[:, border:] if split == 'val' else pixels[:, :border]


def normalise_contrast(crop: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W, 1) uint8 grey with mean 127.5 and standard deviation 50 (before clipping).

    Brightness, colour and contrast of a material are gone; its texture is left.
    """
    grey = crop @ LUMA
    grey = (grey - grey.mean()) / max(grey.std(), GREY_STD_FLOOR) * GREY_STD + GREY_MEAN
    return np.clip(np.round(grey), 0, 255).astype(np.uint8)[..., None]


def _rng(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index])


def _crop(rng: np.random.Generator, material: int, split: str, size: int, grey: bool) -> np.ndarray:
    source = _half(material, split)
    if size > min(source.shape[:2]):
        raise ValueError(
            f'size={size} does not fit the {split} part of {CLASSES[material]} '
            f'({source.shape[0]} x {source.shape[1]} pixels); choose a smaller size'
        )
    top = rng.integers(0, source.shape[0] - size + 1)
    left = rng.integers(0, source.shape[1] - size + 1)
    crop = source[top : top + size, left : left + size]
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return normalise_contrast(crop) if grey else crop


def scene(seed: int, split: str, index: int, size: int = 48, grey: bool = False, fewest: int = 2) -> Scene:
    """A mosaic of `fewest` to 4 materials: every pixel shows the material of its nearest centre.

    Each region's material is cropped (and in grey contrast-normalised) as a full `size` x `size` picture
    before the mosaic is cut, so that a region's brightness gives nothing away.
    """
    rng = _rng(seed, split, index)
    count = int(rng.integers(fewest, MOST_MATERIALS + 1))
    materials = rng.permutation(len(CLASSES))[:count]
    centres = rng.uniform(0, size, (count, 2))
    y, x = np.mgrid[:size, :size]
    distance = (y[..., None] - centres[:, 0]) ** 2 + (x[..., None] - centres[:, 1]) ** 2
    region = distance.argmin(axis=-1)
    crops = np.stack([_crop(rng, int(m), split, size, grey) for m in materials])
    image = np.take_along_axis(crops, region[None, ..., None], axis=0)[0]
    mask = materials[region].astype(np.uint8)
    label = int(materials[np.bincount(region.ravel(), minlength=count).argmax()])
    return Scene(np.ascontiguousarray(image), mask, label)


def pool_crop(seed: int, index: int, size: int = 64, grey: bool = False) -> np.ndarray:
    """An unlabelled crop (size, size, 3 or 1) uint8 of the training part of a random photograph."""
    rng = _rng(seed, 'pool', index)
    return np.ascontiguousarray(_crop(rng, int(rng.integers(len(CLASSES))), 'pool', size, grey))


@functools.cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: images (1797, 8, 8, 1) uint8 in 0..255 and labels (1797,) int64."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.clip(np.round(digits.images * (255 / 16)), 0, 255).astype(np.uint8)
    return images[..., None], digits.target.astype(np.int64)


def digits_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The first 70 % of the digits for train, the rest for val (in file order: other writers in val)."""
    images, labels = load_digits()
    border = int(len(labels) * TRAIN_SHARE)
    part = slice(border, None) if split == 'val' else slice(None, border)
    return images[part], labels[part]
