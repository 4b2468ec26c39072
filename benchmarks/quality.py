"""Budgets by photo: whether search meets its targets, how far prediction is off, what both gain.

    python benchmarks/quality.py --tokenizer DIR --data FOLDER [--photos 100] [--fit 300] [--save]

A predictor is fitted on ``--fit`` training photos; with --save it is written beside the tokenizer,
where `softvq encode --predict` finds it. Then, on held-out photos evenly spread over all, for each
target (the quality that the median photo has at L/8 and at L/2 tokens):

- the share of photos that meet it by search, the share that says it cannot, and the mean number of
  tokens; the share of predicted numbers within a factor of two of those, their mean number over
  that of the search, and the share of photos that meet the target with them;
- at the search's mean number of tokens, rounded up in favour of one fixed number, budgets by photo
  beside that number for all: the share of photos that meet the target; PSNR, PSNR of the mean error
  and distance to the eye; PSNR and distance of the worst tenth of the photos.

A target spends on the photos that need it and saves on those that do not: it is the worst photos
that gain, and mean figures that pay.
"""

import argparse
import math
import tempfile

import torch
from torch import Tensor

from softvq.coding import batches, evenly, size_of
from softvq.data import open_store
from softvq.models import model_folder, open_tokenizer, part
from softvq.quality import Judge, Predictor, Target, search
from softvq.tokenizer import Tokenizer

BATCH = 25


def qualities(tokenizer: Tokenizer, photos: Tensor, lengths: Tensor, judge: Judge) -> Tensor:
    """On the scale of ``Target.decibels``, [N]."""
    parts = []
    for images, some in zip(photos.split(BATCH), lengths.split(BATCH), strict=True):
        latents = tokenizer.encode(images, tokens=int(some.max())).latents
        parts.append(judge(images, tokenizer.decode(latents, images.shape[-2:], some)))
    return torch.cat(parts)


def worst(values: Tensor) -> Tensor:
    """The tenth of the photos that are rebuilt worst."""
    return values.sort().values[: max(1, len(values) // 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", required=True, help="folder of photos with held-out ones")
    parser.add_argument("--photos", type=int, default=100, help="held-out photos")
    parser.add_argument("--fit", type=int, default=300, help="photos the predictor learns from")
    parser.add_argument("--save", action="store_true", help="keep the predictor")
    args = parser.parse_args()
    tokenizer = open_tokenizer(args.tokenizer)
    most, size = tokenizer.config.tokens, size_of(tokenizer)
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        train, val = (open_store(args.data, s, size, cache, 1.0) for s in ("train", "val"))
        predictor = Predictor(most, tokenizer.config.channels)
        predictor.fit(tokenizer, batches(evenly(train, args.fit)[0], size, BATCH))
        if args.save:
            predictor.save(part(model_folder(args.tokenizer), "tokenizer"))
        photos = torch.stack(list(evenly(val, args.photos)[0]))
    with torch.no_grad():
        run(tokenizer, predictor, photos)


def run(tokenizer: Tokenizer, predictor: Predictor, photos: Tensor) -> None:
    """Print both tables."""
    most = tokenizer.config.tokens
    judges = {"psnr": Judge("psnr"), "eye": Judge("eye")}
    rows = []
    print(f"{len(photos)} held-out photos")
    print("| target | met | cannot | tokens | within x2 | tokens predicted | met by those |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for measure, judge in judges.items():
        for k in (max(1, most // 8), max(1, most // 2)):
            middle = qualities(tokenizer, photos, torch.full((len(photos),), k), judge).median()
            level = float(middle) if measure == "psnr" else 10 ** (-float(middle) / 10)
            target = Target(measure, float(f"{level:.3g}"))
            parts = [search(tokenizer, x, target) for x in photos.split(BATCH)]
            searched = torch.cat([part.lengths for part in parts])
            met = torch.cat([part.met for part in parts])
            told = torch.cat([predictor.lengths(x, target) for x in photos.split(BATCH)])
            near = (told.double().log2() - searched.double().log2()).abs() <= 1
            with_told = qualities(tokenizer, photos, told, judge) >= target.decibels
            mean = searched.double().mean().item()
            print(
                f"| {target} | {share(met)} | {share(~met)} | {mean:.1f} | {share(near)} | "
                f"{told.double().mean() / mean:.2f} x | {share(with_told)} |",
                flush=True,
            )
            rows.append((target, searched, math.ceil(mean)))
    print(
        "\n| target | tokens | meet it | PSNR | of mean error | worst tenth | eye | worst tenth |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for target, searched, fixed in rows:
        for name, lengths in (
            (f"{target}", searched),
            ("the same for all", torch.full_like(searched, fixed)),
        ):
            psnr, near = (qualities(tokenizer, photos, lengths, judges[m]) for m in judges)
            eye = 10 ** (-near / 10)
            met = (psnr if target.measure == "psnr" else near) >= target.decibels
            error = -10 * torch.log10((10 ** (-psnr.double() / 10)).mean())
            print(
                f"| {name} | {lengths.double().mean():.1f} | {share(met)} | {psnr.mean():.2f} | "
                f"{error:.2f} | {worst(psnr).mean():.2f} | {eye.mean():.3f} | "
                f"{-worst(-eye).mean():.3f} |",
                flush=True,
            )


def share(which: Tensor) -> str:
    """In percent."""
    return f"{100 * which.double().mean():.0f}%"


if __name__ == "__main__":
    main()
