"""bfloat16 for as long as a context lasts: near, recorded, and no weight is changed."""

import copy

import pytest
import torch

from softvq import coding
from softvq.encoding import encode_folder
from softvq.errors import UserError
from softvq.precision import bfloat16, computing, pick_precision
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.tokens import TokenIndex


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(
        TokenizerConfig(
            height=32, width=32, patch=8, tokens=8, channels=16, codebook_size=64,
            encoder_width=64, encoder_depth=2, encoder_heads=2,
            decoder_width=64, decoder_depth=2, decoder_heads=2,
        )
    ).eval()  # fmt: skip


def test_weights_are_cast_inside_and_come_back_bit_for_bit(tokenizer):
    before = copy.deepcopy(tokenizer.state_dict())
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    exact = coding.encode_all(tokenizer, pixels)
    with bfloat16(tokenizer):
        assert tokenizer.to_latent.weight.dtype == torch.bfloat16
        assert tokenizer.latent_mean.dtype == torch.float32
        fast = coding.encode_all(tokenizer, pixels)
    with pytest.raises(RuntimeError), bfloat16(tokenizer):
        raise RuntimeError
    after = tokenizer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(coding.encode_all(tokenizer, pixels), exact)
    assert fast.dtype == torch.float32 and not torch.equal(fast, exact)
    assert (fast - exact).square().mean() < 0.05**2 * exact.square().mean()


def test_auto_is_what_the_hardware_multiplies(monkeypatch):
    for able, chosen in (({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert pick_precision("auto") == chosen
    assert pick_precision("auto", "mps") == "fp32"
    assert pick_precision("fp32") == "fp32"


def test_computing_in_float32_changes_nothing(tokenizer):
    with computing("fp32", tokenizer):
        assert tokenizer.to_latent.weight.dtype == torch.float32


def test_a_folder_of_tokens_keeps_to_one_precision(tokenizer, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, picture in enumerate(coding.images.to_pil(torch.rand(4, 3, 32, 32) * 2 - 1)):
        picture.save(photos / f"{i}.png")
    encode_folder(tokenizer, photos, tmp_path / "tokens", progress=False, precision="bf16")
    assert TokenIndex.read(tmp_path / "tokens").precision == "bf16"
    with pytest.raises(UserError, match="another precision"):
        encode_folder(tokenizer, photos, tmp_path / "tokens", progress=False)
