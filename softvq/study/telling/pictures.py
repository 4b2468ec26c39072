"""Which pieces of the evidence the report shows, and these as candidates rebuild them."""

from pathlib import Path

import numpy as np

from softvq import images
from softvq.errors import UserError
from softvq.models import open_tokenizer
from softvq.study.photos.pieces import PIECES
from softvq.study.records import (
    Candidate,
    Evidence,
    Measured,
    Results,
    Shown,
    read_pictures,
    write_pictures,
)
from softvq.study.trying import models

PHOTOS = 6  # the worst of the leading candidate
REGIONS = 6  # the smallest, and as many that survive least


def choose_shown(evidence: Evidence, leading: Measured) -> Shown:
    """The photos that the leading candidate rebuilds worst, its smallest marked places and those
    of which it keeps least; and the pieces that they are in."""
    photos = np.argsort(leading.psnr, kind="stable")[:PHOTOS].tolist()
    known = [r for r, kept in enumerate(leading.contrast) if kept is not None]
    by_size = sorted(known, key=lambda r: evidence.regions[r].diameter)[:REGIONS]
    rest = [r for r in known if r not in by_size]
    kept = {r: leading.contrast[r] or 0.0 for r in rest}
    regions = by_size + sorted(rest, key=lambda r: kept[r])[:REGIONS]
    first = np.concatenate([[0], np.cumsum(evidence.tile.pieces)])
    pieces = [int(first[photo]) for photo in photos]
    pieces += [evidence.regions[r].piece for r in regions]
    return Shown(photos, list(dict.fromkeys(pieces)), regions)


def model_kind(candidate: Candidate) -> str:
    """The model that a candidate is of: of a target, the one that its name begins with."""
    return candidate.name.rpartition("-")[0]


def shown_in(results: Results) -> list[Candidate]:
    """The candidates whose pictures are shown: the leading one's model at every token count, the
    fewest tokens first, and the other models at a count near its own."""
    leading = results.named(results.recommendation.leading)
    tried = [c for c in results.candidates if c.role == "candidate" and c.kind != "target"]
    own = [c for c in tried if c.kind == model_kind(leading)]
    others: dict[str, tuple[float, Candidate]] = {}
    for c in tried:
        if c.kind != model_kind(leading):
            gap = abs((c.tokens or 0.0) - (leading.tokens or 0.0))
            if c.kind not in others or gap < others[c.kind][0]:
                others[c.kind] = (gap, c)
    own.sort(key=lambda c: c.tokens or 0.0)
    return own + [c for _, c in others.values()]


def rebuild_shown(results: Results, out: Path) -> None:
    """Write pictures/NAME.npy, the shown pieces as each shown candidate rebuilds them, and
    pictures/originals.npy. Raises UserError for files that are missing."""
    pieces = np.array(read_pictures(out / PIECES)[results.shown.pieces])
    write_pictures(pieces, pictures_of("originals", out))
    store = models.pieces_store(pieces)
    wanted = shown_in(results)
    for kind in dict.fromkeys(c.kind for c in wanted):
        folder = models.folder_of(kind, out)
        if kind == models.SHIPPED:
            tokenizer = models.open_start(results.settings)
        elif folder.is_dir():
            tokenizer = open_tokenizer(folder)
        else:
            raise UserError(f"{folder}: no such folder; run softvq study again in another --out")
        latents = models.encode(tokenizer, store).latents
        for candidate in (c for c in wanted if c.kind == kind):
            parts = models.decode(tokenizer, latents, int(candidate.setting))
            rebuilt = np.concatenate([images.to_uint8(x) for x in parts])
            write_pictures(rebuilt, pictures_of(candidate.name, out))


def pictures_of(name: str, out: Path) -> Path:
    return out / "pictures" / f"{name}.npy"
