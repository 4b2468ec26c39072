"""Which tokens carry what is marked in a photo, a blowhole, and whether it goes when they do.

The marked place is painted over from its border; what changes in the tokens is the part of them
that is the mark. Token by token that part is taken away, those first that take the most contrast
with them: the mark is carried by the fewest that halve it. If they are few, the mark is theirs; if
it takes many, it is spread.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from softvq.explain.contributions import FLOOR
from softvq.explain.variation import AT_ONCE, latents_of, mean_square, pictures_of
from softvq.tokenizer import Tokenizer

GONE = 0.5  # of the contrast, at which a mark counts as removed
OUTSIDE_DB = 0.5  # loss of PSNR outside that is let pass
FEW = 4  # tokens: with more the mark is spread
SEEN = 0.3  # of the contrast in the photo, below which the rebuilt picture does not show the mark
RING = 2  # pixels, at least, of the surroundings that a mark is compared with


@dataclass(frozen=True)
class Mark:
    """What carries the mark of one photo.

    photo: its number.  kept: share of the mark's contrast that is in the rebuilt picture.
    shares: of each token in its contrast, [L]; 1 in sum where tokens do not lean on each other.
    tokens: the fewest that take half of the contrast with them, the strongest first.
    contrast_left: share of the rebuilt contrast that is left without their part.
    outside_db: change of PSNR outside of the mark then, negative for a loss.  removed: whether
    both are within bounds.
    verdict: few (FEW tokens or fewer carry it, and it goes with them) | spread | lost
        (the rebuilt picture does not show it to begin with).
    """

    photo: int
    kept: float
    shares: list[float]
    tokens: list[int]
    contrast_left: float
    outside_db: float
    removed: bool
    verdict: Literal["few", "spread", "lost"]


def ring(mask: np.ndarray) -> np.ndarray:
    """The surroundings of a mask [H, W]: a quarter of its diameter wide, RING pixels at least."""
    from scipy.ndimage import distance_transform_edt  # takes a moment

    away = distance_transform_edt(~mask)
    reach = max(RING, np.sqrt(4 * mask.sum() / np.pi) / 4)
    return (away > 1) & (away <= 1 + reach)


def contrast(pictures: Tensor, mask: np.ndarray) -> Tensor:
    """Brightness inside minus that of the surroundings, in levels of 0 to 1; [B, 3, H, W] -> [B].

    Signed: dark on bright is negative.
    """
    inside, around = torch.from_numpy(mask), torch.from_numpy(ring(mask))
    grey = (pictures.mean(1) + 1) / 2
    return grey[:, inside].mean(1) - grey[:, around].mean(1)


def painted_over(picture: Tensor, mask: np.ndarray) -> Tensor:
    """A picture [3, H, W] whose mask, a pixel wider, is filled smoothly from its border."""
    from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter

    wide = binary_dilation(mask, iterations=2)
    nearest = distance_transform_edt(wide, return_distances=False, return_indices=True)
    filled = picture.numpy()[:, nearest[0], nearest[1]]
    width = max(1.0, float(np.sqrt(wide.sum() / np.pi)) / 2)
    smooth = np.stack([gaussian_filter(plane, width) for plane in filled])
    return torch.from_numpy(np.where(wide, smooth, picture.numpy()))


def find_carriers(
    tokenizer: Tokenizer, picture: Tensor, mask: np.ndarray, photo: int = 0
) -> tuple[Mark, Tensor]:
    """Of a picture [3, H, W] with a mask [H, W], not empty; and pictures [4, 3, H, W]: the photo,
    rebuilt, without the carriers' part of the mark, and rebuilt from the painted photo.
    """
    painted = painted_over(picture, mask)
    z, clean = latents_of(tokenizer, torch.stack([picture, painted]))
    count = len(z)

    def cleaned(tokens: list[int]) -> Tensor:
        mixed = z.clone()
        mixed[tokens] = clean[tokens]
        return mixed

    singles = torch.stack([cleaned([i]) for i in range(count)])
    rebuilt, without_all = pictures_of(tokenizer, torch.stack([z, clean]))
    there = contrast(picture[None], mask)[0]
    held, left = contrast(torch.stack([rebuilt, without_all]), mask)
    kept = float(held / there) if abs(there) > 1e-6 else 0.0
    span = held - left  # what the tokens hold of the mark
    alone = contrast(pictures_of(tokenizer, singles), mask)
    shares = (held - alone) / span if abs(span) > 1e-6 else torch.zeros(count)
    order = shares.argsort(descending=True).tolist()
    for numbers in torch.arange(1, count + 1).split(AT_ONCE):
        steps = pictures_of(tokenizer, torch.stack([cleaned(order[:n]) for n in numbers]))
        remaining = (
            (contrast(steps, mask) / held).abs() if abs(held) > 1e-6 else torch.ones(len(steps))
        )
        if bool((remaining <= GONE).any()):
            break
    enough = (remaining <= GONE).nonzero().flatten()
    at = int(enough[0]) if len(enough) else len(numbers) - 1
    fewest = int(numbers[at])
    outside = ~torch.from_numpy(mask)
    before, after = (
        mean_square(p, picture)[outside].mean().clamp_min(FLOOR) for p in (rebuilt, steps[at])
    )
    change = float(10 * (before / after).log10())
    gone = float(remaining[at]) <= GONE and change > -OUTSIDE_DB
    few = fewest <= FEW
    verdict: Literal["few", "spread", "lost"] = "few" if few and gone else "spread"
    verdict = "lost" if kept < SEEN else verdict
    found = Mark(
        photo=photo,
        kept=kept,
        shares=shares.tolist(),
        tokens=order[:fewest],
        contrast_left=float(remaining[at]),
        outside_db=change,
        removed=gone,
        verdict=verdict,
    )
    return found, torch.stack([picture, rebuilt, steps[at], without_all])
