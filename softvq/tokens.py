"""Token files: what ``softvq encode`` writes and what generators are trained on.

    index.json               what the folder holds, written first
    tokens-00000.safetensors latents float32 [n, L, C], labels int64 [n]; metadata: names as JSON
    tokens-00001.safetensors ...

The latents are normalised (``Tokenizer.normalize``): what generators learn and draw. They are kept
in float32, so that decoding a token file gives what ``reconstruct`` gives.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from softvq.data import Crops, Store
from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.io import save_tensors, write_atomically
from softvq.tokenizer import Tokenizer

BATCH = 64  # fixed: another one would round differently when a stopped encoding goes on


@dataclass
class TokenSet:
    """Tokens in memory; the lists run in parallel.

    ``latents`` normalised, float32 [N, L, C]; ``labels`` int64 [N], indices into ``classes`` (all 0
    if there are none); ``names`` the photos' relative paths; ``index`` the content of index.json.
    """

    latents: Tensor
    labels: Tensor
    names: list[str]
    classes: list[str]
    index: dict[str, Any]

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
) -> None:
    """Encode every photo ``views`` times into ``directory``; the tokenizer stays where it is.

    All photos come once as they are, then all once more for each further view: mirrored, then as
    random crops, mirrored at random. Without ``flip`` nothing is mirrored, and every view but the
    first is a random crop. The crops depend on ``seed`` and the photo's place alone.

    Files are written whole or not at all, and those that are already there are kept: after an
    interruption the same call goes on. Raises UserError if the folder holds other tokens: of
    another tokenizer, of other photos or made in another way.
    """
    directory = Path(directory)
    pictures = Views(photos, views, flip, seed)
    total = len(pictures)
    starts = range(0, total, shard_size)
    config = tokenizer.config
    shards = {shard_name(i): min(shard_size, total - start) for i, start in enumerate(starts)}
    index = {
        "tokenizer": fingerprint(tokenizer),
        "photos": photos.fingerprint,
        "views": views,
        "flip": flip,
        "seed": seed,
        "tokens": config.tokens,
        "channels": config.channels,
        "height": photos.size[0],
        "width": photos.size[1],
        "classes": photos.classes,
        "count": total,
        "shards": shards,
        "skipped": photos.skipped,
    }
    claim_folder(directory / "index.json", index)

    missing = [i for i, name in enumerate(shards) if not _is_whole(directory / name)]
    places = [range(starts[i], min(starts[i] + shard_size, total)) for i in missing]
    done = total - sum(map(len, places))
    with tqdm(
        total=total, initial=done, desc="encoding", unit="img", disable=not progress or not missing
    ) as bar:
        for i, entries in zip(missing, places, strict=True):
            latents = _encode(tokenizer, pictures, entries, bar)
            at = [entry % len(photos) for entry in entries]
            save_tensors(
                {"latents": latents, "labels": torch.from_numpy(photos.labels[at])},
                directory / shard_name(i),
                {"names": json.dumps([photos.names[j] for j in at])},
            )


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


@torch.no_grad()
def _encode(tokenizer: Tokenizer, views: Views, entries: range, bar: tqdm) -> Tensor:
    """Normalised latents [n, L, C] of the entries."""
    device = next(tokenizer.parameters()).device
    training = tokenizer.training
    tokenizer.eval()
    parts = []
    for first in range(0, len(entries), BATCH):
        some = entries[first : first + BATCH]
        pixels = torch.stack([views[entry] for entry in some]).to(device)
        parts.append(tokenizer.normalize(tokenizer.encode(pixels).latents).float().cpu())
        bar.update(len(some))
    tokenizer.train(training)
    return torch.cat(parts)


def read_tokens(directory: str | Path, tokenizer: str | None = None) -> TokenSet:
    """Read a folder of tokens whole. ``tokenizer``: the ``fingerprint`` they must come from.

    Raises UserError if the folder holds no tokens, is incomplete or damaged, or if its tokens
    were made by another tokenizer.
    """
    directory = Path(directory)
    try:
        index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{directory}: no index.json there; give a folder of tokens") from None
    except ValueError as error:
        raise UserError(f"{directory / 'index.json'}: not valid JSON ({error})") from None
    if tokenizer is not None and index.get("tokenizer") != tokenizer:
        raise UserError(f"{directory}: tokens of another tokenizer; give the one that made them")
    latents, labels, names = [], [], []
    try:
        for name, count in index["shards"].items():
            with safe_open(directory / name, "pt") as file:
                latents.append(file.get_tensor("latents"))
                labels.append(file.get_tensor("labels"))
                names += json.loads(file.metadata()["names"])
            if not len(latents[-1]) == len(labels[-1]) == count:
                raise UserError(f"{directory / name}: does not hold {count} photos; encode again")
        return TokenSet(torch.cat(latents), torch.cat(labels), names, index["classes"], index)
    except FileNotFoundError:
        raise UserError(
            f"{directory}: {name} is missing; repeat the command that encodes, and it goes on"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{directory / name}: not a readable token file ({error})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory}: not a folder of tokens (lacks {error})") from None


def shard_name(i: int) -> str:
    """The name of a folder's i-th file."""
    return f"tokens-{i:05d}.safetensors"


def claim_folder(path: Path, index: dict[str, Any]) -> None:
    """Write a new folder's index.json, ``path``, or check that the one there says the same.

    Raises UserError if it does not.
    """
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        write_atomically(path, json.dumps(index, indent=2) + "\n")
        return
    changed = [key for key in index if not isinstance(old, dict) or old.get(key) != index[key]]
    if changed:
        raise UserError(
            f"{path.parent}: holds other tokens (another {', '.join(changed)}); "
            "give another folder, or delete this one"
        )


def _is_whole(path: Path) -> bool:
    """Whether the file is there and as long as its header says."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False
