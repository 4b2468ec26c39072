"""Drift: how often windows of unchanged photos alarm, and how soon changes are found.

    python benchmarks/drift.py --data FOLDER [FOLDER ..] [--windows 5000] [--window 50]

Photos of each folder are encoded and decoded once. Five times they are cut at random into a
reference, five eighths of them, and a stream of unchanged photos. False alarms: windows drawn at
random out of the streams, as many of each cut. Changes are mixed into the stream (``--share`` of
the photos): blur, brightness, a colour cast, and the photos of the next folder as a new class.
Printed: the photos from the change to the first alarm over 20 streams, median and longest. What was
looked at is kept in ``--keep``, so that a run that is started again goes on.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from softvq import images
from softvq.serve.drift import FIGURES, Detector, Photo, Photos
from softvq.serve.engine import TorchEngine
from softvq.serve.reference import observe, photos_of

CUTS, STREAMS, STRIDE, MOST = 5, 20, 10, 400


def blurred(photo: np.ndarray) -> np.ndarray:
    """By a Gaussian of a hundredth of the side."""
    radius = max(photo.shape[:2]) / 100
    return np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(radius)))


def brighter(photo: np.ndarray) -> np.ndarray:
    return np.clip(photo.astype(np.float32) * 1.2, 0, 255).astype(np.uint8)


def cast(photo: np.ndarray) -> np.ndarray:
    """Another camera's white balance."""
    return np.clip(photo * np.array([1.08, 1.0, 0.92]), 0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda photo: photo, "blur": blurred, "brightness +20%": brighter,
    "colour cast 8%": cast,
}  # fmt: skip


class Seen:
    """Photos of folders, changed and not, as drift looks at them; kept in a folder."""

    def __init__(self, model: str, keep: Path):
        self.engine, self.keep = TorchEngine(model), keep
        keep.mkdir(parents=True, exist_ok=True)

    def __call__(self, folder: str, change: str, most: int) -> list[Photo]:
        path = self.keep / f"{Path(folder).name}-{change.split()[0]}-{most}.npz"
        if not path.is_file():
            named = tqdm(self.changed(folder, change, most), desc=path.stem, unit="img")
            looked = list(observe(named, self.engine, None, self.engine.about.tokens))
            np.savez(
                path, tokens=[p.tokens for p in looked], errors=[p.error for p in looked],
                health=[p.health for p in looked],
            )  # fmt: skip
        with np.load(path) as held:
            rows = zip(held["tokens"], held["errors"].tolist(), held["health"], strict=True)
            return [Photo(tokens, error, health, np.nan) for tokens, error, health in rows]

    def changed(self, folder: str, change: str, most: int) -> Iterator[tuple[str, np.ndarray]]:
        names, read = photos_of(folder)
        for i in np.random.default_rng(0).permutation(len(names))[:most].tolist():
            photo = images.fit(Image.fromarray(read(i)), self.engine.about.size)
            yield names[i], CHANGES[change](np.asarray(photo))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--model", default="shipped")
    parser.add_argument("--windows", type=int, default=5000)
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--one-in", type=int, default=1000)
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--changed", type=int, default=120)
    parser.add_argument("--share", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--keep", type=Path, default=Path("drift-benchmark"))
    asked = parser.parse_args()
    seen = Seen(asked.model, asked.keep)
    columns = [*[*CHANGES][1:], "new class"]
    print(f"| photos | reference, window | false alarms | changed | {' | '.join(columns)} |")
    print("|---" * (4 + len(columns)) + "|")
    for folder, other in zip(asked.data, [*asked.data[1:], asked.data[0]], strict=True):
        print(row(seen, folder, other, asked), flush=True)


def row(seen: Seen, folder: str, other: str, asked: argparse.Namespace) -> str:
    """One folder's lines of the table; ``other``: the folder of the new class."""
    still = Photos.of(seen(folder, "none", asked.photos))
    changed = {
        name: Photos.of(seen(folder, name, asked.changed)) for name in CHANGES if name != "none"
    } | {"new class": Photos.of(seen(other, "none", asked.photos))}
    photos, draw, alarms = len(still.tokens), np.random.default_rng(1), 0
    count = photos * 5 // 8
    for _ in range(CUTS):
        order = draw.permutation(photos)
        detector = Detector(part(still, order[:count]), asked.window, asked.one_in)
        for _ in range(asked.windows // CUTS):
            chosen = draw.permutation(order[count:])[: asked.window]
            alarms += detector.look(part(still, chosen)).alarm
    first = f"{Path(folder).name} | {count}, {asked.window} | {alarms} of {asked.windows}"
    lines = []
    for share in asked.share:
        found = [until(detector, still, order[count:], after, share) for after in changed.values()]
        lines.append(f"| {first if not lines else ' | |'} | {share:.0%} | {' | '.join(found)} |")
    return "\n".join(lines)


def part(photos: Photos, which: np.ndarray) -> Photos:
    return Photos(photos.tokens[which], photos.scalars[which], photos.channels)


def until(
    detector: Detector, still: Photos, stream: np.ndarray, after: Photos, share: float
) -> str:
    """Photos from the change to the first alarm: median and longest, and the figure that told."""
    draw, counts, told = np.random.default_rng(2), [], []
    window, most = detector.window, len(stream)
    every = Photos(
        np.concatenate([still.tokens[stream], after.tokens]),
        np.concatenate([still.scalars[stream], after.scalars]), still.channels,
    )  # fmt: skip
    for _ in range(STREAMS):
        new = most + draw.integers(len(after.tokens), size=MOST)
        mixed = np.where(draw.random(MOST) < share, new, draw.integers(most, size=MOST))
        passing = np.concatenate([draw.permutation(most)[:window], mixed])
        passed = np.inf
        for end in range(STRIDE, MOST + 1, STRIDE):
            verdict = detector.look(part(every, passing[end : end + window]))
            if verdict.alarm:
                passed = end
                told.append(max(verdict.figures, key=lambda name: verdict.figures[name]))
                break
        counts.append(passed)
    return f"{np.median(counts):.0f}, at most {max(counts):.0f} ({max(FIGURES, key=told.count)})"


if __name__ == "__main__":
    main()
