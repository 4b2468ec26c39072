"""More pictures to train on, drawn of each class: none of them a near-copy of a photo.

    OUT/train/CLASS/drawn-00000.png    to be put beside the photos in train/, and nowhere else
    OUT/drawn.csv                      each picture's class, seed, number and nearest photo

A folder of drawn pictures is never taken for photos: it has no held-out part, and lies outside of
them. What a judge gains by them is measured on real photos alone.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from softvq import images
from softvq.coding import BATCH
from softvq.data import Store, temporary_store
from softvq.errors import UserError
from softvq.fingerprint import digest
from softvq.generate import check_drawing
from softvq.io import write_atomically
from softvq.outputs import claimed, refuse_overlap
from softvq.pipeline import Pipeline
from softvq.study.photos.copies import NEARLY_SAME, nearest

TRIES = 4  # times the pictures that are wanted are drawn at most: copies make room for others
FOLDER, TABLE = "train", "drawn.csv"


@dataclass(frozen=True)
class Drawn:
    """A picture: its file, class, seed and number of that seed, the training photo of its class
    that is most like it, and how much: 1 is the same, NEARLY_SAME a copy."""

    path: str
    label: str
    seed: int
    number: int
    nearest: str
    similarity: float


@dataclass(frozen=True)
class Augmented:
    """What was written, and how many near-copies of photos were left out."""

    pictures: list[Drawn]
    copies: int


def augment(
    pipeline: Pipeline,
    data: str | Path,
    out: str | Path,
    per_class: int = 100,
    labels: Sequence[str] | None = None,
    seed: int = 0,
    batch: int = BATCH,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Augmented:
    """Draw ``per_class`` pictures of every class into ``out``, beside none that is in ``data``.

    data     the photos that the generator learned, in a folder for each class
    labels   classes, by name; all of the generator's by default
    options  as for ``Pipeline.generate_latents``

    A class whose generator repeats its photos ends up with fewer. Raises UserError for a generator
    without classes, a class that it or the photos lack, and where ``claimed`` and the pipeline do.
    """
    check_drawing(seed, options)
    refuse_overlap(data, out)
    names = list(labels or pipeline.classes)
    numbers, _ = pipeline.class_numbers(names, None)
    assert numbers is not None
    config = pipeline.tokenizer.config
    settings = {
        "model": digest(pipeline.generator), "tokenizer": digest(pipeline.tokenizer),
        "data": str(data), "labels": names, "per_class": per_class, "seed": seed,
        "precision": pipeline.precision,
    }  # fmt: skip
    found: list[Drawn] = []
    copies = 0
    with (
        claimed(out, "augment", settings | options, overwrite) as output,
        temporary_store(data, "train", (config.height, config.width), out) as photos,
        tqdm(total=per_class * len(names), desc="images", unit="img", disable=not progress) as bar,
    ):
        wanted = [f"{FOLDER}/{name}/drawn-{i:05d}.png" for name in names for i in range(per_class)]
        output.expect([*wanted, TABLE])
        for name, number in zip(names, numbers.tolist(), strict=True):
            real = of_class(photos, name)
            kept = 0
            for first in range(0, TRIES * per_class, batch):
                at = number * TRIES * per_class + first  # no two classes share their noise
                latents = pipeline.generate_latents(
                    [number] * batch, seed=seed, batch=batch, start=at, **options
                )
                pictures = pipeline.decode_uint8(latents, batch)
                for i, (photo, similarity) in enumerate(nearest(real, pictures)):
                    if kept == per_class:
                        break
                    if similarity >= NEARLY_SAME:
                        copies += 1
                        continue
                    path = f"{FOLDER}/{name}/drawn-{kept:05d}.png"
                    images.save_png(Image.fromarray(pictures[i]), output.folder / path)
                    found.append(Drawn(path, name, seed, at + i, photo, round(similarity, 3)))
                    kept += 1
                    bar.update()
                if kept == per_class:
                    break
        write_atomically(output.folder / TABLE, _table(found))
        output.expect([*(one.path for one in found), TABLE])
    return Augmented(found, copies)


def of_class(photos: Store, name: str) -> Store:
    """The photos of one class. Raises UserError if there are none."""
    if name not in photos.classes:
        raise UserError(f"no photos of class {name}: {', '.join(photos.classes) or 'no classes'}")
    rows = np.flatnonzero(photos.labels == photos.classes.index(name))
    names = [photos.names[i] for i in rows]
    return replace(photos, images=photos.images[rows], labels=photos.labels[rows], names=names)


def _table(found: list[Drawn]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["class" if f.name == "label" else f.name for f in fields(Drawn)])
    rows.writerows(astuple(one) for one in found)
    return text.getvalue()
