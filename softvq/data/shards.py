"""Photos in shards: tar files as WebDataset has them, read where they lie.

train.index.safetensors   which photos there are, and where each lies in which shard
val.index.safetensors

A shard may be anywhere that fsspec reads: a folder, s3://, https://. Photos are read one by one at
their places, so any order costs the same, nothing is copied, and memory holds what is being read.
:mod:`softvq.data.sharding` writes them.
"""

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes

from softvq import images
from softvq.data.photos import Found, Listing
from softvq.errors import UserError
from softvq.io import save_tensors

INDEX = "{}.index.safetensors"
PATIENCE = (1.0, 4.0)  # seconds before a read that failed is tried again


@dataclass
class ShardListing(Listing):
    """Photos in shards, in the order of their names.

    ``shards``: addresses of the tar files.  ``places`` int64 [N, 3]: which of them a photo lies in,
    from which byte on, and its bytes.
    """

    shards: list[str] = field(default_factory=list)
    places: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))

    def read(self, i: int) -> Image.Image:
        """Decode photo ``i`` to RGB; raises images.BadImage, also for a shard that is not there."""
        shard, start, size = self.places[i].tolist()
        address, name = self.shards[shard], self.names[i]
        try:
            data = read_bytes(address, start, size)
        except FileNotFoundError:
            raise images.BadImage(name, f"{address} is missing") from None
        except OSError as error:
            raise images.BadImage(name, f"{address}: {error.strerror or error}") from None
        if len(data) > size:  # of a server that knows no ranges, and sent it whole
            data = data[start : start + size]
        if len(data) < size:
            raise images.BadImage(name, f"{address} is cut short")
        return images.decode(data, name)

    def place(self, i: int) -> str:
        return self.shards[int(self.places[i, 0])]

    def stamps(self) -> list[Any]:
        return [self.shards, hashlib.sha256(self.places.tobytes()).hexdigest()]

    def in_reading_order(self) -> np.ndarray:
        return np.lexsort((self.places[:, 1], self.places[:, 0]))


def read_bytes(address: str, start: int | None = None, size: int = 0) -> bytes:
    """Some bytes of a file anywhere, or all. An error is tried again twice. Raises OSError."""
    files, path = fsspec.core.url_to_fs(address)
    for wait in (*PATIENCE, None):
        try:
            found: bytes = files.cat_file(path, start, None if start is None else start + size)
            return found
        except FileNotFoundError:
            raise
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)
    raise AssertionError


def is_sharded(source: str | Path) -> bool:
    """Whether a source is a folder of shards, here or elsewhere."""
    return "://" in str(source) or Path(source, INDEX.format("train")).is_file()


def find_shards(source: str | Path, split: str) -> ShardListing:
    """What ``softvq shard`` wrote: its photos for ``split``, train, val or all.

    Raises UserError if there is no index, or one that cannot be true.
    """
    parts = {name: _index(str(source), name) for name in ("train", "val")}
    chosen = list(parts.values()) if split == "all" else [parts[split]]
    names = [name for part in chosen for name in part.names]
    order = sorted(range(len(names)), key=names.__getitem__)
    first = np.cumsum([0, *(len(part.shards) for part in chosen)])
    places = np.concatenate([
        part.places + np.array([start, 0, 0]) for part, start in zip(chosen, first, strict=False)
    ])  # fmt: skip
    labels = np.concatenate([part.labels for part in chosen])
    classes = parts["train"].classes
    counts = {
        name: Counter(classes[label] if classes else "" for label in part.labels)
        for name, part in parts.items()
    }
    return ShardListing(
        Path(source),
        [],
        [names[i] for i in order],
        labels[order],
        classes,
        None,
        Found(counts, "as sharded"),
        [address for part in chosen for address in part.shards],
        places[order],
    )


@dataclass
class Part:
    """An index: the photos of one split.

    ``shards``: addresses of tar files, or their names where they lie beside the index.  ``labels``
    int64 [N], ``places`` int64 [N, 3]: as of :class:`ShardListing`.
    """

    names: list[str]
    labels: np.ndarray
    places: np.ndarray
    classes: list[str]
    shards: list[str]

    def write(self, path: Path) -> None:
        """Write the index. Raises UserError for a full disk."""
        text = "\0".join(self.names).encode("utf-8", "surrogateescape")
        tensors = {
            "names": torch.frombuffer(bytearray(text), dtype=torch.uint8),
            "labels": torch.from_numpy(self.labels),
            "places": torch.from_numpy(self.places),
        }
        facts = {"classes": self.classes, "shards": self.shards}
        save_tensors(tensors, path, {"index": json.dumps(facts)})


def _index(source: str, split: str) -> Part:
    """The index of a split, all shards with their addresses."""
    address = f"{source.rstrip('/')}/{INDEX.format(split)}"
    try:
        data = read_bytes(address)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(
            f"{address}: cannot be read ({error}); give a folder that `softvq shard` wrote"
        ) from None
    try:
        found = load_bytes(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        names = found["names"].numpy().tobytes().decode("utf-8", "surrogateescape").split("\0")
        facts = json.loads(head["index"])
        classes, shards = list(facts["classes"]), list(facts["shards"])
        labels, places = found["labels"].numpy(), found["places"].numpy()
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{address}: not an index of shards ({error})") from None
    texts = all(isinstance(x, str) for x in [*classes, *shards])
    if not (
        texts
        and labels.shape == (len(names),)
        and places.shape == (len(names), 3)
        and (places >= 0).all()
        and (places[:, 0] < len(shards)).all()
        and (0 <= labels).all()
        and (labels < max(1, len(classes))).all()
    ):
        raise UserError(f"{address}: damaged; write the shards again")
    root = source.rstrip("/")
    shards = [shard if _has_place(shard) else f"{root}/{shard}" for shard in shards]
    return Part(names, labels.astype(np.int64), places.astype(np.int64), classes, shards)


def _has_place(shard: str) -> bool:
    return "://" in shard or Path(shard).is_absolute()
