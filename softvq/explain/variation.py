"""How every token varies over photos, and the pictures that moved tokens make.

Latents are normalised here, as in token files: zero mean and unit variance per channel.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from softvq.io import check_finite
from softvq.tokenizer import Tokenizer

AT_ONCE = 16  # pictures that are decoded together: their maps stay in a cache


def pictures_of(tokenizer: Tokenizer, latents: Tensor) -> Tensor:
    """Normalised latents [B, k, C] -> pictures [B, 3, H, W] in [-1, 1], clamped; no gradient."""
    with torch.no_grad():
        parts = [
            tokenizer.decode(tokenizer.denormalize(some.to(tokenizer.device))).float()
            for some in latents.split(AT_ONCE)
        ]
    return check_finite(torch.cat(parts), "the decoder").clamp(-1, 1).cpu()


def latents_of(tokenizer: Tokenizer, pictures: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in [-1, 1] -> normalised latents [B, L, C]; no gradient."""
    with torch.no_grad():
        parts = [
            tokenizer.normalize(tokenizer.encode(some.to(tokenizer.device)).latents).float()
            for some in pictures.split(AT_ONCE)
        ]
    return check_finite(torch.cat(parts), "the encoder").cpu()


@dataclass(frozen=True)
class Variation:
    """The mean of every token over photos [L, C], and a root of its covariance [L, C, C].

    root[l] @ root[l].T is the covariance; its columns fall in length, the first is the direction
    in which the token varies most, one standard deviation long.
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> Self:
        """From normalised latents [N, L, C]. ValueError for fewer than two."""
        if len(latents) < 2:
            raise ValueError(f"tokens of {len(latents)} photo do not vary; give two or more")
        mean = latents.mean(0)
        centred = (latents - mean).transpose(0, 1).double()  # [L, N, C]
        values, vectors = torch.linalg.eigh(centred.mT @ centred / (len(latents) - 1))
        root = vectors * values.clamp_min(0).sqrt()[:, None]
        return cls(mean, root.flip(-1).float())

    @property
    def std(self) -> Tensor:
        """Of every channel of every token, [L, C], never 0."""
        return self.root.square().sum(-1).sqrt().clamp_min(1e-6)

    @property
    def main(self) -> Tensor:
        """What every token does most, one standard deviation of it, [L, C].

        The sign is free; it is chosen so that the largest number is positive.
        """
        first = self.root[..., 0]
        largest = first.gather(-1, first.abs().argmax(-1, keepdim=True))
        return first * largest.sign()

    def moves(self, count: int, seed: int = 0) -> Tensor:
        """Moves of every token [count, L, C] whose mean outer product is its covariance.

        Orthogonal where the covariance is 1: for ``count`` = C the mean is exact, for fewer (not
        more) it is an unbiased estimate (Hutchinson's, with orthogonal probes).
        """
        channels = self.mean.shape[-1]
        draws = torch.Generator().manual_seed(seed)
        probes = torch.linalg.qr(torch.randn(channels, channels, generator=draws)).Q
        return torch.einsum("lcd,dn->nlc", self.root, probes[:, :count]) * channels**0.5


def without(latents: Tensor, mean: Tensor, tokens: list[int]) -> Tensor:
    """Latents [..., L, C] whose ``tokens`` are those of the average photo."""
    found = latents.clone()
    found[..., tokens, :] = mean[tokens]
    return found


def without_each(latents: Tensor, mean: Tensor) -> Tensor:
    """Latents of one photo [L, C] -> [L, L, C]: the l-th lacks token l."""
    found = latents.expand(len(latents), -1, -1).clone()
    each = torch.arange(len(latents))
    found[each, each] = mean
    return found


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference of pictures in [-1, 1], of peak 1, mean over colours: [..., H, W]."""
    return ((a - b) / 2).square().mean(-3)
