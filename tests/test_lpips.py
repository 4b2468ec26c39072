"""LPIPS against the published package on seeded weights, and what training asks of it."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from softvq.errors import UserError
from softvq.tokenizer.lpips import HEADS, LPIPS

HERE = Path(__file__).parent / "golden"
BESIDE = Path(__file__).parents[2] / "shared" / "golden" / "evaluation"


def seeded_trunk(seed: int = 3000) -> dict[str, torch.Tensor]:
    """The random VGG-16 that the golden distances were computed with: a generator per tensor."""
    shapes = {k: v.shape for k, v in LPIPS().state_dict().items() if k.startswith("features.")}
    state = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        scale = 0.05 if len(shape) == 1 else math.sqrt(2 / math.prod(shape[1:]))
        generator = torch.Generator().manual_seed(seed + index)
        state[name] = scale * torch.randn(shape, generator=generator)
    return state


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    """torchvision's file, as far as its names go: the classifier's stand in it too."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(seeded_trunk() | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope="module")
def lpips(vgg) -> LPIPS:
    return LPIPS.from_file(vgg)


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A picture and one near it, [2, 3, 32, 32] in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize(("folder", "size"), [(HERE, "s64x64"), (BESIDE, "s96x80")])
def test_golden_distances(lpips, folder, size):
    file = folder / "lpips.safetensors"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    golden = load_file(file)
    a, b = (golden[f"{size}.in{i}_u8"].float() / 127.5 - 1 for i in (0, 1))
    tolerance = {"rtol": 1e-4, "atol": 0}
    with torch.no_grad():
        layers, distance = lpips.layers(a, b), lpips(a, b)
    torch.testing.assert_close(layers.double(), golden[f"{size}.vgg.per_layer"], **tolerance)
    torch.testing.assert_close(distance.double(), golden[f"{size}.vgg.distance"], **tolerance)


def test_heads_are_the_published_ones():
    heads = load_file(HEADS)
    assert sum(w.numel() for w in heads.values()) == 1472
    assert all((w >= 0).all() for w in heads.values())  # constrained so when they were trained
    published = BESIDE / "lpips_heads_v0.1.safetensors"
    if not published.is_file():
        pytest.skip(f"{published} is not here")
    theirs = load_file(published)
    assert all(torch.equal(w, theirs[f"vgg.{name}"]) for name, w in heads.items())


def test_a_distance(lpips, pair):
    a, b = pair
    assert torch.equal(lpips(a, a), torch.zeros(2))
    assert (lpips(a, b) > 0).all()
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    assert (lpips(a, a.lerp(b, 0.5)) < lpips(a, b)).all()


def test_pairs_do_not_leak_into_each_other(lpips, pair):
    a, b = pair
    torch.testing.assert_close(lpips(a, b)[1:], lpips(a[1:], b[1:]))


def test_training_mode_changes_nothing(lpips, pair):
    before = lpips(*pair)
    lpips.train()
    assert torch.equal(lpips(*pair), before)
    lpips.eval()


def test_gradient_goes_to_the_reconstruction_alone(lpips, pair):
    a, b = pair[0].clone().requires_grad_(), pair[1]
    lpips(a, b).sum().backward()
    assert torch.isfinite(a.grad).all() and a.grad.any()
    assert all(p.grad is None and not p.requires_grad for p in lpips.parameters())
    # A step against the gradient comes nearer.
    step = 1e-2 * a.grad / a.grad.abs().max()
    assert (lpips(a - step, b) < lpips(a, b)).all()


def test_target_side_keeps_nothing_for_backward(lpips, pair):
    a, b = pair[0].clone().requires_grad_(), pair[1]
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in lpips.parameters()}
    sizes = []
    for sides in ((a, b), (a, b.clone().requires_grad_())):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = lpips(*sides)
        sizes.append(sum(size for pointer, size in kept.items() if pointer not in weights))
        del result
    assert sizes[0] < 0.6 * sizes[1]


def test_flat_and_equal_pictures_have_finite_gradients(lpips):
    flat = torch.full((2, 3, 32, 32), -1.0)
    for other in (flat, flat + 1e-3):
        a = flat.clone().requires_grad_()
        lpips(a, other).sum().backward()
        assert torch.isfinite(a.grad).all()


def test_bfloat16_autocast_stays_close(lpips, pair):
    exact = lpips(*pair)
    with torch.autocast("cpu", torch.bfloat16):
        rough = lpips(*pair)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)


def test_opening(lpips, pair, tmp_path):
    path = tmp_path / "vgg16.safetensors"
    save_file(seeded_trunk(), path)
    assert torch.equal(LPIPS.from_file(path)(*pair), lpips(*pair))


def test_what_is_not_vgg_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        LPIPS.from_file(tmp_path / "vgg16.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="do not fit the config: missing features.0.weight"):
        LPIPS.from_file(tmp_path / "other.pth")
    torch.save(LPIPS, tmp_path / "code.pth")
    with pytest.raises(UserError, match="not a file of weights alone"):
        LPIPS.from_file(tmp_path / "code.pth")
    torch.save({"model": {}}, tmp_path / "nested.pth")
    with pytest.raises(UserError, match="not a state dict"):
        LPIPS.from_file(tmp_path / "nested.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\3\4 torn")
    with pytest.raises(UserError, match="not a file of weights alone"):
        LPIPS.from_file(tmp_path / "torn.pth")
