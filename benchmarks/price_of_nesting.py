"""What nesting costs: one network, one budget; nested, or fixed at 64, 16 and 4 tokens.

    python benchmarks/price_of_nesting.py --data FOLDER --out DIR [--init MODEL] [--images 3200]

Every arm is the recipe ``nested`` with a smaller network and only the change that its name says.
With --init it is MODEL, fine-tuned at half the recipe's rates, as a study does: nested for all
counts, or for one alone, which then has the whole budget.  --seeds 3: how often.
Prints a Markdown table on the held-out photos: mean PSNR and distance in the eye's features, with
the standard deviation over seeds. The same command goes on with what --out holds.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from softvq.coding import reconstruct_all
from softvq.data import open_store
from softvq.evaluate.pixels import eye_distance, psnr
from softvq.models import open_tokenizer
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.perceptual import EyeDistance
from softvq.train.tokenizer import train_tokenizer

NETWORK = [
    *("model.encoder_width=48", "model.encoder_depth=1", "model.decoder_width=64"),
    *("model.decoder_depth=2", "model.refine_width=24", "model.refine_depth=1"),
]
GENTLE = ["train.warmup=256", "train.lr=1.5e-4", "train.muon_lr=0.0035", "data.margin=1.15"]
COUNTS = (64, 16, 4)
ARMS = {"nested": COUNTS, **{f"fixed at {k}": (k,) for k in COUNTS}}  # tokens that are measured


def settings_of(counts: tuple[int, ...], init: str | None, out: Path) -> list[str]:
    """What an arm changes in the recipe; a start of as many tokens is written for it."""
    fixed = len(counts) == 1
    changes = ["objective.whole=1"] if fixed else []
    if init is None:
        nested = ["model.nested=false", f"model.tokens={counts[0]}"] if fixed else []
        return [*NETWORK, *nested, *changes]
    start = out / f"start-{counts[0]}"
    tokenizer = open_tokenizer(init)
    made = Tokenizer(replace(tokenizer.config, tokens=counts[0]))
    made.load_state_dict(tokenizer.state_dict())  # no weight of theirs depends on the count
    made.save_pretrained(start)
    return [f"init={start}", f"model.tokens={counts[0]}", *GENTLE, *changes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", help="a nested tokenizer of the recipe's shape, as shipped")
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--photos", type=int, default=10**9, help="held-out photos at most")
    args = parser.parse_args()
    held_out = open_store(args.data, "val", (256, 256), args.out / "val", 1.0)
    rows = np.linspace(0, len(held_out) - 1, min(args.photos, len(held_out))).astype(int)
    photos = [held_out.images[row] for row in rows]
    eye = EyeDistance()
    print("| arm | tokens | PSNR, dB | eye distance |\n|---|---|---|---|")
    for name, counts in ARMS.items():
        changes = settings_of(counts, args.init, args.out)
        found: dict[int, list[tuple[float, float]]] = {k: [] for k in counts}
        for seed in range(args.seeds):
            run = args.out / f"{name.replace(' ', '-')}-{seed}"
            schedule = [f"train.images={args.images}", f"train.evaluate_every={args.images}"]
            settings = [*changes, *schedule, f"train.seed={seed}"]
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
            cells = [f"{mean:.3f}" for mean in np.mean(figures, axis=0)]
            if len(figures) > 1:
                spread = np.std(figures, axis=0, ddof=1)
                cells = [f"{mean} ± {s:.3f}" for mean, s in zip(cells, spread, strict=True)]
            print(f"| {name} | {k} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
