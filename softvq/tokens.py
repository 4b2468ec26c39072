"""Token files: what ``softvq encode`` writes and what generators are trained on.

    index.json               what the folder holds, written first
    tokens-00000.safetensors latents float32 [n, L, C], labels int64 [n]; metadata: names as JSON;
                             photos int64 [n], hashes of the pixels, where each was encoded once
    tokens-00001.safetensors ...

The latents are normalised (``Tokenizer.normalize``): what generators learn and draw. They are kept
in float32, so that decoding a token file gives what ``reconstruct`` gives.

Where each photo has the fewest tokens that meet a target, its tokens follow those of the photo
before, latents [sum of lengths, C] with lengths int64 [n], and met bool [n] if they were searched
for. Of photos encoded by tiles a file holds one, its tiles in place of n photos, and size
int64 [2], its height and width in pixels.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from softvq import images
from softvq.coding import (
    BATCH,
    SKIPPED,
    check_size,
    decode,
    encode,
    precision_setting,
    size_of,
    skipped_lines,
)
from softvq.data import Crops, Store, stream_store
from softvq.data.stream import Streamed, in_threads
from softvq.errors import UserError
from softvq.fingerprint import digest, fingerprint
from softvq.io import load_tensors, locked, save_tensors, sweep, write_atomically
from softvq.outputs import LOCK, check_folder, claimed, refuse_overlap
from softvq.precision import computing, pick_precision
from softvq.processes import joined
from softvq.quality import Budget, Predicted, Target, check_budget, lengths_tried
from softvq.tiles import TiledTokens, Tiling, decode_tiles, encode_tiles, levels_of
from softvq.tokenizer.bottleneck import Tokens
from softvq.tokenizer.model import Tokenizer

INDEX = "index.json"
ARCHIVED = 1024  # photos in a file of an archive: what one process does at a time
SHARD = re.compile(r"tokens-\d{5,}\.safetensors")
LARGEST = 1 << 16  # pixels of a side, and tokens and channels of a picture, that are believed


@dataclass(kw_only=True)
class TokenIndex:
    """What a folder of tokens holds, as index.json says it.

    tokenizer   ``fingerprint`` of the one that made them
    photos      ``Store.fingerprint`` of what was encoded; None for drawn tokens
    views, flip, seed, batch    see ``write_tokens``
    tokens, channels, height, width    L and C of the latents; pixels of the pictures or tiles
    target      what a photo's number of tokens is the fewest for; None where each has all L
    overlap     of tiles, in pixels; None where photos were encoded whole
    classes     names of the labels, none if unconditional
    count       entries: pictures times views.  shards: file name -> entries in it
    skipped     photos that could not be decoded: {"path": .., "reason": ..}
    drawn_with  what the generator drew them with, if one did
    precision   of the networks that computed them: fp32 | bf16
    """

    tokenizer: str
    photos: str | None = None
    views: int = 1
    flip: bool = True
    seed: int = 0
    tokens: int
    channels: int
    height: int
    width: int
    classes: list[str]
    count: int
    shards: dict[str, int]
    skipped: list[dict[str, str]] = field(default_factory=list)
    batch: int = BATCH
    target: str | None = None
    overlap: int | None = None
    drawn_with: dict[str, Any] | None = None
    precision: str = "fp32"

    @classmethod
    def read(cls, directory: Path) -> "TokenIndex":
        """A folder's index. Raises UserError if there is none or it cannot be true."""
        path = directory / INDEX
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise UserError(f"{directory}: no {INDEX} there; give a folder of tokens") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON ({error})") from None
        known = {each.name: each for each in dataclasses.fields(cls)}
        if not isinstance(values, dict):
            raise UserError(f"{directory}: not a folder of tokens ({INDEX} holds no object)")
        required = ("shards", *(k for k, v in known.items() if v.default is dataclasses.MISSING))
        for name in required:
            if name not in values and known[name].default_factory is dataclasses.MISSING:
                raise UserError(f"{directory}: not a folder of tokens (lacks {name!r})")
        index = cls(**{name: value for name, value in values.items() if name in known})
        if wrong := index.fault():
            raise UserError(f"{path}: damaged ({wrong}); encode again into a new folder")
        return index

    def fault(self) -> str:
        """What cannot be true of it; empty if nothing."""
        for name in ("tokens", "channels", "height", "width", "views", "batch"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= LARGEST:
                return f"{name} is {_short(value)}, not 1 to {LARGEST}"
        if self.target is not None and not isinstance(self.target, str):
            return "target is no text"
        if not isinstance(self.classes, list) or not all(isinstance(x, str) for x in self.classes):
            return "classes is no list of names"
        if not isinstance(self.shards, dict) or not self.shards:
            return "shards names no file"
        for name, count in self.shards.items():
            if not SHARD.fullmatch(name) or type(count) is not int or count < 1:
                return f"shards has {name!r}: {_short(count)}"
        if self.overlap is not None:
            if type(self.overlap) is not int or not 0 <= self.overlap < min(
                self.height, self.width
            ):
                return f"overlap is {_short(self.overlap)}"
            if self.views != 1 or set(self.shards.values()) != {1}:
                return "a file of tiles holds one photo"
        if self.count != sum(self.shards.values()):
            return "count is not the sum of the shards"
        return "" if isinstance(self.skipped, list) else "skipped is no list"

    @property
    def tiling(self) -> Tiling | None:
        """The tiles that photos were cut into."""
        return None if self.overlap is None else Tiling((self.height, self.width), self.overlap)

    def write(self, directory: Path) -> None:
        """Write index.json, without what there is not."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        write_atomically(directory / INDEX, json.dumps(values, indent=2) + "\n")


def _short(value: object) -> str:
    return " ".join(str(value)[:20].split())


@dataclass
class TokenSet:
    """Tokens in memory; the lists run in parallel.

    ``latents`` normalised, float32 [N, L, C]; ``labels`` int64 [N], indices into ``classes`` (all 0
    if there are none); ``names`` the photos' relative paths, each as often as it has views.
    ``lengths`` int64 [N]: how many of the L tokens each photo has, behind which latents are 0; None
    where all have L.
    """

    latents: Tensor
    labels: Tensor
    names: list[str]
    classes: list[str]
    index: TokenIndex
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)


def write_tokens(
    directory: str | Path,
    tokenizer: Tokenizer,
    photos: Store,
    views: int = 1,
    flip: bool = True,
    seed: int = 0,
    shard_size: int = 4096,
    progress: bool = True,
    batch: int = BATCH,
    keep: Budget = None,
    tiling: Tiling | None = None,
    precision: str = "fp32",
) -> int:
    """Encode every photo ``views`` times into ``directory``; the tokenizer stays where it is.

    ``keep``: how many tokens of each, of a nested tokenizer; see :mod:`softvq.coding`. With a
    ``tiling`` the photos are read again and encoded at their own size by tiles, once each.
    ``precision``: see :mod:`softvq.precision`.

    All photos come once as they are, then all once more for each further view: mirrored, then as
    random crops, mirrored at random. Without ``flip`` nothing is mirrored, and every view but the
    first is a random crop. The crops depend on ``seed`` and the photo's place alone.

    Files are written whole or not at all, and those that are already there are kept: after an
    interruption the same call goes on. With one view, photos that are new since are added: files
    of their own follow the old ones, and new classes the old classes. Returns how many entries it
    encoded. Raises UserError if the folder holds anything else: tokens of another tokenizer, of
    photos that were changed or taken away since, or made in another way.
    """
    writing = Writing(
        Path(directory), tokenizer, photos, views, flip, seed, shard_size, batch, keep, tiling,
        precision,
    )  # fmt: skip
    writing.claim()
    left = sum(map(len, writing.todo.values()))
    with tqdm(
        total=writing.index.count, initial=writing.index.count - left, desc="encoding", unit="img",
        disable=not (progress and left),
    ) as bar:  # fmt: skip
        write_here(writing, list(writing.todo), bar.update)
    writing.finish()
    return writing.encoded()


@dataclass
class Writing:
    """A folder of tokens at work: claimed, each file written by somebody, finished.

    The fields are those of :func:`write_tokens`. Any process may write any file of ``todo``, once
    one of them has claimed the folder; a file that was written twice is the same.
    """

    directory: Path
    tokenizer: Tokenizer
    photos: Store
    views: int = 1
    flip: bool = True
    seed: int = 0
    shard_size: int = 4096
    batch: int = BATCH
    keep: Budget = None
    tiling: Tiling | None = None
    precision: str = "fp32"

    def claim(self) -> None:
        """Write the index, or find one that says the same; ``todo`` is what is missing.

        Raises UserError as :func:`write_tokens`.
        """
        check_budget(self.tokenizer, self.keep)
        if self.tiling is not None:
            self.shard_size = 1
            if self.views > 1 or not isinstance(self.photos.images, Streamed):
                raise UserError("tiles are of photos in files, each once")
        config, keep = self.tokenizer.config, self.keep
        self.pictures = Views(self.photos, self.views, self.flip, self.seed)
        height, width = self.photos.size if self.tiling is None else self.tiling.size
        index = TokenIndex(
            tokenizer=fingerprint(self.tokenizer),
            photos=self.photos.fingerprint,
            views=self.views,
            flip=self.flip,
            seed=self.seed,
            batch=self.batch,
            tokens=keep if isinstance(keep, int) else config.tokens,
            channels=config.channels,
            height=height,
            width=width,
            target=str(keep) if isinstance(keep, Target | Predicted) else None,
            overlap=self.tiling.overlap if self.tiling else None,
            classes=self.photos.classes,
            count=len(self.pictures),
            shards=_shards(len(self.pictures), self.shard_size),
            skipped=self.photos.skipped,
            precision=pick_precision(self.precision, self.tokenizer.device),
        )
        self.index = claim_index(self.directory, index, self.photos, self.shard_size)
        self.todo = _missing(self.directory, self.index, self.photos, index.shards)
        known = self.index.classes
        self.label = np.array([known.index(name) for name in self.photos.classes] or [0])

    def write(self, name: str, done: Callable[[], object] = lambda: None) -> None:
        """Write one file of ``todo``; ``done`` is called after each photo."""
        found, entries = _Read(self.pictures), self.todo[name]
        if self.tiling is None:
            pictures = found.pictures(entries, done)
            tensors = _stored(
                self.tokenizer, list(encode(self.tokenizer, pictures, self.batch, self.keep))
            )
        else:
            image = found.whole(entries[0])
            tensors = {}
            if image is not None:
                tensors = _encode_tiled(self.tokenizer, image, self.tiling, self.keep)
            done()
        tensors["labels"] = torch.from_numpy(self.label[self.photos.labels[found.rows]])
        if self.views == 1:
            tensors["photos"] = torch.tensor(found.digests, dtype=torch.int64)
        names = [self.photos.names[row] for row in found.rows]
        facts = {"names": json.dumps(names), "skipped": json.dumps(found.skipped)}
        save_tensors(tensors, self.directory / name, facts)

    def encoded(self) -> int:
        """How many entries of ``todo`` are in files."""
        return sum(len(_names_in(self.directory / name) or ()) for name in self.todo)

    def finish(self) -> None:
        """Have the index say what the files hold, now that all are there: some photos may have been
        left out, which cannot be decoded."""
        counts, skipped = dict(self.index.shards), list(self.index.skipped)
        listed = {item["path"] for item in skipped}
        for name in self.index.shards:
            counts[name] = len(_names_in(self.directory / name) or ())
            for item in _skipped_in(self.directory / name):
                if item["path"] not in listed:
                    listed.add(item["path"])
                    skipped.append(item)
        if not any(counts.values()):
            (self.directory / INDEX).unlink()
            for name in counts:
                (self.directory / name).unlink()
            raise UserError(
                f"{self.directory}: none of the {len(self.photos)} photos can be decoded "
                f"({skipped[0]['path']}: {skipped[0]['reason']})"
            )
        if counts != self.index.shards or skipped != self.index.skipped:
            for name in [name for name, count in counts.items() if not count]:
                (self.directory / name).unlink()
                del counts[name]
            total = sum(counts.values())
            self.index = dataclasses.replace(
                self.index, shards=counts, count=total, skipped=skipped
            )
            self.index.write(self.directory)


class _Read:
    """Photos as they are encoded: ``rows`` of those that could be decoded, hashes of their pixels,
    and what was ``skipped``."""

    def __init__(self, views: "Views"):
        self.views = views
        self.rows: list[int] = []
        self.digests: list[int] = []
        self.skipped: list[dict[str, str]] = []

    def pictures(self, entries: Sequence[int], done: Callable[[], object]) -> Iterator[Tensor]:
        """The pictures [3, H, W] of entries, read and decoded while others are encoded."""

        def read(entry: int) -> tuple[Tensor, int] | images.BadImage:
            try:
                picture, pixels = self.views.with_pixels(entry)
            except images.BadImage as bad:
                return bad
            return picture, _digest_of(pixels)

        for entry, found in zip(entries, in_threads(read, entries), strict=True):
            if isinstance(found, images.BadImage):
                self.skip(found)
            else:
                self.rows.append(entry % self.views.photos)
                self.digests.append(found[1])
                yield found[0]
            done()

    def whole(self, row: int) -> Tensor | None:
        """A photo of its own size, uint8 [3, H, W]; None for one that cannot be decoded."""
        photos = self.views.store.images
        assert isinstance(photos, Streamed)
        try:
            picture = photos.listing.read(row)
        except images.BadImage as bad:
            self.skip(bad)
            return None
        self.rows.append(row)
        self.digests.append(_digest_of(photos.fitted(picture)))
        return torch.from_numpy(np.array(picture)).movedim(-1, 0)

    def skip(self, bad: images.BadImage) -> None:
        self.skipped.append({"path": str(bad.path), "reason": bad.reason})


def photo_digest(photos: Store, row: int) -> int:
    """63 bits of a hash of a photo's decoded pixels: whether its name is still the same photo's."""
    return _digest_of(photos.images[row])


def _digest_of(pixels: np.ndarray) -> int:
    return int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:8], "big") >> 1


def _shards(count: int, size: int, first: int = 0) -> dict[str, int]:
    """Names of files for ``count`` entries, and the entries of each."""
    return {
        shard_name(first + i): min(size, count - start)
        for i, start in enumerate(range(0, count, size))
    }


def _missing(
    directory: Path, index: TokenIndex, photos: Store, planned: dict[str, int]
) -> dict[str, Sequence[int]]:
    """The files that are not there or not whole, and the entries of each.

    ``planned``: the entries of each file if every photo can be decoded.
    """
    there = {name: _names_in(directory / name) for name in index.shards}
    if index.views > 1:
        starts = np.cumsum([0, *planned.values()]).tolist()
        ranges = {
            name: range(start, start + count)
            for (name, count), start in zip(planned.items(), starts, strict=False)
        }
        return {name: ranges[name] for name, names in there.items() if names is None}
    skipped = [*index.skipped, *(x for name in there for x in _skipped_in(directory / name))]
    known = {item["path"] for item in skipped}
    known |= {photo for names in there.values() for photo in names or ()}
    rest = iter([row for row in _reading_order(photos) if not _among(known, photos, row)])
    return {
        name: list(islice(rest, index.shards[name]))
        for name, names in there.items()
        if names is None
    }


def _reading_order(photos: Store) -> list[int]:
    if isinstance(photos.images, Streamed):
        order: list[int] = photos.images.listing.in_reading_order().tolist()
        return order
    return list(range(len(photos)))


def _among(known: set[str], photos: Store, row: int) -> bool:
    """Whether a photo is known by its name, or by its path as damaged ones are."""
    name = photos.names[row]
    return name in known or (photos.root is not None and str(photos.root / name) in known)


def claim_index(
    directory: Path, index: TokenIndex, photos: Store | None = None, shard_size: int = 0
) -> TokenIndex:
    """Write a new folder's index, or check that the one there says the same. Returns what counts.

    With ``photos`` and one view, the index there may also be one of fewer photos: it grows.
    Raises UserError if the folder holds anything else.
    """
    check_folder(directory, INDEX)
    if not (directory / INDEX).is_file():
        index.write(directory)
        return index
    try:
        old = TokenIndex.read(directory)
    except UserError as error:
        raise UserError(
            f"{error}. Nothing is replaced that softvq did not write: give another folder"
        ) from None
    found = {each.name for each in dataclasses.fields(index)}
    changed = {name for name in found if getattr(old, name) != getattr(index, name)}
    if changed <= {"count", "shards", "classes", "skipped"} and photos is not None:
        return old  # one that has grown, or that leaves out what cannot be decoded
    grown = {"photos", "count", "shards", "classes", "skipped"}
    if photos is not None and changed <= grown and index.views == 1:
        return _grow(directory, old, index, photos, shard_size)
    if changed:
        named = [each.name for each in dataclasses.fields(index) if each.name in changed]
        raise UserError(
            f"{directory}: holds other tokens (another {', '.join(named)}); "
            "give another folder, or delete this one"
        )
    return old


def _grow(
    directory: Path, old: TokenIndex, index: TokenIndex, photos: Store, shard_size: int
) -> TokenIndex:
    """The index of a folder for the photos in it and those that are new since."""
    kept: dict[str, int] = {}
    known: dict[str, int] = {}
    for name, count in old.shards.items():
        names = _names_in(directory / name)
        if names is None:  # it was never finished: what was meant for it is new again
            continue
        digests = load_tensors(directory / name).get("photos", torch.empty(0)).tolist()
        if len(digests) != len(names):  # of softvq 0.1
            raise UserError(f"{directory}: holds tokens of other photos; give another folder")
        kept[name] = count
        known |= dict(zip(names, digests, strict=True))
    rows = {name: row for row, name in enumerate(photos.names)}
    if gone := [name for name in known if name not in rows]:
        raise UserError(
            f"{directory}: holds tokens of photos that are no longer there ({gone[0]}, "
            f"{len(gone)} in all); give another folder"
        )
    changed = [name for name, seen in known.items() if photo_digest(photos, rows[name]) != seen]
    if changed or bool(old.classes) != bool(index.classes):
        what = f"{changed[0]} is another photo now" if changed else "classes are new or gone"
        raise UserError(f"{directory}: {what}; give another folder")
    last = max((int(re.sub(r"\D", "", name)) for name in kept), default=-1)
    more = _shards(len(photos) - len(known), shard_size, last + 1)
    classes = old.classes + [name for name in index.classes if name not in old.classes]
    shards = kept | more
    count = sum(shards.values())
    index = dataclasses.replace(index, shards=shards, count=count, classes=classes)
    index.write(directory)
    return index


class Views(Dataset[Tensor]):
    """The pictures that ``write_tokens`` encodes: float32 [3, H, W] in [-1, 1].

    Entry = view * number of photos + photo. ``made_of`` tells these pictures from any others.
    """

    def __init__(self, photos: Store, views: int = 1, flip: bool = True, seed: int = 0):
        self.count, self.flip, self.photos = views * len(photos), flip, len(photos)
        self.store = photos
        self.made_of = [photos.fingerprint, views, flip, seed]
        self.whole = Crops(photos, augment=False)
        self.crops = Crops(photos, flip=flip, seed=seed)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, entry: int) -> Tensor:
        """Raises images.BadImage for a photo that cannot be decoded."""
        return self.with_pixels(entry)[0]

    def with_pixels(self, entry: int) -> tuple[Tensor, np.ndarray]:
        """A picture, and the photo that it was cut from, uint8 [H', W', 3]. Raises BadImage."""
        view, photo = divmod(entry, self.photos)
        pixels = self.store.images[photo]
        if view == 0:
            return self.whole.cut(pixels, photo, entry).pixels, pixels
        if view == 1 and self.flip:
            return self.whole.cut(pixels, photo, entry).pixels.flip(-1), pixels
        return self.crops.cut(pixels, photo, entry).pixels, pixels


def _encode_tiled(
    tokenizer: Tokenizer, image: Tensor, tiling: Tiling, keep: Budget
) -> dict[str, Tensor]:
    """What a file holds of one photo's tiles."""
    tiled = encode_tiles(tokenizer, image, keep, tiling)
    found = Tokens(tiled.latents.to(tokenizer.device), lengths=tiled.lengths, met=tiled.met)
    return _stored(tokenizer, [found]) | {"size": torch.tensor(tiled.size)}


def _stored(tokenizer: Tokenizer, found: list[Tokens]) -> dict[str, Tensor]:
    """Batches of tokens as a file holds them."""
    parts: dict[str, list[Tensor]] = {}
    for tokens in found:
        latents = tokenizer.normalize(tokens.latents).float()
        if tokens.lengths is not None:
            lengths = tokens.lengths.to(latents.device)
            present = torch.arange(latents.shape[1], device=latents.device) < lengths[:, None]
            latents = latents[present]
            parts.setdefault("lengths", []).append(lengths)
        if tokens.met is not None:
            parts.setdefault("met", []).append(tokens.met)
        parts.setdefault("latents", []).append(latents)
    return {name: torch.cat(some).cpu() for name, some in parts.items()}


def read_tokens(directory: str | Path, tokenizer: str | None = None) -> TokenSet:
    """Read a folder of tokens whole. ``tokenizer``: the ``fingerprint`` they must come from.

    Raises UserError if the folder holds no tokens, is incomplete or damaged, if its tokens were
    made by another tokenizer, and if they are of tiles, which only :func:`read_tiles` reads.
    """
    directory = Path(directory)
    index = _index(directory, tokenizer)
    if index.tiling is not None:
        raise UserError(
            f"{directory}: tokens of tiles, as many as each photo has; only `softvq decode --out` "
            "reads them: encode without --tile"
        )
    shards = [_read_shard(directory / name, index) for name in index.shards]
    names = [name for shard in shards for name in shard.names]
    often = Counter(names)
    if wrong := [name for name, times in often.items() if times != index.views]:
        raise UserError(
            f"{directory}: has {often[wrong[0]]} entries of {wrong[0]!r} and should have "
            f"{index.views}; encode again into a new folder"
        )
    lengths = [shard.lengths for shard in shards if shard.lengths is not None]
    return TokenSet(
        torch.cat([shard.latents for shard in shards]),
        torch.cat([shard.labels for shard in shards]),
        names,
        index.classes,
        index,
        torch.cat(lengths) if lengths else None,
    )


def read_tiles(directory: str | Path, tokenizer: str) -> Iterator[tuple[str, TiledTokens]]:
    """Names and tokens, normalised, of photos that were encoded by tiles, one at a time.

    Raises UserError as :func:`read_tokens` does.
    """
    directory = Path(directory)
    index = _index(directory, tokenizer)
    assert index.tiling is not None
    for name in index.shards:
        shard = _read_shard(directory / name, index)
        assert shard.size is not None
        yield shard.names[0], TiledTokens(shard.latents, index.tiling, shard.size, shard.lengths)


def _index(directory: Path, tokenizer: str | None) -> TokenIndex:
    index = TokenIndex.read(directory)
    if tokenizer is not None and index.tokenizer != tokenizer:
        raise UserError(f"{directory}: tokens of another tokenizer; give the one that made them")
    return index


@dataclass
class Shard:
    """What a file holds: latents [n, L, C], labels [n], names; n tiles and one photo if tiled.

    ``lengths`` [n] and ``met`` [n] where tokens meet a target; ``size`` (H, W) of a tiled photo.
    """

    latents: Tensor
    labels: Tensor
    names: list[str]
    lengths: Tensor | None = None
    met: Tensor | None = None
    size: tuple[int, int] | None = None


def _read_shard(path: Path, index: TokenIndex, latents: bool = True) -> Shard:
    """A file's content, which is what the index says; without ``latents`` all but those, [0, L, C].

    Raises UserError.
    """
    photos = count = index.shards[path.name]
    try:
        with safe_open(path, "pt") as file:

            def check(name: str, kind: str, shape: list[int]) -> None:
                # In the header, before memory is taken.
                found = file.get_slice(name)
                if (found.get_dtype(), list(found.get_shape())) != (kind, shape):
                    raise UserError(
                        f"{path}: {name} are {found.get_dtype()} {list(found.get_shape())}, not "
                        f"{kind} {shape} as {INDEX} says: it does not hold {photos} photos; "
                        "encode again"
                    )

            def read(name: str, kind: str, shape: list[int]) -> Tensor:
                check(name, kind, shape)
                tensor: Tensor = file.get_tensor(name)
                return tensor

            shard = Shard(
                torch.empty(0, index.tokens, index.channels),
                read("labels", "I64", [photos]),
                _listed(file.metadata()) or [],
            )
            if index.tiling is not None:
                height, width = read("size", "I64", [2]).tolist()
                if not (0 < height <= LARGEST and 0 < width <= LARGEST):
                    raise UserError(f"{path}: a photo of {height} x {width} pixels; encode again")
                shard.size, count = (height, width), index.tiling.count(height, width)
            shape = [count, index.tokens, index.channels]
            if index.target is not None:
                shard.lengths = read("lengths", "I64", [count])
                if shard.lengths.min() < 1 or shard.lengths.max() > index.tokens:
                    raise UserError(f"{path}: lengths are not 1 to {index.tokens}; encode again")
                shape = [int(shard.lengths.sum()), index.channels]
                if "met" in file.keys():
                    shard.met = read("met", "BOOL", [count])
            check("latents", "F32", shape)
            if latents:
                shard.latents = _padded(file.get_tensor("latents"), shard.lengths, index.tokens)
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: {path.name} is missing; repeat the command that encodes, and it "
            "goes on"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable token file ({error})") from None
    if len(shard.names) != photos:
        found = f"{len(shard.names)} names" if shard.names else "no list of names"
        raise UserError(f"{path}: {found} for {photos} photos; encode again into a new folder")
    try:
        images.png_paths(shard.names, path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}, and encode again") from None
    if not shard.latents.isfinite().all():
        raise UserError(f"{path}: holds values that are not finite; encode again")
    if shard.labels.min() < 0 or shard.labels.max() >= max(1, len(index.classes)):
        raise UserError(f"{path}: labels are not of the {len(index.classes)} classes; encode again")
    return shard


def _padded(latents: Tensor, lengths: Tensor | None, tokens: int) -> Tensor:
    """[sum of lengths, C] -> [n, L, C], 0 behind each length; as it is without lengths."""
    if lengths is None:
        return latents
    whole = latents.new_zeros(len(lengths), tokens, latents.shape[1])
    whole[torch.arange(tokens) < lengths[:, None]] = latents
    return whole


@dataclass(frozen=True)
class Lengths:
    """How many tokens the photos, or the tiles of photos, of a folder have.

    fewest, most, mean: over all ``count`` of them.  histogram: (k, how many have at most k and more
    than the k before), k = 1, 2, 4, ...  unmet: how many miss the target with all tokens; None if
    it is not known.
    """

    count: int
    fewest: int
    most: int
    mean: float
    histogram: tuple[tuple[int, int], ...]
    unmet: int | None

    def __str__(self) -> str:
        bounds = [0, *(k for k, _ in self.histogram)]
        parts = [
            f"{low + 1}{f'-{high}' if high > low + 1 else ''}: {n:,}"
            for low, (high, n) in zip(bounds, self.histogram, strict=False)
            if n
        ]
        return f"{self.fewest} to {self.most}, mean {self.mean:.1f} ({', '.join(parts)})"


def lengths_of(directory: str | Path) -> Lengths | None:
    """The lengths in the files of a folder that are there; None where all photos have as many.

    Raises UserError for a folder of no tokens, or damaged ones. Latents are not read.
    """
    directory = Path(directory)
    index = TokenIndex.read(directory)
    if index.target is None:
        return None
    there = [directory / name for name in index.shards if (directory / name).is_file()]
    shards = [_read_shard(path, index, latents=False) for path in there]
    if not shards:
        return None
    lengths = torch.cat([shard.lengths for shard in shards if shard.lengths is not None])
    met = [shard.met for shard in shards if shard.met is not None]
    at = torch.tensor(lengths_tried(index.tokens))
    counts = torch.bincount(torch.searchsorted(at, lengths), minlength=len(at)).tolist()
    return Lengths(
        len(lengths), int(lengths.min()), int(lengths.max()), float(lengths.double().mean()),
        tuple(zip(at.tolist(), counts, strict=True)), int((~torch.cat(met)).sum()) if met else None,
    )  # fmt: skip


def shard_name(i: int) -> str:
    """The name of a folder's i-th file."""
    return f"tokens-{i:05d}.safetensors"


def _names_in(path: Path) -> list[str] | None:
    """The names in a token file; None if it is not there, or not whole."""
    return _listed(_facts(path))


def _skipped_in(path: Path) -> list[dict[str, str]]:
    """What was to be in a token file and could not be decoded."""
    try:
        found: list[dict[str, str]] = json.loads(_facts(path)["skipped"])
    except (KeyError, ValueError, RecursionError):
        return []
    return found


def _facts(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _listed(metadata: dict[str, str] | None) -> list[str] | None:
    try:
        found = json.loads((metadata or {})["names"])
    except (KeyError, ValueError, RecursionError):
        return None
    good = isinstance(found, list) and all(isinstance(item, str) for item in found)
    return found if good else None


class Engine(Protocol):
    """Who writes the files of a folder of tokens."""

    def __call__(self, writing: Writing, names: list[str], done: Callable[[int], object]) -> None:
        """Write the files ``names``; ``done`` is told of photos."""


def write_here(writing: Writing, names: list[str], done: Callable[[int], object]) -> None:
    """The engine of this process."""
    with computing(writing.precision, writing.tokenizer):
        for name in names:
            writing.write(name, partial(done, 1))


def encode_folder(
    tokenizer: Tokenizer,
    data: str | Path,
    out: str | Path,
    split: str = "all",
    batch: int = BATCH,
    progress: bool = True,
    found: Callable[[Store], None] = lambda photos: None,
    keep: Budget = None,
    tiling: Tiling | None = None,
    precision: str = "fp32",
    engine: Engine = write_here,
) -> tuple[TokenIndex, int]:
    """Encode photos into a folder of tokens; returns what it holds, and how many photos are new.

    Photos are decoded while others are encoded. Repeated after an interruption it goes on; repeated
    when photos were added it encodes those. What cannot be decoded is left out, and listed in
    ``out``/skipped.jsonl; ``found`` is told of the photos. ``keep`` and ``tiling`` as for
    :func:`write_tokens`. Processes that torchrun started share the files; ``engine`` may share them
    among other ones. Raises UserError where :func:`write_tokens` does, if no photo can be decoded,
    and if photos and tokens would lie in one folder.
    """
    out, state = Path(out), joined()
    refuse_overlap(data, out)
    check_budget(tokenizer, keep)
    check_folder(out, INDEX)
    new, main = not out.exists(), state.is_main_process
    photos = stream_store(data, split, size_of(tokenizer))
    if main:
        found(photos)
    writing = Writing(
        out, tokenizer.to(state.device), photos, shard_size=ARCHIVED, batch=batch, keep=keep,
        tiling=tiling, precision=precision,
    )  # fmt: skip
    busy = f"{out}: another run is writing there; wait for it, or stop it"
    try:
        with locked(out / LOCK, busy) if main else nullcontext():
            if main:
                sweep(out)
            with state.main_process_first():  # the others find its index
                writing.claim()
            state.wait_for_everyone()  # all know what is missing before one of them changes it
            names = list(writing.todo)[state.process_index :: state.num_processes]
            with tqdm(
                total=sum(len(writing.todo[name]) for name in names), desc="encoding", unit="img",
                disable=not (progress and names and main),
            ) as bar:  # fmt: skip
                engine(writing, names, bar.update)
            state.wait_for_everyone()
            if main:
                writing.finish()
                if writing.index.skipped:
                    write_atomically(out / SKIPPED, skipped_lines(writing.index.skipped))
            state.wait_for_everyone()
    finally:
        if main and new and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
    index = TokenIndex.read(out)
    return index, writing.encoded()


def decode_folder(
    tokenizer: Tokenizer,
    directory: str | Path,
    out: str | Path,
    overwrite: bool = False,
    batch: int = BATCH,
    progress: bool = True,
    precision: str = "fp32",
) -> int:
    """Decode a folder of tokens into PNG files named as the photos; returns how many there are.

    Further views of a photo are numbered: a.png, a-2.png. Raises UserError for tokens of another
    tokenizer, and where ``softvq.outputs.claimed`` does.
    """
    index = _index(Path(directory), fingerprint(tokenizer))
    check_size(tokenizer, (index.height, index.width))
    if index.tiling is None:
        tokens = read_tokens(directory)
        size = (index.height, index.width)
        names, pictures = tokens.names, _decoded(tokenizer, tokens, size, batch)
    else:
        shards = [Path(directory, name) for name in index.shards]
        names = [_read_shard(path, index, latents=False).names[0] for path in shards]
        pictures = _decoded_tiles(tokenizer, directory, index.tokenizer)
    settings = {"tokens": str(Path(directory).resolve()), "tokenizer": digest(tokenizer)}
    settings |= precision_setting(precision, tokenizer)
    files = [path.as_posix() for path in images.png_paths(names, "")]
    with (
        claimed(out, "decode", settings, overwrite) as output,
        tqdm(total=len(files), desc="decoding", unit="img", disable=not progress) as bar,
        computing(precision, tokenizer),
    ):
        for path, picture in zip(output.expect(files), pictures, strict=True):
            images.save_png(Image.fromarray(picture), path)
            bar.update()
    return len(files)


def _decoded(
    tokenizer: Tokenizer, tokens: TokenSet, size: tuple[int, int], batch: int
) -> Iterator[np.ndarray]:
    for pictures in decode(tokenizer, tokens.latents, size, batch, tokens.lengths):
        yield from pictures


def _decoded_tiles(
    tokenizer: Tokenizer, directory: str | Path, made_by: str
) -> Iterator[np.ndarray]:
    # Where this runs, the weights may be in half precision, which has another fingerprint.
    for _, tiled in read_tiles(directory, made_by):
        latents = tokenizer.denormalize(tiled.latents.to(tokenizer.device))
        yield levels_of(decode_tiles(tokenizer, dataclasses.replace(tiled, latents=latents)))
