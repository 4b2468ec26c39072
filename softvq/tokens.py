"""Token files: what ``softvq encode`` writes and what generators are trained on.

    index.json               what the folder holds, written first
    tokens-00000.safetensors latents float32 [n, L, C], labels int64 [n]; metadata: names as JSON;
                             photos int64 [n], hashes of the pixels, where each was encoded once
    tokens-00001.safetensors ...

The latents are normalised (``Tokenizer.normalize``): what generators learn and draw. They are kept
in float32, so that decoding a token file gives what ``reconstruct`` gives.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    encode_all,
    size_of,
    skipped_lines,
)
from softvq.data import Crops, Store, temporary_store
from softvq.errors import UserError
from softvq.fingerprint import digest, fingerprint
from softvq.io import load_tensors, locked, save_tensors, sweep, write_atomically
from softvq.outputs import LOCK, check_folder, claimed, refuse_overlap
from softvq.tokenizer.model import Tokenizer

INDEX = "index.json"
SHARD = re.compile(r"tokens-\d{5,}\.safetensors")
LARGEST = 1 << 16  # pixels of a side, and tokens and channels of a picture, that are believed


@dataclass(kw_only=True)
class TokenIndex:
    """What a folder of tokens holds, as index.json says it.

    tokenizer   ``fingerprint`` of the one that made them
    photos      ``Store.fingerprint`` of what was encoded; None for drawn tokens
    views, flip, seed, batch    see ``write_tokens``
    tokens, channels, height, width    L and C of the latents; pixels of the pictures
    classes     names of the labels, none if unconditional
    count       entries: pictures times views.  shards: file name -> entries in it
    skipped     photos that could not be decoded: {"path": .., "reason": ..}
    drawn_with  what the generator drew them with, if one did
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
    drawn_with: dict[str, Any] | None = None

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
                return f"{name} is {str(value)[:20]}, not 1 to {LARGEST}"
        if not isinstance(self.classes, list) or not all(isinstance(x, str) for x in self.classes):
            return "classes is no list of names"
        if not isinstance(self.shards, dict) or not self.shards:
            return "shards names no file"
        for name, count in self.shards.items():
            if not SHARD.fullmatch(name) or type(count) is not int or count < 1:
                return f"shards has {name!r}: {str(count)[:20]}"
        if self.count != sum(self.shards.values()):
            return "count is not the sum of the shards"
        return "" if isinstance(self.skipped, list) else "skipped is no list"

    def write(self, directory: Path) -> None:
        """Write index.json, without what there is not."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        write_atomically(directory / INDEX, json.dumps(values, indent=2) + "\n")


@dataclass
class TokenSet:
    """Tokens in memory; the lists run in parallel.

    ``latents`` normalised, float32 [N, L, C]; ``labels`` int64 [N], indices into ``classes`` (all 0
    if there are none); ``names`` the photos' relative paths, each as often as it has views.
    """

    latents: Tensor
    labels: Tensor
    names: list[str]
    classes: list[str]
    index: TokenIndex

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
    keep: int | None = None,
) -> int:
    """Encode every photo ``views`` times into ``directory``; the tokenizer stays where it is.

    ``keep``: the first so many tokens, of a nested tokenizer; None for all.

    All photos come once as they are, then all once more for each further view: mirrored, then as
    random crops, mirrored at random. Without ``flip`` nothing is mirrored, and every view but the
    first is a random crop. The crops depend on ``seed`` and the photo's place alone.

    Files are written whole or not at all, and those that are already there are kept: after an
    interruption the same call goes on. With one view, photos that are new since are added: files
    of their own follow the old ones, and new classes the old classes. Returns how many entries it
    encoded. Raises UserError if the folder holds anything else: tokens of another tokenizer, of
    photos that were changed or taken away since, or made in another way.
    """
    directory = Path(directory)
    config = tokenizer.config
    if keep is not None:
        tokenizer.check_tokens(keep)
    pictures = Views(photos, views, flip, seed)
    index = TokenIndex(
        tokenizer=fingerprint(tokenizer),
        photos=photos.fingerprint,
        views=views,
        flip=flip,
        seed=seed,
        batch=batch,
        tokens=keep or config.tokens,
        channels=config.channels,
        height=photos.size[0],
        width=photos.size[1],
        classes=photos.classes,
        count=len(pictures),
        shards=_shards(len(pictures), shard_size),
        skipped=photos.skipped,
    )
    index = claim_index(directory, index, photos, shard_size)
    todo = _missing(directory, index, photos)
    label = np.array([index.classes.index(name) for name in photos.classes] or [0])
    left = sum(map(len, todo.values()))
    with tqdm(
        total=index.count, initial=index.count - left, desc="encoding", unit="img",
        disable=not (progress and todo),
    ) as bar:  # fmt: skip
        for name, entries in todo.items():
            latents = _encode(tokenizer, pictures, entries, bar, batch, keep)
            rows = [entry % len(photos) for entry in entries]
            tensors = {"latents": latents, "labels": torch.from_numpy(label[photos.labels[rows]])}
            if views == 1:
                digests = [photo_digest(photos, row) for row in rows]
                tensors["photos"] = torch.tensor(digests, dtype=torch.int64)
            names = {"names": json.dumps([photos.names[row] for row in rows])}
            save_tensors(tensors, directory / name, names)
    return left


def photo_digest(photos: Store, row: int) -> int:
    """63 bits of a hash of a photo's decoded pixels: whether its name is still the same photo's."""
    sha = hashlib.sha256(photos.images[row].tobytes())
    return int.from_bytes(sha.digest()[:8], "big") >> 1


def _shards(count: int, size: int, first: int = 0) -> dict[str, int]:
    """Names of files for ``count`` entries, and the entries of each."""
    return {
        shard_name(first + i): min(size, count - start)
        for i, start in enumerate(range(0, count, size))
    }


def _missing(directory: Path, index: TokenIndex, photos: Store) -> dict[str, Sequence[int]]:
    """The files that are not there or not whole, and the entries of each."""
    there = {name: _names_in(directory / name) for name in index.shards}
    starts = np.cumsum([0, *index.shards.values()])
    ranges = {
        name: range(start, start + count)
        for (name, count), start in zip(index.shards.items(), starts.tolist(), strict=False)
    }
    if index.views > 1:
        return {name: ranges[name] for name, names in there.items() if names is None}
    written = {photo for names in there.values() for photo in names or ()}
    rest = iter([row for row, name in enumerate(photos.names) if name not in written])
    return {
        name: [next(rest) for _ in ranges[name]] for name, names in there.items() if names is None
    }


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
    if changed <= {"shards", "classes", "skipped"} and photos is not None:
        return old  # one that has grown
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
    index = dataclasses.replace(index, shards=kept | more, classes=classes)
    index.write(directory)
    return index


class Views(Dataset):
    """The pictures that ``write_tokens`` encodes: float32 [3, H, W] in [-1, 1].

    Entry = view * number of photos + photo. ``made_of`` tells these pictures from any others.
    """

    def __init__(self, photos: Store, views: int = 1, flip: bool = True, seed: int = 0):
        self.count, self.flip, self.photos = views * len(photos), flip, len(photos)
        self.made_of = [photos.fingerprint, views, flip, seed]
        self.whole = Crops(photos, augment=False)
        self.crops = Crops(photos, flip=flip, seed=seed)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, entry: int) -> Tensor:
        view, photo = divmod(entry, self.photos)
        if view == 0:
            return self.whole[photo, entry][0]
        if view == 1 and self.flip:
            return self.whole[photo, entry][0].flip(-1)
        return self.crops[photo, entry][0]


def _encode(
    tokenizer: Tokenizer,
    views: Views,
    entries: Sequence[int],
    bar: tqdm,
    batch: int,
    keep: int | None,
) -> Tensor:
    """Normalised latents [n, k, C] of the entries."""

    def pictures() -> Iterator[Tensor]:
        for entry in entries:
            yield views[entry]
            bar.update()

    return encode_all(tokenizer, pictures(), batch, keep)


def read_tokens(directory: str | Path, tokenizer: str | None = None) -> TokenSet:
    """Read a folder of tokens whole. ``tokenizer``: the ``fingerprint`` they must come from.

    Raises UserError if the folder holds no tokens, is incomplete or damaged, or if its tokens
    were made by another tokenizer.
    """
    directory = Path(directory)
    index = TokenIndex.read(directory)
    if tokenizer is not None and index.tokenizer != tokenizer:
        raise UserError(f"{directory}: tokens of another tokenizer; give the one that made them")
    latents, labels, names = [], [], []
    for name in index.shards:
        some = _read_shard(directory / name, index)
        latents.append(some[0])
        labels.append(some[1])
        names += some[2]
    often = Counter(names)
    if wrong := [name for name, times in often.items() if times != index.views]:
        raise UserError(
            f"{directory}: has {often[wrong[0]]} entries of {wrong[0]!r} and should have "
            f"{index.views}; encode again into a new folder"
        )
    return TokenSet(torch.cat(latents), torch.cat(labels), names, index.classes, index)


def _read_shard(path: Path, index: TokenIndex) -> tuple[Tensor, Tensor, list[str]]:
    """Latents, labels and names of a file, which are what the index says. Raises UserError."""
    count = index.shards[path.name]
    wanted = {
        "latents": ("F32", [count, index.tokens, index.channels]),
        "labels": ("I64", [count]),
    }
    try:
        with safe_open(path, "pt") as file:
            # In the header, before memory is taken.
            for name, what in wanted.items():
                found = file.get_slice(name)
                if (found.get_dtype(), list(found.get_shape())) != what:
                    raise UserError(
                        f"{path}: {name} are {found.get_dtype()} {list(found.get_shape())}, not "
                        f"{what[0]} {what[1]} as {INDEX} says: it does not hold {count} photos; "
                        "encode again"
                    )
            latents, labels = file.get_tensor("latents"), file.get_tensor("labels")
            names = _listed(file.metadata())
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: {path.name} is missing; repeat the command that encodes, and it "
            "goes on"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable token file ({error})") from None
    if names is None or len(names) != count:
        found = "no list of names" if names is None else f"{len(names)} names"
        raise UserError(f"{path}: {found} for {count} photos; encode again into a new folder")
    try:
        images.png_paths(names, path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}, and encode again") from None
    if not latents.isfinite().all():
        raise UserError(f"{path}: holds values that are not finite; encode again")
    if labels.min() < 0 or labels.max() >= max(1, len(index.classes)):
        raise UserError(f"{path}: labels are not of the {len(index.classes)} classes; encode again")
    return latents, labels, names


def shard_name(i: int) -> str:
    """The name of a folder's i-th file."""
    return f"tokens-{i:05d}.safetensors"


def _names_in(path: Path) -> list[str] | None:
    """The names in a token file; None if it is not there, or not whole."""
    try:
        with safe_open(path, "pt") as file:
            return _listed(file.metadata())
    except (OSError, SafetensorError):
        return None


def _listed(metadata: dict[str, str] | None) -> list[str] | None:
    try:
        found = json.loads((metadata or {})["names"])
    except (KeyError, ValueError, RecursionError):
        return None
    good = isinstance(found, list) and all(isinstance(item, str) for item in found)
    return found if good else None


def encode_folder(
    tokenizer: Tokenizer,
    data: str | Path,
    out: str | Path,
    split: str = "all",
    batch: int = BATCH,
    progress: bool = True,
    found: Callable[[Store], None] = lambda photos: None,
    keep: int | None = None,
) -> tuple[TokenSet, int]:
    """Encode photos into a folder of tokens; returns all its tokens, and how many are new.

    Repeated after an interruption it goes on; repeated when photos were added it encodes those.
    What cannot be decoded is listed in ``out``/skipped.jsonl; ``found`` is told of the photos.
    Raises UserError where
    ``write_tokens`` does, and if photos and tokens would lie in one folder.
    """
    out = Path(out)
    refuse_overlap(data, out)
    if keep is not None:
        tokenizer.check_tokens(keep)
    check_folder(out, INDEX)
    new = not out.exists()
    try:
        with locked(out / LOCK, f"{out}: another run is writing there; wait for it, or stop it"):
            sweep(out)
            with temporary_store(data, split, size_of(tokenizer), out) as photos:
                found(photos)
                encoded = write_tokens(
                    out, tokenizer, photos, progress=progress, batch=batch, keep=keep
                )
                if photos.skipped:
                    write_atomically(out / SKIPPED, skipped_lines(photos.skipped))
    finally:
        if new and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
    return read_tokens(out), encoded


def decode_folder(
    tokenizer: Tokenizer,
    directory: str | Path,
    out: str | Path,
    overwrite: bool = False,
    batch: int = BATCH,
    progress: bool = True,
) -> int:
    """Decode a folder of tokens into PNG files named as the photos; returns how many there are.

    Further views of a photo are numbered: a.png, a-2.png. Raises UserError for tokens of another
    tokenizer, and where ``softvq.outputs.claimed`` does.
    """
    tokens = read_tokens(directory, fingerprint(tokenizer))
    size = (tokens.index.height, tokens.index.width)
    check_size(tokenizer, size)
    settings = {"tokens": str(Path(directory).resolve()), "tokenizer": digest(tokenizer)}
    names = [path.as_posix() for path in images.png_paths(tokens.names, "")]
    with (
        claimed(out, "decode", settings, overwrite) as output,
        tqdm(total=len(names), desc="decoding", unit="img", disable=not progress) as bar,
    ):
        paths = iter(output.expect(names))
        for pictures in decode(tokenizer, tokens.latents, size, batch):
            for picture in pictures:
                images.save_png(Image.fromarray(picture), next(paths))
            bar.update(len(pictures))
    return len(names)
