"""Tokens of two photos swapped, averaged and removed, and whether the result is one of its own.

Consistency: an edited picture is encoded again; 1 if its tokens are those that were put in, 0 if
they are no nearer to them than the average photo's. A tokenizer that draws a photo it would not
read in the same way has made something up.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from softvq.explain.variation import Variation, latents_of, pictures_of, without
from softvq.tokenizer import Tokenizer

EditName = Literal[
    "first", "second", "strong_from_second", "weak_from_second", "strongest_from_second",
    "average", "without_strongest", "without_weak",
]  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """consistency: see the module.  tokens: which were changed, all of them for an average."""

    name: EditName
    tokens: list[int]
    consistency: float


def edits(
    tokenizer: Tokenizer, first: Tensor, second: Tensor, order: list[int], variation: Variation
) -> tuple[list[Edit], Tensor]:
    """Eight edits of two photos' normalised latents [L, C], and their pictures [8, 3, H, W].

    ``order``: the tokens, the most important first; strong is its first half.
    """
    half = max(1, len(order) // 2)
    strong, weak = order[:half], order[half:]

    def taken(tokens: list[int]) -> Tensor:
        mixed = first.clone()
        mixed[tokens] = second[tokens]
        return mixed

    made: list[tuple[EditName, list[int], Tensor]] = [
        ("first", [], first),
        ("second", [], second),
        ("strong_from_second", strong, taken(strong)),
        ("weak_from_second", weak, taken(weak)),
        ("strongest_from_second", order[:1], taken(order[:1])),
        ("average", sorted(order), (first + second) / 2),
        ("without_strongest", order[:1], without(first, variation.mean, order[:1])),
        ("without_weak", weak, without(first, variation.mean, weak)),
    ]
    latents = torch.stack([z for _, _, z in made])
    pictures = pictures_of(tokenizer, latents)
    again = latents_of(tokenizer, pictures)
    kept = consistency(latents, again, variation.mean)
    named = [Edit(name, tokens, float(k)) for (name, tokens, _), k in zip(made, kept, strict=True)]
    return named, pictures


def consistency(latents: Tensor, again: Tensor, mean: Tensor) -> Tensor:
    """1 - |again - latents|^2 / |latents - mean|^2, of [B, L, C]: [B]."""
    off = (again - latents).square().sum((1, 2))
    return 1 - off / (latents - mean).square().sum((1, 2)).clamp_min(1e-12)
