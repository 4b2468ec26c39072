"""Photos to what drift looks at: of a folder, of a study, or of an earlier reference."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from softvq import images
from softvq.data import find_photos
from softvq.errors import SoftVQWarning, UserError
from softvq.serve.drift import REFERENCE, Photo, Photos, load_reference
from softvq.serve.engine import Engine
from softvq.serve.health import health
from softvq.serve.judge import Judge
from softvq.serve.watch import log_error

ORIGINALS = "originals.npy"  # in a study's folder: the held-out photos, uint8 [N, H, W, 3]


def observe(
    photos: Iterable[tuple[str, np.ndarray]],
    engine: Engine,
    judge: Judge | None,
    tokens: int,
    batch: int = 32,
) -> Iterator[Photo]:
    """Named photos uint8 [H, W, 3] of any size -> what drift looks at, in their order."""
    each = iter(photos)
    while some := list(islice(each, batch)):
        fitted = np.stack([
            np.asarray(images.fit(Image.fromarray(photo), engine.about.size)) for _, photo in some
        ])  # fmt: skip
        latents = engine.encode(fitted)[:, :tokens]
        rebuilt = engine.decode(latents)
        scores = [opinion.score for opinion in judge(fitted)] if judge else [np.nan] * len(some)
        for i, (name, _) in enumerate(some):
            yield Photo(
                latents[i], log_error(rebuilt[i], fitted[i]), health(fitted[i]).vector(),
                scores[i], name,
            )  # fmt: skip


def photos_of(source: str | Path) -> tuple[list[str], Callable[[int], np.ndarray]]:
    """Names, in their order, and a reader, of a folder of photos or of a study. UserError."""
    folder = Path(source).expanduser()
    if (folder / ORIGINALS).is_file():
        try:
            held = np.load(folder / ORIGINALS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / ORIGINALS}: damaged ({error})") from None
        return [str(i) for i in range(len(held))], lambda i: np.asarray(held[i])
    listing = find_photos(source, "all")
    return listing.names, lambda i: np.asarray(listing.read(i))


def readable(
    source: str | Path, names: list[str], read: Callable[[int], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """All photos but damaged ones, which are warned of."""
    import warnings

    for i, name in enumerate(names):
        try:
            yield name, read(i)
        except images.BadImage as error:
            warnings.warn(f"left out: {error}", SoftVQWarning, stacklevel=2)


def open_reference(
    source: str, engine: Engine, judge: Judge | None, tokens: int, batch: int = 32
) -> Photos:
    """What windows are held against. Raises UserError if there is nothing of the kind."""
    if (Path(source).expanduser() / REFERENCE).is_file():
        reference = load_reference(Path(source).expanduser(), engine.about.tokenizer)
        if reference.tokens.shape[1] != tokens * engine.about.channels:
            raise UserError(f"{source}: a reference at another number of tokens; make it again")
        return reference
    names, read = photos_of(source)
    return Photos.of(list(observe(readable(source, names, read), engine, judge, tokens, batch)))
