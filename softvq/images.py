"""Photos in and out: safe decoding, crop and resize, [-1, 1] <-> uint8, picture grids.

The only module that knows pixel ranges: files hold 0..255, models see float32 in [-1, 1].
"""

import os
import re
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from softvq.errors import UserError

# Pillow warns about large pictures and odd metadata. Both end here as a decoded picture or as a
# BadImage with a reason, never as a line on stderr. Set once for the process: changing warning
# filters around each call is not safe with several decoding threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Only decoders of raster photos. A PostScript file named photo.jpg would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

# Antialiased by Pillow when shrinking; the usual filter of the field's evaluation protocols.
RESAMPLE = Image.Resampling.BICUBIC

# EXIF orientation -> what turns the stored pixels upright.
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """A file that cannot be used as a photo: ``path`` and a short human ``reason``."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def load(path: str | Path, min_side: int = 8, max_pixels: int = 100_000_000) -> Image.Image:
    """Decode a photo completely into an upright RGB picture, 8 bits per channel.

    EXIF rotation is applied; alpha is laid on white; 16-bit grey is scaled, not clipped; CMYK is
    converted (colour profiles are ignored); of an animation the first frame is taken. The size is
    checked in the header, before any pixel is decoded.

    Raises BadImage, and nothing else, for a file that is missing, damaged, not an image, smaller
    than ``min_side`` on a side, or larger than ``max_pixels`` (or than Pillow's own limit, 179 MP).
    """
    path = Path(path)
    try:
        # is_file is also false for a named pipe, which would block for ever when opened.
        if not path.is_file():
            raise BadImage(path, "not a file" if path.exists() else "no such file")
        if path.stat().st_size == 0:
            raise BadImage(path, "empty file")
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(path, _bomb(width * height, max_pixels))
            if min(width, height) < min_side:
                raise BadImage(path, f"too small: {width}x{height} pixels, minimum {min_side}")
            image.load()
            if image.format == "PNG" and not _png_ends(path.read_bytes()):
                raise BadImage(path, "truncated: no end mark")
            return _to_rgb(_upright(image))
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(path, "not an image, or its header is damaged") from None
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise BadImage(path, _bomb(pixels, max_pixels)) from None
    # Damaged bytes surface in Pillow as OSError, ValueError, SyntaxError, struct.error, KeyError,
    # OverflowError, MemoryError and more, so the list is open.
    except Exception as error:  # noqa: BLE001
        text = " ".join(str(error).split()) or type(error).__name__
        reason = "truncated" if "truncated" in text.lower() else f"damaged: {text}"
        raise BadImage(path, reason) from None


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
    with Image.open(path, formats=FORMATS) as image:
        # Pillow itself turns a TIFF, and states the upright size before.
        turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def _upright(image: Image.Image) -> Image.Image:
    method = UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    """What EXIF says, 1 for nothing. Damaged EXIF counts as none: the pixels are good."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to 8-bit RGB. Raises ValueError for pixels of an unknown range."""
    if image.mode.startswith("I"):  # I;16 and its byte orders, and I (32 bits)
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels outside 0..65535, scale unknown")
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey = np.asarray(image)
        if not (grey.min() >= 0 and grey.max() <= 1):  # also catches NaN
            raise ValueError("float pixels outside 0..1, scale unknown")
        return Image.fromarray(np.rint(grey * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


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
    """Write a PNG so that a reader sees the old file or the whole new one; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    image.save(partial, format="PNG")
    os.replace(partial, path)


def png_paths(names: list[str], out: str | Path) -> list[Path]:
    """Where the picture of each name goes: under its own name, as PNG; never outside ``out``.

    Raises UserError for a name that points outside.
    """
    taken: set[PurePosixPath] = set()
    paths = []
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"the name {name!r} points outside of {out}; rename the photo")
        target = path.with_suffix(".png")
        if target in taken:  # a.jpg and a.png
            target = path.with_name(path.name + ".png")
        taken.add(target)
        paths.append(Path(out, target))
    return paths
