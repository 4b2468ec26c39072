"""Pixel measures and distances: golden vectors, closed forms, brute force; the probe's contract.

tests/golden/evaluation.{npz,json} are part of shared/golden/evaluation (see its README): two of
the four picture pairs of ``pixel``, set A of ``distribution`` and its logits, with the golden
values that scikit-image, torchmetrics, torch-fidelity and scipy gave for them.
"""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from softvq.errors import UserError
from softvq.evaluate import distances, pixels
from softvq.evaluate.probe import Probe, ProbeConfig

GOLDEN = Path(__file__).parent / "golden"
VALUES = json.loads((GOLDEN / "evaluation.json").read_text())
ARRAYS = dict(np.load(GOLDEN / "evaluation.npz"))
GEN, REAL = ARRAYS["gen"], ARRAYS["real"]
SETS = {
    "A": (GEN, REAL),
    "C_unequal": (GEN[:400], REAL),
    "D_singular": (GEN[:40], REAL[:48]),
    "E_one_singular": (GEN[:40], REAL),
    "F_identical": (GEN, GEN),
}


def approx(expected: float | list[float], relative: float):
    return pytest.approx(expected, rel=relative, abs=1e-11)


def test_pixels_golden():
    test, ref, golden = ARRAYS["test_u8"], ARRAYS["ref_u8"], VALUES["pixel"]
    exact = dict(rtol=0, atol=1e-9)
    np.testing.assert_allclose(pixels.psnr_per_image(test, ref), golden["psnr"], **exact)
    np.testing.assert_allclose(pixels.ssim_per_image(test, ref), golden["ssim_crop"], **exact)
    reflected = pixels.ssim_per_image(test, ref, border="reflect")
    np.testing.assert_allclose(reflected, golden["ssim_reflect"], **exact)
    scales = pixels.ms_ssim_per_image(test, ref)
    np.testing.assert_allclose(scales, golden["ms_ssim"], rtol=0, atol=1e-8)
    assert pixels.psnr(test, ref) == approx(np.mean(golden["psnr"]), 1e-12)
    assert pixels.ssim(test, ref) == approx(np.mean(golden["ssim_crop"]), 1e-9)
    assert pixels.ms_ssim(test, ref) == approx(np.mean(golden["ms_ssim"]), 1e-8)


def test_pixels_take_any_sane_layout_and_type():
    test, ref, golden = ARRAYS["test_u8"], ARRAYS["ref_u8"], VALUES["pixel"]
    floats = torch.from_numpy(test).float() / 127.5 - 1
    np.testing.assert_allclose(pixels.psnr_per_image(floats, ref), golden["psnr"], atol=1e-4)
    last = test.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels.ssim_per_image(last, floats), [1, 1], atol=1e-9)
    np.testing.assert_allclose(pixels.ssim_per_image(last, ref), golden["ssim_crop"], atol=1e-9)


def test_psnr_of_known_error():
    a = np.full((2, 3, 4, 5), 100, np.uint8)
    b = a + np.array([1, 51], np.uint8)[:, None, None, None]  # 51 / 255 = 0.2
    want = [20 * math.log10(255), 20 * math.log10(5)]
    np.testing.assert_allclose(pixels.psnr_per_image(a, b), want, rtol=1e-12)
    assert pixels.psnr(a, b) == approx(np.mean(want), 1e-12)
    noise = 0.1 * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    # sigma 0.1 on the scale [-1, 1] is 0.05 on [0, 1]
    assert pixels.psnr(torch.zeros_like(noise), noise) == pytest.approx(26.02, abs=0.03)
    assert pixels.psnr(a, a) == math.inf
    assert isinstance(pixels.psnr(a, b), float)


@pytest.mark.parametrize(
    "a, b",
    [
        (np.zeros((1, 3, 16, 16)), np.zeros((2, 3, 16, 16))),
        (np.zeros((3, 16, 16)), np.zeros((3, 16, 16))),
        (np.zeros((1, 1, 16, 16)), np.zeros((1, 1, 16, 16))),
        (np.zeros((1, 3, 16, 16), np.int64), np.zeros((1, 3, 16, 16), np.int64)),
        (np.zeros((1, 3, 10, 16)), np.zeros((1, 3, 10, 16))),
    ],
)
def test_pixels_refuse(a, b):
    with pytest.raises(ValueError):
        pixels.ssim(a, b)


@pytest.mark.parametrize("case", SETS)
@pytest.mark.filterwarnings("ignore:Frechet distance of")
def test_distances_golden(case):
    (gen, real), golden = SETS[case], VALUES["distribution"][case]
    singular = case in ("D_singular", "E_one_singular")
    tolerance = 1e-10 if singular else 1e-8
    assert distances.frechet_distance(gen, real) == approx(golden["frechet"], tolerance)
    assert distances.kernel_distance(gen, real) == (approx(golden["kid"], 1e-9), 0.0)
    measured = distances.precision_recall(real, gen, k=3)
    assert measured == tuple(golden["precision_recall"])
    if "kid_subsets" in golden:
        kid = golden["kid_subsets"]
        measured = distances.kernel_distance(gen, real, kid["subsets"], kid["subset_size"])
        assert measured == approx([kid["mean"], kid["std"]], 1e-9)


@pytest.mark.parametrize("n", [500, 503])
def test_inception_score_golden(n):
    golden = VALUES["inception_score"][f"N{n}"]
    logits = torch.from_numpy(ARRAYS["logits"][:n])
    assert distances.inception_score(logits, splits=10) == approx(golden["in_order"], 1e-9)
    shuffled = distances.inception_score(logits, splits=10, seed=2020)
    assert shuffled == approx(golden["seed_2020"], 1e-9)


def test_inception_score_limits():
    sure = 1e4 * np.eye(5).repeat(4, axis=0)
    assert distances.inception_score(sure, splits=1) == approx([5.0, 0.0], 1e-12)
    assert distances.inception_score(np.zeros((20, 5)), splits=2) == approx([1.0, 0.0], 1e-12)


def with_moments(mean: np.ndarray, root: np.ndarray, n: int, seed: int) -> np.ndarray:
    """n points whose sample mean and covariance are exactly mean and root^T root."""
    x = np.random.default_rng(seed).normal(size=(n, mean.shape[0]))
    q = np.linalg.qr(x - x.mean(0))[0]
    return q * math.sqrt(n - 1) @ root + mean


def test_frechet_distance_of_known_gaussians():
    mean_a, mean_b = np.zeros(4), np.array([1.0, -2.0, 0.0, 0.5])
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 1.0, 3.0, 0.0])  # deviations
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0]
    # Covariances that commute: |mu_a - mu_b|^2 + sum (a - b)^2, rank deficient on one side.
    x = with_moments(mean_a, np.diag(a) @ rotation, 50, seed=0)
    y = with_moments(mean_b, np.diag(b) @ rotation, 70, seed=1)
    want = np.sum((mean_a - mean_b) ** 2) + np.sum((a - b) ** 2)
    assert distances.frechet_distance(x, torch.from_numpy(y)) == approx(want, 1e-12)


def test_frechet_distance_warns_of_few_images():
    with pytest.warns(UserWarning, match="40 images on 64 feature dimensions"):
        distances.frechet_distance(GEN[:40], REAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distances.frechet_distance(GEN[:65], REAL)


def test_kernel_distance_by_hand():
    # k(x, y) = (x y + 1)^3 in one dimension
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [1.0]])
    want = (0 + 1) ** 3 + (2 + 1) ** 3 - 2 * (1 + 1 + 3**3 + 2**3) / 4
    assert distances.kernel_distance(a, b)[0] == approx(want, 1e-14)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_by_brute_force(k):
    random = np.random.default_rng(k)
    real, generated = random.normal(size=(60, 5)), random.normal(1.2, 0.8, size=(45, 5))

    def covered(points, centres):
        radius = [sorted(np.linalg.norm(centres - c, axis=1))[k] for c in centres]
        hits = [
            any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radius, strict=True))
            for p in points
        ]
        return np.mean(hits)

    want = covered(generated, real), covered(real, generated)
    assert 0 < want[0] < 1 and 0 < want[1] < 1
    assert distances.precision_recall(real + 1000, generated + 1000, k) == want


@pytest.mark.parametrize(
    "call",
    [
        lambda: distances.frechet_distance(GEN, REAL[:, :5]),
        lambda: distances.frechet_distance(GEN, np.full((100, 64), np.nan)),
        lambda: distances.frechet_distance(GEN[:1], REAL),
        lambda: distances.kernel_distance(GEN, REAL, subsets=2, subset_size=501),
        lambda: distances.inception_score(GEN, splits=501),
        lambda: distances.precision_recall(REAL, GEN[:3], k=3),
        lambda: distances.precision_recall(REAL, GEN, k=0),
    ],
)
def test_distances_refuse(call):
    with pytest.raises(ValueError):
        call()


def test_probe_contract(tmp_path):
    torch.manual_seed(0)
    probe = Probe(ProbeConfig(height=32, width=48, classes=4, channels=8)).eval()
    images = torch.rand(3, 3, 32, 48) * 2 - 1
    logits, features = probe(images), probe.features(images)
    assert logits.shape == (3, 4) and features.shape == (3, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert probe.features(images).dtype == torch.float32
    # No image's features depend on its neighbours.
    torch.testing.assert_close(probe.features(images[1:2]), features[1:2], atol=1e-5, rtol=1e-5)
    probe.save_pretrained(tmp_path)
    again = Probe.from_pretrained(tmp_path)
    assert again.config == probe.config
    assert torch.equal(again.features(images), features)
    with pytest.raises(ValueError, match="32, 48"):
        probe(torch.zeros(1, 3, 48, 32))
    with pytest.raises(UserError, match="multiple of 8"):
        ProbeConfig(channels=12)


def test_probe_learns():
    torch.manual_seed(0)
    probe = Probe(ProbeConfig(height=16, width=16, classes=2, channels=8))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2)
    labels = torch.arange(32) % 2
    stripes = torch.ones(16).index_fill(0, torch.arange(0, 16, 2), -1.0)
    across, down = stripes.expand(3, 16, 16), stripes[:, None].expand(3, 16, 16)
    images = torch.stack([across, down])[labels] * 0.5 + 0.3 * torch.randn(32, 3, 16, 16)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(probe(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (probe(images).argmax(1) == labels).all()
