"""What fine-tuning the decoder alone gives on photos of another kind, and inside their defects.

    python benchmarks/decoder_only.py --data FOLDER --masks FOLDER --out DIR [--images 8000]

``--data`` has train/ and val/ with a folder for each class, ``--masks`` a picture beside each
held-out photo that has a defect, under the same name: val/CLASS/NAME.png, white inside. Prints a
Markdown table on the held-out photos: PSNR of whole photos, PSNR inside the masks, and whether the
tokens are still those of the model it started from. A run that was stopped goes on when the command
is repeated.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from softvq import images
from softvq.data import Store, find_marks, open_store, read_masks
from softvq.evaluate import evaluate_reconstruction
from softvq.models import open_tokenizer
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.train.tokenizer import train_tokenizer

ARMS = {"decoder": ["trainable=decoder"], "all of it": ["trainable=all"]}


@torch.no_grad()
def all_latents(tokenizer: Tokenizer, photos: Store) -> torch.Tensor:
    """Latents [N, L, C] of whole photos, as the generator knows them."""
    pixels = images.to_tensor(np.asarray(photos.images))
    return tokenizer.normalize(tokenizer.encode(pixels).latents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos with train/ and val/")
    parser.add_argument("--masks", required=True, help="folder of masks with val/")
    parser.add_argument("--out", required=True, help="directory for the runs")
    parser.add_argument("--init", default="shipped", help="tokenizer to start from")
    parser.add_argument("--images", type=int, default=8000, help="images seen by each arm")
    args = parser.parse_args()
    first = open_tokenizer(args.init)
    size = (first.config.height, first.config.width)
    photos = open_store(args.data, "val", size, Path(args.out) / "photos", 1.0)
    original = all_latents(first, photos)
    marks = find_marks(photos.names, photos.root, args.masks)
    sizes = read_masks(marks, size).sum((1, 2))
    print(
        f"{len(photos)} held-out photos, {(sizes > 0).sum()} with a defect of "
        f"{np.median(sizes[sizes > 0]):.0f} pixels (median); {args.images:,} images seen"
    )
    print("| trained | PSNR dB | inside defects | tokens unchanged |\n|---|---|---|---|")

    def report(name: str, tokenizer: Tokenizer) -> None:
        figures = evaluate_reconstruction(tokenizer, photos, masks=Path(args.masks))
        same = torch.equal(all_latents(tokenizer, photos), original)
        print(
            f"| {name} | {figures['psnr_db']:.2f} | {figures['psnr_inside_db']:.2f} | "
            f"{'yes, to the bit' if same else 'no'} |",
            flush=True,
        )

    report("nothing", first)
    for name, overrides in ARMS.items():
        length = [f"init={args.init}", f"train.images={args.images}", "train.lr=3e-4"]
        length += ["train.muon_lr=3e-3", "train.evaluate_every=2000"]
        recipe = load_recipe(TokenizerRecipe, "small", [*length, *overrides])
        recipe.data.source = args.data
        folder = Path(args.out) / overrides[0].partition("=")[2]
        if not train_tokenizer(recipe, folder):
            sys.exit(130)
        report(name, Tokenizer.from_pretrained(folder))


if __name__ == "__main__":
    main()
