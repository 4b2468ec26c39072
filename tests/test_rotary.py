"""2-D rotary positions, against complex numbers and the closed form of Heo et al. 2024."""

import math
from functools import partial

import pytest
import torch
from contract import TokenizerContract, photos, small

from softvq.errors import UserError
from softvq.layers import Attention, Rotary, rotate
from softvq.tokenizer import Tokenizer

KINDS = pytest.mark.parametrize("learned", [False, True], ids=["axial", "mixed"])


class TestAxial(TokenizerContract):
    config = small(rope="axial")


class TestMixed(TokenizerContract):
    config = small(rope="mixed", class_token=False)


def cells(rows: int, columns: int) -> list[tuple[int, int]]:
    """Column and row of every patch, row-major."""
    return [(x, y) for y in range(rows) for x in range(columns)]


@KINDS
def test_attention_depends_on_offsets_alone(learned):
    """q . k after rotation = Re sum_t q_t conj(k_t) exp(i (fx_t dx + fy_t dy))."""
    rotary = Rotary(depth=3, heads=2, channels=8, theta=10.0, learned=learned).double()
    angles = rotary(3, 4)
    assert angles.shape == (3, 2, 12, 4)
    q, k = torch.randn(2, 8, dtype=torch.float64).unbind()
    complex_q, complex_k = (torch.view_as_complex(x.view(4, 2)) for x in (q, k))
    freqs = rotary.freqs.unflatten(-1, (2, 4))
    for block in range(3):
        for head in range(2):
            turned = [rotate(x.expand(12, 8), angles[block, head]) for x in (q, k)]
            scores = turned[0] @ turned[1].T
            fx, fy = freqs[:, block, head]
            for i, (x, y) in enumerate(cells(3, 4)):
                for j, (u, v) in enumerate(cells(3, 4)):
                    phase = torch.polar(torch.ones(4).double(), fx * (x - u) + fy * (y - v))
                    expected = (complex_q * complex_k.conj() * phase).sum().real
                    torch.testing.assert_close(scores[i, j], expected)


def test_axial_frequencies_are_the_closed_form():
    rotary = Rotary(depth=1, heads=2, channels=16, theta=100.0, learned=False)
    assert not rotary.state_dict() and not list(rotary.parameters())
    angles = rotary(2, 3)[0]
    for n, (x, y) in enumerate(cells(2, 3)):
        for t in range(4):
            frequency = 100.0 ** (-4 * t / 16)
            for head in range(2):
                assert angles[head, n, t].item() == pytest.approx(frequency * x)
                assert angles[head, n, 4 + t].item() == pytest.approx(frequency * y)


def test_mixed_frequencies_start_as_turned_axial_ones():
    rotary = Rotary(depth=2, heads=3, channels=16, theta=10.0, learned=True)
    x, y = rotary.freqs.detach().unflatten(-1, (3, 8))
    magnitude = torch.tensor([10.0 ** (-4 * t / 16) for t in range(4)]).repeat(2)
    torch.testing.assert_close(torch.hypot(x, y), magnitude.expand(2, 3, 8))
    angle = torch.atan2(y, x)
    between = (angle[..., 4:] - angle[..., :4]) % (2 * math.pi)
    torch.testing.assert_close(between, torch.full((2, 3, 4), math.pi / 2))
    assert angle[..., 0].flatten().unique().numel() == 6  # another direction for every head


def test_a_larger_grid_continues_the_smaller():
    rotary = Rotary(depth=1, heads=1, channels=8, theta=10.0, learned=True)
    large = rotary(4, 6).unflatten(2, (4, 6))
    torch.testing.assert_close(large[:, :, :2, :3].flatten(2, 3), rotary(2, 3))


def test_no_turn_changes_nothing():
    attention, x = Attention(32, 2), torch.randn(2, 5, 32)
    assert torch.equal(attention(x, torch.zeros(2, 5, 8)), attention(x))
    plain, rotated = (Tokenizer(small(rope=kind)).state_dict() for kind in ("none", "mixed"))
    added = {"encoder.rotary.freqs", "decoder.rotary.freqs"}
    assert rotated.keys() - plain.keys() == added
    assert plain.keys() - rotated.keys() == {"decoder.grid.pos_embed"}


def remember(seen: list, attention: Attention, inputs: tuple) -> None:
    seen.append(inputs[1])


def test_only_patches_turn():
    """Class token and latent tokens have no place in the picture."""
    net = Tokenizer(small(rope="mixed", bottleneck="ae"))
    for part in (net.encoder, net.decoder):
        seen = []
        for block in part.blocks:
            block.attn.register_forward_pre_hook(partial(remember, seen))
        net(photos(2, 48, 32))
        expected = part.rotary(6, 4)
        assert len(seen) == len(expected) == 2
        for angles, patches in zip(seen, expected, strict=True):
            assert angles.shape == (2, 1 + 24 + 8, 16)
            assert torch.equal(angles[:, 1:25], patches)
            assert not angles[:, 0].any() and not angles[:, 25:].any()


def test_gradients_are_those_of_finite_differences():
    rotary = Rotary(depth=2, heads=2, channels=4, theta=10.0, learned=True).double()
    x = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)

    def turned(x, freqs):
        return rotate(x, torch.func.functional_call(rotary, {"freqs": freqs}, (2, 3))[1])

    assert torch.autograd.gradcheck(turned, (x, rotary.freqs))


def test_float32_gradients_are_near_float64():
    """Where the reference crashes."""
    torch.manual_seed(0)
    encoder, gradients = Tokenizer(small(rope="mixed")).encoder, []
    for dtype in (torch.float32, torch.float64):
        encoder.to(dtype).zero_grad()
        encoder(photos().to(dtype)).square().mul(torch.arange(64)).mean().backward()
        gradients.append(encoder.rotary.freqs.grad.double())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_wrong_options_are_one_clear_line():
    with pytest.raises(UserError, match="rope 'axail' is none of none, axial, mixed"):
        small(rope="axail")
    with pytest.raises(UserError, match="rotary positions need heads of 4n channels, got 2"):
        Tokenizer(small(rope="axial", encoder_heads=32))


@KINDS
def test_patches_that_are_kept_keep_their_place(learned):
    config = small(rope="mixed" if learned else "axial")
    encoder, everything = Tokenizer(config).encoder, torch.arange(16).expand(4, 16)
    with torch.no_grad():
        torch.testing.assert_close(encoder(photos(), everything), encoder(photos()))
        shuffled = torch.stack([torch.randperm(16) for _ in range(4)])
        torch.testing.assert_close(encoder(photos(), shuffled), encoder(photos()))
