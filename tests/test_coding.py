"""softvq.coding: any number of pictures of any kind, to tokens and back."""

import numpy as np
import pytest
import torch
from contract import photos, small
from helpers.pictures import photos as photo_folder
from PIL import Image

from softvq import coding, images
from softvq.data import find_photos, open_store
from softvq.device import pick_device
from softvq.errors import UserError
from softvq.tokenizer import Tokenizer

SIZE = (32, 32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    model = Tokenizer(small()).eval()
    model.latent_mean.normal_()
    model.latent_std.uniform_(0.5, 2)
    return model


def damaged(part: str) -> Tokenizer:
    torch.manual_seed(0)
    model = Tokenizer(small())
    with torch.no_grad():
        for parameter in getattr(model, part).parameters():
            parameter.fill_(float("nan"))
    return model


def test_pictures_of_every_kind_give_the_same_tokens(tmp_path, tokenizer):
    pixels = images.to_uint8(photos(5))
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for picture, path in zip(pixels, paths, strict=True):
        Image.fromarray(picture).save(path)
    tensors = images.to_tensor(pixels)
    with torch.no_grad():
        expected = tokenizer.normalize(tokenizer.encode(tensors).latents)
    folder = open_store(tmp_path, "all", SIZE, tmp_path / ".cache", 1.0, progress=False)
    for pictures in (
        tensors,
        pixels,
        paths,
        [str(path) for path in paths],
        [Image.open(path) for path in paths],
        (tensor for tensor in tensors),
        folder,
        find_photos(tmp_path, "all"),
    ):
        found = coding.encode_all(tokenizer, pictures, batch=2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    one = coding.encode_all(tokenizer, paths[3])
    torch.testing.assert_close(one, expected[3:4], atol=1e-5, rtol=1e-5)


def test_pictures_of_other_sizes_are_fitted(tokenizer):
    wide = Image.fromarray(images.to_uint8(photos(1, 40, 60))[0])
    (batch,) = coding.batches([wide, np.asarray(wide)], SIZE)
    expected = images.to_tensor(np.asarray(images.fit(wide, SIZE)))
    assert torch.equal(batch, torch.stack([expected, expected]))


def test_reconstructions_are_those_of_the_tokenizer(tokenizer):
    pixels = photos(5)
    originals, rebuilt = coding.reconstruct_all(tokenizer, pixels, batch=2)
    assert np.array_equal(originals, images.to_uint8(pixels))
    expected = images.to_uint8(tokenizer.reconstruct(pixels)).astype(int)
    assert np.abs(rebuilt - expected).max() <= 1
    latents = coding.encode_all(tokenizer, pixels)
    again = coding.decode_all(tokenizer, latents, batch=3)
    assert np.abs(again - expected).max() <= 1
    assert coding.decode_all(tokenizer, latents[:0]).shape == (0, 32, 32, 3)


def test_latent_statistics_are_mean_and_deviation_over_photos_and_tokens(tmp_path):
    store = open_store(photo_folder(tmp_path / "p", 7), "all", SIZE, tmp_path / "c", progress=False)
    tokenizer = Tokenizer(small())
    raw = tokenizer(torch.stack(list(coding.each_picture(store, SIZE))))[1].latents.detach()
    coding.measure_latents(tokenizer, store)
    assert tokenizer.training  # as it was
    flat = raw.double().flatten(0, 1)
    torch.testing.assert_close(tokenizer.latent_mean.double(), flat.mean(0), atol=1e-5, rtol=1e-5)
    deviation = flat.std(0, correction=0)
    torch.testing.assert_close(tokenizer.latent_std.double(), deviation, atol=1e-5, rtol=1e-5)


def test_parts_keep_their_modes(tokenizer):
    tokenizer.train()
    tokenizer.encoder.eval()
    coding.encode_all(tokenizer, photos(2))
    assert tokenizer.training and tokenizer.decoder.training and not tokenizer.encoder.training
    tokenizer.eval()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_weights_that_are_not_finite_give_no_picture(part):
    with pytest.raises(UserError, match=f"the {part} gave values that are not finite"):
        coding.reconstruct_all(damaged(part), photos(2))


def test_tokens_that_are_not_finite_give_no_picture(tokenizer):
    latents = coding.encode_all(tokenizer, photos(2))
    latents[1, 0, 0] = float("inf")
    with pytest.raises(UserError, match="not finite"):
        coding.decode_all(tokenizer, latents)


def test_no_picture_and_a_damaged_one_are_said(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no picture to encode"):
        coding.encode_all(tokenizer, [])
    (tmp_path / "bad.png").write_text("x")
    with pytest.raises(UserError, match=r"bad\.png"):
        coding.encode_all(tokenizer, [tmp_path / "bad.png"])


@pytest.mark.parametrize("size", [(33, 32), (32, 8192), (0, 32)])
def test_sizes_that_no_decoder_is_asked_for(tokenizer, size):
    coding.check_size(tokenizer, (64, 32))
    with pytest.raises(UserError, match="from a tokenizer of 32x32 pixels"):
        coding.check_size(tokenizer, size)


def test_the_folder_of_the_photos_is_never_written_to(tmp_path, tokenizer):
    own = photo_folder(tmp_path / "own", 4)
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    for out in (own, own / "runs", tmp_path):
        with pytest.raises(UserError):
            coding.reconstruct_folder(tokenizer, own, out, progress=False)
    count = coding.reconstruct_folder(tokenizer, own, tmp_path / "out", progress=False)
    assert count == 4 == len(list((tmp_path / "out").rglob("*.png")))
    assert before == {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="another scale"):
        coding.reconstruct_folder(tokenizer, own, tmp_path / "out", scale=3, progress=False)
    with pytest.raises(UserError, match="not finite"):
        coding.reconstruct_folder(damaged("decoder"), own, tmp_path / "nan", progress=False)
    assert not (tmp_path / "nan").exists()


def test_one_device_rule():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        pick_device("tpu")
    for name in ("cuda", "mps"):
        if pick_device().type != name:
            with pytest.raises(UserError, match=f"no device '{name}' here"):
                pick_device(name)
