"""Photos into folders of tokens: by one process, by several, by engines; each photo exactly once.

A folder is planned, each of its files written by somebody, and finished; see :class:`Writing`.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from softvq import images
from softvq.coding import BATCH, SKIPPED, encode, size_of, skipped_lines
from softvq.data import Crops, Store, stream_store
from softvq.data.stream import Streamed, in_threads
from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.io import load_tensors, locked, save_tensors, sweep, write_atomically
from softvq.outputs import LOCK, check_folder, refuse_overlap
from softvq.precision import computing, pick_precision
from softvq.processes import joined
from softvq.quality import Budget, Predicted, Target, check_budget
from softvq.tiles import Tiling, encode_tiles
from softvq.tokenizer.bottleneck import Tokens
from softvq.tokenizer.model import Tokenizer
from softvq.tokens import INDEX, TokenIndex, names_in, shard_name, skipped_in

ARCHIVED = 1024  # photos in a file of an archive: what one process does at a time


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
) -> int:
    """Encode every photo ``views`` times into ``directory``; the tokenizer stays where it is.

    All photos come once as they are, then all once more for each further view: mirrored, then as
    random crops, mirrored at random. Without ``flip`` nothing is mirrored, and every view but the
    first is a random crop. The crops depend on ``seed`` and the photo's place alone.

    Files are written whole or not at all, and those that are already there are kept: after an
    interruption the same call goes on. With one view, photos that are new since are added: files
    of their own follow the old ones, and new classes the old classes. Returns how many entries it
    encoded. Raises UserError if the folder holds anything else: tokens of another tokenizer, of
    photos that were changed or taken away since, or made in another way.
    """
    writing = Writing(Path(directory), tokenizer, photos, views, flip, seed, shard_size, batch)
    writing.claim()
    left = sum(map(len, writing.todo.values()))
    with tqdm(
        total=writing.index.count, initial=writing.index.count - left, desc="encoding", unit="img",
        disable=not (progress and left),
    ) as bar:  # fmt: skip
        write_here(writing, list(writing.todo), bar.update)
    writing.finish()
    return writing.encoded()


class Engine(Protocol):
    """Who writes the files of a folder of tokens."""

    def __call__(self, writing: "Writing", names: list[str], done: Callable[[int], object]) -> None:
        """Write the files ``names``; ``done`` is told of photos."""


def write_here(writing: "Writing", names: list[str], done: Callable[[int], object]) -> None:
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
    :class:`Writing`. Processes that torchrun started share the files; ``engine`` may share them
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


@dataclass
class Writing:
    """A folder of tokens at work: claimed, each file written by somebody, finished.

    The first fields are those of :func:`write_tokens`. ``keep``: how many tokens of each, of a
    nested tokenizer; see :mod:`softvq.coding`. With a ``tiling`` streamed photos are encoded at
    their own size by tiles, once each. ``precision``: see :mod:`softvq.precision`.

    Any process may write any file of ``todo``, once one of them has claimed the folder; a file that
    was written twice is the same.
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
            files = isinstance(self.photos.images, Streamed) and self.photos.root is not None
            if self.views > 1 or not files:
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
        facts = {"names": json.dumps(names)}
        if found.skipped:
            facts["skipped"] = json.dumps(found.skipped)
        save_tensors(tensors, self.directory / name, facts)

    def encoded(self) -> int:
        """How many entries of ``todo`` are in files."""
        return sum(len(names_in(self.directory / name) or ()) for name in self.todo)

    def finish(self) -> None:
        """Have the index say what the files hold, now that all are there: some photos may have been
        left out, which cannot be decoded."""
        counts, skipped = dict(self.index.shards), list(self.index.skipped)
        listed = {item["path"] for item in skipped}
        for name in self.index.shards:
            counts[name] = len(names_in(self.directory / name) or ())
            for item in skipped_in(self.directory / name):
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
        names = names_in(directory / name)
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
    there = {name: names_in(directory / name) for name in index.shards}
    if index.views > 1:
        starts = np.cumsum([0, *planned.values()]).tolist()
        ranges = {
            name: range(start, start + count)
            for (name, count), start in zip(planned.items(), starts, strict=False)
        }
        return {name: ranges[name] for name, names in there.items() if names is None}
    skipped = [*index.skipped, *(x for name in there for x in skipped_in(directory / name))]
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


def photo_digest(photos: Store, row: int) -> int:
    """63 bits of a hash of a photo's decoded pixels: whether its name is still the same photo's."""
    return _digest_of(photos.images[row])


def _digest_of(pixels: np.ndarray) -> int:
    return int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:8], "big") >> 1
