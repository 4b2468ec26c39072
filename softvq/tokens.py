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
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from softvq import images
from softvq.coding import (
    BATCH,
    check_size,
    decode,
    precision_setting,
)
from softvq.errors import UserError
from softvq.fingerprint import digest, fingerprint
from softvq.io import write_atomically
from softvq.outputs import claimed
from softvq.precision import computing
from softvq.quality import lengths_tried
from softvq.tiles import TiledTokens, Tiling, decode_tiles, levels_of
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


def names_in(path: Path) -> list[str] | None:
    """The names in a token file; None if it is not there, or not whole."""
    return _listed(_facts(path))


def skipped_in(path: Path) -> list[dict[str, str]]:
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
