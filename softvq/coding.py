"""Pictures to tokens and back in batches: any number of pictures, of any kind, in little memory.

    pictures  a Store of decoded photos, a Listing of photo files, or any iterable of pictures, each
              a path, a PIL image, a uint8 array [H, W, 3] or a float tensor [3, H, W] in [-1, 1].
              A tensor [N, 3, H, W] or an array [N, H, W, 3] is such an iterable

Tensors keep their size; all else is fitted to the tokenizer's. Everything runs where the tokenizer
is, in evaluation mode and without gradients. What comes out is checked: a value that is not finite
raises UserError. ``tokens``: how many of each picture, for a nested tokenizer: a number, the
fewest that meet a target (``softvq.quality``), or None for all.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from softvq import images
from softvq.data import Crops, Listing, Store, temporary_store
from softvq.errors import UserError
from softvq.fingerprint import digest
from softvq.io import check_finite, write_atomically
from softvq.layers import evaluating
from softvq.outputs import claimed, refuse_overlap
from softvq.precision import computing, pick_precision
from softvq.quality import Budget, check_budget, encode_within
from softvq.tokenizer.bottleneck import Tokens
from softvq.tokenizer.model import Tokenizer

BATCH = 64  # of the whole package: with another one the last bit of a float32 may turn
LARGER = 16  # times the pixels of a tokenizer's own images that it is let decode to
SKIPPED = "skipped.jsonl"  # lists photos that cannot be decoded
STATISTICS = 2048  # photos that latent mean and std are computed from

Pictures = Store | Listing | Iterable[images.Picture]


def batches(pictures: Pictures, size: tuple[int, int], batch: int = BATCH) -> Iterator[Tensor]:
    """Pictures as float32 [b, 3, H, W] in [-1, 1]; all but tensors are fitted to ``size`` (H, W).

    Raises UserError for a picture that cannot be read.
    """
    each = each_picture(pictures, size)
    while some := list(islice(each, batch)):
        yield torch.stack(some)


def each_picture(pictures: Pictures, size: tuple[int, int]) -> Iterator[Tensor]:
    """The pictures one by one, float32 [3, H, W]; see :func:`batches`."""
    if isinstance(pictures, Store):
        whole = Crops(pictures, augment=False)
        return (whole[i, i][0] for i in range(len(pictures)))
    if isinstance(pictures, Listing):
        return (_fitted(_read(pictures, i), size) for i in range(len(pictures.names)))
    if isinstance(pictures, str | Path | Image.Image):
        pictures = [pictures]
    return (_fitted(picture, size) for picture in pictures)


def _read(photos: Listing, i: int) -> Image.Image:
    try:
        return photos.read(i)
    except images.BadImage as error:
        raise UserError(str(error)) from None


def _fitted(picture: images.Picture, size: tuple[int, int]) -> Tensor:
    pixels = images.as_tensor(picture)
    if pixels.shape[0] != 1:
        raise UserError(f"one picture expected, got {pixels.shape[0]}; give them one by one")
    if isinstance(picture, Tensor) or pixels.shape[-2:] == size:
        return pixels[0]
    (whole,) = images.to_pil(pixels)
    return images.to_tensor(np.asarray(images.fit(whole, size)))


def originals(photos: Store, batch: int = BATCH) -> Iterator[np.ndarray]:
    """Whole photos as 8-bit files would hold them, uint8 [b, H, W, 3] batch by batch."""
    for pixels in batches(photos, photos.size, batch):
        yield images.to_uint8(pixels)


def evenly(photos: Store, limit: int) -> tuple[Iterator[Tensor], np.ndarray]:
    """At most ``limit`` whole photos, evenly spread over all, and their rows int64 [n]."""
    rows = np.linspace(0, len(photos) - 1, min(limit, len(photos))).astype(np.int64)
    whole = Crops(photos, augment=False)
    return (whole[i, i][0] for i in rows), rows


def encode(
    tokenizer: Tokenizer, pictures: Pictures, batch: int = BATCH, tokens: Budget = None
) -> Iterator[Tokens]:
    """The Tokens of each batch, as ``Tokenizer.encode`` gives them, on the tokenizer's device."""
    for pixels in batches(pictures, size_of(tokenizer), batch):
        yield _encoded(tokenizer, pixels, tokens)


def encode_all(
    tokenizer: Tokenizer, pictures: Pictures, batch: int = BATCH, tokens: int | None = None
) -> Tensor:
    """Normalised latents of all pictures, float32 [N, L, C] on the CPU: what token files hold."""
    parts = [
        tokenizer.normalize(found.latents).float().cpu()
        for found in encode(tokenizer, pictures, batch, tokens)
    ]
    if not parts:
        raise UserError("no picture to encode; give one or more")
    return torch.cat(parts)


def decode(
    tokenizer: Tokenizer,
    latents: Tensor,
    size: tuple[int, int] | None = None,
    batch: int = BATCH,
    lengths: Tensor | None = None,
) -> Iterator[np.ndarray]:
    """Normalised latents [N, k, C] -> pictures, uint8 [b, H, W, 3] batch by batch.

    ``size`` (H, W) in pixels; None for the tokenizer's own. ``lengths``, int64 [N]: how many of the
    tokens each picture has; None for all k.
    """
    check_finite(latents, "the encoder")
    for first in range(0, len(latents), batch):
        some = latents[first : first + batch].to(tokenizer.latent_mean)
        known = None if lengths is None else lengths[first : first + batch].to(some.device)
        yield images.to_uint8(_decoded(tokenizer, tokenizer.denormalize(some), size, known))


def decode_all(
    tokenizer: Tokenizer,
    latents: Tensor,
    size: tuple[int, int] | None = None,
    batch: int = BATCH,
) -> np.ndarray:
    """:func:`decode` of all at once: uint8 [N, H, W, 3]."""
    height, width = size or size_of(tokenizer)
    parts = [np.empty((0, height, width, 3), np.uint8), *decode(tokenizer, latents, size, batch)]
    return np.concatenate(parts)


def round_trips(
    tokenizer: Tokenizer, pictures: Pictures, batch: int = BATCH, tokens: Budget = None
) -> Iterator[tuple[Tensor, Tokens, Tensor]]:
    """Each batch's pictures [b, 3, H, W] in [-1, 1], their Tokens, and what those decode to."""
    for pixels in batches(pictures, size_of(tokenizer), batch):
        height, width = pixels.shape[-2:]
        found = _encoded(tokenizer, pixels, tokens)
        yield pixels, found, _decoded(tokenizer, found.latents, (height, width), found.lengths)


def reconstruct(
    tokenizer: Tokenizer, pictures: Pictures, batch: int = BATCH, tokens: Budget = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Originals and reconstructions of each batch, uint8 [b, H, W, 3] each."""
    for pixels, _, rebuilt in round_trips(tokenizer, pictures, batch, tokens):
        yield images.to_uint8(pixels), images.to_uint8(rebuilt)


def reconstruct_all(
    tokenizer: Tokenizer, pictures: Pictures, batch: int = BATCH, tokens: Budget = None
) -> tuple[np.ndarray, np.ndarray]:
    """Originals and reconstructions of all pictures, uint8 [N, H, W, 3] each."""
    pairs = list(reconstruct(tokenizer, pictures, batch, tokens))
    if not pairs:
        raise UserError("no picture to reconstruct; give one or more")
    originals, rebuilt = zip(*pairs, strict=True)
    return np.concatenate(originals), np.concatenate(rebuilt)


def measure_latents(tokenizer: Tokenizer, photos: Store, limit: int = STATISTICS) -> None:
    """Set the tokenizer's latent mean and std per channel from up to ``limit`` whole photos."""
    pictures, _ = evenly(photos, limit)
    found = [tokens.latents.double().flatten(0, 1) for tokens in encode(tokenizer, pictures)]
    latents = torch.cat(found)
    tokenizer.latent_mean.copy_(latents.mean(0))
    # A channel that never moves must not be divided by zero.
    tokenizer.latent_std.copy_(latents.std(0, correction=0).clamp_min(1e-6))


def size_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """Height and width in pixels of the images that a tokenizer was trained on."""
    return tokenizer.config.height, tokenizer.config.width


def check_size(tokenizer: Tokenizer, size: tuple[int, int]) -> None:
    """Raises UserError for pictures (H, W) that a tokenizer cannot decode to, or not in reason."""
    height, width = size
    own = tokenizer.config.height * tokenizer.config.width
    patch = getattr(tokenizer.config, "patch", 1)
    fits = height % patch == width % patch == 0 < min(size)
    if not fits or height * width > LARGER * own:
        raise UserError(
            f"pictures of {height}x{width} from a tokenizer of {tokenizer.config.height}x"
            f"{tokenizer.config.width} pixels: sides must divide by {patch}, and there may be "
            f"{LARGER} times as many pixels; encode again"
        )


def precision_setting(precision: str, tokenizer: Tokenizer) -> dict[str, str]:
    """What a folder's record says of it: nothing of fp32, which earlier versions computed in."""
    chosen = pick_precision(precision, tokenizer.device)
    return {} if chosen == "fp32" else {"precision": chosen}


def skipped_lines(skipped: list[dict[str, str]]) -> str:
    """The content of a skipped.jsonl: path and reason of each photo that cannot be decoded."""
    return "".join(json.dumps(item) + "\n" for item in skipped)


def reconstruct_folder(
    tokenizer: Tokenizer,
    data: str | Path,
    out: str | Path,
    split: str = "all",
    scale: int = 1,
    overwrite: bool = False,
    batch: int = BATCH,
    progress: bool = True,
    found: Callable[[Store], None] = lambda photos: None,
    tokens: Budget = None,
    precision: str = "fp32",
) -> int:
    """Write each photo beside its reconstruction as PNG; returns how many there are.

    ``data``: a photo, or a folder as ``find_photos`` reads it. ``scale`` enlarges every pixel.
    ``found`` is told of the photos once they are decoded.
    Raises UserError for a damaged photo, and where ``softvq.outputs.claimed`` does.
    """
    refuse_overlap(data, out)
    settings = {
        "data": str(data if str(data) == "builtin" else Path(data).expanduser().resolve()),
        "split": split,
        "tokenizer": digest(tokenizer),
        "scale": scale,
    }
    settings |= {} if tokens is None else {"tokens": str(tokens)}
    settings |= precision_setting(precision, tokenizer)
    check_budget(tokenizer, tokens)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(claimed(out, "reconstruct", settings, overwrite))
        skipped: list[dict[str, str]] = []
        pictures: Pictures
        if Path(data).expanduser().is_file():
            names, pictures = [Path(data).name], [Path(data).expanduser()]
        else:
            pictures = stack.enter_context(
                temporary_store(data, split, size_of(tokenizer), output.folder)
            )
            names, skipped = pictures.names, pictures.skipped
            found(pictures)
        files = [path.as_posix() for path in images.png_paths(names, "")]
        paths = output.expect([*files, SKIPPED] if skipped else files)
        if skipped:
            write_atomically(paths[-1], skipped_lines(skipped))
        bar = stack.enter_context(
            tqdm(total=len(files), desc="reconstructing", unit="img", disable=not progress)
        )
        remaining = iter(paths)
        stack.enter_context(computing(precision, tokenizer))
        for originals, rebuilt in reconstruct(tokenizer, pictures, batch, tokens):
            for pair in zip(originals, rebuilt, strict=True):
                sheet = images.grid(np.stack(pair), columns=2, scale=scale)
                images.save_png(sheet, next(remaining))
            bar.update(len(originals))
    return len(files)


def _encoded(tokenizer: Tokenizer, pixels: Tensor, tokens: Budget) -> Tokens:
    device = next(tokenizer.parameters()).device
    found = encode_within(tokenizer, pixels.to(device), tokens)
    check_finite(found.latents, "the encoder")
    return found


def _decoded(
    tokenizer: Tokenizer,
    latents: Tensor,
    size: tuple[int, int] | None,
    lengths: Tensor | None = None,
) -> Tensor:
    fewer: dict[str, Any] = {} if lengths is None else {"lengths": lengths}
    with evaluating(tokenizer):
        pixels: Tensor = tokenizer.decode(latents, size, **fewer)
    return check_finite(pixels, "the decoder")
