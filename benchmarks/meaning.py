"""Do tokens say what was put into photos, and does a mark go with the tokens that carry it?

    python benchmarks/meaning.py
    python benchmarks/meaning.py --data mt_defect --masks mt_defect/masks --only Blowhole

Without --data: drawn photos in which one thing alone varies, a square's place, a colour or the
strength of a scratch. 120 to learn a direction, 40 to test it: R2, the same of shuffled values, how
many tokens carry it, and how much of the factor these tokens take along when they are put into
another photo, and how much all others do. With --data: each marked held-out photo whose name has
--only in it.
"""

import argparse

import numpy as np
import torch
from torch import Tensor

from softvq import images
from softvq.coding import size_of
from softvq.explain import find_carriers, find_direction, latents_of, open_photos
from softvq.explain.directions import Direction, Target
from softvq.models import open_tokenizer
from softvq.precision import computing
from softvq.tokenizer import Tokenizer

PHOTOS, FITTED = 160, 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", default="shipped")
    parser.add_argument("--data")
    parser.add_argument("--masks")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    tokenizer = open_tokenizer(args.tokenizer).eval().requires_grad_(False)
    with computing("auto", tokenizer):
        if args.data:
            marked(tokenizer, args.data, args.masks, args.only)
        else:
            planted(tokenizer)


def planted(tokenizer: Tokenizer) -> None:
    print("| varies | R2 | shuffled, mean and largest | carried by | take along | the others |")
    print("|---|---|---|---|---|---|")
    values = torch.rand(PHOTOS, generator=torch.Generator().manual_seed(0)).double()
    for name in ("place", "colour", "scratch"):
        pictures = torch.stack([drawn(name, float(v), *size_of(tokenizer)) for v in values])
        latents = latents_of(tokenizer, pictures)
        target = Target(name, "number", values[:FITTED], values[FITTED:])
        found = find_direction(target, latents[:FITTED], latents[FITTED:])
        taken = [taken_along(found, latents, values, named) for named in (True, False)]
        shuffled = f"{found.control:.2f}, {found.control_largest:.2f}"
        carried = f"{len(found.carriers)} of {latents.shape[1]} tokens"
        shares = " | ".join(f"{share:.0%}" for share in taken)
        print(f"| {name} | {found.score:.3f} | {shuffled} | {carried} | {shares} |", flush=True)


def drawn(name: str, value: float, height: int, width: int) -> Tensor:
    """A photo [3, H, W] of a soft slope of grey with one thing as ``value`` (0 .. 1) says."""
    slope = torch.linspace(-0.4, 0.2, width) + torch.linspace(-0.1, 0.1, height)[:, None]
    picture = slope.expand(3, -1, -1).clone()
    side = height // 4
    if name == "place":
        left = round(value * (width - side))
        picture[:, side : 2 * side, left : left + side] += 0.6
    elif name == "colour":
        picture[0, side:-side, side:-side] += 0.6 * value
        picture[2, side:-side, side:-side] -= 0.6 * value
    else:
        picture[:, 2 * side : 2 * side + max(1, height // 64), side:-side] -= 0.6 * value
    return picture


def taken_along(found: Direction, latents: Tensor, values: Tensor, named: bool) -> float:
    """The share of the way from the least to the most of a factor that the named tokens, or all
    others, go on their own, by what a direction says."""
    low, high = latents[values.argmin()], latents[values.argmax()]
    moved = torch.full((len(low),), not named)
    moved[found.carriers] = named
    mixed = torch.where(moved[:, None], high, low)
    start, now, end = found.of(torch.stack([low, mixed, high])).tolist()
    return (now - start) / (end - start)


def marked(tokenizer: Tokenizer, data: str, masks: str | None, only: str) -> None:
    print("| photo | kept | tokens | contrast left | PSNR of the rest, dB | verdict |")
    print("|---|---|---|---|---|---|")
    with open_photos(data, size_of(tokenizer), masks=masks) as photos:
        assert photos.masks is not None
        for i, name in enumerate(photos.held_out.names):
            if only not in name or not photos.masks[i].any():
                continue
            picture = images.to_tensor(np.asarray(photos.held_out.images[[i]]))[0]
            mark, _ = find_carriers(tokenizer, picture, photos.masks[i])
            print(
                f"| {name} | {mark.kept:.0%} | {len(mark.tokens)} | {mark.contrast_left:.0%} | "
                f"{mark.outside_db:+.2f} | {mark.verdict} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
