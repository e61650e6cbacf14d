"""ops/pixels.py by hand."""

import pytest
import torch

from beit_mm.ops.pixels import map_pixels, patchify, unmap_pixels, unpatchify


def test_map_pixels():
    torch.testing.assert_close(map_pixels(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.1, 0.5, 0.9]))
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)


def test_patchify_order_and_inverse():
    image = torch.arange(2 * 4 * 6).float().view(1, 2, 4, 6)
    patches = patchify(image, 2)
    # the second patch of the first row: pixels (0,2) (0,3) (1,2) (1,3), the channel fastest
    assert patches[0, 1].tolist() == [2, 26, 3, 27, 8, 32, 9, 33]
    assert torch.equal(unpatchify(patches, 2, (2, 3)), image)
    with pytest.raises(ValueError, match='4 x 6 is not divisible by the patch size 4'):
        patchify(image, 4)
