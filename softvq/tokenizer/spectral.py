"""Transform coding with learned corrections: tokens that are a picture's spectrum, coarse to fine.

Encoder: the lowest L x C coefficients of the picture's cosine transform, those that vary most in
photographs first, become the tokens; a convolutional network corrects them. Decoder: the inverse
transform draws the picture, and another convolutional network corrects that.
Untrained it is the transform itself, which is exact, nested and the best linear code that is the
same wherever things stand in the picture (Ahmed et al. 1974); training only adds to it. Every token
sees the whole picture: the first its layout and colours, later ones finer structure, so that the
first k are a complete description for every k.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.layers import full_precision

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


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions as float32, others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
        with torch.device("cpu"):  # numbers, even where a network is built without memory
            where, scale = spectrum_order(tokens * channels)
            self.side = int(where[:, 1:].max()) + 1
            colours = torch.tensor(COLOURS)
        where, scale, colours = (x.to(torch.get_default_device()) for x in (where, scale, colours))
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
        """Images -> coefficients of the first ``tokens`` tokens, [B, k, C], float32 or more."""
        with full_precision(images):
            return self._forward(at_least_float32(images), tokens)

    def _forward(self, images: Tensor, tokens: int | None) -> Tensor:
        height, width = images.shape[-2:]
        down, across = self.basis(height, images), self.basis(width, images)
        maps = torch.einsum("cd,bdhw->bchw", self.colours.to(images.dtype), images)
        maps = down @ maps @ across.T / (height * width)
        count = (tokens or self.tokens) * self.channels
        colour, u, v = self.where[:count].unbind(1)
        return (maps[:, colour, u, v] / self.scale[:count]).unflatten(1, (-1, self.channels))

    def inverse(self, coefficients: Tensor, height: int, width: int) -> Tensor:
        """Coefficients [B, k, C] -> images [B, 3, H, W], float32 or more; later tokens are 0."""
        with full_precision(coefficients):
            return self._inverse(at_least_float32(coefficients), height, width)

    def _inverse(self, coefficients: Tensor, height: int, width: int) -> Tensor:
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


class Residual(nn.Module):
    """x + conv(gelu(conv(norm(x)))) of maps [B, D, H, W]; starts as the identity.

    The norm is over the channels of each cell: without it Muon, whose steps keep their length
    however large the maps have grown, diverges within some hundred steps.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + self.conv2(F.gelu(self.conv1(normal)))


def blocks(width: int, depth: int) -> nn.Sequential:
    """``depth`` residual blocks of maps [B, width, H, W]."""
    return nn.Sequential(*(Residual(width) for _ in range(depth)))


def start_as_identity(network: nn.Module, last: nn.Conv2d) -> None:
    """What the residual blocks and the last layer add starts at zero."""
    layers = [module.conv2 for module in network.modules() if isinstance(module, Residual)]
    for layer in (*layers, last):
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> coefficients [B, k, C], corrected by a network.

    The network reads cells of half a patch, then of a patch, and draws a small picture whose own
    coefficients are added: a learned filter before the transform, as strong as what it sees asks
    for. Each coefficient stands for itself, so the first k tokens are the same for every k.
    """

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        self.width = config.channels
        fine, coarse, cell = config.refine_width, config.encoder_width, config.patch // 2
        self.spectrum = Spectrum(config.tokens, config.channels)
        self.cells = nn.Conv2d(3, fine, cell, cell)
        self.fine_blocks = blocks(fine, config.refine_depth)
        self.down = nn.Conv2d(fine, coarse, 2, 2)
        self.coarse_blocks = blocks(coarse, config.encoder_depth)
        self.to_picture = nn.Conv2d(coarse, 3 * 2**2, 3, padding=1)

    def init_weights(self) -> None:
        start_as_identity(self, self.to_picture)

    def forward(self, images: Tensor, tokens: int | None = None) -> Tensor:
        """``tokens``: how many of the first tokens to compute; None for all."""
        x = self.cells(images.contiguous(memory_format=torch.channels_last))
        x = self.coarse_blocks(self.down(self.fine_blocks(x)))
        picture = F.pixel_shuffle(self.to_picture(x), 2)
        return self.spectrum(images, tokens) + self.spectrum(picture, tokens)


class Decoder(nn.Module):
    """Coefficients [B, k, C] -> images [B, 3, H, W]: the inverse transform, then corrections.

    ``decoder_depth`` residual blocks over cells of a patch, where what the coefficients hold has
    room, and ``refine_depth`` over cells of half a patch, which draw.
    """

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        self.width, self.patch = config.channels, config.patch
        fine, coarse, cell = config.refine_width, config.decoder_width, config.patch // 2
        self.cell = cell
        self.spectrum = Spectrum(config.tokens, config.channels)
        self.patches = nn.Conv2d(3, coarse, config.patch, config.patch)
        self.coarse_blocks = blocks(coarse, config.decoder_depth)
        self.up = nn.Conv2d(coarse, fine * 2**2, 3, padding=1)
        self.cells = nn.Conv2d(3, fine, cell, cell)
        self.fine_blocks = blocks(fine, config.refine_depth)
        self.to_pixels = nn.Conv2d(fine, 3 * cell**2, 3, padding=1)

    def init_weights(self) -> None:
        start_as_identity(self, self.to_pixels)

    def forward(
        self, coefficients: Tensor, rows: int, columns: int, present: Tensor | None = None
    ) -> Tensor:
        """``present``, bool [B, k]: which tokens there are; None for all."""
        if present is not None:
            coefficients = coefficients * present[..., None]
        picture = self.spectrum.inverse(coefficients, rows * self.patch, columns * self.patch)
        linear = picture.contiguous(memory_format=torch.channels_last)
        x = F.pixel_shuffle(self.up(self.coarse_blocks(self.patches(linear))), 2)
        x = x.contiguous(memory_format=torch.channels_last) + self.cells(linear)
        return picture + F.pixel_shuffle(self.to_pixels(self.fine_blocks(x)), self.cell).float()


@torch.no_grad()
def start_as_transform(to_latent: nn.Linear, from_latent: nn.Linear, bottleneck: nn.Module) -> None:
    """Open the straight road: the latents start as the coefficients, in and out of the bottleneck.

    Coefficients have longer tails than a Gaussian; codewords start spread as a Laplace distribution
    of variance 8. Codebooks of single channels start at its quantiles: at tau = 0.07, 64 of them
    keep a coefficient so well that a picture of nothing but coefficients comes out at 52 dB.
    """
    channels = from_latent.in_features
    nn.init.eye_(to_latent.weight)
    to_latent.bias[channels:] = -6.0  # KL: a posterior that is almost sure
    nn.init.eye_(from_latent.weight)
    embedding = getattr(bottleneck, "embedding", None)
    if not isinstance(embedding, Tensor):
        return  # no codebook, or that of VQ, which one codeword for a whole token cannot span
    spread = torch.distributions.Laplace(0.0, 2.0, validate_args=False)
    count, width = embedding.shape[1:]
    if width == 1:
        embedding.copy_(spread.icdf((torch.arange(count) + 0.5) / count)[:, None])
    else:
        embedding.copy_(spread.sample(embedding.shape))
