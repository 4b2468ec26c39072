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
    """How many tokens are removed: up to half of them, in at most eight steps."""
    half = max(1, tokens // 2)
    return sorted({max(1, round(half * i / 8)) for i in range(1, 9)})


def random_orders(photos: int, tokens: int, seed: int) -> Tensor:
    """int64 [photos, tokens], each row a permutation."""
    draws = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(tokens, generator=draws) for _ in range(photos)])


def deleted(
    tokenizer: Tokenizer, pictures: Tensor, latents: Tensor, mean: Tensor, orders: Tensor
) -> Tensor:
    """dB lost while tokens go in the order [N, L] of each photo: [N, len(deletion_counts)]."""
    rows = []
    for picture, z, order in zip(pictures, latents, orders.tolist(), strict=True):
        gone = [0, *deletion_counts(len(order))]
        variants = torch.stack([without(z, mean, order[:count]) for count in gone])
        errors = mean_square(pictures_of(tokenizer, variants), picture).mean((1, 2))
        rows.append(decibels(errors[1:], errors[0]))
    return torch.stack(rows)


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


def swapped_change(tokenizer: Tokenizer, latents: Tensor, donor: Tensor, token: int) -> Tensor:
    """How far pixels change, peak 1, [H, W], when a token [L, C] is another photo's."""
    swapped = latents.clone()
    swapped[token] = donor[token]
    before, after = pictures_of(tokenizer, torch.stack([latents, swapped]))
    return mean_square(before, after).sqrt()


def predicted_change(tokenizer: Tokenizer, latents: Tensor, donor: Tensor, token: int) -> Tensor:
    """The same, by the derivative at the photo as it is."""
    move = torch.zeros_like(latents)
    move[token] = donor[token] - latents[token]
    return (picture_change(tokenizer, latents, move[None])[0] / 2).square().mean(0).sqrt()


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
    for photo, donor, token in pairs:
        z, other = latents[photo], latents[donor]
        true = swapped_change(tokenizer, z, other, token)
        guesses = (
            predicted_change(tokenizer, z, other, token),
            typical(photo, token),
            predicted_change(control, of_control[photo], of_control[donor], token),
        )
        found.append(torch.stack([correlation(true, guess) for guess in guesses]))
    return Swaps(*torch.stack(found).unbind(1))


@dataclass(frozen=True)
class Checks:
    """Whether what is said of tokens can be believed.

    removed: numbers of tokens removed.  stated, chance, control: dB lost by then in the order of
    stated importance, at random, and in the order that the shuffled network states.
    hurt, control_hurt: added squared error in the stated order over that in random order, mean over
    these numbers; 1 is worth nothing.
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
    for i, some in enumerate(of_rows[0].tensor_split(CONTROLS)):
        if not len(some):
            continue
        # One network that knows nothing may be right about the strongest token by luck.
        other = shuffled(tokenizer, seed + i)
        average = latents_of(other, of_rows[0]).mean(0)
        known.append(errors_without_each(other, some, latents_of(other, some), average).lost)
        done(len(some) * count)
    said = [lost.argsort(1, descending=True) for lost in (errors.lost[rows], torch.cat(known))]
    chance = [random_orders(len(rows), count, seed + i) for i in range(ORDERS)]
    found = []
    for orders in (*said, *chance):
        found.append(deleted(tokenizer, *of_rows, mean, orders))
        done(len(rows) * (len(steps) + 1))
    stated, by_control, by_chance = found[0], found[1], torch.stack(found[2:])
    full = errors.full[rows][:, None]

    def added(decibels: Tensor) -> float:  # squared error
        return float(((10 ** (decibels / 10) - 1) * full).mean())

    by_luck = max(added(by_chance), 1e-12)
    seen = swaps(tokenizer, control, latents, of_control, pairs, typical)
    done(12 * len(pairs))
    return Checks(
        photos=len(rows),
        removed=steps,
        stated=stated.mean(0).tolist(),
        chance=by_chance.mean((0, 1)).tolist(),
        control=by_control.mean(0).tolist(),
        hurt=added(stated) / by_luck,
        control_hurt=added(by_control) / by_luck,
        swaps=len(pairs),
        along=float(seen.along.median()),
        typical=float(seen.typical.median()),
        shuffled=float(seen.shuffled.median()),
    )
