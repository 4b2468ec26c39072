"""Damaged files by the thousand, the same from the same seed.

    for name, content in mutants(image_seeds(), count=1000, seed=0): ...

Run as a program it loads that many damaged pictures, and tells what became of them and how much
memory they took: python -m helpers.fuzz 3000 [seed], from tests/.
"""

import io
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

# Values that lengths, counts and offsets go wrong at.
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four faults: bytes changed, lost, doubled, zeroed or cut off, numbers at an edge.

    Half of the faults are in the first 200 bytes, where headers are.
    """
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        most = min(len(data), 200) if rng.random() < 0.5 else len(data)
        at, length = int(rng.integers(most)), int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(min(length, len(data) - at))
        elif kind == 2:
            data[at : at + length] = bytes(min(length, len(data) - at))
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            width = int(rng.choice([1, 2, 4]))
            value = EDGES[rng.integers(len(EDGES))] % 256**width
            order = "little" if rng.random() < 0.5 else "big"
            data[at : at + width] = value.to_bytes(width, order)
        else:
            del data[int(rng.integers(len(data))) :]
    return bytes(data)


def mutants(seeds: Mapping[str, bytes], count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged copies, each with the name of the file that it was; number i is always the
    same for the same seeds and ``seed``, however many are taken.
    """
    names = sorted(seeds)
    for i in range(count):
        name = names[i % len(names)]
        yield name, mutate(seeds[name], np.random.default_rng((seed, i)))


def image_seeds(height: int = 48, width: int = 64) -> dict[str, bytes]:
    """Good pictures of every format that is read, and of their odder kinds."""
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([x * 255 / width, y * 255 / height, 128 + 60 * np.sin(x / 5) * np.cos(y / 7)])
    rgb = Image.fromarray(ramps.transpose(1, 2, 0).astype(np.uint8))
    deep = Image.fromarray((ramps[0] * 257).astype(np.uint16))
    real = Image.fromarray((ramps[0] / 255).astype(np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, dict]] = {
        "rgb.jpg": (rgb, {"format": "JPEG", "exif": exif}),
        "progressive.jpg": (rgb, {"format": "JPEG", "progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {"format": "JPEG"}),
        "rgb.png": (rgb, {"format": "PNG", "exif": exif}),
        "palette.png": (rgb.quantize(16), {"format": "PNG", "transparency": bytes(range(16))}),
        "deep.png": (deep, {"format": "PNG"}),
        "bits.png": (rgb.convert("1"), {"format": "PNG"}),
        "animated.gif": (rgb.quantize(8), {"format": "GIF", "save_all": True}),
        "lossy.webp": (rgb, {"format": "WEBP"}),
        "alpha.webp": (rgb.convert("RGBA"), {"format": "WEBP", "lossless": True}),
        "rgb.bmp": (rgb, {"format": "BMP"}),
        "plain.tif": (rgb, {"format": "TIFF", "exif": exif}),
        "deep.tif": (deep, {"format": "TIFF", "compression": "tiff_lzw"}),
        "float.tif": (real, {"format": "TIFF", "compression": "tiff_deflate"}),
        "jpeg.tif": (rgb, {"format": "TIFF", "compression": "jpeg"}),
        "fax.tif": (rgb.convert("1"), {"format": "TIFF", "compression": "group4"}),
    }
    seeds = {}
    for name, (image, options) in kinds.items():
        more = {"append_images": [image.rotate(90)]} if name == "animated.gif" else {}
        buffer = io.BytesIO()
        image.save(buffer, **options, **more)
        seeds[name] = buffer.getvalue()
    return seeds


def load_mutants(count: int, seed: int, folder: Path) -> tuple[Counter[str], float]:
    """Load that many damaged pictures: how many came out how, and the seconds of the slowest.

    Anything but a picture or a BadImage is raised.
    """
    from softvq import images

    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for name, content in mutants(image_seeds(), count, seed):
        path = folder / name
        path.write_bytes(content)
        start = time.perf_counter()
        try:
            image = images.load(path)
            assert image.mode == "RGB" and np.asarray(image).ndim == 3
            outcomes["loaded"] += 1
        except images.BadImage as bad:
            assert "\n" not in bad.reason
            outcomes[bad.reason.split(":")[0]] += 1
        slowest = max(slowest, time.perf_counter() - start)
    return outcomes, slowest


if __name__ == "__main__":
    import resource

    with TemporaryDirectory() as here:
        counts, seconds = load_mutants(
            int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(here)
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"{counts.total():,} damaged pictures: {dict(counts.most_common())}")
    print(f"slowest {seconds:.2f} s, peak memory {peak:.0f} MB")
