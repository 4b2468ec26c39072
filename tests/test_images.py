"""softvq.images: every odd file is decoded right or refused with a reason."""

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from softvq import images
from softvq.errors import SoftVQWarning, UserError

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
    with Image.open(tmp_path / "image") as unread:
        assert np.array_equal(images.to_uint8(images.as_tensor(unread))[0], result)
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


def test_png_paths_gives_every_picture_its_own():
    names = ["a/x.jpg", "a/x.png", "a/x.png", "b/x.jpg", "a/x.jpg", "a/X.JPG", "a/x-2.jpg", "y"]
    paths = images.png_paths(names * 3, "out")
    assert len({str(path).lower() for path in paths}) == len(paths)
    assert [str(path) for path in paths[:5]] == [
        f"out/{name}" for name in ("a/x.png", "a/x.png.png", "a/x-2.png", "b/x.png", "a/x-3.png")
    ]
    assert all(path.parent.name == name[0] for path, name in zip(paths[:7], names, strict=False))
    assert len(set(images.png_paths(["same.png"] * 20_000, "out"))) == 20_000


@pytest.mark.parametrize("name", ["/a.png", "../a.png", "a/../../b.png", "", ".", "a\0b"])
def test_png_paths_refuses_what_is_no_name_below_out(name):
    with pytest.raises(UserError, match="rename the photo"):
        images.png_paths(["fine.png", name], "out")


# Pictures from Python


def test_as_tensor_takes_every_kind_of_picture(tmp_path):
    picture().save(tmp_path / "a.png")
    levels = np.asarray(picture())
    expected = torch.from_numpy(levels.transpose(2, 0, 1) / 127.5 - 1).float()[None]
    chw = torch.from_numpy(levels.transpose(2, 0, 1).copy())
    floats = levels.astype(np.float64) / 127.5 - 1
    for given in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        picture(),
        picture().convert("RGBA"),
        levels,
        levels[None],
        levels[::-1][::-1],
        floats,
        floats.astype(">f4"),
        chw,
        chw[None],
        expected[0],
        expected.double(),
    ):
        result = images.as_tensor(given)
        assert result.shape == (1, 3, HEIGHT, WIDTH) and result.dtype == torch.float32
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    mixed = images.as_tensor([picture(), levels, expected.expand(3, -1, -1, -1), chw])
    torch.testing.assert_close(mixed, expected.expand(6, -1, -1, -1), atol=1e-6, rtol=0)
    grey = images.as_tensor(picture().convert("L"))
    assert grey.shape == expected.shape and grey[:, 0].equal(grey[:, 2])
    exif = Image.Exif()
    exif[images.ORIENTATION_TAG] = 6
    picture().save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert images.as_tensor(turned).shape == (1, 3, WIDTH, HEIGHT)


NAN = np.full((8, 8, 3), np.nan)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full((8, 8, 3), 200.0), r"floats from 200 to 200; .*x / 127.5 - 1"),
        (NAN, "floats from nan"),
        (torch.from_numpy(NAN).permute(2, 0, 1), "floats from nan"),
        (torch.full((3, 8, 8), -torch.inf), "floats from -inf"),
        (np.zeros((3, 8, 8), np.uint8), r"array of shape \[3, 8, 8\]; give \[H, W, 3\]"),
        (torch.zeros(8, 8, 3), r"tensor of shape \[8, 8, 3\]; give \[3, H, W\]"),
        (np.zeros((8, 8), np.uint8), "array of shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), "array of shape"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "tensor of torch.int64"),
        (np.zeros((8, 8, 3), np.int32), "array of int32"),
        (np.zeros((8, 8, 3), bool), "array of bool"),
        ([], "no picture given"),
        ([picture(), picture(8, 9)], r"different sizes, such as \(8, 9\) and \(48, 64\)"),
        (7, "a int is no picture"),
        ("nowhere.png", "nowhere.png: no such file"),
        (Image.fromarray(np.full((8, 8), 7, np.float32)), "mode F: float pixels outside 0..1"),
    ],
)
def test_as_tensor_refuses_in_one_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        images.as_tensor(given)
    assert "\n" not in str(caught.value)


# Odd depths, memory, and what others print


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen_are_scaled_and_said(tmp_path, kind):
    values = np.linspace(0, 4095, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    with pytest.warns(SoftVQWarning, match="12-bit"):
        result = loaded(tmp_path, encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(result[..., 0], np.rint(values / 4095 * 255))
    values[0, 0] = 4096  # now they are sixteen
    with warnings.catch_warnings():
        warnings.simplefilter("error", SoftVQWarning)
        result = loaded(tmp_path, encoded(Image.fromarray(values), kind))
        assert (loaded(tmp_path, encoded(Image.fromarray(0 * values), kind)) == 0).all()
    np.testing.assert_array_equal(result[..., 0], np.rint(values / 257))


@pytest.mark.parametrize(
    "mode", ["L", "RGB", "RGBA", "LA", "P", "PA", "1", "CMYK", "I", "I;16", "F"]
)
def test_strips_give_what_the_whole_gives(mode, monkeypatch):
    random = np.random.default_rng(0)
    if mode in ("I", "I;16", "F"):
        kind = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]
        most = 1 if mode == "F" else 65535
        image = Image.fromarray((random.random((50, 30)) * most).astype(kind))
    else:
        image = Image.fromarray(random.integers(0, 256, (50, 30, 4), np.uint8)).convert("RGBA")
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    assert image.mode == mode
    whole = images._levels(image)
    monkeypatch.setattr(images, "STRIP", 70)  # two rows
    np.testing.assert_array_equal(images._levels(image), whole)


def test_a_mask_is_inside_where_it_is_not_black_however_dark(tmp_path):
    inside = np.eye(16, dtype=bool)
    for i, kind in enumerate((np.uint8, np.uint16, np.int32, np.float32, bool)):
        Image.fromarray(inside.astype(kind)).save(tmp_path / f"{i}.tif")
        np.testing.assert_array_equal(images.load_mask(tmp_path / f"{i}.tif"), inside)
    indexed = Image.fromarray(inside.astype(np.uint8), "P")
    indexed.putpalette([0, 0, 0, 0, 128, 0])
    indexed.save(tmp_path / "p.png")
    np.testing.assert_array_equal(images.load_mask(tmp_path / "p.png"), inside)
    with pytest.raises(images.BadImage, match="no such file"):
        images.load_mask(tmp_path / "none.png")


@pytest.mark.parametrize("name", sorted(images.FORMATS))
def test_a_loaded_photo_needs_its_file_no_more(tmp_path, name):
    path = tmp_path / "photo"
    picture().save(path, name)
    image = images.load(path)
    path.unlink()
    image.save(tmp_path / "copy.png")
    np.testing.assert_array_equal(images.load(tmp_path / "copy.png"), image)
    assert image.copy().resize((9, 9)).size == (9, 9)


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images, "open", refused, raising=False)
    with pytest.raises(images.BadImage, match="cannot be read: Permission denied") as caught:
        images.load(tmp_path / "a.png")
    assert "damaged" not in caught.value.reason


def test_warning_filters_of_the_process_stay_as_they_are(tmp_path):
    (tmp_path / "big.png").write_bytes(bomb(9500, 10000))
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own warning would be raised, and end as a reason
        inside = list(warnings.filters)
        refused = []

        def decode():
            with pytest.raises(images.BadImage) as caught:
                images.load(tmp_path / "big.png")
            refused.append(caught.value.reason)

        threads = [threading.Thread(target=decode) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == inside
    assert warnings.filters == before
    assert len(refused) == 4 and not any("bomb" in reason for reason in refused)


def test_libtiff_prints_nothing_on_damaged_files(tmp_path):
    call = (
        "import sys; from pathlib import Path; from softvq import images\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: images.load(path)\n"
        "    except images.BadImage: pass"
    )
    rng = np.random.default_rng(0)
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg"):
        whole = encoded(picture(), "TIFF", compression=compression)
        for i in range(40):
            content = bytearray(whole)
            content[rng.integers(len(content))] = rng.integers(256)
            (tmp_path / f"{compression}{i}.tif").write_bytes(content)
    samples = b"\x15\x01\x03\x00\x01\x00\x00\x00"  # a tag that Pillow itself logs, when absurd
    whole = encoded(picture(), "TIFF")
    assert samples + b"\x03\x00" in whole
    content = whole.replace(samples + b"\x03\x00", samples + b"\x00\x08")
    (tmp_path / "samples.tif").write_bytes(content)
    command = [sys.executable, "-c", call, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, cwd=Path(__file__).parent.parent)
    assert (result.returncode, result.stderr) == (0, b"")


def test_large_photos_of_many_threads_take_turns(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "_ROOM", images._Room(2 * HEIGHT * WIDTH))
    at_once, most = [0], [0]
    is_rgb, lock = images._is_rgb, threading.Lock()

    def slow(image):
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        threading.Event().wait(0.02)
        with lock:
            at_once[0] -= 1
        return is_rgb(image)

    monkeypatch.setattr(images, "_is_rgb", slow)
    threads = [threading.Thread(target=images.load, args=(tmp_path / "a.png",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2
    monkeypatch.setattr(images, "_ROOM", images._Room(1))  # too large for any: alone
    assert images.load(tmp_path / "a.png").size == (WIDTH, HEIGHT)


def test_save_png_writes_through_no_link(tmp_path):
    images.save_png(picture(), tmp_path / "mine.png")
    before = (tmp_path / "mine.png").read_bytes()
    for name in ("a.png", "a.png.partial"):
        (tmp_path / name).symlink_to(tmp_path / "mine.png")
    images.save_png(picture(9, 9), tmp_path / "a.png")
    assert (tmp_path / "mine.png").read_bytes() == before
    assert images.load(tmp_path / "a.png").size == (9, 9)
