"""What every token, and every number of first tokens, is worth: what is lost without it.

A token is removed by putting that of the average photo in its place: no decoder here was trained
with holes, and the average says nothing of the photo.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softvq.evaluate.pixels import eye_distance
from softvq.explain.variation import mean_square, pictures_of, without, without_each
from softvq.tokenizer import Tokenizer

FLOOR = 1e-8  # of squared errors of peak 1, 80 dB: rounding is not worth more


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of peak 1 against the photos, of N photos.

    full [N]: with all tokens.  without [N, L]: without each, nan where it was not taken away.
    inside_full, inside: the same inside the photo's mask, nan where that is empty; None without
    masks.
    """

    full: Tensor
    without: Tensor
    inside_full: Tensor | None = None
    inside: Tensor | None = None

    @property
    def lost(self) -> Tensor:
        """dB that a photo loses without a token, [N, L]; nan where it was not taken away."""
        return decibels(self.without, self.full[:, None])

    @property
    def lost_inside(self) -> Tensor | None:
        """dB that its marked region loses, [N, L]; nan where nothing is marked."""
        if self.inside is None or self.inside_full is None:
            return None
        return decibels(self.inside, self.inside_full[:, None])


def decibels(worse: Tensor, better: Tensor) -> Tensor:
    """How many dB of PSNR lie between two mean squared errors."""
    return 10 * (worse.clamp_min(FLOOR) / better.clamp_min(FLOOR)).log10()


def removals(photos: int, tokens: int, most: int, whole: Iterable[int] = ()) -> Tensor:
    """Which tokens are taken from which photos, bool [photos, tokens].

    All, if that is ``most`` or fewer in sum. Else every second, third, .. token of a photo, others
    of the next, so that each is taken from as many; and all from the photos ``whole``.
    """
    every = -(-photos * tokens // most)
    found = (torch.arange(photos)[:, None] + torch.arange(tokens)) % every == 0
    found[list(whole)] = True
    return found


def errors_without_each(
    tokenizer: Tokenizer,
    pictures: Tensor,
    latents: Tensor,
    mean: Tensor,
    masks: np.ndarray | None = None,
    which: Tensor | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> Errors:
    """Remove tokens from pictures [N, 3, H, W], one at a time.

    latents: theirs, normalised [N, L, C].  mean: the average photo's [L, C].  masks: bool
    [N, H, W].  which: bool [N, L], see :func:`removals`; None for every token of every photo.
    ``done`` is told of pictures decoded.
    """
    rows = []
    for i, (picture, z) in enumerate(zip(pictures, latents, strict=True)):
        gone = torch.ones(len(z), dtype=torch.bool) if which is None else which[i]
        variants = torch.cat([z[None], without_each(z, mean)[gone]])
        errors = mean_square(pictures_of(tokenizer, variants), picture)
        mask = None if masks is None else torch.from_numpy(np.asarray(masks[i]))
        measured = [errors.mean((1, 2))]
        if mask is not None:
            measured.append(errors[:, mask].mean(1))  # nan where it is empty
        row = torch.full((len(measured), 1 + len(z)), torch.nan)
        row[:, torch.cat([torch.tensor([True]), gone])] = torch.stack(measured)
        rows.append(row)
        done(len(variants))
    found = torch.stack(rows)
    parts = (found[:, k] for k in range(found.shape[1]))
    split = [part for whole in parts for part in (whole[:, 0], whole[:, 1:])]
    return Errors(*split)


def eye_without_each(
    tokenizer: Tokenizer, pictures: Tensor, latents: Tensor, mean: Tensor
) -> Tensor:
    """How much further from the photo the eye finds it without each token, [N, L]."""
    rows = []
    for picture, z in zip(pictures, latents, strict=True):
        rebuilt = pictures_of(tokenizer, torch.cat([z[None], without_each(z, mean)]))
        away = torch.from_numpy(eye_distance(picture.expand_as(rebuilt), rebuilt)).float()
        rows.append(away[1:] - away[0])
    return torch.stack(rows)


def prefix_counts(tokens: int) -> list[int]:
    """Numbers of tokens to look at, from 1 to all: about two for each doubling."""
    halves = {round(tokens * 2 ** (-i / 2)) for i in range(20)}
    return sorted(k for k in halves | {1, tokens} if 1 <= k <= tokens)


def with_first(
    tokenizer: Tokenizer, latents: Tensor, mean: Tensor, order: list[int], count: int
) -> Tensor:
    """Pictures of latents [B, L, C] from ``count`` tokens.

    Of a nested tokenizer the first ones, as it is used; of another the first of ``order``, with the
    average photo's for the rest.
    """
    if tokenizer.config.nested:
        return pictures_of(tokenizer, latents[:, :count])
    return pictures_of(tokenizer, without(latents, mean, order[count:]))


@dataclass(frozen=True)
class Prefix:
    """Means over photos of what so many tokens keep: PSNR in dB, and the distance to the eye."""

    tokens: int
    psnr: float
    eye: float


def prefixes(
    tokenizer: Tokenizer, pictures: Tensor, latents: Tensor, mean: Tensor, order: list[int]
) -> list[Prefix]:
    """What the first tokens keep of pictures [N, 3, H, W], for each of ``prefix_counts``."""
    found = []
    for count in prefix_counts(len(mean)):
        rebuilt = with_first(tokenizer, latents, mean, order, count)
        errors = mean_square(rebuilt, pictures).mean((1, 2)).clamp_min(FLOOR)
        away = float(eye_distance(pictures, rebuilt).mean())
        found.append(Prefix(count, float(-10 * errors.log10().mean()), away))
    return found
