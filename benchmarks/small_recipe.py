"""What each choice of the small recipe is worth: one run of every arm, equal images seen.

    python benchmarks/small_recipe.py --data FOLDER [--images 4000] [--arms default,VQ]
    python benchmarks/small_recipe.py --data FOLDER --init shipped --arms "default,L2 only"

Prints a Markdown table: held-out PSNR and SSIM of the averaged weights, codebook usage of the last
training batches, and images/s of training. Every arm is the shipped recipe ``small`` with the
change that its name says, so only the length of the run differs from what was shipped. With
``--init`` an arm goes on from a trained tokenizer, at 0.15 of the learning rates.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch
from torch import nn

from softvq.data import open_store
from softvq.recipe import TokenizerRecipe, load_recipe, recipe_yaml
from softvq.tokenizer import Tokenizer
from softvq.train.folder import open_run
from softvq.train.loop import train
from softvq.train.tokenizer import TokenizerTask


def common_initialisation(tokenizer: Tokenizer) -> None:
    """The usual start of a vision transformer: N(0, 0.02) everywhere, residual outputs zero."""
    for module in tokenizer.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
    for part in (tokenizer.encoder, tokenizer.decoder):
        nn.init.normal_(part.grid.pos_embed, std=0.02)
        nn.init.normal_(part.latent_pos_embed, std=0.02)
        for block in part.blocks:
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.fc2.weight)


def independent_keys(tokenizer: Tokenizer) -> None:
    """The shipped start, but keys drawn without regard to queries."""
    for block in (*tokenizer.encoder.blocks, *tokenizer.decoder.blocks):
        width = block.attn.proj.in_features
        nn.init.normal_(block.attn.qkv.weight[width : 2 * width], std=width**-0.5)


def closed_attention(tokenizer: Tokenizer) -> None:
    """The shipped start, but attention outputs zero too."""
    for block in (*tokenizer.encoder.blocks, *tokenizer.decoder.blocks):
        nn.init.zeros_(block.attn.proj.weight)


# name -> (recipe overrides, change of the initial weights)
ARMS = {
    "default": ([], None),
    "AdamW on everything": (["train.optimizer=adamw"], None),
    "common initialisation": ([], common_initialisation),
    "independent keys": ([], independent_keys),
    "closed attention": ([], closed_attention),
    "one-step stem": (["model.stem=patch"], None),
    "no gain": (["model.gain=false"], None),
    "L2 only": (["objective.perceptual=0"], None),
    "perceptual 0.05": (["objective.perceptual=0.05"], None),
    "perceptual 0.1": (["objective.perceptual=0.1"], None),
    "batch 64": (["train.batch=64"], None),
    "VQ": (["model.bottleneck=vq"], None),
    "KL": (["model.bottleneck=kl"], None),
    "AE": (["model.bottleneck=ae"], None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="builtin", help="folder of photos, or 'builtin'")
    parser.add_argument("--images", type=int, default=4000, help="images seen by each arm")
    parser.add_argument("--arms", help=f"some of: {', '.join(ARMS)}")
    parser.add_argument("--init", help="directory of a tokenizer to go on from, or 'shipped'")
    args = parser.parse_args()
    names = args.arms.split(",") if args.arms else list(ARMS)
    print(
        f"{args.images:,} images seen, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print("| arm | PSNR dB | SSIM | codebook usage | images/s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            overrides, change = ARMS[name]
            length = [f"train.images={args.images}", f"train.log_every={args.images // 4}"]
            if args.init:
                length += [f"init={args.init}", "train.lr=3e-4", "train.muon_lr=3e-3"]
            recipe = load_recipe(TokenizerRecipe, "small", [*length, *overrides])
            size = (recipe.model.height, recipe.model.width)
            photos = open_store(args.data, "train", size, scratch, recipe.data.margin)
            held_out = open_store(args.data, "val", size, scratch, 1.0)
            task = TokenizerTask(recipe).on(photos, held_out)
            if change:
                with torch.no_grad():
                    change(task.model.tokenizer)
            folder = Path(scratch) / name.replace(" ", "-")
            with open_run(folder, recipe_yaml(recipe)):
                train(task, recipe.train, folder)
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
            steps, final = [line for line in lines if "loss" in line][-1], lines[-1]
            print(
                f"| {name} | {final['psnr']:.2f} | {final['ssim']:.3f} | "
                f"{steps.get('codebook_usage', math.nan):.0%} | "
                f"{steps['images_per_second']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
