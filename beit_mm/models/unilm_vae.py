"""The discrete VAE of the official code's `--discrete_vae_type customized`, frozen, for weights trained with it.

Parameter names are unilm's, so that the `weights` of its pytorch_model.bin fit as they are. No such file was ever
released; for a tokenizer trained here see dvae.py. Source: official modeling_discrete_vae.py and utils.py (get_d_vae).
"""

import torch
from torch import nn

from ..ops.pixels import unmap_pixels
from ..registry import MODELS
from .dalle import Frozen


class ResBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(conv3x3(x)))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.net(x)


@MODELS.register_module()
class UnilmDiscreteVAE(Frozen):
    """Tokens (B, h, w) of a view (B, C, H, W) in [0.1, 0.9], h = H / 2^num_layers; and images from tokens.

    The arguments' defaults are get_d_vae's: 8192 tokens, 112 px to 14 x 14.
    """

    def __init__(
        self,
        vocab_size: int = 8192,
        in_channels: int = 3,
        num_layers: int = 3,
        hidden_dims: int = 256,
        code_dims: int = 512,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.downsampling = 2**num_layers
        self.codebook = nn.Embedding(vocab_size, code_dims)
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for i in range(num_layers):
            down = nn.Conv2d(hidden_dims if i else in_channels, hidden_dims, 4, 2, 1)
            up = nn.ConvTranspose2d(hidden_dims if i else code_dims, hidden_dims, 4, 2, 1)
            encoder += [nn.Sequential(down, nn.ReLU()), ResBlock(hidden_dims)]
            decoder += [nn.Sequential(up, nn.ReLU()), ResBlock(hidden_dims)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(hidden_dims, vocab_size, 1))
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(hidden_dims, in_channels, 1))
        self.freeze()

    def tokens(self, view: torch.Tensor) -> torch.Tensor:
        """The official loader gives it pixels in [-1, 1]: mean 0.5, standard deviation 0.5."""
        return self.encoder(unmap_pixels(view) * 2 - 1).argmax(dim=1)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, h, w) -> images (B, C, H, W) in [0, 1]."""
        images = self.decoder(self.codebook(tokens).permute(0, 3, 1, 2))
        return (images * 0.5 + 0.5).clamp(0, 1)
