"""Photos that are there twice: within a split they count double, across the splits they leak.

A near-duplicate is a copy that was re-encoded, brightened or resized. Photos are compared by what
is left of a small thumbnail without its local mean (lighting, large shapes) and without what all
photos share (a fixture, the outline of a part). So two photos of one texture, or of two parts in
one holder, are not alike, and a photo and its copy are. Mirrored, turned and shifted copies are
not found.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from softvq.data import Pixels, Store
from softvq.evaluate.regions import LUMINANCE
from softvq.study.records import Leak, Pair

# Measured on magnetic tiles, printed circuits and everyday scenes: photos of different things
# reach 0.8, two exposures of one tile 0.85; a copy at 80% of the size, 5% brighter, in JPEG
# quality 70 stays above 0.93.
NEARLY_SAME = 0.9
THUMBNAIL = 32
LOCAL = 5  # side of the local mean, in pixels of the thumbnail
FLAT = 1.0  # grey levels (standard deviation) of detail below which a thumbnail tells nothing
BLOCK = 1024  # photos compared at once with all others
SHOWN = 50


@dataclass(frozen=True)
class Signatures:
    """What photos are compared by: training photos first, then the held-out ones, N in all.

    ``hashes`` are of the pixels, b'' for a photo of one single colour, whose likeness tells
    nothing. ``details`` float32 [N, D] are unit vectors, whose products are the similarities, or
    0 for a thumbnail without detail.
    """

    names: list[str]
    groups: list[str]
    training: int
    hashes: list[bytes]
    details: np.ndarray


def sign(train: Store, val: Store, groups: list[str]) -> Signatures:
    """Reduce the photos of two stores to what they are compared by; ``groups`` one per photo."""
    hashes = []
    for store in (train, val):
        for photo in store.images:
            blank = (photo == photo[0, 0]).all()
            hashes.append(b"" if blank else hashlib.sha256(photo.tobytes()).digest())
    vectors = np.concatenate([_details(store.images) for store in (train, val) if len(store)])
    details = _without(vectors, _shared(vectors))
    return Signatures(train.names + val.names, groups, len(train), hashes, details)


def nearest(photos: Store, pictures: np.ndarray) -> list[tuple[str, float]]:
    """The photo most like each picture, uint8 [N, H, W, 3], and how much: from NEARLY_SAME a copy.

    Whatever the other pictures are.
    """
    known = _details(photos.images)
    shared = _shared(known)
    likeness = _without(_details(pictures), shared) @ _without(known, shared).T
    best = likeness.argmax(axis=1)
    return [(photos.names[i], float(row[i])) for i, row in zip(best, likeness, strict=True)]


def _details(photos: Pixels) -> np.ndarray:
    """uint8 [N, H, W, 3] -> unit vectors float32 [N, D], 0 for a thumbnail without detail."""
    vectors = np.stack([_detail(photo) for photo in photos])
    told = vectors.std(axis=1, keepdims=True) >= FLAT
    return _unit(vectors - vectors.mean(axis=1, keepdims=True)) * told


def _shared(vectors: np.ndarray) -> np.ndarray:
    """What photos [N, D] have in common, [D]."""
    # Drawn a little towards 0: two photos alone would otherwise be explained by their mean.
    return vectors.sum(axis=0) / (vectors.any(axis=1).sum() + 2)


def _without(vectors: np.ndarray, shared: np.ndarray) -> np.ndarray:
    return _unit(vectors - shared) * vectors.any(axis=1, keepdims=True)


def _detail(photo: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [D]: the thumbnail less its local mean, without the border."""
    side = min(THUMBNAIL, *photo.shape[:2])
    grey = Image.fromarray(photo @ LUMINANCE.astype(np.float32))
    thumbnail = np.asarray(grey.resize((side, side), Image.Resampling.BOX))
    edge = LOCAL // 2
    return (thumbnail - uniform_filter(thumbnail, LOCAL))[edge:-edge, edge:-edge].ravel()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def find_leaks(signatures: Signatures) -> list[Leak]:
    """The held-out photos that have their like in training, each by the plainest reason."""
    names, groups, split = signatures.names, signatures.groups, signatures.training
    hashes = signatures.hashes
    same_pixels = {hashes[i]: i for i in range(split) if hashes[i]}
    same_group = {groups[i]: i for i in range(split)}
    leaks = []
    for start in range(split, len(names), BLOCK):
        similarities = signatures.details[start : start + BLOCK] @ signatures.details[:split].T
        for i, row in enumerate(similarities, start):
            nearest = int(row.argmax())
            if hashes[i] in same_pixels:
                like = names[same_pixels[hashes[i]]]
                leaks.append(Leak(names[i], like, "same pixels", similarity=1.0))
            elif row[nearest] >= NEARLY_SAME:
                similarity = round(float(row[nearest]), 3)
                leaks.append(Leak(names[i], names[nearest], "near-duplicate", similarity))
            elif groups[i] in same_group:
                like = names[same_group[groups[i]]]
                leaks.append(Leak(names[i], like, "same group", group=groups[i]))
    return leaks


def find_near_duplicates(signatures: Signatures) -> tuple[int, list[Pair]]:
    """How many pairs within one split are nearly the same, and the most similar 50 of them.

    Pairs of one group are left out, which count once as it is, and
    pairs of the same pixels, which ``find_duplicates`` lists.
    """
    count, pairs = 0, []
    group = np.unique(signatures.groups, return_inverse=True)[1]
    pixels = np.unique(np.array([h.hex() for h in signatures.hashes]), return_inverse=True)[1]
    for begin, end in ((0, signatures.training), (signatures.training, len(signatures.names))):
        for start in range(begin, end, BLOCK):
            a, b = np.arange(start, min(start + BLOCK, end))[:, None], np.arange(start, end)
            similarities = signatures.details[a[:, 0]] @ signatures.details[b].T
            known = (a >= b) | (group[a] == group[b]) | (pixels[a] == pixels[b])
            rows, columns = np.nonzero((similarities >= NEARLY_SAME) & ~known)
            values = similarities[rows, columns]
            count += len(values)
            for k in np.argsort(-values, kind="stable")[:SHOWN]:
                pairs.append((-float(values[k]), start + int(rows[k]), start + int(columns[k])))
    shown = [
        Pair(signatures.names[i], signatures.names[j], round(-s, 3))
        for s, i, j in sorted(pairs)[:SHOWN]
    ]
    return count, shown


def join_copies(signatures: Signatures) -> list[str]:
    """The groups, those of the same or nearly the same pixels within a split joined into one."""
    groups, split = signatures.groups, signatures.training
    numbers = np.unique(groups, return_inverse=True)[1]
    edges = [np.empty((2, 0), np.int64)]
    for begin, end in ((0, split), (split, len(groups))):
        for start in range(begin, end, BLOCK):
            some = signatures.details[start : min(start + BLOCK, end)]
            rows, columns = np.nonzero(some @ signatures.details[begin:end].T >= NEARLY_SAME)
            edges.append(np.stack([numbers[rows + start], numbers[columns + begin]]))
    for names in find_duplicates(signatures):
        same = [i for i, name in enumerate(signatures.names) if name in set(names)]
        edges.append(np.stack([numbers[same[:-1]], numbers[same[1:]]]))
    one, other = np.concatenate(edges, axis=1)
    count = int(numbers.max()) + 1
    graph = coo_array((np.ones(len(one)), (one, other)), (count, count))
    part = connected_components(graph, directed=False)[1][numbers]
    first: dict[int, str] = {}
    return [first.setdefault(int(k), name) for k, name in zip(part, groups, strict=True)]


def find_duplicates(signatures: Signatures) -> list[list[str]]:
    """The names of photos of exactly the same pixels, at the size of the store."""
    alike: dict[bytes, list[str]] = {}
    for name, pixels in zip(signatures.names, signatures.hashes, strict=True):
        if pixels:
            alike.setdefault(pixels, []).append(name)
    return [names for names in alike.values() if len(names) > 1]
