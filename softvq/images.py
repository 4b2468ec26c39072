"""Photos in and out: safe decoding, crop and resize, [-1, 1] <-> uint8, picture grids.

The only module that knows pixel ranges: files hold 0..255, models see float32 in [-1, 1].
"""

import contextlib
import ctypes
import errno
import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from softvq.errors import SoftVQWarning, UserError
from softvq.io import replacing

# Only decoders of raster photos. A PostScript file named photo.jpg would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

# Antialiased by Pillow when shrinking; the usual filter of the field's evaluation protocols.
RESAMPLE = Image.Resampling.BICUBIC

# EXIF orientation -> the stored rows and columns as a view of the upright pixels [H, W, ...].
ORIENTATION_TAG = 0x0112
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}

STRIP = 1 << 20  # pixels converted at a time: a large photo is not held three times over
AT_ONCE = 100_000_000  # pixels being decoded by all threads together; a larger photo goes alone
MOST_12_BIT = 4095
SLACK = 1e-3  # beyond [-1, 1], by rounding

Picture = Image.Image | np.ndarray | torch.Tensor | str | os.PathLike[str]


class BadImage(Exception):
    """A file that cannot be used as a photo: ``path`` and a short human ``reason``."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(" ".join(f"{path}: {reason}".splitlines()))
        self.path = path
        self.reason = reason


def load(path: str | Path, min_side: int = 8, max_pixels: int = 100_000_000) -> Image.Image:
    """Decode a photo completely into an upright RGB picture, 8 bits per channel.

    EXIF rotation is applied; alpha is laid on white; 16-bit grey is scaled, not clipped; CMYK is
    converted (colour profiles are ignored); of an animation the first frame is taken. The size is
    checked in the header, before any pixel is decoded. 16-bit grey whose brightest pixel is 4095
    or less is taken for the 12 bits of a camera, and scaled by 4095, with a SoftVQWarning.

    Raises BadImage, and nothing else, for a file that is missing, unreadable, damaged, not an
    image, smaller than ``min_side`` on a side, or larger than ``max_pixels`` (or than Pillow's own
    limit, 179 MP).
    """
    return _upright_rgb(_decoded(Path(path), min_side, max_pixels))


def decode(
    data: bytes, name: str = "photo", min_side: int = 8, max_pixels: int = 100_000_000
) -> Image.Image:
    """:func:`load` of a file's bytes; ``name`` is what a BadImage calls it."""
    return _upright_rgb(_decoded(Path(name), min_side, max_pixels, data))


def _upright_rgb(opened: contextlib.AbstractContextManager[Image.Image]) -> Image.Image:
    with opened as image:
        if _is_rgb(image):
            return image
        levels = _levels(image)
        image.close()  # now: a large one is not held twice as a picture
        return Image.fromarray(levels)


def load_mask(path: str | Path, max_pixels: int = 100_000_000) -> np.ndarray:
    """Decode a mask: bool [H, W], upright, true where a pixel is not black, however dark.

    Raises BadImage as :func:`load` does.
    """
    with _decoded(Path(path), 1, max_pixels) as image:
        if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
            mask = np.empty(_upright_shape(image), bool)
            stored = _stored(mask, image)
            for top, strip in _strips(image):
                stored[top : top + strip.height] = np.asarray(strip) != 0
            return mask
        return np.asarray(_levels(image).any(axis=2))


@contextlib.contextmanager
def _decoded(
    path: Path, min_side: int, max_pixels: int, data: bytes | None = None
) -> Iterator[Image.Image]:
    """The photo in ``path``, or in ``data``, with all its pixels, as it is stored. BadImage."""
    try:
        # is_file is also false for a named pipe, which would block for ever when opened.
        if data is None and not path.is_file():
            raise BadImage(path, "not a file" if path.exists() else "no such file")
        if (path.stat().st_size if data is None else len(data)) == 0:
            raise BadImage(path, "empty file")
        with (
            _quiet(),
            open(path, "rb") if data is None else io.BytesIO(data) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(path, _bomb(width * height, max_pixels))
            if min(width, height) < min_side:
                raise BadImage(path, f"too small: {width}x{height} pixels, minimum {min_side}")
            with _ROOM.taken(width * height):
                image.load()
                if image.format == "PNG" and not _png_ends(
                    path.read_bytes() if data is None else data
                ):
                    raise BadImage(path, "truncated: no end mark")
                yield image
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(path, "not an image, or its header is damaged") from None
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise BadImage(path, _bomb(pixels, max_pixels)) from None
    except MemoryError:
        raise BadImage(path, "takes more memory than there is") from None
    # Damaged bytes surface in Pillow as OSError, ValueError, SyntaxError, struct.error, KeyError,
    # OverflowError and more, so the list is open.
    except Exception as error:  # noqa: BLE001
        # Of the system, not of Pillow; an absurd offset in the file is an "invalid argument".
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise BadImage(path, f"cannot be read: {error.strerror}") from None
        text = " ".join(str(error).split()) or type(error).__name__
        reason = "truncated" if "truncated" in text.lower() else f"damaged: {text}"
        raise BadImage(path, reason) from None


class _Room:
    """So many pixels are decoded at a time, whatever the number of threads."""

    def __init__(self, pixels: int):
        self.pixels, self.used, self.changed = pixels, 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait for the room, or until nobody else has any."""
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + pixels <= self.pixels)
            self.used += pixels
        try:
            yield
        finally:
            with self.changed:
                self.used -= pixels
                self.changed.notify_all()


_ROOM = _Room(AT_ONCE)


class _Quiet:
    """While a photo is open, Pillow's warnings about large pictures and odd metadata are ignored.

    Both end as a decoded picture or as a BadImage with a reason. One filter serves all decoding
    threads, from the first that comes to the last that goes: ``warnings.catch_warnings`` in each
    would put back what another one had changed. Outside the process's filters are untouched.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.filter: Any = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                warnings.filters.insert(0, self.filter)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if not self.inside:
                    with contextlib.suppress(ValueError):  # another's catch_warnings took it away
                        warnings.filters.remove(self.filter)  # type: ignore[attr-defined]


_quiet = _Quiet()


def _silence_libtiff() -> None:
    """Tell libtiff, which writes straight to stderr, to say nothing: Pillow raises all the same.

    Where it is built into Pillow's own file, it cannot be reached, and goes on talking.
    """
    from PIL import _imaging

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)  # looks into what it is linked with, too
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


_silence_libtiff()
# What Pillow logs is on stderr only where a program has set up no logging: then there is no reader.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def _bomb(pixels: int, limit: int) -> str:
    return f"decompression bomb: {pixels / 1e6:.0f} MP, limit {limit / 1e6:g} MP"


def _png_ends(data: bytes) -> bool:
    """Whether the end mark follows the last block of pixels.

    An interrupted copy often leaves zeros for the missing tail. Pillow notices that in a JPEG and
    a GIF, but decodes such a PNG as black without a word.
    """
    return data.rfind(b"IEND") > data.rfind(b"IDAT")


def upright_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of a good photo as :func:`load` gives it, from its header."""
    with _quiet(), Image.open(path, formats=FORMATS) as image:
        # Pillow itself turns a TIFF, and states the upright size before.
        turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def _stored(upright: np.ndarray, image: Image.Image) -> np.ndarray:
    """The view of upright pixels [H, W, ...] whose rows are those that the file holds."""
    turn = STORED.get(_orientation(image))
    return upright if turn is None else turn(upright)


def _upright_shape(image: Image.Image) -> tuple[int, int]:
    """Height and width when it stands upright."""
    turned = _orientation(image) in (5, 6, 7, 8)
    return image.size if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    """What EXIF says, 1 for nothing. Damaged EXIF counts as none: the pixels are good."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001
        return 1


def _is_rgb(image: Image.Image) -> bool:
    """Whether a picture is upright, and has nothing but red, green and blue in 8 bits each."""
    upright = _orientation(image) not in STORED
    return upright and image.mode == "RGB" and not image.has_transparency_data


def _levels(image: Image.Image) -> np.ndarray:
    """Any Pillow mode as upright uint8 [H, W, 3], a strip at a time.

    Raises ValueError for pixels of an unknown range.
    """
    most = 255
    if image.mode.startswith("I"):  # I;16 and its byte orders, and I (32 bits)
        low, high = _extremes(image)
        if low < 0 or high > 65535:
            raise ValueError("32-bit pixels outside 0..65535, scale unknown")
        most = 65535 if high > MOST_12_BIT else MOST_12_BIT
        if high and most == MOST_12_BIT:
            # No path: the line is then said once, and not for each of ten thousand photos.
            warnings.warn(
                f"photos of 16 bits whose brightest pixel is {MOST_12_BIT} or less are taken for "
                "12-bit ones; if they are just dark, save them as 8 bits",
                SoftVQWarning,
                stacklevel=2,
            )
    elif image.mode == "F":
        low, high = _extremes(image)
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise ValueError("float pixels outside 0..1, scale unknown")
    whole = np.empty((*_upright_shape(image), 3), np.uint8)
    stored = _stored(whole, image)
    for top, strip in _strips(image):
        stored[top : top + strip.height] = np.asarray(_strip_to_rgb(strip, most))
    return whole


def _strip_to_rgb(image: Image.Image, most: int) -> Image.Image:
    """A part of a picture to RGB; ``most`` is white in a picture of integers."""
    if image.mode.startswith("I"):
        levels = (np.asarray(image).astype(np.int64) * 255 + most // 2) // most
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(np.rint(np.asarray(image) * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture in parts of whole rows, each with the row that it begins at."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest pixel; NaN if there is one."""
    ends = [(x.min(), x.max()) for x in (np.asarray(strip) for _, strip in _strips(image))]
    return float(np.min(ends)), float(np.max(ends))


def fit(image: Image.Image, size: tuple[int, int], mode: str = "crop") -> Image.Image:
    """Resize an RGB picture to ``size`` = (height, width) in a single antialiased resampling.

    ``crop`` keeps the proportions and cuts the overhang evenly on both sides; ``stretch`` squeezes
    the whole picture in. Raises ValueError for another mode.
    """
    height, width = size
    if mode == "stretch":
        return image.resize((width, height), RESAMPLE)
    if mode != "crop":
        raise UserError(f"unknown fit '{mode}'; known: crop, stretch")
    scale = max(width / image.width, height / image.height)
    box_width = min(width / scale, image.width)
    box_height = min(height / scale, image.height)
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    return image.resize((width, height), RESAMPLE, (left, top, left + box_width, top + box_height))


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [-1, 1], a fresh contiguous tensor."""
    planes = np.moveaxis(array, -1, -3).astype(np.float32, order="C")
    return torch.from_numpy(planes).div_(127.5).sub_(1)


def as_tensor(pictures: Picture | Sequence[Picture]) -> torch.Tensor:
    """Pictures as users have them -> float32 [B, 3, H, W] in [-1, 1], as models see them.

    One picture or a sequence of pictures of one size, each of them

    - a path, decoded as by :func:`load`, or a PIL image of any mode
    - a NumPy array [H, W, 3] or [B, H, W, 3], uint8, or floats in [-1, 1]
    - a tensor [3, H, W] or [B, 3, H, W], uint8, or floats in [-1, 1]; it stays on its device

    Raises UserError for pixels that are not finite or beyond [-1, 1] (such as floats of 0..255),
    for other shapes and types, for different sizes, for no picture, and for a damaged file.
    """
    if not isinstance(pictures, (list, tuple)):
        return _as_tensor(pictures)
    if not pictures:
        raise UserError("no picture given; give one or more")
    parts = [_as_tensor(picture) for picture in pictures]
    sizes = sorted({tuple(part.shape[2:]) for part in parts})
    if len(sizes) > 1:
        raise UserError(
            f"pictures of different sizes, such as {sizes[0]} and {sizes[1]} (height, width); "
            "fit them to one size, as softvq.images.fit does"
        )
    return torch.cat(parts)


def _as_tensor(picture: Any) -> torch.Tensor:
    if isinstance(picture, (str, os.PathLike)):
        try:
            picture = load(Path(picture))
        except BadImage as bad:
            raise UserError(str(bad)) from None
    if isinstance(picture, Image.Image):
        try:
            picture.load()  # a TIFF is turned by Pillow only now
            picture = np.asarray(picture) if _is_rgb(picture) else _levels(picture)
        except (
            OSError,
            SyntaxError,
            ValueError,
        ) as error:  # of pixels read only now, too
            raise UserError(f"PIL image of mode {picture.mode}: {error}") from None
    if isinstance(picture, np.ndarray):
        want, last = "[H, W, 3] or [B, H, W, 3]", -1
    elif isinstance(picture, torch.Tensor):
        want, last = "[3, H, W] or [B, 3, H, W]", -3
    else:
        raise UserError(
            f"a {type(picture).__name__} is no picture; give a path, a PIL image, an array "
            "[H, W, 3] or a tensor [3, H, W]"
        )
    kind = "array" if isinstance(picture, np.ndarray) else "tensor"
    shape = list(picture.shape)
    if len(shape) not in (3, 4) or shape[last] != 3 or 0 in shape:
        raise UserError(f"{kind} of shape {shape}; give {want}, 3 for red, green, blue")
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 and picture.dtype.kind != "f":
            raise UserError(f"array of {picture.dtype}; give uint8, or floats in [-1, 1]")
        # A copy: the array may be read-only, of another byte order, or with negative strides.
        kept = np.uint8 if picture.dtype == np.uint8 else np.float32
        tensor = torch.from_numpy(np.moveaxis(picture, -1, -3).astype(kept, order="C"))
    else:
        tensor = picture
    if len(shape) == 3:
        tensor = tensor[None]
    if tensor.dtype == torch.uint8:
        return tensor.float().div_(127.5).sub_(1)
    if not tensor.is_floating_point():
        raise UserError(f"{kind} of {tensor.dtype}; give uint8, or floats in [-1, 1]")
    tensor = tensor.float()
    low, high = tensor.min().item(), tensor.max().item()  # NaN if there is one
    if not (low >= -1 - SLACK and high <= 1 + SLACK):
        raise UserError(
            f"{kind} of floats from {low:.4g} to {high:.4g}; floats are in [-1, 1]: of levels "
            "0..255 make x / 127.5 - 1, or give uint8"
        )
    return tensor


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Floats [..., 3, H, W] -> uint8 [..., H, W, 3]; values beyond [-1, 1] are clamped.

    Undoes ``to_tensor`` exactly.
    """
    levels = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return levels.to(torch.uint8).movedim(-3, -1).cpu().numpy()


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Floats [B, 3, H, W] in [-1, 1] -> B RGB pictures."""
    return [Image.fromarray(picture) for picture in to_uint8(images)]


def grid(
    images: list[Image.Image] | np.ndarray, columns: int, gap: int = 2, scale: int = 1
) -> Image.Image:
    """Lay pictures of one size (or uint8 [N, H, W, 3]) on white, row by row, ``gap`` pixels apart.

    ``scale`` enlarges every pixel to a square of that side. Raises ValueError if there is no
    picture or the sizes differ.
    """
    cells = np.stack([np.asarray(image) for image in images])
    cells = cells.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = cells.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    canvas = np.full(sheet, 255, np.uint8)
    for i, cell in enumerate(cells):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = cell
    return Image.fromarray(canvas)


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a PNG so that a reader sees the old file or the whole new one; makes the folder.

    Raises UserError if the disk is full.
    """
    with replacing(path, durable=False) as partial:
        image.save(partial, format="PNG")


def png_paths(names: Sequence[str], out: str | Path) -> list[Path]:
    """Where the picture of each name goes: under its own name, as PNG; never outside ``out``.

    No two are the same, nor differ in capitals alone, which some systems take for the same:
    a.jpg, a.png and a.png once more become a.png, a.png.png and a-2.png.

    Raises UserError for a name that points outside, or that no file can have.
    """
    taken: dict[str, int] = {}  # and how often each was wanted
    seen: set[str] = set()
    paths = []
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or Path(name).drive:
            raise UserError(f"the name {name!r} points outside of {out}; rename the photo")
        if not path.name or "\0" in name:
            raise UserError(f"the name {name!r} is no file name; rename the photo")
        first = target = path.with_suffix(".png")
        if _key(target) in taken and name not in seen:  # a view more of a photo is numbered
            target = path.with_name(path.name + ".png")
        seen.add(name)
        while _key(target) in taken:
            taken[_key(first)] += 1
            target = path.with_name(f"{path.stem}-{taken[_key(first)]}.png")
        taken[_key(target)] = 1
        paths.append(Path(out, target))
    return paths


def _key(path: PurePosixPath) -> str:
    return str(path).casefold()
