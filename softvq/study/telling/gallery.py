"""Pictures of the report: the worst cases, and the defects, enlarged."""

import numpy as np
from PIL import Image, ImageDraw

from softvq import images
from softvq.report import Figure, Section, Strip, embed
from softvq.study.telling.pictures import REGIONS
from softvq.study.telling.view import View, digits_of

ERROR_LEVELS = 64  # grey levels of error that the error map shows at its brightest
PHOTO = 208  # pixels of a shown photo's longer side, at most
QUALITY = 85  # of the JPEGs that photos are shown as
CROP = 144  # pixels that an enlarged defect is shown on, about
LEAST_RANGE = 48.0  # grey levels that an enlarged defect is stretched from, at least


def worst_cases(view: View) -> Section:
    """The worst photos, at every token count."""
    words, best = view.words, view.shown
    strips = []
    for photo in view.results.shown.photos:
        i = view.place(view.piece_of(photo))
        name, original = view.results.evidence.names[photo], view.originals[i]
        figures = [_photo(view, original, name, words("picture.original"))]
        for candidate in view.pictured:
            rebuilt = view.rebuilt(candidate)[i]
            psnr = f"{_psnr(original, rebuilt):.1f}"
            caption = words("picture.rebuilt", arm=candidate.name, psnr=psnr)
            figures.append(_photo(view, rebuilt, name, caption))
            if candidate.name == best.name:
                error = heat(np.abs(original.astype(int) - rebuilt).mean(-1))
                caption = words("picture.error", arm=candidate.name)
                figures.append(_photo(view, error, name, caption))
        strips.append(Strip(name, figures))
    text = words("worst.text", arm=best.name, levels=ERROR_LEVELS)
    return Section(words("worst.heading"), [text], strips=strips)


def heat(error: np.ndarray) -> np.ndarray:
    """Errors [H, W] in grey levels -> uint8 [H, W, 3], black for none."""
    from matplotlib import colormaps

    return colormaps["inferno"](np.minimum(error / ERROR_LEVELS, 1.0), bytes=True)[..., :3]


def _psnr(original: np.ndarray, rebuilt: np.ndarray) -> float:
    from softvq.evaluate.pixels import psnr

    # Copies: what is mapped from a file cannot be written to, which torch warns about.
    return psnr(original[None].copy(), rebuilt[None].copy())


def _photo(view: View, picture: np.ndarray, name: str, caption: str) -> Figure:
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((PHOTO, PHOTO), images.RESAMPLE)
    alt = view.words("picture.alt", name=name, what=caption)
    return Figure(embed(image, QUALITY), caption, alt)


def defect_crops(view: View) -> Section | None:
    """Defects, at every token count."""
    words, shown = view.words, view.results.shown
    if not shown.regions:
        return None
    pictures = [view.rebuilt(candidate) for candidate in view.pictured]
    strips = []
    for r in shown.regions:
        region = view.results.evidence.regions[r]
        i = view.place(region.piece)
        name = view.results.evidence.names[region.photo]
        size = view.measured("smallest_surviving", region.diameter)
        window = around(region.box, view.originals.shape[1:3])
        levels = range_of(view.originals[i], window)
        framed = enlarge(view.originals[i], window, levels, region.box)
        figures = [_crop(view, framed, name, words("picture.original"))]
        for candidate, rebuilt in zip(view.pictured, pictures, strict=True):
            share = candidate.contrast[r] or 0.0
            kept = words("unit.share", value=digits_of("share", 0, share))
            caption = words("picture.contrast", arm=candidate.name, kept=kept)
            figures.append(_crop(view, enlarge(rebuilt[i], window, levels), name, caption))
        strips.append(Strip(words("crops.strip", name=name, size=size), figures))
    smallest = min(REGIONS, len(shown.regions))
    least = len(shown.regions) - smallest
    text = words("crops.text", smallest=smallest, least=least, arm=view.shown.name)
    return Section(words("crops.heading"), [text], strips=strips)


def _crop(view: View, image: Image.Image, name: str, caption: str) -> Figure:
    return Figure(embed(image), caption, view.words("picture.alt", name=name, what=caption))


def around(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square window (left, top, right, bottom) on a box and its surroundings, in a photo of
    ``size`` (H, W)."""
    x1, y1, x2, y2 = box
    height, width = size
    side = min(max(24, 2 * max(x2 - x1, y2 - y1)), height, width)
    left = min(max((x1 + x2 - side) // 2, 0), width - side)
    top = min(max((y1 + y2 - side) // 2, 0), height - side)
    return left, top, left + side, top + side


def range_of(photo: np.ndarray, window: tuple[int, int, int, int]) -> tuple[float, float]:
    """The grey levels that are shown as black and as white: those of the window, but no noise."""
    left, top, right, bottom = window
    low, high = np.percentile(photo[top:bottom, left:right], [1, 99])
    middle, reach = (low + high) / 2, max(high - low, LEAST_RANGE) / 2
    return middle - reach, middle + reach


def enlarge(
    photo: np.ndarray,
    window: tuple[int, int, int, int],
    levels: tuple[float, float] = (0.0, 255.0),
    box: tuple[int, int, int, int] | None = None,
) -> Image.Image:
    """The window of a photo, every pixel a square, ``levels`` stretched over black to white;
    ``box`` is framed."""
    left, top, right, bottom = window
    scale = max(1, round(CROP / (right - left)))
    part = photo[top:bottom, left:right].repeat(scale, axis=0).repeat(scale, axis=1)
    low, high = levels
    stretched = np.rint(255 * (part - low) / (high - low)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(stretched)
    if box is not None:
        x1, y1, x2, y2 = (
            scale * (edge - origin) for edge, origin in zip(box, (left, top) * 2, strict=True)
        )
        frame = (x1 - 2, y1 - 2, x2 + 1, y2 + 1)
        ImageDraw.Draw(image).rectangle(frame, outline=(255, 214, 0), width=1)
    return image
