"""From photos to what tokenizers see: which photos they learn from, which are evidence, in pieces.

Half of the training photos, whole groups of every class, teach the tokenizers; the other half is
evidence beside the held-out photos: there are never enough defects, and nothing that a tokenizer
has learned from says how it fares on new parts. A piece is a photo fitted to the tokenizer's size,
or, at native scale, one of the tiles that cover it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from softvq import images
from softvq.data import Listing, Rows, Store, find_photos
from softvq.errors import UserError
from softvq.evaluate.regions import Region
from softvq.study.photos.inspect import Inspection
from softvq.study.records import MarkedRegion, TileChoice, TileReason, write_pictures
from softvq.study.settings import Settings
from softvq.tiles import starts

Marked = Callable[[Store, bool], list[Region]]
PIECES = "pieces.npy"  # in a study's folder: the evidence
MOST_EVIDENCE = 400  # photos that everything is judged on: each is rebuilt by every candidate
LEAST_LEARNING = 0.5  # of the training photos, for tokenizers to learn from
SMALL = 8.0  # pixels across, when fitted: a marked place of fewer is worth tiles
SHARE_SMALL = 0.1  # of the marked places that are small
REDUCED = 1.2  # times, from which a photo loses something by being fitted


@dataclass(frozen=True)
class Pieces:
    """M pieces, uint8 [M, S, S, 3], and the photo that each is of, int64 [M]."""

    images: np.ndarray
    photo: np.ndarray

    def counts(self, photos: int) -> np.ndarray:
        """How many pieces each photo has, [N]."""
        return np.bincount(self.photo, minlength=photos)


@dataclass(frozen=True)
class Chosen:
    """Photos of both splits, by their numbers there: evidence from both, the rest to learn from."""

    learning: np.ndarray
    set_aside: np.ndarray
    held_out: np.ndarray


def divide(photos: Inspection, seed: int, most: int = MOST_EVIDENCE) -> Chosen:
    """Which photos tokenizers learn from, and which are evidence; whole groups, every class."""
    held_out = _drawn(photos.val, photos.val_groups, min(most, len(photos.val)), seed)
    wanted = min(most - len(held_out), int(len(photos.train) * (1 - LEAST_LEARNING)))
    aside = _drawn(photos.train, photos.train_groups, wanted, seed)
    learning = np.setdiff1d(np.arange(len(photos.train)), aside)
    return Chosen(learning, aside, held_out)


def _drawn(photos: Store, groups: Sequence[str], wanted: int, seed: int) -> np.ndarray:
    """Numbers of about ``wanted`` photos, at most: whole groups, an even share of every class."""
    if wanted >= len(photos):
        return np.arange(len(photos))
    index = np.unique(np.asarray(groups), return_inverse=True)[1]
    members = [np.flatnonzero(index == g) for g in range(int(index.max()) + 1)]
    # A group of several classes goes by its rarest: there are few of those.
    frequency = Counter(photos.labels.tolist())
    kinds = [min(photos.labels[m].tolist(), key=lambda c: (frequency[c], c)) for m in members]
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    share = wanted / len(photos)
    for kind in sorted(set(kinds)):
        some = [members[g] for g in range(len(members)) if kinds[g] == kind]
        target, taken = share * sum(map(len, some)), 0
        for g in random.permutation(len(some)):
            if taken + len(some[g]) <= target + 0.5 and len(chosen) + len(some[g]) <= wanted:
                chosen += some[g].tolist()
                taken += len(some[g])
    return np.sort(np.array(chosen, np.int64))


# ---- fitted or native ----


def choose_tile(
    settings: Settings, photos: Inspection, regions: Sequence[Region]
) -> tuple[bool, TileReason, dict[str, float]]:
    """Whether to cut photos at native scale; why, and the figures of that. ``regions``: fitted."""
    reduced = photos.facts.sizes.reduced[1]
    sizes = np.array([region.diameter for region in regions])
    small = float((sizes < SMALL).mean()) if len(sizes) else 0.0
    values = {"reduced": reduced, "small": round(small, 3), "limit": SMALL}
    if settings.tile != "auto":
        return settings.tile == "native", "asked", values
    if reduced < REDUCED:
        return False, "one", values
    if not len(sizes):
        return False, "unmarked", values
    native = small >= SHARE_SMALL
    return native, "small" if native else "large", values


def cut(photo: np.ndarray, side: int) -> list[tuple[int, int, np.ndarray]]:
    """Tiles that cover a photo [H, W, 3]: (top, left, [side, side, 3]); a photo that is smaller
    is continued by its mirror image."""
    height, width = photo.shape[:2]
    down, across = max(0, side - height), max(0, side - width)
    if down or across:
        photo = np.pad(photo, ((0, down), (0, across), (0, 0)), mode="symmetric")
    return [
        (y, x, photo[y : y + side, x : x + side])
        for y in starts(max(height, side), side, 0)
        for x in starts(max(width, side), side, 0)
    ]


def native_pieces(
    source: str | Path, parts: Sequence[tuple[str, Store, np.ndarray]], side: int
) -> tuple[Pieces, list[list[tuple[int, int]]]]:
    """Pieces of the photos ``parts``, (split, its store, numbers), and where each photo's begin.

    Raises UserError for a photo that can no longer be read.
    """
    found: list[np.ndarray] = []
    of: list[int] = []
    places: list[list[tuple[int, int]]] = []
    for split, store, numbers in parts:
        listing: Listing = find_photos(source, split)
        where = {name: i for i, name in enumerate(listing.names)}
        for number in numbers:
            try:
                photo = np.asarray(listing.read(where[store.names[number]]))
            except (images.BadImage, KeyError) as error:
                raise UserError(f"{store.names[number]}: cannot be read again ({error})") from None
            tiles = cut(photo, side)
            of += [len(places)] * len(tiles)
            places.append([(y, x) for y, x, _ in tiles])
            found += [tile for _, _, tile in tiles]
    return Pieces(np.stack(found), np.array(of, np.int64)), places


def fitted_pieces(parts: Sequence[tuple[str, Store, np.ndarray]]) -> Pieces:
    """The photos as the stores have them, one piece each."""
    pictures = np.concatenate([np.asarray(store.images[numbers]) for _, store, numbers in parts])
    return Pieces(pictures, np.arange(len(pictures)))


def in_pieces(
    regions: Sequence[Region], pieces: Pieces, places: list[list[tuple[int, int]]]
) -> list[Region]:
    """Regions in the pixels of photo files, in the piece that has most of each."""
    first = np.concatenate([[0], np.cumsum([len(some) for some in places])])
    side = pieces.images.shape[1]
    found = []
    for region in regions:
        cuts = [region.mask[y : y + side, x : x + side] for y, x in places[region.photo]]
        best = int(np.argmax([part.sum() for part in cuts]))
        if not cuts[best].any():
            continue
        mask = np.zeros((side, side), bool)
        mask[: cuts[best].shape[0], : cuts[best].shape[1]] = cuts[best]
        found.append(replace(region, photo=int(first[region.photo]) + best, mask=mask))
    return found


def as_records(regions: Sequence[Region], pieces: Pieces) -> list[MarkedRegion]:
    """Regions whose ``photo`` is a piece, as records."""
    return [
        MarkedRegion(int(pieces.photo[r.photo]), r.photo, r.box, r.diameter, r.original)
        for r in regions
    ]


@dataclass(frozen=True)
class Material:
    """What a study works on.

    learning: a store of the pieces that tokenizers learn from.  pieces: those of the evidence.
    names, labels, groups, held_out, subgroups: of the evidence's N photos.  regions: marked in the
    pieces (``Region.photo`` is a piece).  tile: how pieces were made.
    """

    learning: Store
    pieces: Pieces
    names: list[str]
    labels: np.ndarray
    groups: list[str]
    held_out: list[bool]
    subgroups: dict[str, list[str]]
    regions: list[Region]
    tile: TileChoice


def make_material(
    settings: Settings, photos: Inspection, side: int, marked: Marked, out: Path
) -> Material:
    """Divide the photos, and cut them to pieces of ``side`` pixels; the evidence's are kept in
    ``out``. ``marked`` finds the regions of a store, of the files' own pixels if ``native``.

    Raises UserError as it does, and for photos that can no longer be read.
    """
    fitted = [marked(store, False) for store in (photos.train, photos.val)]
    native, why, values = choose_tile(settings, photos, [r for some in fitted for r in some])
    chosen = divide(photos, settings.seed)
    parts = [("train", photos.train, chosen.set_aside), ("val", photos.val, chosen.held_out)]
    if native:
        pieces, places = native_pieces(settings.data, parts, side)
        taught, _ = native_pieces(settings.data, [("train", photos.train, chosen.learning)], side)
        write_pictures(taught.images, out / "photos" / "learning.npy")
        pictures = np.load(out / "photos" / "learning.npy", mmap_mode="r")
        store = subset(photos.train, chosen.learning[taught.photo], pictures, side)
        whole = [marked(store_, True) for _, store_, _ in parts]
        regions = in_pieces(_renumbered(whole, parts), pieces, places)
    else:
        pieces = fitted_pieces(parts)
        rows = Rows(photos.train.images, chosen.learning)
        store = subset(photos.train, chosen.learning, rows, side)
        regions = _renumbered(fitted, parts)
    write_pictures(pieces.images, out / PIECES)
    names = [store_.names[i] for _, store_, numbers in parts for i in numbers]
    groups = [photos.train_groups[i] for i in chosen.set_aside]
    groups += [photos.val_groups[i] for i in chosen.held_out]
    aside, held_out = len(chosen.set_aside), len(chosen.held_out)
    subgroups = {
        column: [photos.train_subgroups[column][i] for i in chosen.set_aside]
        + [values_[i] for i in chosen.held_out]
        for column, values_ in photos.subgroups.items()
    }
    counts = pieces.counts(len(names)).tolist()
    return Material(
        learning=store,
        pieces=pieces,
        names=names,
        labels=np.concatenate([store_.labels[numbers] for _, store_, numbers in parts]),
        groups=groups,
        held_out=[False] * aside + [True] * held_out,
        subgroups=subgroups,
        regions=regions,
        tile=TileChoice(native, why, values, counts),
    )


def _renumbered(
    regions: Sequence[Sequence[Region]], parts: Sequence[tuple[str, Store, np.ndarray]]
) -> list[Region]:
    """The regions of each part's store that are in its chosen photos, numbered through all."""
    found, before = [], 0
    for some, (_, _, numbers) in zip(regions, parts, strict=True):
        place = {int(number): before + i for i, number in enumerate(numbers)}
        found += [replace(r, photo=place[r.photo]) for r in some if r.photo in place]
        before += len(numbers)
    return found


def subset(photos: Store, numbers: np.ndarray, pictures: Any, side: int) -> Store:
    """A store of some photos, or of their pieces: ``pictures``, ``numbers`` the photo of each."""
    digest = hashlib.sha256(f"{photos.fingerprint} {side} {numbers.tolist()}".encode())
    return replace(
        photos,
        images=pictures,
        labels=photos.labels[numbers],
        names=[photos.names[i] for i in numbers],
        size=(side, side),
        fingerprint=digest.hexdigest(),
        root=None,
        summary="",
    )
