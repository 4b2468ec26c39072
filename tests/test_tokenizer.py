"""The four bottlenecks under the shared contract, and what is special to each."""

import math

import pytest
import torch
from contract import TokenizerContract, photos, small
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.tokenizer.bottleneck import BOTTLENECKS, codebook_stats, entropy_gap
from softvq.tokenizer.vit import token_rows


class TestSoftVQ(TokenizerContract):
    config = small(bottleneck="softvq", gain=True)


class TestSoftVQFourCodebooksPatchStem(TokenizerContract):
    config = small(bottleneck="softvq", codebooks=4, stem="patch", layer_scale=0.1)


class TestVQ(TokenizerContract):
    config = small(bottleneck="vq", class_token=False)


class TestKL(TokenizerContract):
    config = small(bottleneck="kl", kl_weight=1e-4)


class TestAE(TokenizerContract):
    config = small(bottleneck="ae", stem="conv")


def bottleneck(**changes):
    torch.manual_seed(0)
    config = small(**changes)
    made = BOTTLENECKS[config.bottleneck](config)
    made.init_weights()
    return made


def test_softvq_is_what_the_equation_says_token_by_token():
    soft = bottleneck(bottleneck="softvq", codebooks=2)
    z = torch.randn(3, 8, 16)
    tokens = soft(z)
    for b in range(3):
        for token in range(8):
            codes = F.normalize(soft.embedding[token // 4], dim=-1)
            cosine = codes @ F.normalize(z[b, token], dim=0)
            weights = (cosine / 0.07).softmax(0)
            torch.testing.assert_close(tokens.latents[b, token], weights @ codes)
            assert tokens.indices[b, token] == cosine.argmax()


def test_softvq_codebook_gets_gradient_through_values_only():
    soft = bottleneck(bottleneck="softvq", l2_norm=False, entropy_weight=1.0)
    z = torch.randn(2, 8, 16)
    target = torch.randn(2, 8, 16)
    tokens = soft.train()(z)
    (tokens.latents * target).sum().backward()
    assignment = (z @ soft.embedding[0].detach().T / 0.07).softmax(-1)
    expected = assignment.flatten(0, 1).T @ target.flatten(0, 1)
    torch.testing.assert_close(soft.embedding.grad[0], expected, atol=1e-4, rtol=1e-4)


def test_softvq_usage_is_the_share_of_nearest_codewords():
    soft = bottleneck(bottleneck="softvq", codebook_size=4, channels=16, tokens=8)
    with torch.no_grad():
        soft.embedding[0] = torch.eye(16)[:4]
    z = torch.eye(16)[[0, 0, 1, 0, 0, 1, 1, 0]][None]
    tokens = soft.train()(z)
    assert tokens.indices.tolist() == [[0, 0, 1, 0, 0, 1, 1, 0]]
    assert tokens.stats["codebook_usage"] == 0.5
    entropy = -(5 / 8) * math.log(5 / 8) - (3 / 8) * math.log(3 / 8)
    assert tokens.stats["codebook_perplexity"].item() == pytest.approx(math.exp(entropy))


def test_soft_assignment_is_float32_under_autocast():
    soft = bottleneck(bottleneck="softvq", codebook_size=512).eval()
    z = torch.randn(4, 8, 16)
    exact = soft(z).latents
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(soft(z).latents, exact)


def test_gain_gives_unit_variance_latents():
    soft = bottleneck(bottleneck="softvq", codebook_size=1024, channels=32, gain=True).eval()
    assert soft(torch.randn(64, 8, 32)).latents.std().item() == pytest.approx(1, rel=0.05)


def test_entropy_gap_against_the_plain_formula():
    logits = torch.randn(50, 20, dtype=torch.float64) * 3
    q = (logits / 0.5).softmax(-1)
    per_sample = -(q * q.log()).sum(-1).mean()
    mean = q.mean(0)
    of_mean = -(mean * (mean + 1e-5).log()).sum()
    gap = entropy_gap(torch.matmul, 0.5, logits[None], torch.eye(20, dtype=torch.float64)[None])
    torch.testing.assert_close(gap, per_sample - of_mean)


def test_codebook_stats_by_count():
    stats = codebook_stats(torch.tensor([[0, 1], [2, 3]]), size=8)
    assert stats["codebook_usage"] == 0.5
    assert stats["codebook_perplexity"].item() == pytest.approx(4)


def test_vq_takes_the_nearest_codeword_and_passes_the_gradient_straight_through():
    vq = bottleneck(bottleneck="vq", l2_norm=False).train()
    with torch.no_grad():
        vq.embedding.weight.normal_()
    z = torch.randn(2, 8, 16, requires_grad=True)
    tokens = vq(z)
    nearest = torch.cdist(z.detach(), vq.embedding.weight).argmin(-1)
    assert torch.equal(tokens.indices, nearest)
    torch.testing.assert_close(tokens.latents, vq.embedding.weight[nearest])
    tokens.latents.sum().backward()
    torch.testing.assert_close(z.grad, torch.ones_like(z))


def test_kl_term_and_sampling_against_torch_distributions():
    kl = bottleneck(bottleneck="kl", kl_weight=0.5).train()
    z = torch.randn(3, 8, 32)
    mean, logvar = z.chunk(2, -1)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(posterior, prior).sum((1, 2)).mean()
    tokens = kl(z)
    torch.testing.assert_close(tokens.losses["kl"], 0.5 * expected)
    assert not torch.equal(tokens.latents, mean)
    assert torch.equal(kl.eval()(z).latents, mean)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck": "softqv"}, "is none of softvq, gmm, vq, kl, ae"),
        ({"stem": "hybrid"}, "is none of patch, conv"),
        ({"height": 30}, "not divisible by patch 8"),
        ({"codebooks": 3}, "not divisible by codebooks 3"),
    ],
)
def test_bad_configs_say_what_is_wrong(changes, message):
    with pytest.raises(UserError, match=message):
        Tokenizer(small(**changes))


def test_any_token_count_and_rectangular_images():
    for tokens, height, width in ((1, 32, 32), (7, 32, 64), (13, 64, 32)):
        config = small(tokens=tokens, height=height, width=width, channels=5)
        reconstruction, kept = Tokenizer(config)(photos(2, height, width))
        assert reconstruction.shape == (2, 3, height, width)
        assert kept.latents.shape == (2, tokens, 5)


def test_token_rows_makes_near_square_cells():
    assert token_rows(16, 1.0) == 4
    assert token_rows(32, 1.0) in (4, 8)
    assert token_rows(32, 2.0) == 8
    assert token_rows(32, 0.5) == 4
    assert token_rows(7, 1.0) in (1, 7)


def test_default_config_has_the_published_size():
    """21.8M and 22.0M parameters in encoder and decoder of the published S, 64 x 32, 256 px."""

    def millions(*modules):
        return sum(p.numel() for module in modules for p in module.parameters()) / 1e6

    tokenizer = Tokenizer(TokenizerConfig())
    assert millions(tokenizer.encoder) == pytest.approx(21.8, rel=0.005)
    # The reference counts the decoder's unused patch embedding, 3 * 16 * 16 * 384 + 384.
    assert millions(tokenizer.decoder) + 0.295 == pytest.approx(22.0, rel=0.005)
