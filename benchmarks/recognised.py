"""Are generated pictures recognised? A linear probe on the eye's features, beside rebuilt photos.

    python benchmarks/recognised.py --model shipped --data FOLDER [--per-class 20] [--guidance 2]

``--data`` holds the classes that the generator knows. The probe learns from the training photos and
names the held-out photos, the same rebuilt from all tokens, and generated pictures. Frechet
distance, precision and recall are on the eye's features against all training photos. The nearest
training photo of each picture is sought by the cosine of their features; a near-copy is nearer to
it than all but one in a hundred held-out photos are to theirs. ``--grid FILE`` shows pictures above
their nearest photos.
"""

import argparse
import tempfile

import numpy as np

from softvq import images
from softvq.coding import reconstruct_all
from softvq.data import open_store
from softvq.evaluate.distances import frechet_distance, precision_recall
from softvq.evaluate.features import eye_features
from softvq.evaluate.latents import linear_probe
from softvq.eye import Eye
from softvq.pipeline import Pipeline

COPY = 0.99  # quantile of the similarities of held-out photos to their nearest training photos
SHOWN = 8  # classes in the grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shipped")
    parser.add_argument("--data", required=True)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--steps", type=int, help="default: as is usual in the family")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--grid", help="PNG of generated pictures over their nearest photos")
    args = parser.parse_args()
    pipeline, eye = Pipeline.from_pretrained(args.model), Eye.shipped()
    pipeline.precision = args.precision
    config = pipeline.tokenizer.config
    size = (config.height, config.width)
    with tempfile.TemporaryDirectory() as cache:
        train = open_store(args.data, "train", size, f"{cache}/train", 1.0)
        held_out = open_store(args.data, "val", size, f"{cache}/val", 1.0)
        if list(train.classes) != list(pipeline.classes):
            raise SystemExit(f"{args.data} does not hold the generator's classes")
        photos = np.stack([train.images[i] for i in range(len(train))])
        originals, rebuilt = reconstruct_all(pipeline.tokenizer, held_out)
        known, asked = np.array(train.labels), np.array(held_out.labels)
    labels = np.repeat(np.arange(len(pipeline.classes)), args.per_class)
    options = {"steps": args.steps} if args.steps else {}
    drawn = pipeline(labels.tolist(), guidance=args.guidance, **options)
    generated = np.stack([np.asarray(picture) for picture in drawn])
    seen = unit(eye_features(eye, photos))
    probe = linear_probe(seen, known, c=100.0)
    sets = {
        "held-out photos": (originals, asked),
        "the same, rebuilt": (rebuilt, asked),
        "generated": (generated, labels),
    }
    features = {name: unit(eye_features(eye, pictures)) for name, (pictures, _) in sets.items()}
    nearest = {name: (found @ seen.T) for name, found in features.items()}
    limit = np.quantile(nearest["held-out photos"].max(1), COPY)
    print("| | pictures | named right | FD | precision | recall | near-copies |")
    print("|---|---|---|---|---|---|---|")
    for name, (pictures, right) in sets.items():
        precision, recall = precision_recall(seen, features[name])
        cells = [
            f"{len(pictures)}", f"{probe.accuracy(features[name], right):.1%}",
            f"{frechet_distance(seen, features[name]):.4f}", f"{precision:.3f}", f"{recall:.3f}",
            f"{(nearest[name].max(1) > limit).mean():.1%}",
        ]  # fmt: skip
        print(f"| {name} | {' | '.join(cells)} |")
    if args.grid:
        rows = np.arange(0, len(labels), args.per_class)[:: max(1, len(pipeline.classes) // SHOWN)]
        beside = photos[nearest["generated"][rows].argmax(1)]
        sheet = images.grid(np.concatenate([generated[rows], beside]), columns=len(rows))
        images.save_png(sheet, args.grid)


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
