"""Rebuilding the evidence by everything that could keep it, and measuring what is left."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import features

from softvq import images
from softvq.evaluate.baselines import CODECS, decoded, encode, thumbnail
from softvq.evaluate.cells import Seen, chosen
from softvq.study.judging.measure import Bench, compare, judge, piece_psnr
from softvq.study.records import Measured, Speed, read, write
from softvq.study.trying import models
from softvq.tokenizer import Tokenizer

TARGETS = 4  # qualities that are tried as budgets of a photo's tokens
TODAY = ("jpeg", 90)  # what photos are kept as where nobody thinks of tokens
TRIED = 16  # photos that a quality is chosen on
MEND = "delete it, and run softvq study again"


def measures(name: str, out: Path) -> Path:
    return out / "measures" / f"{name}.json"


def read_measures(names: Sequence[str], out: Path) -> list[Measured]:
    return [read(Measured, measures(name, out), MEND) for name in names]


def names_in(out: Path) -> list[str]:
    return sorted(path.stem for path in (out / "measures").glob("*.json"))


# ---- by tokens ----


def measure_model(
    kind: str, tokenizer: Tokenizer, counts: Sequence[int], bench: Bench, out: Path, targets: bool
) -> None:
    """Measure a model at every token count, and with ``targets`` at budgets by photo.

    Writes a file for each, and ``kind``.done when all are there.
    """
    done = out / "measures" / f"{kind}.done"
    if done.is_file():
        return
    pieces, material = bench.originals, bench.material
    store = models.pieces_store(pieces)
    latents = models.encode(tokenizer, store)
    per_photo = material.pieces.counts(len(material.names))
    each, share = _bytes(tokenizer), len(material.names) / len(pieces)  # photos of a piece
    rebuilt, seen, quality, speeds = [], [], [], []
    for count in counts:
        print(f"measuring {kind}-{count}")
        pictures, speed = _rebuild(tokenizer, latents, count)
        measured = Measured(
            name=f"{kind}-{count}",
            kind=kind,
            role="candidate",
            setting=str(count),
            tokens=(count * per_photo).tolist(),
            bytes=(count * each * per_photo).tolist(),
            floats=float(count * tokenizer.config.channels * per_photo.mean()),
            psnr=[],
            ssim=[],
            speed=Speed(latents.speed * share, speed * share),
        )
        look = bench.look(pictures)
        measured = judge(bench, look, compare(bench, pictures, measured))
        write(measured, measures(measured.name, out))
        if targets:
            rebuilt.append(pictures)
            seen.append(look)
            quality.append(piece_psnr(bench, pictures))
            speeds.append(speed * share)
    if targets and len(counts) > 1:
        # Searching takes some decodes more; they are not counted, for a target can be predicted.
        fast = Speed(latents.speed * share, float(np.mean(speeds)))
        for measured in _by_target(kind, counts, each, tokenizer, bench, rebuilt, seen, quality):
            write(replace(measured, speed=fast), measures(measured.name, out))
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text("")


def seconds_of_one(tokenizer: Tokenizer, bench: Bench) -> float:
    """How long it takes to measure a token count: it is tried with all of them, and not kept."""
    _ = bench.judged_originals  # once for all, and not counted
    latents = models.encode(tokenizer, models.pieces_store(bench.originals))
    started = time.perf_counter()
    pictures, _ = _rebuild(tokenizer, latents, tokenizer.config.tokens)
    nothing = Measured(name="", kind="", role="candidate", setting="", bytes=[], psnr=[], ssim=[])
    judge(bench, bench.look(pictures), compare(bench, pictures, nothing))
    return time.perf_counter() - started


def _rebuild(tokenizer: Tokenizer, latents: models.Latents, count: int) -> tuple[np.ndarray, float]:
    """Pieces of their first ``count`` tokens, uint8 [M, S, S, 3], and how many a second."""
    started = time.perf_counter()
    pictures = np.concatenate(
        [images.to_uint8(x) for x in models.decode(tokenizer, latents.latents, count)]
    )
    return pictures, len(pictures) / (time.perf_counter() - started)


def _bytes(tokenizer: Tokenizer) -> float:
    """Of a token: 16 bits a number, or a codeword's number where tokens are chosen."""
    config = tokenizer.config
    if config.bottleneck == "vq":
        return float(np.ceil(np.log2(config.codebook_size))) / 8
    return 2.0 * config.channels


def _by_target(
    kind: str,
    counts: Sequence[int],
    each: float,
    tokenizer: Tokenizer,
    bench: Bench,
    rebuilt: Sequence[np.ndarray],
    seen: Sequence[Seen | None],
    quality: Sequence[np.ndarray],
) -> Iterator[Measured]:
    """Each piece with the fewest of ``counts`` tokens that bring it to a PSNR; all if none does.

    The levels lie between the medians of the smallest and the largest count.
    """
    curve = np.stack(quality)  # [counts, M]
    low, high = np.median(curve[0]), np.median(curve[-1])
    levels = np.unique(np.round(np.linspace(low, high, TARGETS + 2)[1:-1], 1))
    photo = bench.material.pieces.photo
    for level in levels.tolist():
        met = curve >= level
        which = np.where(met.any(0), met.argmax(0), len(counts) - 1)
        tokens = np.asarray(counts)[which]
        per_photo = np.bincount(photo, weights=tokens)
        pictures = np.stack([rebuilt[k][i] for i, k in enumerate(which)])
        measured = Measured(
            name=f"{kind}-{level:g}dB",
            kind="target",
            role="candidate",
            setting=f"{level:g}",
            tokens=per_photo.astype(int).tolist(),
            bytes=(each * per_photo).tolist(),
            floats=float(tokenizer.config.channels * per_photo.mean()),
            psnr=[],
            ssim=[],
        )
        known = [some for some in seen if some is not None]
        look = chosen(known, which) if known else None
        yield judge(bench, look, compare(bench, pictures, measured))


# ---- by files ----


def measure_references(budgets: Sequence[int], grey: bool, bench: Bench, out: Path) -> None:
    """JPEG as photos are kept today, and files and thumbnails of as many bytes as tokens take.

    budgets: bytes of a piece, the largest first; at that one the judges look too.
    """
    done = out / "measures" / "references.done"
    if done.is_file():
        return
    kind, quality = TODAY
    _write_file(f"{kind}-q{quality}", kind, quality, grey, bench, out, True)
    for budget in budgets:
        looked = budget == budgets[0]
        for kind in CODECS:
            if kind == "avif" and not features.check("avif"):
                continue
            quality = quality_within(kind, bench.originals, budget, grey)
            _write_file(f"{kind}-{budget}B", kind, quality, grey, bench, out, looked)
        small = thumbnail(bench.originals, budget, grey)
        measured = Measured(
            name=f"thumbnail-{budget}B", kind="thumbnail", role="reference", setting=small.setting,
            bytes=[float(small.bytes)] * len(bench.material.names), floats=small.floats,
            psnr=[], ssim=[],
        )  # fmt: skip
        write(compare(bench, small.rebuilt, measured), measures(measured.name, out))
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text("")


def quality_within(kind: str, photos: np.ndarray, budget: int, grey: bool) -> int:
    """The highest quality at which files of some of the photos have ``budget`` bytes on average;
    the lowest there is if they never do."""
    lowest, highest, _ = CODECS[kind]
    some = photos[:: max(1, len(photos) // TRIED)][:TRIED]

    def size(quality: int) -> float:
        return float(np.mean([len(encode(kind, photo, quality, grey)) for photo in some]))

    while lowest < highest:
        middle = (lowest + highest + 1) // 2
        lowest, highest = (middle, highest) if size(middle) <= budget else (lowest, middle - 1)
    return lowest


def _write_file(
    name: str, kind: str, quality: int, grey: bool, bench: Bench, out: Path, looked: bool
) -> None:
    print(f"measuring {name}")
    files = [encode(kind, photo, quality, grey) for photo in bench.originals]
    pictures = np.stack([decoded(file, grey) for file in files])
    photo = bench.material.pieces.photo
    measured = Measured(
        name=name, kind=kind, role="reference", setting=f"q={quality}",
        bytes=np.bincount(photo, weights=[len(file) for file in files]).tolist(),
        psnr=[], ssim=[],
    )  # fmt: skip
    measured = compare(bench, pictures, measured)
    if looked:
        measured = judge(bench, bench.look(pictures), measured)
    write(measured, measures(name, out))
