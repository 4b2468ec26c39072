"""Network linear: principal components as nested tokens, against their closed form."""

import pytest
import torch
from contract import photos, small
from test_nested import NestedContract

from softvq.errors import UserError
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.linear import amplitudes_of, fit_components


def linear(**changes):
    shape = {"network": "linear", "nested": True, "bottleneck": "ae", "coefficients": 300}
    return small(**(shape | changes))


class TestLinear(NestedContract):
    config = linear()


def fitted(pictures, prior=0.0):
    tokenizer = Tokenizer(linear()).eval()
    fit_components(
        tokenizer.encoder, tokenizer.decoder, amplitudes_of(tokenizer.encoder, pictures), prior
    )
    return tokenizer


def test_untrained_it_is_the_cosine_transform():
    tokenizer = Tokenizer(linear(tokens=3, channels=100)).eval()  # all 300 of them
    latents = tokenizer.encode(photos()).latents
    expected = tokenizer.encoder.spectrum(photos()).view(4, 3, 100)
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)


def test_fewer_photos_than_components_come_back_whole():
    """Of 4 photos and their mean, 3 components say everything that 300 coefficients do."""
    pictures = photos()
    tokenizer = fitted(pictures)
    before = amplitudes_of(tokenizer.encoder, pictures)
    after = amplitudes_of(
        tokenizer.encoder, tokenizer.decode(tokenizer.encode(pictures).latents[:, :1])
    )
    torch.testing.assert_close(after, before, atol=2e-3, rtol=0)


def test_the_error_left_is_the_variance_left():
    """Eckart and Young: of N photos k components leave the sum of the smaller squared singular
    values, over N."""
    pictures = photos(64)
    tokenizer = fitted(pictures)
    before = amplitudes_of(tokenizer.encoder, pictures).double()
    squares = torch.linalg.svdvals(before - before.mean(0)).square()
    for k in (1, 2):
        rebuilt = tokenizer.decode(tokenizer.encode(pictures, tokens=k).latents)
        left = (amplitudes_of(tokenizer.encoder, rebuilt) - before).square().sum()
        assert left.item() == pytest.approx(squares[16 * k :].sum().item(), rel=1e-3)


def test_latents_have_unit_variance():
    latents = fitted(photos(200)).encode(photos(200)).latents[:, :2]
    deviations = latents.flatten(1).std(0, correction=0)
    torch.testing.assert_close(deviations, torch.ones(32), atol=1e-2, rtol=0)


def test_photographs_in_general_help_where_photos_are_few():
    train, new = photos(12, seed=1), photos(64, seed=2)

    def error(tokenizer):
        return (tokenizer.decode(tokenizer.encode(new).latents) - new).square().mean().item()

    assert error(fitted(train, prior=4.0)) < 0.8 * error(fitted(train))


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"8 tokens x 16 channels are more than 100"):
        linear(coefficients=100)
    other = Tokenizer(small(bottleneck="ae"))
    with pytest.raises(UserError, match="network linear"):
        fit_components(other.encoder, other.decoder, torch.zeros(3, 300), 1.0)
