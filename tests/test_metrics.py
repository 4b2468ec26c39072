"""Pixel measures and distances: golden vectors, closed forms, brute force; the probe's contract.

tests/golden/evaluation.{npz,json} are part of shared/golden/evaluation (see its README): two of
the four picture pairs of ``pixel``, set A of ``distribution`` and its logits, with the golden
values that scikit-image, torchmetrics, torch-fidelity and scipy gave for them. Where that folder
lies beside the repository, all of it is tested.
"""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from softvq.errors import UserError
from softvq.evaluate import distances, pixels
from softvq.evaluate.features import (
    FeatureSet,
    frechet_distances,
    load_network,
    probe_network,
    set_measures,
)
from softvq.evaluate.statistics import Statistics, open_statistics, save_statistics
from softvq.probe import Probe, ProbeConfig
from softvq.tokenizer.lpips import HEADS, LPIPS

GOLDEN = Path(__file__).parent / "golden"
BESIDE = Path(__file__).parents[2] / "shared" / "golden" / "evaluation"
beside = pytest.mark.skipif(
    not BESIDE.is_dir(), reason="shared/golden is not beside the repository"
)
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
    assert pixels.psnr(test, ref) == approx(np.mean(golden["psnr"]), 1e-12)
    assert pixels.ssim(test, ref) == approx(np.mean(golden["ssim_crop"]), 1e-9)


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


def beside_golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Values and arrays of one of the files of shared/golden/evaluation."""
    arrays = load_file(BESIDE / f"{name}.safetensors")
    values = json.loads((BESIDE / f"{name}.json").read_text())["values"]
    return values, {key: array.numpy() for key, array in arrays.items()}


@beside
@pytest.mark.filterwarnings("ignore:Frechet distance of")
def test_all_distributions_golden():
    values, arrays = beside_golden("distribution")
    a, b = arrays["A.gen"], arrays["A.real"]
    sets = {
        "A": (a, b), "B": (arrays["B.gen"], arrays["B.real"]), "C_unequal": (a[:400], b),
        "D_singular": (a[:40], b[:48]), "E_one_singular": (a[:40], b), "F_identical": (a, a),
    }  # fmt: skip
    assert set(sets) == {key for key in values if "inception" not in key}
    for case, (gen, real) in sets.items():
        golden = values[case]
        frechet = golden["frechet"].get("golden_nuclear_norm", 0.0)
        loose = 1e-6 if case == "F_identical" else 0
        measured = distances.frechet_distance(gen, real)
        assert measured == pytest.approx(
            frechet, rel=1e-10 if "singular" in case else 1e-8, abs=loose
        )
        # From mean and covariance, with the tolerance of a method based on covariances.
        measured = distances.frechet_distance(Statistics().add(gen), Statistics().add(real))
        assert measured == pytest.approx(
            frechet, rel=1e-6 if "singular" in case else 1e-8, abs=1e-6
        )
        kid = golden["kid"]
        full = kid["full_unbiased_mmd2_golden"]
        assert distances.kernel_distance(gen, real) == (approx(full, 1e-9), 0.0)
        if "n_subsets" in kid:
            measured = distances.kernel_distance(gen, real, kid["n_subsets"], kid["subset_size"])
            assert measured == approx([kid["mean"], kid["std_ddof0"]], 1e-9)
        shares = golden["precision_recall"]
        measured = distances.precision_recall(real, gen, k=shares["k"])
        assert measured == (shares["precision"], shares["recall"])
    for n in (500, 503):
        golden = values["inception_score"][f"N{n}"]
        logits = arrays["isc.logits"][:n]
        want = golden["golden_no_shuffle"]
        measured = distances.inception_score(logits, golden["splits"])
        assert measured == approx([want["mean"], want["std_ddof0"]], 1e-9)
        want = golden["golden_shuffled_RandomState2020"]
        measured = distances.inception_score(logits, golden["splits"], seed=2020)
        assert measured == approx([want["mean"], want["std_ddof0"]], 1e-9)
        measured = distances.inception_score(logits, 1)
        assert measured == approx([golden["one_split"], 0.0], 1e-9)


@beside
def test_all_pixels_golden():
    values, arrays = beside_golden("pixel")
    test, ref = arrays["test_u8"], arrays["ref_u8"]
    for per_image, key, tolerance in (
        (pixels.psnr_per_image(test, ref), "psnr", 1e-9),
        (pixels.ssim_per_image(test, ref), "ssim_skimage_gaussian", 1e-9),
        (pixels.ssim_per_image(test, ref, border="reflect"), "ssim_torchmetrics_dr1", 1e-9),
    ):
        np.testing.assert_allclose(per_image, values[key], rtol=0, atol=tolerance)
    assert pixels.psnr(test, ref) == pytest.approx(values["mean of per-image psnr"], abs=1e-9)


def seeded_lpips() -> LPIPS:
    """The recipe of shared/golden/evaluation over the trunk that LPIPS uses, and the real heads."""
    network = LPIPS()
    names = sorted(k for k in network.state_dict() if k.startswith("features."))
    state = load_file(HEADS)
    for i, name in enumerate(names):
        shape, draws = network.state_dict()[name].shape, torch.Generator().manual_seed(3000 + i)
        scale = 0.05 if len(shape) == 1 else math.sqrt(2 / math.prod(shape[1:]))
        state[name] = torch.randn(shape, generator=draws) * scale
    network.load_state_dict(state)
    return network


@pytest.fixture(scope="module")
def lpips_network() -> LPIPS:
    return seeded_lpips()


@beside
def test_lpips_golden(lpips_network):
    golden = json.loads((BESIDE / "lpips.json").read_text())
    arrays = load_file(BESIDE / "lpips.safetensors")
    for size in ("s64x64", "s96x80"):
        a, b = arrays[f"{size}.in0_u8"], arrays[f"{size}.in1_u8"]
        want = arrays[f"{size}.vgg.distance"].numpy()
        measured = pixels.lpips_per_image(a, b, lpips_network)
        np.testing.assert_allclose(measured, want, rtol=golden["tolerance"]["relative, float32"])
        assert pixels.lpips(a, b.numpy(), lpips_network) == approx(want.mean(), 1e-4)


def test_lpips_inside_a_mask(lpips_network):
    draws = np.random.default_rng(0)
    a, b = draws.integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
    whole = pixels.lpips_per_image(a, b, lpips_network)
    everywhere = np.ones((2, 32, 32), bool)
    np.testing.assert_allclose(pixels.lpips_per_image(a, b, lpips_network, everywhere), whole)
    half = everywhere.copy()
    half[:, :, 16:] = False
    mixed = np.where(half[..., None], b, a)
    want = 2 * pixels.lpips_per_image(a, mixed, lpips_network)
    np.testing.assert_allclose(pixels.lpips_per_image(a, b, lpips_network, half), want)


def test_masks():
    """Inside a box, PSNR is that of the box cut out, SSIM the mean of the map."""
    test, ref, box = ARRAYS["test_u8"], ARRAYS["ref_u8"], (20, 10, 60, 100)
    masks = pixels.box_masks([[box], [box, (0, 0, 0, 0)]], *test.shape[2:])
    assert masks.shape == (2, *test.shape[2:]) and masks.sum() == 2 * 40 * 90
    cut = (slice(None), slice(None), slice(10, 100), slice(20, 60))
    np.testing.assert_allclose(
        pixels.psnr_per_image(test, ref, masks), pixels.psnr_per_image(test[cut], ref[cut])
    )
    inside = pixels.ssim_per_image(test, ref, mask=masks)
    # Windows centred inside the box are those inside the box widened by half a window.
    wide = (slice(None), slice(None), slice(5, 105), slice(15, 65))
    np.testing.assert_allclose(inside, pixels.ssim_per_image(test[wide], ref[wide]), rtol=1e-9)
    everywhere = np.ones_like(masks)
    for measure in (pixels.psnr, pixels.ssim):
        assert measure(test, ref, mask=everywhere) == approx(measure(test, ref), 1e-12)
    several = pixels.box_masks([[(0, 0, 4, 4), (2, 2, 6, 6)], [(-3, -3, 2, 2)]], 8, 8)
    assert several.sum(axis=(1, 2)).tolist() == [28, 4]


def test_many_pictures_are_measured_some_at_a_time_and_each_as_if_alone():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, pixels.AT_ONCE + 3, 12, 12, 3), dtype=np.uint8)
    masks = rng.random(a.shape[:3]) < 0.5
    for measure in (pixels.psnr_per_image, pixels.ssim_per_image):
        together = measure(a, b, mask=masks)
        alone = [measure(a[[i]], b[[i]], mask=masks[[i]])[0] for i in range(len(a))]
        np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_an_empty_mask_has_no_value():
    test, ref = ARRAYS["test_u8"], ARRAYS["ref_u8"]
    masks = pixels.box_masks([[(0, 0, 30, 30)], []], *test.shape[2:])
    values = pixels.psnr_per_image(test, ref, masks)
    assert np.isfinite(values[0]) and np.isnan(values[1])
    assert pixels.psnr(test, ref, masks) == approx(values[0], 1e-12)
    with pytest.raises(ValueError, match="empty"):
        pixels.ssim(test, ref, mask=np.zeros_like(masks))
    with pytest.raises(ValueError, match="mask"):
        pixels.psnr(test, ref, masks[:, 1:])


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


@pytest.mark.parametrize("k", [1, 5])
def test_density_coverage_by_brute_force(k):
    random = np.random.default_rng(k)
    real, generated = random.normal(size=(50, 4)), random.normal(0.5, 0.8, size=(70, 4))
    radius = [sorted(np.linalg.norm(real - c, axis=1))[k] for c in real]
    inside = np.array(
        [[np.linalg.norm(g - c) <= r for c, r in zip(real, radius, strict=True)] for g in generated]
    )
    want = inside.sum() / (k * 70), inside.any(axis=0).mean()
    assert distances.density_coverage(real - 300, generated - 300, k) == approx(want, 1e-12)
    # Equal distributions: density 1, coverage about 1 - 2^-k (Naeem et al. 2020).
    a, b = random.normal(size=(2, 600, 3))
    density, coverage = distances.density_coverage(a, b, k)
    assert density == pytest.approx(1, abs=0.15) and coverage == pytest.approx(1 - 2**-k, abs=0.06)


def test_merged_statistics_are_those_of_all():
    rng = np.random.default_rng(0)
    x = rng.normal(1000, [1, 2, 3], (90, 3))
    parts = [
        Statistics().add(x[:7]),
        Statistics(),
        Statistics().add(x[7:60]),
        Statistics().add(x[60:]),
    ]
    whole = Statistics()
    for part in parts:
        whole.merge(part)
    assert whole.count == 90
    np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-10)
    with pytest.raises(ValueError, match="of 2, before of 3 dimensions"):
        whole.merge(Statistics().add(x[:, :2]))


def test_statistics_are_numpys_however_the_batches_fall(tmp_path):
    x = np.random.default_rng(0).normal(1000, 3, (100, 6)).astype(np.float32)
    one, many = Statistics().add(x), Statistics()
    for part in (x[:1], x[1:40], x[40:41], x[41:]):
        many.add(torch.from_numpy(part))
    for statistics in (one, many):
        assert statistics.count == 100
        double = x.astype(np.float64)
        np.testing.assert_allclose(statistics.mean, double.mean(0), rtol=1e-13)
        want = np.cov(double, rowvar=False)
        np.testing.assert_allclose(statistics.covariance, want, rtol=1e-9, atol=1e-10)
    path = tmp_path / "folder" / "ref.npz"
    save_statistics(path, {"pool": many, "spatial": one}, "some network")
    opened, name = open_statistics(path)
    assert name == "some network" and opened["pool"].count == 100
    np.testing.assert_allclose(opened["pool"].covariance, many.covariance)
    np.testing.assert_allclose(opened["spatial"].mean, one.mean)
    assert not list(tmp_path.glob("**/*.partial"))
    with pytest.raises(ValueError, match="dimensions"):
        many.add(x[:, 1:])


def test_published_statistics(tmp_path):
    """The layout of Dhariwal & Nichol's reference batches; nothing is unpickled."""
    mean, root = np.array([1.0, 2.0]), np.array([[2.0, 0.0], [1.0, 1.0]])
    moments = {"mu": mean, "sigma": root.T @ root, "mu_s": mean[:1], "sigma_s": np.eye(1)}
    np.savez(tmp_path / "ref.npz", arr_0=np.zeros(3), **moments)
    opened, name = open_statistics(tmp_path / "ref.npz")
    assert name is None and opened["pool"].count is None and set(opened) == {"pool", "spatial"}
    x = with_moments(np.zeros(2), root, 40, seed=0)
    assert distances.frechet_distance(x, opened["pool"]) == approx(5.0, 1e-9)
    assert distances.frechet_distance(opened["pool"], opened["pool"]) < 1e-9
    np.savez(tmp_path / "evil.npz", mu=np.array([Path("x")]), sigma=np.eye(1))
    np.savez(tmp_path / "images.npz", arr_0=np.zeros(3))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(3), sigma=np.eye(2))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and then nothing")
    for name in ("evil", "images", "shapes", "broken", "missing"):
        with pytest.raises(UserError, match=f"{name}.npz"):
            open_statistics(tmp_path / f"{name}.npz")


def test_a_feature_set_is_its_features():
    torch.manual_seed(0)
    probe = Probe(ProbeConfig(height=16, width=16, classes=3, channels=8)).eval()
    a, b = np.random.default_rng(0).integers(0, 256, (2, 70, 16, 16, 3), np.uint8)
    network = probe_network(probe)
    real, drawn = (FeatureSet.of(network, [x[:30], x[30:]]) for x in (a, b))
    x, y = real.all("pool"), drawn.all("pool")
    with torch.no_grad():
        want = probe.features(torch.from_numpy(a).permute(0, 3, 1, 2) / 127.5 - 1)
    torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-5)
    found = frechet_distances(real.statistics, drawn, "r") | set_measures(real, drawn)
    assert set(found) == {"rfd", "kd", "precision", "recall", "density", "coverage"}
    assert found["rfd"] == pytest.approx(distances.frechet_distance(x, y), rel=1e-6)
    assert found["kd"] == distances.kernel_distance(y, x)[0]
    assert (found["precision"], found["recall"]) == distances.precision_recall(x, y)
    assert (found["density"], found["coverage"]) == distances.density_coverage(x, y)
    assert not FeatureSet.of(network, [a], keep=False).kept


@pytest.mark.parametrize(
    "call",
    [
        lambda: distances.density_coverage(REAL, GEN[:3], k=5),
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


def test_features_of_a_transformers_directory(tmp_path):
    """A DINOv2 of two layers: its class token on what Pillow resized."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": 28}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    network = load_network(str(tmp_path))
    assert network.short == "fd" and "dinov2" in network.name and "class token" in network.name
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 30, 3), np.uint8)
    x = [
        np.asarray(Image.fromarray(p).resize((28, 28), Image.Resampling.BICUBIC)) for p in pictures
    ]
    mean, std = np.array(settings["image_mean"]), np.array(settings["image_std"])
    pixels = torch.from_numpy((np.stack(x) / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        want = model(pixels).pooler_output
    torch.testing.assert_close(network.compute(pictures)["pool"], want, rtol=1e-4, atol=1e-5)


def test_load_network_refuses(tmp_path):
    for name in (tmp_path, tmp_path / "none", tmp_path / "none.pth"):
        with pytest.raises(UserError, match=str(name)):
            load_network(str(name))
    (tmp_path / "config.json").write_text('{"model": "Tokenizer"}')
    with pytest.raises(UserError, match="none of Probe"):
        load_network(str(tmp_path))
    assert load_network("shipped").name == "probe shipped, 64x64"
