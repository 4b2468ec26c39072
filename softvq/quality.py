"""As many tokens as each picture needs: the fewest of a nested tokenizer that meet a target.

``search`` decodes prefixes and is exact; ``Predictor`` reads the picture's spectrum and decodes
nothing, and so misses now and then.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from softvq.coding import BATCH, Pictures, batches, evaluating, size_of
from softvq.errors import UserError
from softvq.io import load_tensors, save_tensors
from softvq.tokenizer.bottleneck import Tokens
from softvq.tokenizer.model import Tokenizer
from softvq.tokenizer.perceptual import EyeDistance
from softvq.tokenizer.spectral import Spectrum

PREDICTOR = "lengths.safetensors"  # beside the tokenizer whose lengths it predicts


@dataclass(frozen=True)
class Target:
    """What a rebuilt picture must meet: a PSNR of at least ``level`` dB, or a distance in the eye's
    features of at most ``level`` (1: as far as a 256 px photo's 26 x 26 thumbnail). UserError."""

    measure: Literal["psnr", "eye"]
    level: float

    def __post_init__(self) -> None:
        if self.measure not in ("psnr", "eye"):
            raise UserError(f"a target is of psnr or eye, not '{self.measure}'")
        if not (math.isfinite(self.level) and self.level > 0):
            raise UserError(f"a target is a finite number above 0, not {self.level:g}")

    @property
    def decibels(self) -> float:
        """The level on a scale where more is better and steps are ratios."""
        return self.level if self.measure == "psnr" else -10 * math.log10(self.level)


class Judge:
    """How near rebuilt pictures are, on the scale of ``Target.decibels``: images twice -> [B]."""

    def __init__(self, measure: Literal["psnr", "eye"]):
        self.eye = EyeDistance() if measure == "eye" else None

    def __call__(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        # What a file would hold: clamped and in 8 bits.
        rebuilt = rebuilt.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)
        if self.eye is None:
            error = (images - rebuilt).square().mean((1, 2, 3))
            return 10 * torch.log10(4 / error.clamp_min(1e-10))
        return -10 * torch.log10(self.eye.to(images.device)(images, rebuilt).clamp_min(1e-10))


def lengths_tried(tokens: int) -> list[int]:
    """1, 2, 4, ... and all: where curves of quality are measured."""
    return sorted({*(2**i for i in range(tokens.bit_length())), tokens})


def search(
    tokenizer: Tokenizer, images: Tensor, target: Target, judge: Judge | None = None
) -> Tokens:
    """Images [B, 3, H, W] -> all their tokens, with ``lengths`` [B]: the fewest that meet a target.

    By bisection, log2 L decodes for the whole batch; a picture that all L tokens do not bring to
    the target has all of them (``met`` tells). Raises UserError if the tokenizer is not nested.
    """
    judge = judge or Judge(target.measure)
    most = tokenizer.config.tokens
    tokenizer.check_tokens(1)
    with evaluating(tokenizer):
        tokens = tokenizer.encode(images)
        low = torch.ones(len(images), dtype=torch.long, device=images.device)
        high = torch.full_like(low, most)
        while (low < high).any():
            middle = (low + high) // 2
            rebuilt = tokenizer.decode(tokens.latents, images.shape[-2:], middle)
            good = judge(images, rebuilt) >= target.decibels
            high, low = torch.where(good, middle, high), torch.where(good, low, middle + 1)
    tokens.lengths = high
    return tokens


def met(
    tokenizer: Tokenizer, images: Tensor, tokens: Tokens, target: Target, judge: Judge | None = None
) -> Tensor:
    """Which images meet the target with the tokens they have, bool [B]."""
    judge = judge or Judge(target.measure)
    with evaluating(tokenizer):
        rebuilt = tokenizer.decode(tokens.latents, images.shape[-2:], tokens.lengths)
    return judge(images, rebuilt) >= target.decibels


class Predictor(torch.nn.Module):
    """The quality at k = 1, 2, 4, .., L tokens, from what of a picture's spectrum they leave out.

    By Parseval's theorem the energy that the first k x C coefficients of the cosine transform leave
    is the error of the best linear code of that size. A tokenizer does better by an amount that
    depends on the picture; a quadratic function of those energies, fitted on photos, predicts it.
    """

    weight: Tensor
    margin: Tensor

    def __init__(self, tokens: int, channels: int):
        super().__init__()
        self.at = lengths_tried(tokens)
        self.spectrum = Spectrum(tokens, channels)
        inputs = len(self.at) + 1
        features = 1 + inputs + inputs * (inputs + 1) // 2
        self.register_buffer("weight", torch.zeros(2, features, len(self.at)))
        self.register_buffer("margin", torch.zeros(2))

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, F]: 1, the energies left in dB, and their products."""
        coefficients = self.spectrum(images) * self.spectrum.scale.view(1, *self.shape)
        whole = images.square().mean((2, 3)).sum(1)
        held = coefficients.square().sum(-1).cumsum(1)
        left = [whole, *(whole - held[:, k - 1] for k in self.at)]
        x = torch.log10(torch.stack(left, dim=1).clamp_min(1e-6))
        pairs = torch.triu_indices(x.shape[1], x.shape[1])
        return torch.cat([torch.ones_like(x[:, :1]), x, x[:, pairs[0]] * x[:, pairs[1]]], dim=1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.spectrum.tokens, self.spectrum.channels

    def lengths(self, images: Tensor, target: Target) -> Tensor:
        """How many tokens each image needs, int64 [B], without a decode."""
        which = 0 if target.measure == "psnr" else 1
        curve = self.features(images) @ self.weight[which]
        return self.crossing(curve, target.decibels + self.margin[which])

    def crossing(self, curve: Tensor, level: Tensor | float) -> Tensor:
        """Where curves [B, len(at)] reach a level, linear between in log k; all tokens if never."""
        curve = curve.cummax(dim=1).values  # more tokens are never worse
        at = torch.tensor(self.at, device=curve.device).double().log2()
        short = (curve < level).sum(1)
        after = short.clamp(1, len(self.at) - 1)
        low, high = curve.gather(1, after[:, None] - 1)[:, 0], curve.gather(1, after[:, None])[:, 0]
        share = ((level - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
        k = 2 ** (at[after - 1] + share * (at[after] - at[after - 1]))
        return torch.where(short == 0, 1, k.ceil().long()).clamp(1, self.at[-1])

    @torch.no_grad()
    def fit(self, tokenizer: Tokenizer, pictures: Pictures, batch: int = BATCH) -> None:
        """Learn a tokenizer's curves on photos; some hundred are enough."""
        judges = [Judge("psnr"), Judge("eye")]
        features: list[Tensor] = []
        curves: list[list[Tensor]] = [[], []]
        with evaluating(tokenizer):
            for images in batches(pictures, size_of(tokenizer), batch):
                latents = tokenizer.encode(images).latents
                features.append(self.features(images))
                rebuilt = [tokenizer.decode(latents[:, :k], images.shape[-2:]) for k in self.at]
                for curve, judge in zip(curves, judges, strict=True):
                    curve.append(torch.stack([judge(images, x) for x in rebuilt], dim=1))
        x = torch.cat(features).double()
        ridge = 1e-4 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
        for i, curve in enumerate(curves):
            y = torch.cat(curve).double()
            self.weight[i] = torch.linalg.solve(x.T @ x + ridge, x.T @ y).float()

    def save(self, directory: str | Path) -> None:
        """Write it beside its tokenizer."""
        save_tensors(self.state_dict(), Path(directory) / PREDICTOR)

    @classmethod
    def load(cls, directory: str | Path, tokenizer: Tokenizer) -> "Predictor":
        """The predictor beside a tokenizer. Raises UserError if there is none, or of another."""
        path = Path(directory) / PREDICTOR
        if not path.is_file():
            raise UserError(f"{directory}: no {PREDICTOR} there; search, or fit one")
        predictor = cls(tokenizer.config.tokens, tokenizer.config.channels)
        state = load_tensors(path)
        shapes = {name: tensor.shape for name, tensor in predictor.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in state.items()}:
            raise UserError(f"{path}: not of this tokenizer's {tokenizer.config.tokens} tokens")
        predictor.load_state_dict(state)
        return predictor
