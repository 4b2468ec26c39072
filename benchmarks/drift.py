"""Drift: how often windows of unchanged photos alarm, and how soon changes are found.

    python benchmarks/drift.py --data FOLDER [FOLDER ..] [--windows 5000] [--window 100]

For each folder: half of its photos, at random, are the reference, the other half the stream.
False alarms: windows drawn at random out of the stream. Changes, mixed into the stream (``--share``
of the photos, 1 by default): blur, brightness, a colour cast, and the photos of another folder as a
new class. Printed: the photos until the first alarm, over 20 streams. Prints a table.
"""

import argparse
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from softvq import images
from softvq.serve.drift import Detector, Photo, Photos, explain, rolling
from softvq.serve.engine import TorchEngine
from softvq.serve.reference import observe, photos_of

STREAMS = 20


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
    "blur": blurred, "brightness +20%": brighter, "colour cast 8%": cast,
}  # fmt: skip


def read(folder: str, most: int) -> list[tuple[str, np.ndarray]]:
    names, photo = photos_of(folder)
    chosen = np.random.default_rng(0).permutation(len(names))[:most]
    return [
        (names[i], np.asarray(images.fit(Image.fromarray(photo(i)), (256, 256)))) for i in chosen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--model", default="shipped")
    parser.add_argument("--windows", type=int, default=5000)
    parser.add_argument("--window", type=int, default=100)
    parser.add_argument("--one-in", type=int, default=1000)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--share", type=float, default=1.0)
    asked = parser.parse_args()
    engine = TorchEngine(asked.model)

    def look(some: list[tuple[str, np.ndarray]], what: str) -> list[Photo]:
        bar = tqdm(some, desc=what, unit="img")
        return list(observe(bar, engine, None, engine.about.tokens))

    held = {folder: read(folder, asked.photos) for folder in asked.data}
    print("| photos | reference | false alarms | blur | brightness | cast | new class |")
    print("|---|---|---|---|---|---|---|")
    for folder, photos in held.items():
        half = len(photos) // 2
        reference = Photos.of(look(photos[:half], "reference"))
        window = min(asked.window, half // 5)
        detector = Detector(reference, window, asked.one_in)
        still = look(photos[half:], "stream")
        draw = np.random.default_rng(1)
        alarms = sum(
            detector.look(
                Photos.of([still[i] for i in draw.permutation(len(still))[:window]])
            ).alarm
            for _ in range(asked.windows)
        )
        found = []
        other = next(name for name in [*held, folder] if name != folder or len(held) == 1)
        changed = {
            name: look([(n, change(p)) for n, p in photos[half:]], name)
            for name, change in CHANGES.items()
        } | {"new class": look(held[other], "new class")}
        for after in changed.values():
            found.append(until(detector, still, after, asked.share, window))
        cells = " | ".join(found)
        print(
            f"| {folder} | {half}, windows of {window} | {alarms} of {asked.windows} | {cells} |",
            flush=True,
        )


def until(
    detector: Detector, still: list[Photo], after: list[Photo], share: float, window: int
) -> str:
    """Photos from the change to the first alarm: median and longest of the streams, and words."""
    draw, counts, said = np.random.default_rng(2), [], ""
    for _ in range(STREAMS):
        stream = [still[i] for i in draw.integers(len(still), size=window)]
        for _ in range(400):
            pool = after if draw.random() < share else still
            stream.append(pool[draw.integers(len(pool))])
        step, passed = 10, None
        for number, some in enumerate(rolling(stream, window, step)):
            verdict = detector.look(Photos.of(some))
            if number and verdict.alarm:
                passed = number * step
                said = said or explain(verdict, Photos.of(some))[0]
                break
        counts.append(passed if passed is not None else np.inf)
    return f"{np.median(counts):.0f}, at most {max(counts):.0f} ({said})"


if __name__ == "__main__":
    main()
