"""As many tokens as each picture needs: the fewest of a nested tokenizer that meet a target.

``search`` decodes prefixes and is exact; ``Predictor`` reads the picture's spectrum, decodes
nothing, and so misses now and then. Not a mode of ``Tokenizer.encode``: what a picture needs is
told by the decoder and, for a distance to the eye, by another network.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.io import load_tensors, save_tensors
from softvq.layers import evaluating
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

    def __str__(self) -> str:
        return f"PSNR >= {self.level:g} dB" if self.measure == "psnr" else f"eye <= {self.level:g}"

    @property
    def decibels(self) -> float:
        """The level on a scale where more is better and steps are ratios."""
        return self.level if self.measure == "psnr" else -10 * math.log10(self.level)

    @cached_property
    def judge(self) -> "Judge":
        """What tells whether pictures meet it; made once."""
        return Judge(self.measure)

    def met(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """Which of the images [B, 3, H, W] are rebuilt well enough, bool [B]."""
        return self.judge(images, rebuilt) >= self.decibels


@dataclass(frozen=True)
class Predicted:
    """A target, and what predicts how many tokens meet it; see :class:`Predictor`."""

    target: Target
    predictor: "Predictor"

    def __str__(self) -> str:
        return f"{self.target}, predicted"


# How many tokens of each picture: so many, the fewest that meet a target, or all.
Budget = int | Target | Predicted | None


def encode_within(tokenizer: Tokenizer, images: Tensor, budget: Budget = None) -> Tokens:
    """Images [B, 3, H, W] -> their tokens within a budget; ``lengths`` where those may differ.

    Raises UserError if the budget is not all and the tokenizer is not nested.
    """
    if isinstance(budget, Target):
        return search(tokenizer, images, budget)
    if isinstance(budget, Predicted):
        return predict(tokenizer, images, budget)
    fewer: dict[str, Any] = {} if budget is None else {"tokens": budget}
    with evaluating(tokenizer):
        return tokenizer.encode(images, **fewer)


def check_budget(tokenizer: Tokenizer, budget: Budget) -> None:
    """Raises UserError unless a tokenizer's pictures can be kept within a budget."""
    if budget is not None:
        tokenizer.check_tokens(budget if isinstance(budget, int) else 1)


class Judge:
    """How near rebuilt pictures are, on the scale of ``Target.decibels``: images twice -> [B]."""

    def __init__(self, measure: Literal["psnr", "eye"]):
        self.eye = EyeDistance() if measure == "eye" else None

    def __call__(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        return self.beside(images)(rebuilt)

    def beside(self, images: Tensor) -> Callable[..., Tensor]:
        """Judges what is rebuilt of these images, which are looked at once.

        The function takes rebuilt pictures [b, 3, H, W] and, if they are not all, int64 [b] which.
        """
        if self.eye is None:
            return lambda rebuilt, rows=slice(None): self._psnr(images[rows], _as_a_file(rebuilt))
        eye = self.eye.to(images.device)
        seen = eye.views(images)

        def near(rebuilt: Tensor, rows: Any = slice(None)) -> Tensor:
            chosen = {name: x[rows] for name, x in seen.items()}
            distance = eye.between(chosen, eye.views(_as_a_file(rebuilt)))
            return -10 * torch.log10(distance.clamp_min(1e-10))

        return near

    @staticmethod
    def _psnr(images: Tensor, rebuilt: Tensor) -> Tensor:
        error = (images - rebuilt).square().mean((1, 2, 3))
        return 10 * torch.log10(4 / error.clamp_min(1e-10))


def _as_a_file(rebuilt: Tensor) -> Tensor:
    """Pictures as 8 bits hold them, in [-1, 1]."""
    return rebuilt.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


def lengths_tried(tokens: int) -> list[int]:
    """1, 2, 4, ... and all: where curves of quality are measured."""
    return sorted({*(2**i for i in range(tokens.bit_length())), tokens})


def search(tokenizer: Tokenizer, images: Tensor, target: Target) -> Tokens:
    """Images [B, 3, H, W] -> all their tokens, with ``lengths`` [B]: the fewest that meet a target.

    By bisection, at most log2 L + 1 decodes of each picture. A picture that all L tokens do not
    bring to the target has all of them, and ``met`` says so; what ``met`` says is met was decoded
    and measured. Fewest where more tokens are never worse. Raises UserError if the tokenizer is not
    nested.
    """
    tokenizer.check_tokens(1)
    most = tokenizer.config.tokens
    with evaluating(tokenizer):
        tokens = tokenizer.encode(images)
        low = torch.ones(len(images), dtype=torch.long, device=images.device)
        high = torch.full_like(low, most)

        near = target.judge.beside(images)

        def good(rows: Tensor, lengths: Tensor) -> Tensor:
            latents = tokens.latents[rows, : int(lengths.max())]
            rebuilt = tokenizer.decode(latents, images.shape[-2:], lengths)
            return near(rebuilt, rows) >= target.decibels

        while len(rows := (low < high).nonzero()[:, 0]):
            middle = (low[rows] + high[rows]) // 2
            enough = good(rows, middle)
            high[rows] = torch.where(enough, middle, high[rows])
            low[rows] = torch.where(enough, low[rows], middle + 1)
        met = high < most
        if len(rows := (~met).nonzero()[:, 0]):
            met[rows] = good(rows, high[rows])
    tokens.lengths, tokens.met = high, met
    return tokens


def predict(tokenizer: Tokenizer, images: Tensor, budget: Predicted) -> Tokens:
    """Images [B, 3, H, W] -> their tokens, with ``lengths`` [B] as a predictor tells; no decode."""
    tokenizer.check_tokens(1)
    with evaluating(tokenizer):
        lengths = budget.predictor.to(images.device).lengths(images, budget.target)
        tokens = tokenizer.encode(images, tokens=int(lengths.max()))
    tokens.lengths = lengths
    return tokens


class Curve(nn.Module):
    """A quadratic function of ``inputs`` numbers to ``outputs``, by ridge regression."""

    mean: Tensor
    std: Tensor
    weight: Tensor

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))
        self.register_buffer("weight", torch.zeros((inputs + 1) * (inputs + 2) // 2, outputs))

    def products(self, x: Tensor) -> Tensor:
        """Inputs [B, n] -> 1, each of them at unit scale, and their products, [B, (n+1)(n+2)/2]."""
        x = F.pad((x - self.mean) / self.std, (1, 0), value=1.0)
        first, second = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
        return x[:, first] * x[:, second]

    def forward(self, x: Tensor) -> Tensor:
        return self.products(x) @ self.weight

    def fit(self, x: Tensor, y: Tensor, ridge: float = 1e-3) -> None:
        """To inputs [N, n] and outputs [N, m]."""
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0, correction=0).clamp_min(1e-6))
        a = self.products(x).double()
        penalty = ridge * len(a) * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        penalty[0, 0] = 0.0
        self.weight.copy_(torch.linalg.lstsq(a.T @ a + penalty, a.T @ y.double()).solution)


class Predictor(nn.Module):
    """The quality at k = 1, 2, 4, .., L tokens, from that of a linear code of as many numbers.

    The first k x C coefficients of a picture's cosine transform are that code. By Parseval's
    theorem the energy that they leave is its error, at every k; what it looks like to the eye is
    looked at, at two k. A tokenizer does better by an amount that depends on the picture: a
    quadratic function of those, fitted on photos. The tokenizer itself decodes nothing.
    """

    def __init__(self, tokens: int, channels: int):
        super().__init__()
        self.at = lengths_tried(tokens)
        self.looked_at = sorted({self.at[len(self.at) * part // 3] for part in (1, 2)})
        self.spectrum = Spectrum(tokens, channels)
        energies, levels = len(self.at) + 1, len(self.at)
        self.psnr = Curve(energies, levels)
        self.eye = Curve(energies + len(self.looked_at), levels)

    def inputs(self, images: Tensor, near: Callable[..., Tensor] | None = None) -> Tensor:
        """Images [B, 3, H, W] -> energies left in dB, [B, n]; with the eye's ``Judge.beside`` what
        that says of linear codes too."""
        coefficients = self.spectrum(images)
        energy = (coefficients * self.spectrum.scale.view(coefficients.shape[1:])).square().sum(-1)
        whole = images.square().mean((2, 3)).sum(1)
        held = energy.cumsum(1)
        left = torch.stack([whole, *(whole - held[:, k - 1] for k in self.at)], dim=1)
        found = 10 * torch.log10(left.clamp_min(1e-6))
        if near is None:
            return found
        codes = [
            self.spectrum.inverse(coefficients[:, :k], *images.shape[-2:]) for k in self.looked_at
        ]
        return torch.cat([found, torch.stack([near(code) for code in codes], dim=1)], dim=1)

    def lengths(self, images: Tensor, target: Target) -> Tensor:
        """How many tokens each image needs, int64 [B], without a decode."""
        if target.measure == "psnr":
            curve = self.psnr(self.inputs(images))
        else:
            curve = self.eye(self.inputs(images, target.judge.beside(images)))
        return self.crossing(curve, target.decibels)

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
    def fit(self, tokenizer: Tokenizer, pictures: Iterable[Tensor]) -> None:
        """Learn a tokenizer's curves on batches of photos [B, 3, H, W]; some hundred are enough."""
        measures = [(Judge("psnr"), self.psnr), (Judge("eye"), self.eye)]
        inputs: list[list[Tensor]] = [[], []]
        curves: list[list[Tensor]] = [[], []]
        with evaluating(tokenizer):
            for images in pictures:
                images = images.to(tokenizer.device)
                latents = tokenizer.encode(images).latents
                near = [judge.beside(images) for judge, _ in measures]
                inputs[0].append(self.inputs(images))
                inputs[1].append(self.inputs(images, near[1]))
                found = []
                for k in self.at:
                    rebuilt = tokenizer.decode(latents[:, :k], images.shape[-2:])
                    found.append(torch.stack([each(rebuilt) for each in near]))
                for curve, part in zip(curves, torch.stack(found, dim=2), strict=True):
                    curve.append(part)
        for (_, learned), x, y in zip(measures, inputs, curves, strict=True):
            learned.fit(torch.cat(x), torch.cat(y))

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
