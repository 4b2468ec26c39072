"""Is what is said about tokens true? Tests on held-out photos, and controls that must fail.

Deletion: tokens are removed from a photo in the order of their stated importance, and in random
order; a true order hurts more. Swap: a token is replaced by another photo's, and the picture must
change where the derivative along that move says so. Control: both are asked of the same network
with its weights shuffled (Adebayo et al. 2018), which knows nothing of photos.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from softvq.explain.contributions import Errors, decibels, errors_without_each
from softvq.explain.maps import correlation, picture_change
from softvq.explain.variation import latents_of, mean_square, pictures_of, without
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.spectral import Spectrum

ORDERS = 4  # random orders of every photo
CONTROLS = 12  # shuffled networks, each of which is asked about a photo or a few


def deletion_counts(tokens: int) -> list[int]:
    """How many tokens are removed: up to half of them, in at most four steps."""
    half = max(1, tokens // 2)
    return sorted({max(1, round(half * i / 4)) for i in range(1, 5)})


def random_orders(photos: int, tokens: int, seed: int) -> Tensor:
    """int64 [ORDERS, photos, tokens], each row a permutation.

    Those of a photo are one, shifted by a part of its length each: every token goes early in one
    of them and late in another, so that chance is no luck with the strongest.
    """
    draws = torch.Generator().manual_seed(seed)
    first = torch.stack([torch.randperm(tokens, generator=draws) for _ in range(photos)])
    return torch.stack([first.roll(i * tokens // ORDERS, 1) for i in range(ORDERS)])


def deleted(
    tokenizer: Tokenizer,
    pictures: Tensor,
    latents: Tensor,
    mean: Tensor,
    full: Tensor,
    orders: Tensor,
) -> Tensor:
    """dB lost while tokens go in each of O orders [O, N, L] of N photos: [O, N, S].

    full [N]: errors with all tokens.  S: see :func:`deletion_counts`.
    """
    counts = deletion_counts(orders.shape[-1])
    rows = []
    for picture, z, whole, mine in zip(pictures, latents, full, orders.unbind(1), strict=True):
        gone = [order[:count] for order in mine.tolist() for count in counts]
        variants = torch.stack([without(z, mean, tokens) for tokens in gone])
        errors = mean_square(pictures_of(tokenizer, variants), picture).mean((1, 2))
        rows.append(decibels(errors, whole).view(len(mine), len(counts)))
    return torch.stack(rows, dim=1)


@dataclass(frozen=True)
class Swaps:
    """Correlations over pixels, one for each swap: of the change with what was predicted.

    along: the derivative along the move itself.  typical: the influence map, the same for all moves
    of the token in this photo.  shuffled: the derivative in the network with shuffled weights.
    """

    along: Tensor
    typical: Tensor
    shuffled: Tensor


def swap_pairs(
    rows: Sequence[int], photos: int, tokens: int, count: int, seed: int
) -> list[tuple[int, int, int]]:
    """(one of ``rows``, another photo of 0..photos-1, token) at random."""
    draws = torch.Generator().manual_seed(seed)

    def one(below: int) -> int:
        return int(torch.randint(below, (), generator=draws))

    found = []
    for _ in range(count):
        photo = rows[one(len(rows))]
        found.append((photo, (photo + 1 + one(photos - 1)) % photos, one(tokens)))
    return found


def swapped_change(tokenizer: Tokenizer, latents: Tensor, swapped: Tensor) -> Tensor:
    """How far pixels change, peak 1, when latents [L, C] become each of [n, L, C]: [n, H, W]."""
    before, *after = pictures_of(tokenizer, torch.cat([latents[None], swapped]))
    return mean_square(before, torch.stack(after)).sqrt()


def predicted_change(tokenizer: Tokenizer, latents: Tensor, swapped: Tensor) -> Tensor:
    """The same, by the derivative at the photo as it is."""
    return (picture_change(tokenizer, latents, swapped - latents) / 2).square().mean(1).sqrt()


def with_token_of(latents: Tensor, photo: int, others: list[tuple[int, int]]) -> Tensor:
    """Latents [N, L, C] of a photo with one token of another photo, for every (other photo, token):
    [n, L, C]."""
    found = latents[photo].expand(len(others), -1, -1).clone()
    for row, (donor, token) in zip(found, others, strict=True):
        row[token] = latents[donor, token]
    return found


def shuffled(tokenizer: Tokenizer, seed: int = 0) -> Tokenizer:
    """The same network with the numbers of every weight in another order: it has learned nothing.

    Unlike a new one it keeps the size of what it computes. Of a spectral one the coefficients are
    dealt out to the tokens anew, too: which band is whose was given, not learned.
    """
    draws = torch.Generator().manual_seed(seed)
    other = deepcopy(tokenizer)
    with torch.no_grad():
        for weight in other.parameters():
            flat = weight.flatten()
            mixed = flat[torch.randperm(flat.numel(), generator=draws).to(flat.device)]
            weight.copy_(mixed.view_as(weight))
    for part in other.modules():
        if isinstance(part, Spectrum):  # encoder and decoder alike
            dealt = torch.randperm(len(part.where), generator=torch.Generator().manual_seed(seed))
            part.where, part.scale = part.where[dealt], part.scale[dealt]
    return other


def swaps(
    tokenizer: Tokenizer,
    control: Tokenizer,
    latents: Tensor,
    of_control: Tensor,
    pairs: Sequence[tuple[int, int, int]],
    typical: Callable[[int, int], Tensor],
) -> Swaps:
    """Ask for every (photo, donor, token).

    latents, of_control: of the photos by the tokenizer and by the control, [N, L, C].
    typical: the influence map [H, W] of (photo, token).
    """
    found = []
    for photo in sorted({photo for photo, _, _ in pairs}):
        others = [(donor, token) for which, donor, token in pairs if which == photo]
        swapped, of_other = (with_token_of(z, photo, others) for z in (latents, of_control))
        true = swapped_change(tokenizer, latents[photo], swapped)
        guesses = (
            predicted_change(tokenizer, latents[photo], swapped),
            torch.stack([typical(photo, token) for _, token in others]),
            predicted_change(control, of_control[photo], of_other),
        )
        found.append(torch.stack([correlation(true, guess) for guess in guesses]))
    return Swaps(*torch.cat(found, dim=1))


@dataclass(frozen=True)
class Checks:
    """Whether what is said of tokens can be believed.

    removed: numbers of tokens removed.  stated, chance, control: dB lost by then in the order of
    stated importance, at random, and in the order that the shuffled network states.
    hurt, control_hurt: added squared error in the stated order over that in random order, mean over
    these numbers and over photos, each as a share of the most that was done to it; 1 is worth
    nothing.
    along: correlation of the pixels that a swap changed with the derivative's; typical: with the
    token's map, which is the same for every swap; shuffled: with the shuffled network's derivative.
    Medians over ``swaps`` swaps between held-out photos.
    """

    photos: int
    removed: list[int]
    stated: list[float]
    chance: list[float]
    control: list[float]
    hurt: float
    control_hurt: float
    swaps: int
    along: float
    typical: float
    shuffled: float


def check(
    tokenizer: Tokenizer,
    pictures: Tensor,
    latents: Tensor,
    mean: Tensor,
    errors: Errors,
    rows: list[int],
    pairs: Sequence[tuple[int, int, int]],
    typical: Callable[[int, int], Tensor],
    seed: int = 0,
    done: Callable[[int], object] = lambda count: None,
) -> Checks:
    """Test the stated importance ``errors.lost`` and the maps on pictures [N, 3, H, W].

    rows: the photos that tokens are deleted from.  pairs, typical: see :func:`swaps`.  ``done`` is
    told of pictures decoded.
    """
    control = shuffled(tokenizer, seed)
    of_control = latents_of(control, pictures)
    count, steps = latents.shape[1], deletion_counts(latents.shape[1])
    of_rows = pictures[rows], latents[rows]
    known = []
    for i, part in enumerate(torch.arange(len(rows)).tensor_split(CONTROLS)):
        if not len(part):
            continue
        # One network that knows nothing may be right about the strongest token by luck.
        other = shuffled(tokenizer, seed + i)
        own = latents_of(other, of_rows[0])
        known.append(
            errors_without_each(other, of_rows[0][part], own[part], own.mean(0), done=done).lost
        )
    said = [lost.argsort(1, descending=True) for lost in (errors.lost[rows], torch.cat(known))]
    orders = torch.cat([torch.stack(said), random_orders(len(rows), count, seed)])
    found = []
    for i, row in enumerate(rows):
        one = of_rows[0][[i]], of_rows[1][[i]], mean, errors.full[[row]], orders[:, [i]]
        found.append(deleted(tokenizer, *one))
        done(len(orders) * len(steps))
    lost = torch.cat(found, dim=1)
    stated, by_control, by_chance = lost[0], lost[1], lost[2:]
    added = (10 ** (lost / 10) - 1) * errors.full[rows][:, None]  # squared error, [O, N, S]
    added = (added / added.amax((0, 2), keepdim=True).clamp_min(1e-12)).mean((1, 2))
    by_luck = float(added[2:].mean().clamp_min(1e-12))
    seen = swaps(tokenizer, control, latents, of_control, pairs, typical)
    done(3 * len(pairs))
    return Checks(
        photos=len(rows),
        removed=steps,
        stated=stated.mean(0).tolist(),
        chance=by_chance.mean((0, 1)).tolist(),
        control=by_control.mean(0).tolist(),
        hurt=float(added[0]) / by_luck,
        control_hurt=float(added[1]) / by_luck,
        swaps=len(pairs),
        along=float(seen.along.median()),
        typical=float(seen.typical.median()),
        shuffled=float(seen.shuffled.median()),
    )
