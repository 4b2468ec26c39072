"""What an exported model computes: the whole road from 8-bit pixels to normalised tokens and back.

Resize, crop and normalisation are inside, and they are Pillow's: an engine that is handed a photo
as it was decoded needs no code of its own, and cannot resize another way than softvq does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.generator.families import arranged, find_sampler, from_net
from softvq.generator.flowmap import FlowMap, SelfGuidance
from softvq.generator.process import channel_axis, split_channels
from softvq.tokenizer.model import Tokenizer

BITS = 22  # of Pillow's fixed-point filter weights
SUPPORT = 2.0  # pixels that the bicubic filter reaches to either side


class Fit(nn.Module):
    """``images.fit`` of uint8 [B, H, W, 3], any H and W: the same levels as Pillow, bit for bit.

    Pillow's filter weights are whole numbers of 2^-22 and its sums are exact, rounded to 8 bits
    after each of the two passes; in float64 both sums are exact too. Which pass is the first is
    Pillow's rule since version 13.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> whole numbers 0..255 in float64, [B, 3, height, width]."""
        (height, width), (rows, columns) = self.size, pixels.shape[1:3]
        high = torch.full((), rows, dtype=torch.float64)
        wide = torch.full((), columns, dtype=torch.float64)
        scale = torch.maximum(width / wide, height / high)
        across = self.weights(columns, wide, width, scale).mT.contiguous()
        down = self.weights(rows, high, height, scale)
        upright = (high - height > 0) & (high - height > 2 * (wide - width))
        x = pixels.permute(0, 3, 1, 2).contiguous().double()
        return torch.cond(upright, _down_first, _across_first, (x, down, across))

    def weights(self, length: int, total: Tensor, out: int, scale: Tensor) -> Tensor:
        """Of one pass, [out, length], times 2^22; Pillow's precompute_coeffs."""
        kept = torch.minimum(out / scale, total)
        start = (total - kept) / 2
        # Pillow takes the box in float32.
        first, last = start.float(), (start + kept).float()
        step = (last - first).double() / out
        stretch = step.clamp_min(1.0)
        reach = SUPPORT * stretch
        centre = first.double() + (torch.arange(out, dtype=torch.float64) + 0.5) * step
        centre = centre[:, None]
        x = torch.arange(length, dtype=torch.float64)
        inside = (x >= torch.floor(centre - reach + 0.5)) & (x < torch.floor(centre + reach + 0.5))
        weight = torch.where(inside, _bicubic((x - centre + 0.5) * (1 / stretch)), 0.0)
        weight = weight * (1 / weight.sum(1, keepdim=True)) * 2**BITS
        return torch.sign(weight) * torch.floor(weight.abs() + 0.5)


def _down_first(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return _level(_level(down @ x) @ across)


def _across_first(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return _level(down @ _level(x @ across))


def _bicubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5 (Keys 1981)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _level(sums: Tensor) -> Tensor:
    return torch.floor((sums + 2 ** (BITS - 1)) * 2.0**-BITS).clamp(0, 255)


class EncoderGraph(nn.Module):
    """Photos uint8 [B, H, W, 3], any H and W -> normalised latents float32 [B, L, C].

    Of a nested tokenizer the first k of them are the photo at k tokens.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.fit = Fit((tokenizer.config.height, tokenizer.config.width))

    def forward(self, pixels: Tensor) -> Tensor:
        images = (self.fit(pixels).float() / 127.5) - 1
        return self.tokenizer.normalize(self.tokenizer.encode(images).latents)


class DecoderGraph(nn.Module):
    """Normalised latents float32 [B, k, C] -> pictures uint8 [B, height, width, 3].

    Any k from 1 to L of a nested tokenizer, else k = L.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, latents: Tensor) -> Tensor:
        most, count = self.tokenizer.config.tokens, latents.shape[1]
        latents = self.tokenizer.denormalize(latents)
        lengths = None
        if self.tokenizer.config.network == "spectral":  # draws from all places, absent ones at 0
            lengths = torch.ones_like(latents[:, 0, 0], dtype=torch.int64) * count
            latents = F.pad(latents, (0, 0, 0, most - count))
        images = self.tokenizer.decode(latents, lengths=lengths)
        levels = ((images.clamp(-1, 1) + 1) * 127.5).round()
        return levels.to(torch.uint8).permute(0, 2, 3, 1)


class GeneratorGraph(nn.Module):
    """Noise float32 [B, L, C] and labels int64 [B] -> normalised latents float32 [B, L, C].

    The sampler's few steps are unrolled, with classifier-free guidance at every one of them. A
    generator without classes reads no labels.
    """

    times: Tensor

    def __init__(self, generator: Any, steps: int, guidance: float, sampler: str):
        super().__init__()
        self.generator, self.guidance = generator, guidance
        self.sampler = find_sampler(sampler)
        process = generator.config.process
        self.register_buffer("times", self.sampler.grid(steps, process), persistent=False)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        config = self.generator.config
        x = arranged(noise, config)
        drawn = self.sampler.loop(self.guided, x, self.times, labels, config.process)
        return from_net(drawn, config)

    def guided(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """``Guided`` without its interval, which would make shapes depend on the time."""
        if y is None or self.guidance == 1:
            return self.generator(x, t, y)
        null = torch.full_like(y, self.generator.config.num_classes)
        both = self.generator(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, null]))
        good, bad = both[: x.shape[0]], both[x.shape[0] :]  # ONNX has no chunks of a free length
        mean, variance = split_channels(good, x)
        worse, _ = split_channels(bad, x)
        guided = worse + self.guidance * (mean - worse)
        return guided if variance is None else torch.cat([guided, variance], channel_axis(x))


class FewStepGraph(nn.Module):
    """Noise float32 [B, L, C], labels int64 [B] and guidance float32 [B], from 1 to the most that
    the network knows -> normalised latents float32 [B, L, C], one evaluation for each step.

    A flow map without classes reads neither labels nor guidance.
    """

    times: Tensor

    def __init__(self, generator: FlowMap, steps: int):
        super().__init__()
        self.generator = generator
        self.sampler = find_sampler("flow_map")
        times = self.sampler.grid(steps, generator.config.process)
        self.register_buffer("times", times, persistent=False)

    def forward(
        self, noise: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        config = self.generator.config
        scale = torch.ones_like(noise[:, 0, 0]) if guidance is None else guidance
        told = _Told(self.generator, scale)
        x = arranged(noise, config)
        return from_net(self.sampler.loop(told, x, self.times, labels, config.process), config)


class _Told:
    """``flowmap.Told`` of scales that are not looked at, as a graph cannot, at all times."""

    def __init__(self, network: FlowMap, scale: Tensor):
        self.network, self.scale = network, scale

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return self.average(x, t, t, y)

    def average(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        low, high = torch.zeros_like(self.scale), torch.ones_like(self.scale)
        return self.network(x, t, y, s, SelfGuidance(self.scale, low, high))
