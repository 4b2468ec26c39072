"""Nested tokens: the first k are the same however many there are; the spectral network."""

import numpy as np
import pytest
import torch
from contract import TokenizerContract, photos, small
from PIL import Image
from scipy.fft import dctn

from softvq.coding import decode
from softvq.encoding import encode_folder
from softvq.errors import UserError
from softvq.images import to_pil
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.tokenizer.spectral import Spectrum, spectrum_order
from softvq.tokenizer.terms import ObjectiveConfig
from softvq.tokens import decode_folder, read_tokens
from softvq.train.tokenizer import prefixes

PAIRS = {
    "codebooks": 8, "codebook_axis": "channels", "codebook_size": 256, "l2_norm": False,
    "assignment": "euclidean", "entropy_weight": 0.0,
}  # fmt: skip


def spectral(**changes) -> TokenizerConfig:
    shape = {"network": "spectral", "nested": True, "refine_width": 8, "refine_depth": 1}
    return small(**(shape | changes))


class NestedContract(TokenizerContract):
    """A tokenizer whose first k tokens are a complete description."""

    @pytest.fixture
    def moved(self, tokenizer):
        """With weights moved off their start, where some are 0."""
        with torch.no_grad():
            for parameter in tokenizer.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return tokenizer.eval()

    def test_the_first_tokens_are_the_same_however_many_are_asked_for(self, moved):
        all_of_them = moved.encode(photos()).latents
        for k in (1, 3, 8):
            some = moved.encode(photos(), tokens=k).latents
            assert some.shape[1] == k
            torch.testing.assert_close(some, all_of_them[:, :k], atol=2e-5, rtol=1e-5)

    def test_images_of_different_lengths_decode_as_each_alone(self, moved):
        latents = moved.encode(photos()).latents
        lengths = torch.tensor([1, 3, 8, 5])
        together = moved.decode(latents, lengths=lengths)
        for i, k in enumerate(lengths.tolist()):
            alone = moved.decode(latents[i : i + 1, :k])
            torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=1e-5)

    def test_what_stands_behind_the_length_is_not_read(self, moved):
        latents = moved.encode(photos()).latents
        lengths = torch.full((4,), 3)
        other = latents.clone()
        other[:, 3:] = 7.0
        assert torch.equal(
            moved.decode(latents, lengths=lengths), moved.decode(other, lengths=lengths)
        )

    def test_counts_that_cannot_be(self, moved):
        for k in (0, 9):
            with pytest.raises(UserError, match=f"1 to 8 tokens, not {k}"):
                moved.encode(photos(), tokens=k)


class TestNestedViT(NestedContract):
    config = small(bottleneck="ae", nested=True)


class TestNestedSoftVQ(NestedContract):
    config = small(nested=True, gain=True)


class TestNestedRotary(NestedContract):
    config = small(bottleneck="kl", nested=True, rope="axial", class_token=False)


class TestSpectral(NestedContract):
    config = spectral(bottleneck="ae")


class TestSpectralSoftVQ(NestedContract):
    config = spectral(**PAIRS)


class TestSpectralScalars(NestedContract):
    config = spectral(**(PAIRS | {"codebooks": 16, "codebook_size": 64}))

    def test_codewords_start_where_they_keep_coefficients(self, tokenizer):
        z = torch.distributions.Laplace(0.0, 0.7).sample((64, 8, 16))  # of unit variance
        kept = tokenizer.eval().bottleneck(z).latents
        assert (kept - z).square().mean() < 0.002 * z.square().mean()


class TestSpectralKL(NestedContract):
    config = spectral(bottleneck="kl")


def test_only_nested_tokenizers_take_fewer_tokens():
    tokenizer = Tokenizer(small(bottleneck="ae")).eval()
    with pytest.raises(UserError, match="8 tokens, not 3: it is not nested"):
        tokenizer.encode(photos(), tokens=3)
    with pytest.raises(UserError, match="8 tokens, not 3: it is not nested"):
        tokenizer.decode(torch.zeros(1, 3, 16))


def test_what_does_not_nest_is_refused():
    with pytest.raises(UserError, match="cnn has one token per cell"):
        small(network="cnn", nested=True)
    with pytest.raises(UserError, match="codebook_axis=channels"):
        small(nested=True, codebooks=2)


def test_coefficients_are_the_cosine_transform():
    pictures = photos(3, 24, 40)
    spectrum = Spectrum(4, 12)
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    maps = np.einsum("cd,bdhw->bchw", colours, pictures.numpy())
    exact = dctn(maps, axes=(2, 3), norm="ortho") / np.sqrt(24 * 40)
    where, scale = spectrum_order(48)
    colour, u, v = where.unbind(1)
    expected = torch.from_numpy(exact[:, colour, u, v]).float() / scale
    torch.testing.assert_close(spectrum(pictures), expected.view(3, 4, 12), atol=1e-4, rtol=1e-4)


def test_untrained_it_is_the_best_picture_of_its_frequencies():
    """Orthonormal, so the inverse is the projection: coefficients again, and no nearer picture."""
    tokenizer = Tokenizer(spectral(bottleneck="ae")).eval()
    pictures = photos()
    latents = tokenizer.encode(pictures).latents
    rebuilt = tokenizer.decode(latents)
    torch.testing.assert_close(tokenizer.encode(rebuilt).latents, latents, atol=1e-4, rtol=1e-4)
    missing = (pictures - rebuilt).flatten(1)
    assert ((missing * rebuilt.flatten(1)).sum(1).abs() < 1e-2).all()
    errors = [
        (tokenizer.decode(latents[:, :k]) - pictures).square().mean().item() for k in range(1, 9)
    ]
    assert errors == sorted(errors, reverse=True)


def test_one_picture_has_one_spectrum_at_every_size():
    spectrum = Spectrum(2, 8)
    coefficients = torch.randn(2, 2, 8)
    for height, width in ((32, 32), (64, 48)):
        again = spectrum(spectrum.inverse(coefficients, height, width))
        torch.testing.assert_close(again, coefficients, atol=1e-4, rtol=1e-4)


def test_frequencies_that_a_small_picture_cannot_hold_are_zero():
    spectrum = Spectrum(8, 32)
    coefficients = spectrum(photos(1, 8, 8))
    assert torch.isfinite(coefficients).all()
    beyond = spectrum.where[:, 1:].amax(1) >= 8
    assert not coefficients.flatten()[beyond].any()


def test_lengths_are_drawn_as_the_objective_says():
    torch.manual_seed(0)
    latents = torch.zeros(20_000, 64, 1)
    powers = prefixes(latents, ObjectiveConfig(whole=0.0))
    assert powers.min() == 1 and powers.max() == 64
    assert abs((powers <= 8).float().mean() - 0.5) < 0.02  # half of log2 64
    uniform = prefixes(latents, ObjectiveConfig(whole=0.0, prefix="uniform"))
    assert abs((uniform <= 8).float().mean() - 1 / 8) < 0.02
    assert uniform.min() == 1
    assert abs((prefixes(latents, ObjectiveConfig()) == 64).float().mean() - 0.5) < 0.02


def test_a_prefix_is_encoded_and_decoded_as_a_whole_set_is(tmp_path):
    """softvq encode --tokens 3: the files hold three tokens, and decode to what they are worth."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(spectral(bottleneck="ae", height=64, width=64)).eval()
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, picture in enumerate(to_pil(photos(3, 64, 64))):
        picture.save(folder / f"{i}.png")
    encode_folder(tokenizer, folder, tmp_path / "tokens", progress=False, keep=3)
    encode_folder(tokenizer, folder, tmp_path / "all", progress=False)
    kept, every = (read_tokens(tmp_path / name) for name in ("tokens", "all"))
    assert kept.latents.shape == (3, 3, 16)
    torch.testing.assert_close(kept.latents, every.latents[:, :3], atol=1e-5, rtol=1e-5)
    decode_folder(tokenizer, tmp_path / "tokens", tmp_path / "out", progress=False)
    (expected,) = decode(tokenizer, kept.latents)
    for i in range(3):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"{i}.png")), expected[i])
    with pytest.raises(UserError, match="1 to 8 tokens, not 9"):
        encode_folder(tokenizer, folder, tmp_path / "none", progress=False, keep=9)
    with pytest.raises(UserError, match="holds other tokens .another tokens"):
        encode_folder(tokenizer, folder, tmp_path / "tokens", progress=False)
