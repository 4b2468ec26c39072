"""The 2-D convolutional autoencoder of latent diffusion (Esser et al. 2021; Rombach et al. 2022).

An image becomes a grid of H/f x W/f cells, f = ``patch``; each cell is a token, in row-major order.
A level is ``encoder_depth`` (``decoder_depth``) residual blocks of ``encoder_width``
(``decoder_width``) x its multiplier channels, then a step down (up) by two. In the middle, at the
coarsest level, stand a residual block, attention over the cells, and a residual block; the finer
levels have no attention, as in the published KL models. With ``patch`` 8, widths of 128, depths of
2 and 3, and 4 channels through KL it is the autoencoder of Stable Diffusion, number by number.

Nothing in it is tied to an image size: another size gives another number of tokens.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.layers import Attention
from softvq.tokenizer.config import TokenizerConfig

# Channels of each level, finest first, in units of the width: kl-f4 to kl-f32 of Rombach et al.
MULTIPLIERS = {4: (1, 2, 4), 8: (1, 2, 4, 4), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4)}


def level_widths(patch: int, width: int) -> list[int]:
    """Channels of each level, finest first. UserError for a factor that was not published."""
    if patch not in MULTIPLIERS:
        known = ", ".join(map(str, MULTIPLIERS))
        raise UserError(f"network cnn reduces images by a patch of {known}, not {patch}")
    return [width * multiplier for multiplier in MULTIPLIERS[patch]]


def as_tokens(grid: Tensor) -> Tensor:
    """[B, C, rows, columns] -> [B, rows * columns, C], row by row."""
    return grid.flatten(2).transpose(1, 2)


def as_grid(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """The inverse of :func:`as_tokens`. Raises UserError for another number of tokens."""
    if tokens.shape[1] != rows * columns:
        raise UserError(
            f"{tokens.shape[1]} tokens are not a grid of {rows} x {columns} cells; "
            "say the size of the image they come from"
        )
    return tokens.transpose(1, 2).unflatten(2, (rows, columns))


def norm(channels: int) -> nn.GroupNorm:
    """In 32 groups, as published, or fewer that keep four channels or more in each.

    A group of one channel loses what the channel says about the image as a whole.
    """
    return nn.GroupNorm(math.gcd(32, channels, max(1, channels // 4)), channels, eps=1e-6)


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResBlock(nn.Module):
    """[B, C, H, W] -> [B, C', H, W]: x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), conv(inputs, outputs)
        self.norm2, self.conv2 = norm(outputs), conv(outputs, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class CellAttention(nn.Module):
    """[B, C, H, W] -> the same shape: every cell reads every other, with one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.attn = Attention(channels, heads=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + as_grid(self.attn(as_tokens(self.norm(x))), *x.shape[-2:])


class Down(nn.Module):
    """[B, C, H, W] -> [B, C, H/2, W/2]; padded at the right and below only, as published."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """[B, C, H, W] -> [B, C, 2H, 2W]: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def level(inputs: int, outputs: int, depth: int) -> list[nn.Module]:
    return [ResBlock(inputs if i == 0 else outputs, outputs) for i in range(depth)]


def middle(channels: int) -> list[nn.Module]:
    return [ResBlock(channels, channels), CellAttention(channels), ResBlock(channels, channels)]


@torch.no_grad()
def start_closed(part: "Encoder | Decoder") -> None:
    """Every block adds nothing at first (Goyal et al. 2017; Dhariwal & Nichol 2021).

    Not in the published autoencoder, where convolutions keep torch's own start; the first hundreds
    of images are learned faster so.
    """
    for module in part.modules():
        if isinstance(module, ResBlock):
            for parameter in module.conv2.parameters():
                parameter.zero_()
        elif isinstance(module, CellAttention):
            module.attn.proj.weight.zero_()


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> features of the cells [B, H/f * W/f, 2C].

    Two features per channel of the latents, for a mean and a variance, whatever the bottleneck.
    Raises UserError if ``config.tokens`` is not the number of cells.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        rows, columns = config.grid
        if config.tokens != rows * columns:
            raise UserError(
                f"network cnn makes one token per cell: with patch {config.patch} and "
                f"{config.height}x{config.width} pixels tokens must be {rows * columns}, "
                f"got {config.tokens}"
            )
        self.width = 2 * config.channels
        widths = level_widths(config.patch, config.encoder_width)
        layers: list[nn.Module] = [conv(3, widths[0])]
        for before, after in zip(widths[:1] + widths, widths, strict=False):
            if len(layers) > 1:
                layers.append(Down(before))
            layers += level(before, after, config.encoder_depth)
        layers += [*middle(widths[-1]), norm(widths[-1]), nn.SiLU(), conv(widths[-1], self.width)]
        self.layers = nn.Sequential(*layers)

    def init_weights(self) -> None:
        start_closed(self)

    def forward(self, images: Tensor) -> Tensor:
        return as_tokens(self.layers(images))


class Decoder(nn.Module):
    """Features of the cells [B, H/f * W/f, C] -> images [B, 3, H, W], unbounded (about [-1, 1])."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.width = config.channels
        widths = level_widths(config.patch, config.decoder_width)[::-1]
        layers: list[nn.Module] = [conv(self.width, widths[0]), *middle(widths[0])]
        for i, (before, after) in enumerate(zip(widths[:1] + widths, widths, strict=False)):
            if i > 0:
                layers.append(Up(before))
            layers += level(before, after, config.decoder_depth)
        self.layers = nn.Sequential(*layers, norm(widths[-1]), nn.SiLU())
        self.to_pixels = conv(widths[-1], 3)

    def init_weights(self) -> None:
        start_closed(self)

    def forward(self, latents: Tensor, rows: int, columns: int) -> Tensor:
        return self.to_pixels(self.layers(as_grid(latents, rows, columns)))
