"""Transform coding with learned corrections: tokens that are a picture's spectrum, coarse to fine.

Encoder: the lowest L x C coefficients of the picture's cosine transform, those that vary most in
photographs first, become the tokens' first guess; a transformer over patches and tokens corrects
them. Decoder: the inverse transform draws the picture, a convolutional network corrects that.
Untrained it is the transform itself, which is exact, nested and the best linear code that is the
same wherever things stand in the picture (Ahmed et al. 1974); training only adds to it. Every token
sees the whole picture: the first its layout and colours, later ones finer structure, so that the
first k are a complete description for every k.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.layers import sincos_2d
from softvq.tokenizer.vit import STEMS, Block, prefix_mask, resize_positions

if TYPE_CHECKING:
    from softvq.tokenizer.config import TokenizerConfig

# Orthonormal opponent colours: brightness, red against blue, green against both.
COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))

# The variance of the coefficient of frequency (u, v), in half cycles per picture, of each colour:
# exp(a) / (u^2 + v^2 + exp(b))^p, for pixels in [-1, 1] and a transform that preserves the mean
# square. (a, p, b) were fitted to random crops of 6,120 photographs; they order the coefficients
# and scale them, no more: 2,048 coefficients in this order give within 0.02 dB what those of the
# largest measured variance give. See docs/nested-tokens.md.
MEAN_SQUARE = (0.295, 0.0535, 0.0080)  # of each colour's mean over the picture, likewise
POWER = ((-1.255, 1.267, 1.691), (-2.209, 1.566, 2.777), (-4.287, 1.434, 2.578))


def cosines(frequencies: int, length: int) -> Tensor:
    """DCT-II basis [frequencies, length], float32: rows have mean square 1."""
    u = torch.arange(frequencies, dtype=torch.float64)
    x = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    basis = torch.cos(math.pi * u[:, None] * x)
    basis[1:] *= math.sqrt(2)
    return basis.float()


def spectrum_order(count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` coefficients that vary most: (colour, u, v) as int64 [count, 3], and their
    standard deviations [count], both in falling order."""
    side = math.ceil(math.sqrt(count)) + 1  # enough for all of one colour
    u, v = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    squared = (u**2 + v**2).double()
    variance = torch.stack([math.exp(a) / (squared + math.exp(b)) ** p for a, p, b in POWER])
    variance[:, 0, 0] = torch.tensor(MEAN_SQUARE).double()
    chosen = variance.flatten().argsort(descending=True, stable=True)[:count]
    colour, rest = chosen // side**2, chosen % side**2
    where = torch.stack([colour, rest // side, rest % side], dim=1)
    return where, variance.flatten()[chosen].sqrt().float()


class Spectrum(nn.Module):
    """Images [B, 3, H, W] <-> their coefficients [B, k, C] at about unit variance, any k <= L.

    The coefficients count half cycles per picture, so that one picture at two resolutions has one
    spectrum. Frequencies that a small picture cannot hold are 0.
    """

    where: Tensor
    scale: Tensor
    colours: Tensor

    def __init__(self, tokens: int, channels: int):
        super().__init__()
        self.tokens, self.channels = tokens, channels
        where, scale = spectrum_order(tokens * channels)
        self.side = int(where[:, 1:].max()) + 1
        colours = torch.tensor(COLOURS)
        self.register_buffer("where", where, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer(
            "colours", colours / colours.norm(dim=1, keepdim=True), persistent=False
        )

    def basis(self, length: int, like: Tensor) -> Tensor:
        """[side, length]; rows beyond what ``length`` pixels can hold are 0."""
        held = min(self.side, length)
        basis = F.pad(cosines(held, length), (0, 0, 0, self.side - held))
        return basis.to(like.device, like.dtype)

    def forward(self, images: Tensor, tokens: int | None = None) -> Tensor:
        """Images -> coefficients of the first ``tokens`` tokens, [B, k, C]."""
        height, width = images.shape[-2:]
        down, across = self.basis(height, images), self.basis(width, images)
        maps = torch.einsum("cd,bdhw->bchw", self.colours.to(images.dtype), images)
        maps = down @ maps @ across.T / (height * width)
        count = (tokens or self.tokens) * self.channels
        colour, u, v = self.where[:count].unbind(1)
        return (maps[:, colour, u, v] / self.scale[:count]).unflatten(1, (-1, self.channels))

    def inverse(self, coefficients: Tensor, height: int, width: int) -> Tensor:
        """Coefficients [B, k, C] -> images [B, 3, H, W]; those of later tokens count as 0."""
        flat = coefficients.flatten(1)
        count = flat.shape[1]
        colour, u, v = self.where[:count].unbind(1)
        place = (colour * self.side + u) * self.side + v
        maps = flat.new_zeros(flat.shape[0], 3 * self.side**2)
        maps = maps.index_copy(1, place, flat * self.scale[:count])
        maps = maps.view(-1, 3, self.side, self.side)
        down, across = self.basis(height, flat), self.basis(width, flat)
        images = down.T @ maps @ across
        return torch.einsum("cd,bchw->bdhw", self.colours.to(flat.dtype), images)


class Patches(nn.Module):
    """Images [B, 3, H, W] -> patches with learned positions [B, rows * columns, D], row by row."""

    def __init__(self, config: "TokenizerConfig", width: int):
        super().__init__()
        self.grid = config.grid
        self.embed = STEMS[config.stem](config.patch, width)
        self.positions = nn.Parameter(torch.zeros(1, math.prod(self.grid), width))

    @torch.no_grad()
    def init_weights(self) -> None:
        self.positions.copy_(0.5 * sincos_2d(*self.grid, self.positions.shape[-1]))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images)
        positions = resize_positions(self.positions, self.grid, patches.shape[-2:])
        return patches.flatten(2).transpose(1, 2) + positions


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> features [B, k, D + C]: corrections beside coefficients."""

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        width = config.encoder_width
        self.width, self.nested = width + config.channels, config.nested
        self.spectrum = Spectrum(config.tokens, config.channels)
        self.patches = Patches(config, width)
        self.from_coefficients = nn.Linear(config.channels, width)
        self.latent_pos_embed = nn.Parameter(torch.zeros(1, config.tokens, width))
        self.blocks = nn.ModuleList(
            Block(width, config.encoder_heads, config.layer_scale)
            for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @torch.no_grad()
    def init_weights(self) -> None:
        self.patches.init_weights()
        blocks: Iterable[Any] = self.blocks  # Blocks, which a ModuleList does not say
        for block in blocks:
            block.start_local()
        nn.init.normal_(self.latent_pos_embed, std=0.3)

    def forward(
        self, images: Tensor, keep: Tensor | None = None, tokens: int | None = None
    ) -> Tensor:
        """``keep``, int64 [B, K]: the patches, row by row, that the corrections read; None: all.

        ``tokens``: how many of the first tokens to compute; None for all.
        """
        coefficients = self.spectrum(images, tokens)
        count = coefficients.shape[1]
        x = self.patches(images)
        if keep is not None:
            x = x.take_along_dim(keep[..., None], 1)
        latents = self.from_coefficients(coefficients) + self.latent_pos_embed[:, :count]
        x = torch.cat([x, latents.to(x.dtype)], dim=1)
        mask = prefix_mask(x.shape[1], count, x.device) if self.nested else None
        for block in self.blocks:
            x = block(x, mask=mask)
        features = self.norm(x[:, -count:])
        return torch.cat([features, coefficients.to(features.dtype)], dim=-1)


class Refinement(nn.Module):
    """x + conv(gelu(conv(x))) of maps [B, D, H, W]; starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(x)))


class Decoder(nn.Module):
    """Coefficients [B, k, C] -> images [B, 3, H, W]: the inverse transform, then corrections.

    A transformer over the patches of the transform's picture sees it as a whole; ``refine_depth``
    residual blocks of ``refine_width`` channels, over cells of 4 x 4 pixels, draw.
    """

    CELL = 4

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        self.width, self.patch = config.channels, config.patch
        self.spectrum = Spectrum(config.tokens, config.channels)
        width, self.across = config.decoder_width, config.patch // self.CELL
        self.patches = Patches(config, width)
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.layer_scale)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        cells = config.refine_width
        self.to_cells = nn.Linear(width, cells * self.across**2)
        self.from_pixels = nn.Conv2d(3, cells, self.CELL, self.CELL)
        self.refine = nn.ModuleList(Refinement(cells) for _ in range(config.refine_depth))
        self.to_pixels = nn.Conv2d(cells, 3 * self.CELL**2, 3, padding=1)

    def init_weights(self) -> None:
        self.patches.init_weights()
        blocks: Iterable[Any] = self.blocks  # Blocks, which a ModuleList does not say
        for block in blocks:
            block.start_local()
        nn.init.zeros_(self.to_cells.weight)
        refine: Iterable[Any] = self.refine
        for layer in (*(block.conv2 for block in refine), self.to_pixels):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, coefficients: Tensor, rows: int, columns: int, present: Tensor | None = None
    ) -> Tensor:
        """``present``, bool [B, k]: which tokens there are; None for all."""
        if present is not None:
            coefficients = coefficients * present[..., None]
        height, width = rows * self.patch, columns * self.patch
        linear = self.spectrum.inverse(coefficients.float(), height, width)
        x = self.patches(linear)
        for block in self.blocks:
            x = block(x)
        x = self.to_cells(self.norm(x)).transpose(1, 2).unflatten(2, (rows, columns))
        x = F.pixel_shuffle(x, self.across) + self.from_pixels(linear)
        x = x.contiguous(memory_format=torch.channels_last)
        for block in self.refine:
            x = block(x)
        return linear + F.pixel_shuffle(self.to_pixels(x), self.CELL)


@torch.no_grad()
def start_as_transform(to_latent: nn.Linear, from_latent: nn.Linear, bottleneck: nn.Module) -> None:
    """Open the straight road: the latents start as the coefficients, in and out of the bottleneck.

    Coefficients have longer tails than a Gaussian; codewords start spread as a Laplace distribution
    of variance 8. Codebooks of single channels start at its quantiles: at tau = 0.07, 64 of them
    keep a coefficient so well that a picture of nothing but coefficients comes out at 52 dB.
    """
    channels = from_latent.in_features
    nn.init.zeros_(to_latent.weight)
    to_latent.weight[:channels, -channels:] = torch.eye(channels)
    to_latent.bias[channels:] = -6.0  # KL: a posterior that is almost sure
    nn.init.eye_(from_latent.weight)
    embedding = getattr(bottleneck, "embedding", None)
    if not isinstance(embedding, Tensor):
        return  # no codebook, or that of VQ, which one codeword for a whole token cannot span
    spread = torch.distributions.Laplace(0.0, 2.0)
    count, width = embedding.shape[1:]
    if width == 1:
        embedding.copy_(spread.icdf((torch.arange(count) + 0.5) / count)[:, None])
    else:
        embedding.copy_(spread.sample(embedding.shape))
