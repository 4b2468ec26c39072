"""Measure the constants of the eye's perceptual distance (softvq/tokenizer/perceptual.py).

    python tools/eye_distances.py PHOTOS [--count 200]

PHOTOS is a folder of photos; ``count`` of them, evenly spread over the sorted names, are cropped to
256 x 256, and each is compared with its thumbnail of 26 x 26 pixels enlarged again, both by Pillow
(bicubic): as many numbers (2,028) as 64 tokens of 32 channels (2,048). Prints the mean distance of
each stage, by which the distance divides it. The constants in the package are those of
openphotos/train (6,120 photos, MIT and CC BY 4.0), 200 photos.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from softvq import images
from softvq.tokenizer.perceptual import TYPICAL, EyeDistance

SIZE, THUMBNAIL = (256, 256), (26, 26)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args()
    paths = sorted(p for p in args.photos.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    distance, found = EyeDistance(), []
    for i in np.linspace(0, len(paths) - 1, args.count).astype(int):
        photo = images.fit(images.load(paths[i]), SIZE)
        small = photo.resize(THUMBNAIL, images.RESAMPLE).resize(SIZE, images.RESAMPLE)
        pair = [images.to_tensor(np.asarray(x)[None]) for x in (photo, small)]
        with torch.no_grad():
            found.append(
                torch.stack([d[0] for d in distance.stages(*map(distance.views, pair)).values()])
            )
    values = torch.stack(found)
    error = values.std(0) / len(values) ** 0.5
    for name, mean, by in zip(TYPICAL, values.mean(0).tolist(), error.tolist(), strict=True):
        print(f"{name}: {mean:.4f} +- {by:.4f}")


if __name__ == "__main__":
    main()
