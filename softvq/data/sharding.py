"""Photos into shards: ``softvq shard``.

shards.json               of what, and how; written first
train-00000.tar           000000007.jpg, 000000007.cls, 000000007.json, and so on, shuffled
train.index.safetensors   see :mod:`softvq.data.shards`; written last, as is that of val
skipped.jsonl             photos that cannot be decoded and shards that cannot be read, with reasons

Files are copied byte for byte, after each was decoded once, so that what is in a shard can be
trained on. Of tar files that are there, WebDataset's own for example, only the index is written.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
from tqdm import tqdm

from softvq import images
from softvq.data.find import find_photos
from softvq.data.photos import SUFFIXES, Listing, hold_out
from softvq.data.shards import INDEX, Part, ShardListing, find_shards, read_bytes
from softvq.data.stream import count_lost, in_threads, lose
from softvq.errors import UserError
from softvq.io import locked, replacing, sweep, write_atomically
from softvq.outputs import LOCK, check_folder, refuse_overlap

RECORD = "shards.json"
SKIPPED = "skipped.jsonl"
HUGGING_FACE = "hf:"
SHUFFLED = 10_000  # photos of a stream that are shuffled together


@dataclass(frozen=True)
class Photo:
    """A photo that is to be written: ``read`` gives its file's bytes."""

    name: str
    label: int
    read: Callable[[], bytes]


@dataclass
class Sharding:
    """Photos by split, in the order in which they are written, and their classes."""

    classes: list[str]
    parts: dict[str, Iterable[Photo]]


@dataclass
class Asked:
    """What decides the shards, as shards.json says it."""

    source: str
    each: int
    seed: int
    photos: str | None = None  # a hash of names and stamps of a folder's


def write_shards(
    source: str, out: str | Path, each: int = 1000, seed: int = 0, progress: bool = True
) -> tuple[ShardListing, int]:
    """Write shards of ``each`` photos; returns all that is in them, and how many were left out.

    ``source``: a folder of photos or 'builtin'; ``hf:NAME``, a data set of Hugging Face, in a
    folder or on the hub, which is streamed; or tar files, as 'photos-*.tar' or
    's3://bucket/photos-{000..127}.tar', of which only an index is written. Which photo lies in
    which shard is drawn by ``seed``.

    After an interruption the same call goes on. Raises UserError if ``out`` holds anything else,
    for a source without photos, and if none can be decoded.
    """
    out, asked = Path(out), Asked(source, each, seed)
    photos: Sharding | list[str]
    if source.endswith(".tar"):
        photos = addresses_of(source)
    elif not in_folder(source):
        photos = _of_hugging_face(source.removeprefix(HUGGING_FACE), seed)
    else:
        refuse_overlap(source, out)
        folder = {split: find_photos(source, split) for split in ("train", "val")}
        files = [[part.names, part.stamps(), part.labels.tolist()] for part in folder.values()]
        asked.photos = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        photos = _of_folder(folder, seed)
    check_folder(out, RECORD)
    with locked(out / LOCK, f"{out}: another run is writing there; wait for it, or stop it"):
        sweep(out)
        _claim(out / RECORD, asked)
        if not (out / INDEX.format("train")).is_file():
            if isinstance(photos, Sharding):
                written, classes = _write_all(out, photos, each, progress), photos.classes
            else:
                written, classes = _of_tars(out, photos, progress)
            if not all(part.names for part in written.values()):
                raise UserError(
                    f"{source}: no photo there that can be decoded; see {out / SKIPPED}"
                )
            for split in ("val", "train"):
                written[split].part(classes).write(out / INDEX.format(split))
    return find_shards(out, "all"), count_lost(out / SKIPPED)


def in_folder(source: str) -> bool:
    """Whether a source is a folder of photos, and no data set and no tar files."""
    return not source.startswith(HUGGING_FACE) and not source.endswith(".tar")


def _claim(record: Path, asked: Asked) -> None:
    if record.is_file():
        try:
            old = Asked(**json.loads(record.read_text("utf-8")))
        except (ValueError, TypeError):
            raise UserError(f"{record}: damaged; give another folder") from None
        if changed := [k for k, v in asdict(asked).items() if getattr(old, k) != v]:
            raise UserError(
                f"{record.parent}: holds other shards (another {', '.join(changed)}); give another "
                "folder"
            )
    write_atomically(record, json.dumps(asdict(asked), indent=2) + "\n")


# ---- what is to be written ----


def _of_folder(parts: dict[str, Listing], seed: int) -> Sharding:
    """The photos of a folder, in an order drawn by ``seed``."""

    def photos(split: str) -> Iterator[Photo]:
        listing = parts[split]
        order = np.random.default_rng((seed, split == "val")).permutation(len(listing.names))
        for i in order.tolist():
            yield Photo(listing.names[i], int(listing.labels[i]), partial(_file, listing, i))

    return Sharding(parts["train"].classes, {split: photos(split) for split in parts})


def _file(listing: Listing, i: int) -> bytes:
    if listing.boxes is None:
        return listing.paths[i].read_bytes()
    written = io.BytesIO()
    listing.read(i).save(written, "PNG")
    return written.getvalue()


def _of_hugging_face(name: str, seed: int) -> Sharding:
    """A data set of Hugging Face, streamed. Without a split for it a tenth is held out."""
    try:
        import datasets
    except ImportError:
        raise UserError("hf: needs datasets: pip install 'softvq[data]'") from None
    try:
        if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
            if isinstance(found, datasets.Dataset):
                found = {"train": found}
            found = {split: each.to_iterable_dataset() for split, each in found.items()}
        else:
            found = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # noqa: BLE001 (of any kind: the hub's, of files, of formats)
        raise UserError(f"hf:{name}: cannot be opened ({error})") from None
    called = {"train": "train", "val": "validation"}
    if "validation" not in found:
        called["val"] = next((s for s in found if s.startswith(("val", "test"))), "")
    if "train" not in found:
        raise UserError(f"hf:{name}: has no split 'train', but {', '.join(found)}")
    features = found["train"].features or {}
    pictures = [k for k, v in features.items() if isinstance(v, datasets.Image)]
    if not pictures:
        raise UserError(f"hf:{name}: has no column of images, but {', '.join(features)}")
    labels = [k for k, v in features.items() if isinstance(v, datasets.ClassLabel)]
    classes = list(features[labels[0]].names) if labels else []

    def photos(split: str, keep: Callable[[int], bool]) -> Iterator[Photo]:
        stream = found[split].cast_column(pictures[0], datasets.Image(decode=False))
        for i, row in enumerate(stream.shuffle(seed=seed, buffer_size=SHUFFLED)):
            if not keep(i):
                continue
            label = row[labels[0]] if labels else 0
            held, path = row[pictures[0]], row[pictures[0]].get("path") or ""
            suffix = PurePosixPath(path).suffix.lower()
            name = f"{split}/{i:09d}{suffix if suffix in SUFFIXES else '.jpg'}"
            yield Photo(name, max(0, label), partial(_held, held))

    if called["val"]:
        return Sharding(
            classes, {part: photos(split, lambda i: True) for part, split in called.items()}
        )
    return Sharding(
        classes,
        {
            "train": photos("train", lambda i: i % 10 != 9),
            "val": photos("train", lambda i: i % 10 == 9),
        },
    )


def _held(picture: dict[str, Any]) -> bytes:
    """A picture of a data set, as its column has it: bytes, or where they are."""
    data: bytes | None = picture["bytes"]
    return read_bytes(picture["path"]) if data is None else data


# ---- tar files ----


@dataclass
class _Written:
    """What lies in tar files, as it is found there."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    places: list[tuple[int, int, int]] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)

    def add(self, sample: "_Sample", label: int) -> None:
        self.names.append(sample.name)
        self.labels.append(label)
        self.places.append((len(self.shards) - 1, sample.start, sample.size))

    def part(self, classes: list[str]) -> Part:
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        return Part(
            [self.names[i] for i in order],
            np.array(self.labels, np.int64)[order],
            np.array(self.places, np.int64).reshape(-1, 3)[order],
            classes,
            self.shards,
        )


def _write_all(out: Path, sharding: Sharding, each: int, progress: bool) -> dict[str, _Written]:
    """Write the tar files that are not there yet."""
    written = {}
    number_of = {name: i for i, name in enumerate(sharding.classes)}
    with tqdm(desc="writing shards", unit=" photos", disable=not progress) as bar:
        for split, photos in sharding.parts.items():
            found, rest, number = _Written(), iter(photos), 0
            while some := list(islice(rest, each)):
                name = f"{split}-{number:05d}.tar"
                if not (out / name).is_file():
                    _write_tar(out, name, some, number * each, sharding.classes, bar)
                found.shards.append(name)
                for sample in _samples(str(out / name)):
                    found.add(sample, number_of.get(sample.label or "", 0))
                number += 1
            written[split] = found
    return written


def _write_tar(
    out: Path, name: str, photos: list[Photo], first: int, classes: list[str], bar: tqdm
) -> None:
    """One shard: of each photo its file, its label and a record, as WebDataset names them."""

    def checked(photo: Photo) -> bytes | str:
        try:
            data = photo.read()
            images.decode(data, photo.name)
        except images.BadImage as bad:
            return bad.reason
        except OSError as error:
            return error.strerror or str(error)
        return data

    with (
        replacing(out / name) as partial,
        open(partial, "wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        found = in_threads(checked, photos, lambda photo: photo.name)
        for number, (photo, data) in enumerate(zip(photos, found, strict=True), first):
            bar.update()
            if isinstance(data, str):
                lose(out / SKIPPED, photo.name, data)
                continue
            record = {"name": photo.name}
            if classes:
                record["class"] = classes[photo.label]
            suffix = PurePosixPath(photo.name).suffix.lower() or ".png"
            for ending, content in (
                (suffix, data),
                (".cls", str(photo.label).encode()),
                (".json", json.dumps(record).encode()),
            ):
                member = tarfile.TarInfo(f"{number:09d}{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@dataclass
class _Sample:
    """A photo in a tar file: from which byte on, how many, and what stands beside it."""

    key: str
    name: str = ""
    label: str | None = None
    start: int = 0
    size: int = 0


def _samples(address: str) -> Iterator[_Sample]:
    """The photos of a tar file anywhere: members of one name up to its first dot belong together.

    Raises OSError, and tarfile.TarError where the file is damaged; what lies before it is given.
    """
    sample = _Sample("")
    with fsspec.open(address, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            folder, _, last = member.name.rpartition("/")
            stem, dot, ending = last.partition(".")
            key = f"{folder}/{stem}"
            if not (member.isfile() and stem and dot):
                continue
            if key != sample.key:
                if sample.size:
                    yield sample
                sample = _Sample(key)
            ending = ending.lower()
            if f".{ending.rpartition('.')[2]}" in SUFFIXES and not sample.size:
                sample.start, sample.size = member.offset_data, member.size
                sample.name = sample.name or member.name
            elif ending in ("cls", "json") and (opened := tar.extractfile(member)):
                _describe(sample, ending, opened.read())
    if sample.size:
        yield sample


def _describe(sample: _Sample, ending: str, data: bytes) -> None:
    text = data.decode("utf-8", "replace").strip()
    if ending == "cls":
        sample.label = sample.label or text
        return
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict):
        if isinstance(record.get("name"), str):
            sample.name = record["name"]
        if isinstance(record.get("class"), str):
            sample.label = record["class"]


def _of_tars(
    out: Path, addresses: list[str], progress: bool
) -> tuple[dict[str, _Written], list[str]]:
    """An index of tar files that are there. Splits are told by their names, or drawn.

    A label is "class" in .json, the text in .cls, or the folder of the photo in the tar file.
    """
    found: list[tuple[str, _Sample]] = []
    for address in tqdm(addresses, "reading shards", unit=" shards", disable=not progress):
        try:
            for sample in _samples(address):
                name = sample.name.lstrip("./")
                stem = PurePosixPath(address).stem
                sample.name = f"{stem}/{name}"
                folder = name.rpartition("/")[0]
                sample.label = folder or None if sample.label is None else sample.label
                found.append((address, sample))
        except (OSError, tarfile.TarError) as error:
            lose(out / SKIPPED, address, f"damaged or missing ({error})")
    labels = {sample.label for _, sample in found if sample.label is not None}
    unlabelled = any(sample.label is None for _, sample in found)
    if unlabelled or not labels:
        classes = []
    elif all(label.isdigit() for label in labels):
        classes = [str(i) for i in range(max(map(int, labels)) + 1)]
    else:
        classes = sorted(labels)
    number = {name: i for i, name in enumerate(classes)}
    named = {a: _split_of_shard(a) for a in addresses}
    if {"train", "val"} <= set(named.values()):
        held_out = {sample.name for a, sample in found if named[a] == "val"}
    else:
        held_out = hold_out([sample.name for _, sample in found])
    written = {"train": _Written(), "val": _Written()}
    for address, sample in found:
        into = written["val" if sample.name in held_out else "train"]
        if not into.shards or into.shards[-1] != address:
            into.shards.append(address)
        into.add(sample, number.get(sample.label or "", 0))
    return written, classes


def _split_of_shard(address: str) -> str:
    name = PurePosixPath(address).name.lower()
    return "val" if re.match(r"(val|test)", name) else "train" if "train" in name else ""


def addresses_of(pattern: str) -> list[str]:
    """'a-{000..127}.tar' and 'a-*.tar', with or without a scheme -> addresses.

    Raises UserError if there is none.
    """
    if span := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        low, high = span[1], span[2]
        return [
            pattern[: span.start()] + str(i).zfill(len(low)) + pattern[span.end() :]
            for i in range(int(low), int(high) + 1)
        ]
    try:
        files, _, paths = fsspec.get_fs_token_paths(pattern)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"{pattern}: cannot be read ({error})") from None
    if not paths or not files.exists(paths[0]):
        raise UserError(f"{pattern}: no such files")
    if "://" not in pattern:
        return [str(Path(path).absolute()) for path in paths]
    return [files.unstrip_protocol(path) for path in paths]
