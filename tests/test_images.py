"""softvq.images: every odd file is decoded right or refused with a reason."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from softvq import images

# pytest resets the warning filters, so Pillow's warnings are silenced here once more;
# test_no_warning_reaches_stderr checks the real thing in a fresh process.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

HEIGHT, WIDTH = 48, 64


def picture(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Smooth colour ramps with texture: compressible by JPEG, and no row like another."""
    y, x = np.mgrid[:height, :width]
    array = np.stack([x * 255 / width, y * 255 / height, 128 + 60 * np.sin(x / 5) * np.cos(y / 7)])
    return Image.fromarray(array.transpose(1, 2, 0).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return start + body + png_chunk(b"IEND", b"")


def damaged_files() -> dict[str, tuple[bytes, str]]:
    """Ten kinds of damage: file name -> content, and a word of the expected reason."""
    noise = np.random.default_rng(0)
    jpeg, png = encoded(picture(), "JPEG"), encoded(picture(), "PNG")
    gif, tiff = encoded(picture(), "GIF"), encoded(picture(), "TIFF")
    half = len(png) // 2
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "empty.png": (b"", "empty file"),
        "text.jpg": (b"these are not the pixels\n" * 20, "not an image"),
        "bomb.png": (bomb(30000, 30000), "decompression bomb: 900 MP, limit 100 MP"),
        "corrupt.png": (png[:half] + noise.bytes(40) + png[half + 40 :], "damaged"),
        "tiny.png": (encoded(picture(2, 2), "PNG"), "too small: 2x2"),
        "zero_tail.jpg": (jpeg[: -len(jpeg) // 4] + bytes(len(jpeg) // 4), "truncated"),
        "random.webp": (noise.bytes(3000), "not an image"),
        "cut.gif": (gif[: len(gif) // 2], "truncated"),
        "broken.tif": (tiff[: len(tiff) // 2], "truncated"),
    }


DAMAGED = damaged_files()


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_refused_with_its_reason(tmp_path, name):
    content, reason = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(images.BadImage, match=reason) as caught:
        images.load(path)
    assert caught.value.path == path and reason in caught.value.reason
    assert "\n" not in caught.value.reason
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_missing_file_and_folder(tmp_path):
    for path, reason in [("none.jpg", "no such file"), (".", "not a file")]:
        with pytest.raises(images.BadImage, match=reason):
            images.load(tmp_path / path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
@pytest.mark.parametrize("share", [0.7, 0.9, 0.97])
@pytest.mark.parametrize("side", [64, 150, 500])
def test_zeros_in_place_of_the_tail_are_noticed(tmp_path, kind, share, side):
    # Blurred noise, like a photo: on smoother pictures Pillow finds the zeros by itself.
    noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise).resize((side, side)), kind)
    kept = round(share * len(content))
    (tmp_path / "zeros").write_bytes(content[:kept] + bytes(len(content) - kept))
    with pytest.raises(images.BadImage, match=r"truncated|damaged"):
        images.load(tmp_path / "zeros")


def test_random_damage_raises_nothing_but_bad_image(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "fuzz"
    refused = 0
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(picture(), kind)
        for i in range(40):
            content = bytearray(whole)
            for _ in range(rng.integers(1, 6)):
                content[rng.integers(len(content) if i % 2 else 60)] = rng.integers(256)
            path.write_bytes(content[: rng.integers(1, len(content)) if i % 5 == 0 else None])
            try:
                assert images.load(path).mode == "RGB"
            except images.BadImage:
                refused += 1
    assert refused > 50


def test_no_warning_reaches_stderr(tmp_path):
    """A picture between Pillow's warning limit and ours, and a palette with byte transparency."""
    (tmp_path / "big.png").write_bytes(bomb(9500, 10000))
    palette = picture().quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    call = (
        "import sys; from softvq import images\n"
        "try: images.load(sys.argv[1])\n"
        "except images.BadImage as bad: print(bad.reason)\n"
        "images.load(sys.argv[2])"
    )
    paths = [str(tmp_path / name) for name in ("big.png", "palette.png")]
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", call, *paths]
    result = subprocess.run(command, capture_output=True, cwd=root, check=False)
    assert (result.returncode, result.stderr) == (0, b"") and b"bomb" not in result.stdout


def test_size_limits_are_inclusive(tmp_path):
    path = tmp_path / "a.png"
    picture(8, 10).save(path)
    assert images.load(path, min_side=8, max_pixels=80).size == (10, 8)
    for limits in ({"min_side": 9}, {"max_pixels": 79}):
        with pytest.raises(images.BadImage):
            images.load(path, **limits)


def loaded(tmp_path: Path, content: bytes) -> np.ndarray:
    path = tmp_path / "image"
    path.write_bytes(content)
    return np.asarray(images.load(path))


def test_cmyk_jpeg_has_the_right_colours(tmp_path):
    content = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    difference = loaded(tmp_path, content).astype(int) - np.asarray(picture())
    assert abs(difference).max() <= 12 and abs(difference).mean() < 2


@pytest.mark.parametrize(
    ("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)]
)
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, kind, dtype):
    values = np.linspace(0, 65535, 32 * 32).round().astype(dtype).reshape(32, 32)
    result = loaded(tmp_path, encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(result, np.rint(values / 257)[..., None].repeat(3, -1))


def test_float_tiff(tmp_path):
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    result = loaded(tmp_path, encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(result[..., 0], np.arange(256).reshape(16, 16))
    for wrong in (values * 2, values - 1, np.full_like(values, np.nan)):
        with pytest.raises(images.BadImage, match="scale unknown"):
            loaded(tmp_path, encoded(Image.fromarray(wrong), "TIFF"))


def test_transparency_is_laid_on_white(tmp_path):
    clear = np.zeros((16, 16, 4), np.uint8)
    clear[:, 8:] = [200, 100, 50, 255]
    clear[:8, 8:, 3] = 128
    image = Image.fromarray(clear)
    result = loaded(tmp_path, encoded(image, "PNG"))
    np.testing.assert_array_equal(result[0, 0], [255, 255, 255])
    np.testing.assert_array_equal(result[15, 15], [200, 100, 50])
    np.testing.assert_allclose(result[0, 15], [227, 177, 152], atol=1)

    indexed = Image.fromarray(np.eye(16, dtype=np.uint8), "P")
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    result = loaded(tmp_path, encoded(indexed, "PNG", transparency=0))
    np.testing.assert_array_equal(result[0, 1], [255, 255, 255])
    np.testing.assert_array_equal(result[1, 1], [200, 100, 50])

    grey = loaded(tmp_path, encoded(Image.new("LA", (9, 9), (0, 64)), "PNG"))
    np.testing.assert_allclose(grey, 191, atol=1)


def test_one_bit_and_grey(tmp_path):
    bits = np.eye(16, dtype=bool)
    result = loaded(tmp_path, encoded(Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(result, 255 * bits[..., None].repeat(3, -1))
    grey = picture().convert("L")
    result = loaded(tmp_path, encoded(grey, "PNG"))
    np.testing.assert_array_equal(result, np.asarray(grey)[..., None].repeat(3, -1))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(loaded(tmp_path, content)[3, 3], [255, 0, 0])


# How the picture must be stored so that a viewer that obeys the tag shows it upright.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation(tmp_path, orientation, kind):
    upright = np.asarray(picture())
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(kind, {})
    result = loaded(tmp_path, encoded(stored, kind, exif=exif, **options)).astype(int)
    assert result.shape == upright.shape
    assert images.upright_size(tmp_path / "image") == (WIDTH, HEIGHT)
    assert abs(result - upright).max() <= (12 if kind == "JPEG" else 0)


def test_damaged_exif_does_not_lose_the_photo(tmp_path):
    content = encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 30)
    assert loaded(tmp_path, content).shape == (HEIGHT, WIDTH, 3)
    assert images.upright_size(tmp_path / "image") == (WIDTH, HEIGHT)


@pytest.mark.parametrize("size", [(48, 64), (32, 32), (20, 60), (60, 20), (100, 7)])
def test_fit_covers_and_centres(size):
    """On a ramp that grows by 1 per pixel, resizing must keep the line: a closed form."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    image = Image.fromarray(np.stack([x, y, x], -1))
    result = np.asarray(images.fit(image, size)).astype(float)
    height, width = size
    scale = max(height / HEIGHT, width / WIDTH)
    column = (np.arange(width) - (width - 1) / 2) / scale + (WIDTH - 1) / 2
    row = (np.arange(height) - (height - 1) / 2) / scale + (HEIGHT - 1) / 2
    assert result.shape == (height, width, 3)
    inner = slice(3, -3)  # the filter leans on the border outside of it
    np.testing.assert_allclose(result[:, inner, 0], column[None, inner].repeat(height, 0), atol=1)
    np.testing.assert_allclose(result[inner, :, 1], row[inner, None].repeat(width, 1), atol=1)


def test_fit_keeps_a_picture_of_the_right_size_and_stretches():
    np.testing.assert_array_equal(images.fit(picture(), (HEIGHT, WIDTH)), picture())
    halves = Image.fromarray(np.repeat([[0, 255]], 32, 0).repeat(32, 1).astype(np.uint8))
    squeezed = np.asarray(images.fit(halves.convert("RGB"), (40, 10), "stretch"))
    assert squeezed.shape == (40, 10, 3)
    assert (squeezed[:, 0] == 0).all() and (squeezed[:, -1] == 255).all()
    with pytest.raises(ValueError, match="unknown fit"):
        images.fit(halves, (8, 8), "zoom")


def test_fit_never_leaves_the_picture_whatever_the_rounding():
    rng = np.random.default_rng(0)
    for w, h, width, height in rng.integers(1, 200, (300, 4)).tolist():
        assert images.fit(Image.new("RGB", (w, h)), (height, width)).size == (width, height)


def test_all_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(2, 16, 8, 3)
    tensor = images.to_tensor(levels)
    assert tensor.shape == (2, 3, 16, 8) and tensor.dtype == torch.float32
    assert tensor.is_contiguous() and tensor.min() == -1 and tensor.max() == 1
    np.testing.assert_array_equal(images.to_uint8(tensor), levels)
    assert images.to_tensor(levels[0]).equal(tensor[0])
    assert np.asarray(images.to_pil(tensor)[1]).tolist() == levels[1].tolist()


def test_to_uint8_clamps_and_rounds():
    values = torch.tensor([-9.0, -1, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1, 9]).view(1, 1, 1, 6)
    result = images.to_uint8(values.expand(1, 3, 1, 6).requires_grad_())
    assert result[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]
    assert images.to_uint8(torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16)).shape == (2, 4, 5, 3)


def test_grid():
    cells = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    sheet = np.asarray(images.grid(cells, columns=3, gap=1, scale=2))
    expected = (
        [[0, 0, 255, 1, 1, 255, 2, 2]] * 2 + [[255] * 8] + [[3, 3, 255, 4, 4] + [255] * 3] * 2
    )
    np.testing.assert_array_equal(sheet[..., 0], expected)
    assert images.grid([picture(), picture()], columns=8).size == (2 * WIDTH + 2, HEIGHT)
    with pytest.raises(ValueError):
        images.grid([picture(), picture(9, 9)], columns=2)
    with pytest.raises(ValueError):
        images.grid([], columns=2)


def test_save_png_replaces_whole_files(tmp_path):
    path = tmp_path / "new" / "a.png"
    for image in (picture(), picture(20, 30)):
        images.save_png(image, path)
        np.testing.assert_array_equal(images.load(path), image)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
