"""Exported models against torch, on photos of odd sizes: tokens and rebuilt pictures.

    python benchmarks/parity.py --data FOLDER --export DIR [DIR ..] [--model shipped] [--photos 100]

Photos are drawn from the folder and cut to odd heights and widths of 61 to 399 pixels. Each is
encoded and decoded by the library in float32 and by every export. Printed: the largest and the
median error of a photo's tokens, relative to its largest token; the share of all pixels, and of the
worst photo's, that lie within one level; the PSNR that is lost against the photo.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from softvq import coding, models
from softvq.data import find_photos
from softvq.evaluate.pixels import psnr_per_image
from softvq.export.verify import open_onnx
from softvq.images import fit


def odd(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    """A part of a photo, or all of it made larger, of odd height and width."""
    width, height = (int(2 * n + 1) for n in random.integers(30, 200, 2))
    grown = max(width / photo.width, height / photo.height, 1)
    photo = photo.resize((round(photo.width * grown) + 1, round(photo.height * grown) + 1))
    left = random.integers(photo.width - width + 1)
    top = random.integers(photo.height - height + 1)
    return photo.crop((left, top, left + width, top + height))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--export", nargs="+", required=True)
    parser.add_argument("--model", default="shipped")
    parser.add_argument("--photos", type=int, default=100)
    asked = parser.parse_args()
    random = np.random.default_rng(0)
    listing = find_photos(asked.data, "all")
    chosen = random.permutation(len(listing.names))[: asked.photos]
    photos = [odd(listing.read(i), random) for i in chosen.tolist()]
    tokenizer = models.open_tokenizer(asked.model)
    size = coding.size_of(tokenizer)
    latents = coding.encode_all(tokenizer, photos)
    rebuilt = coding.decode_all(tokenizer, latents)
    fitted = np.stack([np.asarray(fit(photo, size)) for photo in photos])
    wanted, known = latents.numpy(), psnr_per_image(fitted, rebuilt)
    print(
        f"{len(photos)} photos of {asked.data}\n\n"
        "| export | error of tokens: worst, median | pixels within 1 level: all, worst photo "
        "| PSNR lost, dB |\n|---|---|---|---|"
    )
    for name in asked.export:
        encode = open_onnx(Path(name) / "encoder.onnx")
        decode = open_onnx(Path(name) / "decoder.onnx")
        errors, shares, pictures = [], [], []
        for i, photo in enumerate(tqdm(photos, desc=name)):
            found = encode(pixels=np.asarray(photo)[None])
            picture = decode(latents=found)[0]
            errors.append(np.abs(found[0] - wanted[i]).max() / np.abs(wanted[i]).max())
            shares.append((np.abs(picture.astype(int) - rebuilt[i]) <= 1).mean())
            pictures.append(picture)
        lost = (known - psnr_per_image(fitted, np.stack(pictures))).mean()
        print(
            f"| {Path(name).name} | {max(errors):.1e}, {np.median(errors):.1e} "
            f"| {np.mean(shares):.4%}, {min(shares):.4%} | {lost:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
