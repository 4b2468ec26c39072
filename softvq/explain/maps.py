"""Where a token acts in the picture, and what of the photo it reads: exact derivatives.

Influence: the root mean square change of every decoded pixel while a token moves as it does over
photos, M(p)^2 = E |J d|^2 with J the decoder's Jacobian at this photo and d drawn with the token's
covariance. J d is a Jacobian-vector product in forward mode, exact and not a difference.
Reading: the same of the encoder, by vector-Jacobian products: how far a token moves, in its own
standard deviations, while a pixel moves.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from softvq.explain.variation import AT_ONCE, Variation
from softvq.tokenizer import Tokenizer

CELLS = 32  # of a map's longer side
PLACE, WHOLE = 0.5, 0.7  # shares of the picture: less is a place, more is all of it
STEADY = 0.5  # correlation of a token's maps of two photos, from which it stays where it is

Kind = Literal["place", "global", "wandering"]


class _TurnedAxes(TorchFunctionMode):
    """Memory formats, which vmap does not know, by turning the axes instead."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.contiguous and kwargs.get("memory_format") is torch.channels_last:
            return args[0].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return func(*args, **kwargs)


def picture_change(tokenizer: Tokenizer, latents: Tensor, moves: Tensor) -> Tensor:
    """The derivative of the picture of ``latents`` [L, C] along moves [B, L, C]: [B, 3, H, W].

    Normalised latents; pixels in [-1, 1], so a change of 2 is from black to white. The picture
    itself is computed once for all moves.
    """
    at = latents.to(tokenizer.device)

    def decode(z: Tensor) -> Tensor:
        return tokenizer.decode(tokenizer.denormalize(z[None]))[0]

    def change(move: Tensor) -> Tensor:
        return torch.func.jvp(decode, (at,), (move,))[1]

    # The fused kernels of attention have no derivative in forward mode.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _TurnedAxes():
        found = [
            torch.func.vmap(change)(some).float().cpu()
            for some in moves.to(tokenizer.device).split(AT_ONCE)
        ]
    return torch.cat(found)


def influence(
    tokenizer: Tokenizer, latents: Tensor, moves: Tensor, tokens: list[int] | None = None
) -> Tensor:
    """The influence map of tokens at one photo's latents [L, C]: [T, H, W], of pixels of peak 1.

    ``moves`` [n, L, C], as :meth:`Variation.moves` gives them.  ``tokens``: which; None for all.
    """
    found = []
    chosen = torch.arange(len(latents)) if tokens is None else torch.tensor(tokens)
    for some in chosen.split(max(1, AT_ONCE // len(moves))):
        alone = moves.new_zeros(len(some), *moves.shape)
        each = torch.arange(len(some))
        alone[each, :, some] = moves[:, some].transpose(0, 1)
        change = picture_change(tokenizer, latents, alone.flatten(0, 1)) / 2
        found.append(change.unflatten(0, alone.shape[:2]).square().mean((1, 2)).sqrt())
    return torch.cat(found)


def reading(
    tokenizer: Tokenizer, picture: Tensor, variation: Variation, probes: int = 2, seed: int = 0
) -> Tensor:
    """What of a picture [3, H, W] every token reads: [L, H, W], root mean square over probes.

    The length of the derivative of a token, in its own standard deviations, by a pixel of peak 1.
    """
    count, channels = variation.mean.shape
    draws = torch.Generator().manual_seed(seed)
    squares = torch.zeros(count, *picture.shape[-2:])
    pixels = picture[None].to(tokenizer.device).requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _TurnedAxes():
        latents = tokenizer.normalize(tokenizer.encode(pixels).latents)[0]
        for _ in range(probes):
            weights = torch.randn(count, channels, generator=draws) / variation.std
            for tokens in torch.arange(count).split(AT_ONCE):
                back = torch.zeros(len(tokens), count, channels)
                back[torch.arange(len(tokens)), tokens] = weights[tokens]
                (slope,) = torch.autograd.grad(
                    latents, pixels, back.to(latents), retain_graph=True, is_grads_batched=True
                )
                squares[tokens] += (2 * slope[:, 0]).square().mean(1).float().cpu() / probes
    return squares.sqrt()


def coarse(maps: Tensor) -> Tensor:
    """Root mean square maps [T, H, W] over cells, the longer side CELLS of them or fewer."""
    height, width = maps.shape[-2:]
    cell = max(1, max(height, width) // CELLS)
    size = max(1, height // cell), max(1, width // cell)
    return F.adaptive_avg_pool2d(maps.square()[:, None], size)[:, 0].sqrt()


@dataclass(frozen=True)
class Place:
    """Where a token acts, over several photos.

    area: share of the picture that it fills, exp of the entropy of its mean squared map.
    row, column: its centre as shares of height and width, from the top left.
    steadiness: mean correlation of one photo's map with the mean of the others'.
    overlap: mean share that it has in common with another token, 0 to 1.
    kind: place (a part of the picture, the same in every photo) | global (all of it) | wandering
        (a part, which is another one in every photo).
    """

    area: float
    row: float
    column: float
    steadiness: float
    overlap: float
    kind: Kind


def places(maps: Tensor) -> list[Place]:
    """Of coarse influence maps [N, L, h, w] of N photos, two or more."""
    power = maps.square()
    power = power / power.sum((2, 3), keepdim=True).clamp_min(1e-20)
    mean = power.mean(0)
    areas, steady, common = area(mean), steadiness(maps), overlaps(mean)
    height, width = mean.shape[1:]
    rows = (mean.sum(2) * (torch.arange(height) + 0.5) / height).sum(1)
    columns = (mean.sum(1) * (torch.arange(width) + 0.5) / width).sum(1)
    of_photo = torch.stack([area(one) for one in power]).mean(0)
    return [
        Place(
            float(areas[i]), float(rows[i]), float(columns[i]), float(steady[i]), float(common[i]),
            kind_of(float(areas[i]), float(of_photo[i]), float(steady[i])),
        )
        for i in range(len(mean))
    ]  # fmt: skip


def kind_of(area: float, of_photo: float, steady: float) -> Kind:
    """By the area of the mean map and of a single photo's, and the maps' steadiness."""
    if area < PLACE and steady >= STEADY:
        return "place"
    return "wandering" if of_photo < PLACE else "global"


def area(power: Tensor) -> Tensor:
    """Share of the picture that maps [L, h, w] of sum 1 fill: 1 if flat, 1 / cells if one cell."""
    flat = power.flatten(1)
    return torch.exp(-torch.xlogy(flat, flat).sum(1)) / flat.shape[1]


def steadiness(maps: Tensor) -> Tensor:
    """Mean correlation of each photo's map [N, L, h, w] with the mean of the other photos', [L]."""
    total = maps.sum(0)
    each = [correlation(one, total - one) for one in maps]
    return torch.stack(each).mean(0)


def overlaps(power: Tensor) -> Tensor:
    """Mean over the other tokens of sum min(p, q) of maps [L, h, w] of sum 1: [L]."""
    flat = power.flatten(1)
    shared = torch.stack([torch.minimum(one, flat).sum(1) for one in flat])
    return (shared.sum(1) - 1) / max(1, len(flat) - 1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of the pixels of maps [..., h, w]; 0 where one of the two is flat."""
    x, y = (m.double().flatten(-2) for m in (a, b))
    x, y = (m - m.mean(-1, keepdim=True) for m in (x, y))
    scale = x.norm(dim=-1) * y.norm(dim=-1)
    return torch.where(scale > 1e-12, (x * y).sum(-1) / scale.clamp_min(1e-12), 0.0).float()


@dataclass(frozen=True)
class Look:
    """What a token's change looks like, mean over photos.

    size: of its structures, half a mean wavelength as a share of the picture's longer side; 1 is a
    change of the whole picture as one.  colour: share of it that is colour and not brightness.
    """

    size: float
    colour: float


def look(changes: Tensor) -> Look:
    """Of the changes [N, 3, H, W] that one token makes in N photos."""
    grey = changes.mean(1)
    power = torch.fft.rfft2(grey).abs().square().sum(0).double()
    height, width = grey.shape[-2:]
    longest = max(height, width)
    down = torch.fft.fftfreq(height)[:, None] * longest
    across = torch.fft.rfftfreq(width) * longest
    weights = torch.full((power.shape[1],), 2.0)  # both halves of the spectrum
    weights[0] = 1.0
    power = power * weights
    mean = float((power * torch.hypot(down, across)).sum() / power.sum().clamp_min(1e-20))
    off = (changes - grey[:, None]).square().sum() / changes.square().sum().clamp_min(1e-20)
    return Look(min(1.0, 0.5 / max(mean, 0.5)), float(off))
