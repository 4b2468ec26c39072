"""What nesting costs: one network, one budget; nested, fixed at all tokens, fixed at a quarter.

    python benchmarks/price_of_nesting.py --data FOLDER --out DIR [--images 3200] [--seeds 3]

Every arm is the recipe ``nested`` with a smaller network and only the change that its name says.
Prints a Markdown table on the held-out photos: mean PSNR and distance in the eye's features, with
the standard deviation over seeds. The same command goes on with what --out holds.
"""

import argparse
from pathlib import Path

import numpy as np

from softvq.coding import reconstruct_all
from softvq.data import open_store
from softvq.evaluate.pixels import eye_distance, psnr
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.perceptual import EyeDistance
from softvq.train.tokenizer import train_tokenizer

NETWORK = [
    *("model.encoder_width=48", "model.encoder_depth=1", "model.decoder_width=64"),
    *("model.decoder_depth=2", "model.refine_width=24", "model.refine_depth=1"),
]
FIXED = ["model.nested=false", "objective.whole=1"]
ARMS: dict[str, tuple[list[str], tuple[int, ...]]] = {  # changes, tokens that are measured
    "nested": ([], (64, 16)),
    "fixed at 64": (FIXED, (64,)),
    "fixed at 16": ([*FIXED, "model.tokens=16"], (16,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=10**9, help="held-out photos at most")
    args = parser.parse_args()
    held_out = open_store(args.data, "val", (256, 256), args.out / "val", 1.0)
    rows = np.linspace(0, len(held_out) - 1, min(args.photos, len(held_out))).astype(int)
    photos = [held_out.images[row] for row in rows]
    eye = EyeDistance()
    print("| arm | tokens | PSNR, dB | eye distance |\n|---|---|---|---|")
    for name, (changes, counts) in ARMS.items():
        found: dict[int, list[tuple[float, float]]] = {k: [] for k in counts}
        for seed in range(args.seeds):
            run = args.out / f"{name.replace(' ', '-')}-{seed}"
            schedule = [f"train.images={args.images}", f"train.evaluate_every={args.images}"]
            settings = [*NETWORK, *changes, *schedule, f"train.seed={seed}"]
            recipe = load_recipe(TokenizerRecipe, "nested", [*settings, f"data.source={args.data}"])
            if not train_tokenizer(recipe, run, args.out / "photos"):
                return
            tokenizer = Tokenizer.from_pretrained(run)
            for k in counts:
                tokens = k if tokenizer.config.nested else None
                originals, rebuilt = reconstruct_all(tokenizer, photos, tokens=tokens)
                seen = eye_distance(originals, rebuilt, eye).mean()
                found[k].append((psnr(originals, rebuilt), float(seen)))
        for k, figures in found.items():
            mean, spread = np.mean(figures, axis=0), np.std(figures, axis=0, ddof=1)
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
            print(f"| {name} | {k} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
