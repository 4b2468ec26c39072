"""What every token, and every number of first tokens, is worth: what is lost without it.

A token is removed by putting that of the average photo in its place: no decoder here was trained
with holes, and the average says nothing of the photo.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from softvq.explain.variation import mean_square, pictures_of, without, without_each
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.perceptual import EyeDistance

FLOOR = 1e-8  # of squared errors of peak 1, 80 dB: rounding is not worth more


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of peak 1 against the photos, of N photos.

    full [N]: with all tokens.  without [N, L]: without each, nan where it was not taken away.
    inside_full, inside: the same inside the photo's mask, nan where that is empty; None without
    masks.
    eye [N, L]: how much further from the photo the eye finds it without each token, nan where it
    did not look.
    """

    full: Tensor
    without: Tensor
    eye: Tensor
    inside_full: Tensor | None = None
    inside: Tensor | None = None

    @property
    def lost(self) -> Tensor:
        """dB that a photo loses without a token, [N, L]; nan where it was not taken away."""
        return decibels(self.without, self.full[:, None])

    @property
    def margin(self) -> Tensor:
        """Half of a 95% interval around the mean of ``lost`` over photos, by its standard error,
        [L]; nan for tokens that were taken from one photo."""
        known = ~self.lost.isnan()
        off = torch.where(known, self.lost - self.lost.nanmean(0), 0.0)
        count = known.sum(0)
        variance = off.square().sum(0) / (count - 1)  # 0 / 0 is nan
        return 1.96 * (variance / count).sqrt()

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

    All tokens from the photos ``whole``. From the others all, if that is ``most`` or fewer in sum
    with those; else every second, third, .. token of a photo, others of the next, so that each is
    taken from as many.
    """
    always = sorted(set(whole))
    rest = [i for i in range(photos) if i not in set(always)]
    every = max(1, -(-len(rest) * tokens // max(tokens, most - len(always) * tokens)))
    found = torch.ones(photos, tokens, dtype=torch.bool)
    found[rest] = (torch.arange(len(rest))[:, None] + torch.arange(tokens)) % every == 0
    return found


def errors_without_each(
    tokenizer: Tokenizer,
    pictures: Tensor,
    latents: Tensor,
    mean: Tensor,
    masks: np.ndarray | None = None,
    which: Tensor | None = None,
    eyed: Iterable[int] = (),
    done: Callable[[int], object] = lambda count: None,
) -> Errors:
    """Remove tokens from pictures [N, 3, H, W], one at a time.

    latents: theirs, normalised [N, L, C].  mean: the average photo's [L, C].  masks: bool
    [N, H, W].  which: bool [N, L], see :func:`removals`; None for every token of every photo.
    eyed: pictures that the eye looks at.  ``done`` is told of pictures decoded.
    """
    rows = []
    seen = torch.full(latents.shape[:2], torch.nan)
    looked = set(eyed)
    for i, (picture, z) in enumerate(zip(pictures, latents, strict=True)):
        gone = torch.ones(len(z), dtype=torch.bool) if which is None else which[i]
        variants = torch.cat([z[None], without_each(z, mean)[gone]])
        rebuilt = pictures_of(tokenizer, variants)
        errors = mean_square(rebuilt, picture)
        mask = None if masks is None else torch.from_numpy(np.asarray(masks[i]))
        measured = [errors.mean((1, 2))]
        if mask is not None:
            measured.append(errors[:, mask].mean(1))  # nan where it is empty
        row = torch.full((len(measured), 1 + len(z)), torch.nan)
        row[:, torch.cat([torch.tensor([True]), gone])] = torch.stack(measured)
        rows.append(row)
        if i in looked:
            away = to_the_eye(picture, rebuilt)
            seen[i, gone] = away[1:] - away[0]
        done(len(variants))
    found = torch.stack(rows)
    parts = (found[:, k] for k in range(found.shape[1]))
    full, without, *inside = (part for whole in parts for part in (whole[:, 0], whole[:, 1:]))
    return Errors(full, without, seen, *inside)


@torch.no_grad()
def to_the_eye(picture: Tensor, others: Tensor) -> Tensor:
    """How far the eye finds pictures [B, 3, H, W] from one [3, H, W]: [B]."""
    network = EyeDistance()
    views = network.views(picture[None])
    return torch.cat([network.between(views, network.views(some)) for some in others.split(16)])


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


def prefixes(pictures: Tensor, firsts: Tensor, counts: list[int]) -> list[Prefix]:
    """What the first tokens keep of pictures [N, 3, H, W].

    firsts [N, K, 3, H, W]: rebuilt from each of K ``counts`` of tokens, see :func:`with_first`.
    """
    errors = mean_square(firsts, pictures[:, None]).mean((2, 3)).clamp_min(FLOOR)
    psnr = -10 * errors.log10().mean(0)
    eye = torch.stack([to_the_eye(*pair) for pair in zip(pictures, firsts, strict=True)]).mean(0)
    return [Prefix(*row) for row in zip(counts, psnr.tolist(), eye.tolist(), strict=True)]
