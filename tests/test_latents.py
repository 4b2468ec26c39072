"""Measures of latents: the golden linear probe, closed forms, scikit-learn where it is at hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from softvq.evaluate import latents
from softvq.evaluate.pixels import psnr
from softvq.images import to_uint8
from softvq.tokenizer import Tokenizer, TokenizerConfig

BESIDE = Path(__file__).parents[2] / "shared" / "golden" / "evaluation"
HERE = Path(__file__).parent / "golden" / "probe.safetensors"
# scikit-learn 1.9.1: accuracies on training and test set, and the objective at its optimum.
OPTIMA = {1.0: (0.8933333333333333, 0.78, 198.32933539713693),
          0.01: (0.855, 0.755, 5.468403751343296)}  # fmt: skip


@pytest.mark.parametrize("c", OPTIMA)
def test_linear_probe_golden(c):
    golden = load_file(HERE)
    x, y = golden["x_train"], golden["y_train"]
    probe = latents.linear_probe(x.numpy(), y, c)
    train, test, optimum = OPTIMA[c]
    assert probe.accuracy(x, y) == train
    assert probe.accuracy(golden["x_test"], golden["y_test"].numpy()) == test
    assert torch.equal(probe.logits(golden["x_test"]).argmax(1), golden[f"C{c}.pred_test"].long())
    torch.testing.assert_close(probe.weight, golden[f"C{c}.coef"], atol=1e-5, rtol=0)
    torch.testing.assert_close(probe.bias, golden[f"C{c}.intercept_centered"], atol=1e-5, rtol=0)
    loss = c * F.cross_entropy(probe.logits(x), y.long(), reduction="sum")
    assert float(loss + probe.weight.square().sum() / 2) == pytest.approx(optimum, rel=1e-8)


def test_linear_probe_of_fewer_images_than_numbers():
    """The gradient of the whole problem is 0 at what it finds among the images' own directions."""
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(12, 40, generator=generator).double()
    y = torch.arange(12) % 3
    probe = latents.linear_probe(x, y, c=0.3)
    error = torch.softmax(probe.logits(x), dim=1) - torch.nn.functional.one_hot(y, 3)
    torch.testing.assert_close(probe.weight, -0.3 * error.T @ x, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(error.sum(0), torch.zeros(3).double(), rtol=0, atol=1e-6)


@pytest.mark.skipif(not BESIDE.is_dir(), reason="shared/golden is not beside the repository")
def test_the_packaged_probe_is_the_golden_one():
    values = json.loads((BESIDE / "probe.json").read_text())["values"]
    objective = "objective C*sum(CE)+0.5*||W||^2"
    for c, known in OPTIMA.items():
        golden = values[f"C={c}"]
        assert known == (golden["train_accuracy"], golden["test_accuracy"], golden[objective])


def test_the_bias_is_free_of_the_origin():
    """Latents far from the origin and of another scale have the same optimum, moved along."""
    golden = load_file(HERE)
    x, y = golden["x_train"].double(), golden["y_train"]
    near, far = latents.linear_probe(x, y, 0.1), latents.linear_probe(x + 100, y, 0.1)
    torch.testing.assert_close(near.weight, far.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(near.logits(x), far.logits(x + 100), atol=1e-4, rtol=0)


@pytest.mark.parametrize("k", [1, 4, 7])
def test_knn_by_brute_force(k):
    random = np.random.default_rng(k)
    x, y = random.normal(size=(60, 3)), random.integers(0, 3, 60)
    test, want = random.normal(size=(25, 3)), random.integers(0, 3, 25)
    right = 0
    for row, label in zip(test, want, strict=True):
        nearest = y[np.argsort(((x - row) ** 2).sum(1))[:k]]
        right += np.bincount(nearest, minlength=3).argmax() == label
    assert latents.knn_accuracy(x + 50, y, test + 50, want, k) == pytest.approx(right / 25)


def test_knn_is_scikit_learns():
    neighbors = pytest.importorskip("sklearn.neighbors")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 5)), random.integers(0, 4, 200)
    test, want = random.normal(size=(50, 5)), random.integers(0, 4, 50)
    theirs = neighbors.KNeighborsClassifier(20).fit(x, y).score(test, want)
    assert latents.knn_accuracy(x, y, test, want) == pytest.approx(theirs)


def test_effective_rank_of_known_spectra():
    draws = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(200, 8, generator=draws).double())[0]
    q = torch.linalg.qr(q - q.mean(0))[0]  # columns orthonormal and centred
    assert latents.effective_rank(q + 3) == pytest.approx(8, rel=1e-9)
    values = torch.tensor([4.0, 2.0, 1.0, 1.0, 0, 0, 0, 0], dtype=torch.float64)
    p = [0.5, 0.25, 0.125, 0.125]
    want = math.exp(-sum(x * math.log(x) for x in p))
    assert latents.effective_rank(q * values) == pytest.approx(want, rel=1e-9)
    assert latents.effective_rank(torch.ones(5, 3)) == 1.0


def test_codebook_use():
    usage, perplexity = latents.codebook_use(np.array([[0, 1], [1, 0], [7, 7]]), 16)
    assert usage == pytest.approx(3 / 16) and perplexity == pytest.approx(3, rel=1e-5)
    assert latents.codebook_use(torch.arange(16), 16)[1] == pytest.approx(16, rel=1e-5)


def test_token_contributions_by_hand():
    torch.manual_seed(0)
    config = TokenizerConfig(
        height=16, width=16, patch=8, tokens=3, channels=4, bottleneck="ae",
        encoder_width=32, encoder_depth=1, encoder_heads=2,
        decoder_width=32, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip
    tokenizer = Tokenizer(config).eval()
    pictures = torch.rand(5, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        z = tokenizer.encode(pictures).latents
        want = []
        for token in range(3):
            without = z.clone()
            without[:, token] = z[:, token].mean(0)
            qualities = [
                psnr(to_uint8(pictures), to_uint8(tokenizer.decode(x))) for x in (z, without)
            ]
            want.append(qualities[0] - qualities[1])
    assert latents.token_contributions(tokenizer, pictures, batch=2) == pytest.approx(
        want, abs=1e-6
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: latents.linear_probe(x, np.zeros(10)),
        lambda x, y: latents.linear_probe(x, y[:5]),
        lambda x, y: latents.linear_probe(x, y, c=0),
        lambda x, y: latents.linear_probe(x, y - 1),
        lambda x, y: latents.knn_accuracy(x, y, x, y, k=11),
        lambda x, y: latents.knn_accuracy(x, y, x[:, :2], y, k=1),
        lambda x, y: latents.effective_rank(x[0]),
    ],
)
def test_they_refuse(call):
    x, y = np.random.default_rng(0).normal(size=(10, 3)), np.arange(10) % 2
    with pytest.raises(ValueError):
        call(x, y)
