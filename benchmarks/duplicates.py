"""What finds near-duplicates: thumbnails, as the study does it, or the eye's features.

    python benchmarks/duplicates.py --data FOLDER .. [--photos 200]

Photos of folders with classes, evenly spread. Each is changed in one way (re-encoded, brightened,
reduced, cropped, mirrored) and must be told from other photos: the threshold is where 1 of 1,000
pairs of different photos of one class would be called the same, and the share of changed photos
above it towards their own original is what a method finds. Beside it the same at the threshold that
the study uses, whose method is the thumbnails.

thumbnails    ``softvq.study.photos.copies``: a thumbnail without its local mean
eye           the eye's features (mean of the head map at 224 px), less their mean over the photos
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from softvq import images
from softvq.data import Store, open_store
from softvq.evaluate.features import load_network
from softvq.study.photos.copies import NEARLY_SAME, sign

SIZE = 256  # pixels that photos are compared at
ALARMS = 1e-3


def jpeg(photo: Image.Image) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    def change(photo: Image.Image) -> Image.Image:
        edge = round(SIZE * (1 - share) / 2)
        return images.fit(photo.crop((edge, edge, SIZE - edge, SIZE - edge)), (SIZE, SIZE))

    return change


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 40": jpeg,
    "brighter by a fifth": lambda photo: ImageEnhance.Brightness(photo).enhance(1.2),
    "reduced to a quarter": lambda photo: images.fit(
        images.fit(photo, (SIZE // 4, SIZE // 4)), (SIZE, SIZE)
    ),
    "middle 90% of each side": cropped(0.9),
    "middle 75% of each side": cropped(0.75),
    "mirrored": lambda photo: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def by_thumbnails(pictures: np.ndarray) -> np.ndarray:
    """Unit vectors [N, D] of uint8 [N, H, W, 3]."""
    names = [str(i) for i in range(len(pictures))]
    labels = np.zeros(len(pictures), np.int64)
    store = Store(pictures, labels, names, [], [], (SIZE, SIZE), 1.0, "")
    nothing = Store(pictures[:0], labels[:0], [], [], [], (SIZE, SIZE), 1.0, "")
    return sign(store, nothing, names).details


def by_eye(pictures: np.ndarray) -> np.ndarray:
    """Unit vectors [N, 1280] of uint8 [N, H, W, 3]."""
    features = load_network("eye").compute(pictures)["pool"].numpy()
    features = features - features.mean(0)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, nargs="+", help="folders of photos")
    parser.add_argument("--split", default="val")
    parser.add_argument("--photos", type=int, default=200)
    args = parser.parse_args()
    for folder in args.data:
        with tempfile.TemporaryDirectory() as cache:
            store = open_store(folder, args.split, (SIZE, SIZE), cache, 1.0)
            rows = np.linspace(0, len(store) - 1, min(args.photos, len(store))).astype(int)
            labels, photos = store.labels[rows], np.stack([store.images[i] for i in rows])
        print(f"\n{Path(folder).name}: {len(photos)} photos", flush=True)
        table(photos, labels)


def table(photos: np.ndarray, labels: np.ndarray) -> None:
    """Print what each method finds of the photos' changed copies."""
    changed = {
        name: np.stack([np.asarray(change(Image.fromarray(photo))) for photo in photos])
        for name, change in CHANGES.items()
    }
    others = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    print(f"| method | threshold | alarms of {others.sum() // 2:,} | {' | '.join(CHANGES)} |")
    print("|---|---|---|" + "---|" * len(CHANGES), flush=True)
    for name, describe in (("thumbnails", by_thumbnails), ("eye", by_eye)):
        every = describe(np.concatenate([photos, *changed.values()]))
        own, *copies = every.reshape(1 + len(CHANGES), len(photos), -1)
        pairs = (own @ own.T)[others]
        thresholds = [float(np.quantile(pairs, 1 - ALARMS))]
        thresholds += [NEARLY_SAME] if name == "thumbnails" else []
        for threshold in thresholds:
            found = [((own * copy).sum(1) > threshold).mean() for copy in copies]
            shares = " | ".join(f"{100 * share:.0f}%" for share in found)
            alarms = (pairs > threshold).sum() // 2
            print(f"| {name} | {threshold:.3f} | {alarms} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
