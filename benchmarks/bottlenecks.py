"""SoftVQ, VQ, KL and AE on equal terms: equal floats, network, images seen, seed.

    python benchmarks/bottlenecks.py --data FOLDER --out DIR [--images 16000] [--arms SoftVQ,VQ]

Every arm is the shipped recipe ``small`` with another bottleneck. Prints a Markdown table on the
held-out photos: PSNR, SSIM, Frechet distance of reconstructions (features of the shipped probe),
and, where there is a codebook, the share of codewords that are nearest to some token of a training
photo, with their perplexity. A run that was stopped goes on when the command is repeated.
"""

import argparse
import sys
from pathlib import Path

import torch

from softvq.data import Store, fixed_batches, open_store
from softvq.evaluate import codebook_use, evaluate_reconstruction, load_network
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.train.tokenizer import train_tokenizer

# name -> recipe overrides
ARMS = {
    "SoftVQ": [],
    "SoftVQ, entropy 0.01": ["model.entropy_weight=0.01"],
    "VQ": ["model.bottleneck=vq"],
    "VQ, moving average": ["model.bottleneck=vq", "model.vq_update=ema"],
    "KL": ["model.bottleneck=kl"],
    "AE": ["model.bottleneck=ae"],
}


@torch.no_grad()
def usage(tokenizer: Tokenizer, photos: Store) -> str:
    """Share of codewords used and their perplexity over all photos; a dash without a codebook."""
    found = [tokenizer.encode(pixels).indices for pixels, _ in fixed_batches(photos, 64)]
    if found[0] is None:
        return "-"
    share, perplexity = codebook_use(torch.cat(found), tokenizer.config.codebook_size)
    return f"{share:.1%} ({perplexity:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of photos")
    parser.add_argument("--out", required=True, help="directory for the runs")
    parser.add_argument("--images", type=int, default=16000, help="images seen by each arm")
    parser.add_argument("--arms", help=f"some of: {'; '.join(ARMS)} (separated by ;)")
    args = parser.parse_args()
    probe = load_network("shipped")
    print(f"{args.images:,} images seen, {torch.get_num_threads()} threads; FD on {probe.name}")
    print("| bottleneck | PSNR dB | SSIM | FD | codewords used (perplexity) |")
    print("|---|---|---|---|---|")
    for name in args.arms.split(";") if args.arms else ARMS:
        recipe = load_recipe(TokenizerRecipe, "small", [f"train.images={args.images}", *ARMS[name]])
        recipe.data.source = args.data
        folder = Path(args.out) / "".join(c if c.isalnum() else "-" for c in name)
        if not train_tokenizer(recipe, folder):
            sys.exit(130)
        tokenizer = Tokenizer.from_pretrained(folder)
        size = (recipe.model.height, recipe.model.width)
        held_out = open_store(args.data, "val", size, folder / "photos", 1.0)
        whole = open_store(args.data, "train", size, folder / "photos", 1.0)
        figures = evaluate_reconstruction(tokenizer, held_out, probe)
        print(
            f"| {name} | {figures['psnr_db']:.2f} | {figures['ssim']:.3f} | "
            f"{figures['rfd']:.2f} | {usage(tokenizer, whole)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
