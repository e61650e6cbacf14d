"""Tokenizers that are trained here: a discrete VAE (Gumbel-softmax) and, as a yardstick, plain k-means.

Both read a token view (B, C, H, W) in [0.1, 0.9] (after `map_pixels`), give tokens (B, h, w) and turn tokens
back into pixels. Letters: K codes, D features, h x w cells of 2^num_downsamples pixels a side.

A Gumbel-softmax dVAE left to itself on small data uses a dozen of its codes. Two things mend that here:
the last encoder layer starts as a k-means of its own features (`start_codes`), so every code has a region
from the first step, and the batch's mean code distribution is kept near uniform (`balance_weight`).
"""

import math

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn

from ..ops.pixels import unmap_pixels
from ..registry import MODELS

CONFIDENCE = 3.0  # logits between the two nearest codes at the start, in units of their mean distance gap
KMEANS_BATCH = 4096
SMALLEST_SHARE = 1e-12  # of a code among the cells of a batch
FEWEST_TO_SPLIT = 4  # cells of a code in a batch whose principal axis means something
SPLIT_CONFIDENCE = 1.0  # logits between the halves of a split code, one standard deviation from its mean


def cluster(features: torch.Tensor, num_codes: int) -> torch.Tensor:
    """k-means centres (num_codes, D) of features (n, D), the same on every call."""
    from sklearn.cluster import MiniBatchKMeans

    if len(features) < num_codes:
        raise ValueError(
            f'{num_codes} codes cannot start from {len(features)} cells; use more images or a smaller vocabulary'
        )
    means = MiniBatchKMeans(num_codes, batch_size=KMEANS_BATCH, n_init=1, max_iter=30, random_state=0)
    return torch.from_numpy(means.fit(features.numpy()).cluster_centers_).float()


def ramp(start: float, end: float, length: int, step: int) -> float:
    """Half a cosine from `start` to `end` over `length` steps, then constant."""
    done = min(1.0, step / max(1, length))
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * done))


def logit_laplace_nll(stats: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood per pixel of a view in (0, 1); stats holds means, then log scales (DALL-E, A.3)."""
    mean, log_scale = stats.chunk(2, dim=1)
    logit = torch.logit(view)
    return (logit - mean).abs() * torch.exp(-log_scale) + log_scale + torch.log(2 * view * (1 - view))


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.path(x)


class Tokenizer(BaseModel):
    """What the two tokenizers share: the modes that mmengine's runner calls."""

    vocab_size: int
    downsampling: int

    def forward(self, mode: str = 'tensor', **batch):
        view = batch['tokens_view']
        if mode == 'loss':
            return self.loss(view)
        tokens = self.tokens(view)
        if mode == 'predict':
            return self.judge(view, tokens)
        return tokens

    def loss(self, view: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def tokens(self, view: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def judge(self, view: torch.Tensor, tokens: torch.Tensor) -> list[dict]:
        """Per image: its tokens and mean absolute errors on [0, 1] (Table 8), with two painters as yardsticks."""
        pixels = unmap_pixels(view)
        cells = F.avg_pool2d(pixels, self.downsampling)
        painted = {
            'reconstruction_error': self.decode(tokens),
            'cell_mean_error': F.interpolate(cells, scale_factor=self.downsampling),
            'image_mean_error': pixels.mean(dim=(2, 3), keepdim=True).expand_as(pixels),
        }
        errors = {name: (image - pixels).abs().mean(dim=(1, 2, 3)).tolist() for name, image in painted.items()}
        return [
            dict(tokens=t.cpu(), vocab_size=self.vocab_size, **{name: values[i] for name, values in errors.items()})
            for i, t in enumerate(tokens)
        ]


@MODELS.register_module()
class DiscreteVAE(Tokenizer):
    """A convolutional discrete VAE trained with the Gumbel-softmax relaxation (BEiT, section 2.1; DALL-E, A.2).

    hidden_dims, code_dims: widths of the convolutions and of a code's embedding.
    temperature: (start, end, steps) of the relaxation. kl_weight: (start, end, steps) of the KL divergence
        from the uniform prior, per cell. balance_weight: of the KL divergence of the batch's mean code
        distribution from uniform.
    reconstruction: `mse`, `l1` (on the mapped pixels) or `logit_laplace`; reconstruction_weight scales it.
    straight_through: one-hot codes forward, the relaxation's gradient backward.
    """

    def __init__(
        self,
        vocab_size: int = 8192,
        in_channels: int = 3,
        num_downsamples: int = 3,
        hidden_dims: int = 256,
        code_dims: int = 512,
        num_res_blocks: int = 2,
        temperature: tuple[float, float, int] = (1.0, 1 / 16, 150_000),
        kl_weight: tuple[float, float, int] = (0.0, 0.0, 1),
        balance_weight: float = 0.05,
        reconstruction: str = 'mse',
        reconstruction_weight: float = 40.0,
        straight_through: bool = False,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if reconstruction not in ('mse', 'l1', 'logit_laplace'):
            raise ValueError(f'DiscreteVAE: reconstruction={reconstruction!r} is none of mse, l1, logit_laplace')
        self.vocab_size = vocab_size
        self.downsampling = 2**num_downsamples
        self.temperature = temperature
        self.kl_weight = kl_weight
        self.balance_weight = balance_weight
        self.reconstruction = reconstruction
        self.reconstruction_weight = reconstruction_weight
        self.straight_through = straight_through
        out_channels = 2 * in_channels if reconstruction == 'logit_laplace' else in_channels

        down: list[nn.Module] = []
        for i in range(num_downsamples):
            down += [nn.Conv2d(hidden_dims if i else in_channels, hidden_dims, 4, 2, 1), nn.ReLU()]
        self.encoder = nn.Sequential(*down, *[ResidualBlock(hidden_dims) for _ in range(num_res_blocks)])
        self.to_logits = nn.Linear(hidden_dims, vocab_size)
        self.codebook = nn.Embedding(vocab_size, code_dims)
        up: list[nn.Module] = []
        for _ in range(num_downsamples - 1):
            up += [nn.ConvTranspose2d(hidden_dims, hidden_dims, 4, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dims, hidden_dims, 1),
            *[ResidualBlock(hidden_dims) for _ in range(num_res_blocks)],
            *up,
            nn.ConvTranspose2d(hidden_dims, out_channels, 4, 2, 1),
        )
        self.register_buffer('num_updates', torch.zeros((), dtype=torch.int64))
        self.register_buffer('code_counts', torch.zeros(vocab_size))  # cells per code, since the last report

    def features(self, view: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, h, w, D), the input centred on zero."""
        return self.encoder(view * 2 - 1).permute(0, 2, 3, 1)

    def logits(self, view: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in [0.1, 0.9] -> (B, h, w, K)."""
        return self.to_logits(self.features(view))

    def tokens(self, view: torch.Tensor) -> torch.Tensor:
        return self.logits(view).argmax(dim=-1)

    def stats(self, codes: torch.Tensor) -> torch.Tensor:
        """(Relaxed) one-hot codes (B, h, w, K) -> what the decoder says, before the sigmoid."""
        return self.decoder((codes @ self.codebook.weight).permute(0, 3, 1, 2))

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, h, w) -> images (B, C, H, W) in [0, 1]."""
        stats = self.decoder(self.codebook(tokens).permute(0, 3, 1, 2))
        mean = stats.chunk(2, dim=1)[0] if self.reconstruction == 'logit_laplace' else stats
        return unmap_pixels(torch.sigmoid(mean))

    @torch.no_grad()
    def start_codes(self, view: torch.Tensor) -> None:
        """Start every code at a k-means centre c of the encoder's features z: logits are -s |z - c|^2 + const.

        Data-dependent initialisation of an ordinary linear layer; s makes the nearest code CONFIDENCE more
        likely (in logits) than the second nearest, on average.
        """
        features = self.features(view).flatten(0, 2).cpu()
        centres = cluster(features, self.vocab_size)
        nearest = torch.cdist(features[:KMEANS_BATCH], centres).square().topk(2, largest=False).values
        sharpness = CONFIDENCE / (nearest[:, 1] - nearest[:, 0]).mean().clamp_min(1e-12)
        self.to_logits.weight.copy_(2 * sharpness * centres)
        self.to_logits.bias.copy_(-sharpness * centres.square().sum(dim=1))
        if self.codebook.embedding_dim == centres.shape[1]:
            spread = centres.std(dim=0).clamp_min(1e-6)
            self.codebook.weight.copy_((centres - centres.mean(dim=0)) / spread)

    @torch.no_grad()
    def revive(self, dead: torch.Tensor, view: torch.Tensor, generator: torch.Generator) -> tuple:
        """Give dead codes, (K,) bool, half of the cells that busy codes have in this view.

        A busy code's cells are cut in two along their first principal axis u, at their mean m: the dead code gets
        the busy one's logit plus s u (z - m), which is SPLIT_CONFIDENCE at one standard deviation from the mean,
        and its embedding. Returns (the parameters that changed, their rows): as many as there were codes to split.
        """
        features = self.features(view)
        chosen = self.to_logits(features).argmax(dim=-1).flatten()
        features = features.flatten(0, 2)
        busy = torch.bincount(chosen, minlength=self.vocab_size).double()
        busy[dead | (busy < FEWEST_TO_SPLIT)] = 0
        rows = dead.nonzero().flatten()[: int((busy > 0).sum())]
        if len(rows):
            parents = torch.multinomial(busy.cpu(), len(rows), generator=generator).tolist()
            for row, parent in zip(rows.tolist(), parents, strict=True):
                cells = features[chosen == parent].float()
                mean = cells.mean(dim=0)
                _, spread, axes = torch.linalg.svd(cells - mean, full_matrices=False)
                cut = axes[0] * (SPLIT_CONFIDENCE * len(cells) ** 0.5 / spread[0].clamp_min(1e-6))
                self.to_logits.weight[row] = self.to_logits.weight[parent] + cut
                self.to_logits.bias[row] = self.to_logits.bias[parent] - cut @ mean
                self.codebook.weight[row] = self.codebook.weight[parent]
        return (self.to_logits.weight, self.to_logits.bias, self.codebook.weight), rows

    def relax(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """A Gumbel-softmax sample, one-hot forward if `straight_through`."""
        # In float32 whatever the logits are: bfloat16 has 256 steps in [0, 1).
        uniform = torch.rand_like(logits, dtype=torch.float32).clamp_(1e-9, 1 - 1e-7)
        soft = ((logits - (-uniform.log()).log()) / temperature).softmax(dim=-1)
        if not self.straight_through:
            return soft
        hard = F.one_hot(soft.argmax(dim=-1), self.vocab_size).to(soft)
        return hard - soft.detach() + soft

    def reconstruction_loss(self, stats: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        if self.reconstruction == 'logit_laplace':
            return logit_laplace_nll(stats, view).mean()
        error = torch.sigmoid(stats) - view
        return error.square().mean() if self.reconstruction == 'mse' else error.abs().mean()

    def loss(self, view: torch.Tensor) -> dict[str, torch.Tensor]:
        step = int(self.num_updates)
        temperature, kl_weight = ramp(*self.temperature, step), ramp(*self.kl_weight, step)
        logits = self.logits(view)
        stats = self.stats(self.relax(logits, temperature))
        log_q = logits.float().log_softmax(dim=-1)  # bfloat16 would round a small divergence to zero
        q = log_q.exp()
        losses = dict(loss_reconstruction=self.reconstruction_weight * self.reconstruction_loss(stats, view))
        kl = (q * log_q).sum(dim=-1).mean() + math.log(self.vocab_size)
        if kl_weight > 0:
            losses['loss_kl'] = kl_weight * kl
        if self.balance_weight > 0:
            mean_q = q.mean(dim=(0, 1, 2))
            # The logarithm of a share that has underflown to zero has no gradient
            balance = (mean_q * mean_q.clamp_min(SMALLEST_SHARE).log()).sum() + math.log(self.vocab_size)
            losses['loss_balance'] = self.balance_weight * balance
        self.num_updates += 1
        with torch.no_grad():
            counts = torch.bincount(logits.argmax(dim=-1).flatten(), minlength=self.vocab_size).float()
            self.code_counts += counts
            share = counts / counts.sum()
            losses['reconstruction_error'] = (self._pixels(stats) - unmap_pixels(view)).abs().mean()
            losses['codebook_usage'] = (counts > 0).float().mean()
            losses['perplexity'] = torch.exp(-torch.xlogy(share, share).sum())
            losses['kl_to_uniform'] = kl.detach()
            losses['temperature'] = view.new_tensor(temperature)
        return losses

    def _pixels(self, stats: torch.Tensor) -> torch.Tensor:
        mean = stats.chunk(2, dim=1)[0] if self.reconstruction == 'logit_laplace' else stats
        return unmap_pixels(torch.sigmoid(mean))


@MODELS.register_module()
class KMeansTokenizer(Tokenizer):
    """The yardstick: a cell's token is the nearest k-means centre of the pixels around it.

    neighbourhood: side in pixels of the square around each cell that is clustered; `downsampling`: the
    cell's own side. Training is gradient descent on the k-means objective from `start_codes`' solution.
    """

    def __init__(
        self,
        vocab_size: int = 512,
        in_channels: int = 3,
        downsampling: int = 4,
        neighbourhood: int = 8,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if (neighbourhood - downsampling) % 2 or neighbourhood < downsampling:
            raise ValueError(
                f'KMeansTokenizer: neighbourhood={neighbourhood} is not downsampling={downsampling} plus an even number'
            )
        self.vocab_size = vocab_size
        self.in_channels = in_channels
        self.downsampling = downsampling
        self.neighbourhood = neighbourhood
        self.centres = nn.Parameter(torch.randn(vocab_size, in_channels * neighbourhood**2) * 0.1 + 0.5)

    def features(self, view: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, h, w, C * n * n): the pixels around each cell; 0.5 beyond the border."""
        margin = (self.neighbourhood - self.downsampling) // 2
        padded = F.pad(view, [margin] * 4, value=0.5)
        columns = F.unfold(padded, self.neighbourhood, stride=self.downsampling).transpose(1, 2)
        grid = (view.shape[2] // self.downsampling, view.shape[3] // self.downsampling)
        return columns.unflatten(1, grid)

    def tokens(self, view: torch.Tensor) -> torch.Tensor:
        features = self.features(view)
        distances = torch.cdist(features.flatten(0, 2), self.centres)
        return distances.argmin(dim=1).view(features.shape[:3])

    @torch.no_grad()
    def start_codes(self, view: torch.Tensor) -> None:
        """Put the centres where scikit-learn's mini-batch k-means finds them."""
        self.centres.copy_(cluster(self.features(view).flatten(0, 2).cpu(), self.vocab_size))

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, h, w) -> images (B, C, H, W) in [0, 1]: the middle of each token's centre."""
        n, d = self.neighbourhood, self.downsampling
        margin = (n - d) // 2
        tiles = self.centres.view(-1, self.in_channels, n, n)[..., margin : margin + d, margin : margin + d]
        cells = tiles[tokens].permute(0, 3, 1, 4, 2, 5)
        b, c, h, _, w, _ = cells.shape
        return unmap_pixels(cells.reshape(b, c, h * d, w * d))

    def loss(self, view: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(view).flatten(0, 2)
        with torch.no_grad():
            nearest = torch.cdist(features, self.centres).argmin(dim=1)
        return dict(loss_kmeans=(features - self.centres[nearest]).square().mean())
