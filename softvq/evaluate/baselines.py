"""What costs no training: JPEG, WebP, thumbnails and PCA, held to an arm's bytes or numbers.

JPEG and WebP are compared by the bytes of their files, headers and all; thumbnails and PCA by the
numbers they keep, as a tokenizer's latents are. A tokenizer that loses against them is not needed.
"""

import io
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from softvq import images
from softvq.errors import UserError

MOST_TRAINING = 2000  # photos that PCA learns from: their Gram matrix is decomposed
BLOCK = 4096  # pixels of all photos that are float64 at one time

# lowest and highest quality, and what Pillow needs for the smallest files
CODECS: dict[str, tuple[int, int, dict[str, int]]] = {
    "jpeg": (1, 100, {"optimize": True}),
    "webp": (0, 100, {"method": 6}),
    "avif": (0, 100, {"speed": 8}),
}

BASELINES = (*CODECS, "thumbnail", "pca")


@dataclass(frozen=True)
class Coded:
    """Photos after a baseline, and what they cost.

    rebuilt: uint8 [M, H, W, 3].
    bytes: mean per photo; of whole files, or of bare numbers: 1 each in a thumbnail, 4 in PCA.
    floats: numbers kept per photo, None for a file format.
    setting: ``q=12-31`` (qualities over the photos), ``22x11`` (height x width), ``k=37``.
    fits: whether every photo keeps to the budget; if not, the least that can be had is shown.
    """

    rebuilt: np.ndarray
    bytes: float
    floats: int | None
    setting: str
    fits: bool


def coded(
    kind: str,
    train: np.ndarray,
    photos: np.ndarray,
    bytes: int,
    floats: int,
    grey: bool,
    most: int | None = None,
) -> Coded:
    """``photos``, uint8 [M, H, W, 3], as a baseline keeps them within a budget for each photo.

    ``jpeg`` and ``webp`` take the highest quality whose file is at most ``bytes``, photo by photo.
    ``thumbnail`` keeps at most ``floats`` pixel values, and ``pca`` as many coefficients on the
    principal components of ``train``, uint8 [N, H, W, 3], of which it learns from ``most``. With
    ``grey`` all channels are equal, and only one is kept. Raises UserError for another kind.
    """
    if kind in CODECS:
        return _file(kind, photos, bytes, grey)
    if kind == "thumbnail":
        return thumbnail(photos, floats, grey)
    if kind == "pca":
        return Components(train, grey, most or MOST_TRAINING).coded(photos, floats)
    raise UserError(f"unknown baseline '{kind}'; known: {', '.join(BASELINES)}")


def encode(kind: str, photo: np.ndarray, quality: int, grey: bool) -> bytes:
    """The JPEG or WebP file of a photo, uint8 [H, W, 3]. WebP has no grey, and codes it in YUV."""
    file = io.BytesIO()
    options = CODECS[kind][2]
    _picture(photo, grey).save(file, format=kind, quality=quality, **options)
    return file.getvalue()


def decoded(file: bytes, grey: bool) -> np.ndarray:
    """The photo of a file, uint8 [H, W, 3]."""
    return _rgb(Image.open(io.BytesIO(file)), grey)


def _picture(photo: np.ndarray, grey: bool) -> Image.Image:
    return Image.fromarray(photo).convert("L" if grey else "RGB")


def _rgb(picture: Image.Image, grey: bool) -> np.ndarray:
    return np.asarray(picture.convert("L" if grey else "RGB").convert("RGB"))


def _file(kind: str, photos: np.ndarray, budget: int, grey: bool) -> Coded:
    lowest, highest, _ = CODECS[kind]

    def best(photo: np.ndarray) -> tuple[int, bytes]:
        kept, file = lowest, encode(kind, photo, lowest, grey)
        if len(file) > budget:
            return kept, file
        above = highest + 1  # ``kept`` fits and ``above`` does not
        while above - kept > 1:
            quality = (kept + above) // 2
            trial = encode(kind, photo, quality, grey)
            if len(trial) <= budget:
                kept, file = quality, trial
            else:
                above = quality
        return kept, file

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        qualities, files = zip(*pool.map(best, photos), strict=True)
    sizes = [len(file) for file in files]
    least, most = min(qualities), max(qualities)
    return Coded(
        np.stack([decoded(file, grey) for file in files]),
        float(np.mean(sizes)),
        None,
        f"q={least}" if least == most else f"q={least}-{most}",
        max(sizes) <= budget,
    )


def thumbnail(
    photos: np.ndarray,
    budget: int,
    grey: bool,
    reduce: Image.Resampling = images.RESAMPLE,
) -> Coded:
    """The largest thumbnails of at most ``budget`` values, enlarged again (bicubic).

    ``reduce``: the filter that makes them small; RESAMPLE is that of all photos here.
    """
    height, width = photos.shape[1:3]
    channels = 1 if grey else 3
    rows, columns = 1, 1
    for side in range(1, max(height, width) + 1):
        shape = _reduced(height, width, side)
        if channels * math.prod(shape) <= budget:
            rows, columns = shape
    small = [_picture(p, grey).resize((columns, rows), reduce) for p in photos]
    rebuilt = [_rgb(p.resize((width, height), images.RESAMPLE), grey) for p in small]
    kept = channels * rows * columns
    return Coded(np.stack(rebuilt), float(kept), kept, f"{rows}x{columns}", kept <= budget)


def _reduced(height: int, width: int, side: int) -> tuple[int, int]:
    """The size of the same proportions whose longer side is ``side``."""
    longer = max(height, width)
    return max(1, round(height * side / longer)), max(1, round(width * side / longer))


class Components:
    """Principal components by the N x N Gram matrix of the training photos (Sirovich 1987).

    With the centred training photos X [N, D] and X X' = U S^2 U', the components are the rows of
    S^-1 U' X. They are never held: every pass goes over the pixels in blocks.

    train: uint8 [N, H, W, 3], of which it learns from ``most``.  grey: all channels are equal.
    """

    def __init__(self, train: np.ndarray, grey: bool = False, most: int = MOST_TRAINING):
        chosen = np.linspace(0, len(train) - 1, min(len(train), most)).round().astype(int)
        self.shape, self.grey = train.shape[1:], grey
        self.known = _flat(train[chosen], grey)
        gram = np.zeros((len(chosen), len(chosen)))
        for _, _, x in self._blocks():
            gram += x @ x.T
        squares, self.vectors = np.linalg.eigh(gram)
        # Rounding leaves something where there is no variance left, at least in the mean's
        # direction.
        self.usable = int((squares > 1e-10 * max(squares[-1], 1e-300)).sum())
        self.scale = np.sqrt(np.maximum(squares, 1e-300))

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        for first in range(0, self.known.shape[1], BLOCK):
            here = slice(first, first + BLOCK)
            x = self.known[:, here].astype(np.float64)
            mean = x.mean(axis=0)
            yield here, mean, x - mean

    def coded(self, photos: np.ndarray, budget: int) -> Coded:
        """``photos``, uint8 [M, H, W, 3], by their coefficients on at most ``budget`` components.

        ValueError for photos of another size.
        """
        if self.shape != photos.shape[1:]:
            raise ValueError(f"training photos are {self.shape}, the others {photos.shape[1:]}")
        flat = _flat(photos, self.grey)
        cross = np.zeros((len(flat), len(self.known)))
        for here, mean, x in self._blocks():
            cross += (flat[:, here] - mean) @ x.T
        kept = min(budget, self.usable)
        scaled = (self.vectors / self.scale)[:, ::-1][:, :kept]
        coefficients = (cross @ scaled).astype(np.float32)
        mix = coefficients @ scaled.T
        rebuilt = np.empty_like(flat)
        for here, mean, x in self._blocks():
            rebuilt[:, here] = np.rint(mix @ x + mean).clip(0, 255)
        pictures = rebuilt.reshape(len(photos), *photos.shape[1:3], -1)
        rgb = np.broadcast_to(pictures, photos.shape).copy()
        return Coded(rgb, 4.0 * kept, kept, f"k={kept}", True)


def _flat(photos: np.ndarray, grey: bool) -> np.ndarray:
    """uint8 [N, H, W, 3] -> uint8 [N, D], D = HW if grey and 3HW otherwise."""
    return (photos[..., :1] if grey else photos).reshape(len(photos), -1)
