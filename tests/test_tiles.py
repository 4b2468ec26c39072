"""Large pictures by tiles: everything covered, weights add up to one, no seam."""

from itertools import pairwise

import pytest
import torch
from contract import photos
from test_nested import spectral

from softvq.errors import UserError
from softvq.quality import Target
from softvq.tiles import Tiling, decode_tiles, encode_tiles, levels_of, ramps, starts
from softvq.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(spectral(bottleneck="ae", tokens=8)).eval()


@pytest.mark.parametrize("length", [5, 32, 33, 60, 64, 100, 131])
@pytest.mark.parametrize("overlap", [0, 8, 31])
def test_tiles_cover_every_pixel_and_count_once(length, overlap):
    begins = starts(length, 32, overlap)
    total = torch.zeros(max(length, 32))
    for begin, weight in zip(begins, ramps(begins, 32), strict=True):
        total[begin : begin + 32] += weight
    torch.testing.assert_close(total, torch.ones_like(total))
    assert all(one + 32 - two >= overlap for one, two in pairwise(begins))
    if length > 32:
        assert begins[-1] + 32 == length


def test_a_picture_of_one_tile_is_what_the_tokenizer_gives(tokenizer):
    (image,) = photos(1)
    tiled = encode_tiles(tokenizer, image)
    torch.testing.assert_close(tiled.latents, tokenizer.encode(image[None]).latents)
    expected = tokenizer.reconstruct(image[None])[0]
    torch.testing.assert_close(decode_tiles(tokenizer, tiled), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(100, 75), (40, 20), (7, 90)])
def test_any_size_comes_back_at_its_size_whatever_the_batch(tokenizer, height, width):
    (image,) = photos(1, height, width)
    tiling = Tiling.of(tokenizer, overlap=8)
    one = decode_tiles(tokenizer, encode_tiles(tokenizer, image, tiling=tiling, batch=1), batch=1)
    many = decode_tiles(tokenizer, encode_tiles(tokenizer, image, tiling=tiling))
    assert tiling.count(height, width) == len(encode_tiles(tokenizer, image).latents)
    assert many.shape == image.shape
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)


def test_a_seam_is_no_worse_than_elsewhere(tokenizer):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(24, 3, 40, 40, generator=generator)
    pictures = torch.nn.functional.interpolate(noise, (200, 200), mode="bicubic").mul(0.4)
    seam, rest = [], []
    for image in pictures.clamp(-1, 1):
        tiled = encode_tiles(tokenizer, image, tiling=Tiling((32, 32), 8))
        error = (decode_tiles(tokenizer, tiled) - image).square().mean(0)
        near = torch.zeros(200, dtype=torch.bool)
        for begin in starts(200, 32, 8)[1:]:
            near[begin : begin + 8] = True
        seam.append(error[near].mean())
        rest.append(error[~near].mean())
    assert torch.stack(seam).mean() <= 1.05 * torch.stack(rest).mean()


def test_fewer_tokens_of_each_tile(tokenizer):
    (image,) = photos(1, 64, 64)
    tiling = Tiling((32, 32), 0)
    some, every = (encode_tiles(tokenizer, image, k, tiling) for k in (3, None))
    assert some.tokens == 12 and every.tokens == 32
    torch.testing.assert_close(some.latents, every.latents[:, :3])


def test_every_tile_meets_a_target(tokenizer):
    (image,) = photos(1, 80, 64)
    target, tiling = Target("psnr", 18.0), Tiling((32, 32), 0)
    tiled = encode_tiles(tokenizer, image, target, tiling, batch=2)
    assert tiled.tokens == tiled.lengths.sum() and len(tiled.lengths) == 6
    assert tiled.lengths.unique().numel() > 1 and tiled.met.any()
    rebuilt = decode_tiles(tokenizer, tiled)
    top, left = tiling.grid(80, 64)
    pairs = [
        (image[:, y : y + 32, x : x + 32], rebuilt[:, y : y + 32, x : x + 32])
        for y in top[:1]
        for x in left
    ]
    a, b = (torch.stack(some) for some in zip(*pairs, strict=True))
    assert torch.equal(target.met(a, b), tiled.met[: len(left)])


def test_other_tiles_and_other_pixels(tokenizer):
    """Tiles of 64 px by a tokenizer of 32; 8-bit pixels are the floats they stand for."""
    levels = torch.from_numpy(levels_of(photos(1, 100, 90)[0]))
    assert levels.dtype == torch.uint8 and levels.shape == (100, 90, 3)
    tiling = Tiling.of(tokenizer, 64)
    assert tiling.overlap == 8
    bits = encode_tiles(tokenizer, levels.movedim(-1, 0), tiling=tiling)
    floats = levels.movedim(-1, 0) / 127.5 - 1
    torch.testing.assert_close(bits.latents, encode_tiles(tokenizer, floats, tiling=tiling).latents)
    assert len(bits.latents) == 4 and decode_tiles(tokenizer, bits).shape == (3, 100, 90)


def test_tiles_that_cannot_be(tokenizer):
    with pytest.raises(UserError, match="cannot overlap by 32; give 0 to 31"):
        Tiling.of(tokenizer, overlap=32)
    for side in (30, 256):
        with pytest.raises(UserError, match=f"tiles of {side} pixels: the side must divide by 8"):
            Tiling.of(tokenizer, side)
