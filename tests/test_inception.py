"""The FID Inception network against torch-fidelity and pytorch-fid: seeded weights, no others.

tests/golden/inception.safetensors is part of shared/golden/evaluation (two of the 64 x 64 images);
where that lies beside the repository, all of it is tested. The seeds of the weights follow from
their sorted names, so a wrong name would be found by wrong numbers.
"""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from softvq.errors import UserError
from softvq.evaluate.features import inception_network
from softvq.evaluate.inception import PREPROCESSING, Inception, flat_name

HERE = Path(__file__).parent / "golden" / "inception.safetensors"
BESIDE = Path(__file__).parents[2] / "shared" / "golden" / "evaluation"
GOLDEN = load_file(HERE)
STRICT = 2e-5  # relative L2 of a float32 implementation, as the golden file says


def seeded_state(seed: int = 1000) -> dict[str, torch.Tensor]:
    """Weights by the recipe of shared/golden/evaluation/README.md."""
    state = {}
    shapes = {k: v.shape for k, v in Inception().state_dict().items()}
    names = sorted(k for k in shapes if not k.endswith("num_batches_tracked"))
    for i, name in enumerate(names):
        shape, draws = shapes[name], torch.Generator("cpu").manual_seed(seed + i)
        if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = torch.rand(shape, generator=draws) + 0.5
        elif name.endswith("running_mean"):
            state[name] = torch.randn(shape, generator=draws) * 0.1
        elif len(shape) == 1:
            state[name] = torch.randn(shape, generator=draws) * 0.05
        else:
            fan_in = math.prod(shape[1:])
            state[name] = torch.randn(shape, generator=draws) * math.sqrt(2.0 / fan_in)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05.pth"
    torch.save(seeded_state(), path)
    return path


@pytest.fixture(scope="module")
def network(weights) -> Inception:
    return Inception.from_file(weights)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def check(network: Inception, golden: dict[str, torch.Tensor], size: str) -> int:
    """Compares everything that the golden file has of one image size; returns how much that was."""
    compared = 0
    for short, kind in (("tf", "tf"), ("pf", "pytorch")):
        x = PREPROCESSING[kind](golden[f"{size}.images_u8"])
        strided = golden[f"{size}.{short}.preprocessed_strided13"]
        assert (x[:, :, ::13, ::13] - strided).abs().max() <= 1e-6
        with torch.no_grad():
            found = network(x)
        values = dict(zip(("64", "192", "768"), found.means, strict=True))
        values |= {"2048": found.pool, "logits_unbiased": found.logits}
        values["logits"] = found.logits + network.fc.bias
        for name, value in values.items():
            if (key := f"{size}.{short}.{name}") in golden:
                assert relative(value, golden[key]) <= STRICT, key
                assert (value - golden[key]).abs().max() <= 5e-5 * golden[key].abs().max(), key
                compared += 1
    return compared


def test_golden(network):
    assert check(network, GOLDEN, "s64x64") == 10


@pytest.mark.skipif(not BESIDE.is_dir(), reason="shared/golden is not beside the repository")
def test_all_golden(network):
    golden = load_file(BESIDE / "inception.safetensors")
    sizes = sorted({key.split(".")[0] for key in golden})
    assert sizes == ["s330x310", "s64x64", "s96x128"]
    assert sum(check(network, golden, size) for size in sizes if size != "s64x64") == 20


@pytest.mark.skipif(not BESIDE.is_dir(), reason="shared/golden is not beside the repository")
def test_names_and_shapes_are_those_of_the_weight_file():
    names = json.loads((BESIDE / "inception_names.json").read_text())
    assert {k: list(v.shape) for k, v in Inception().state_dict().items()} == names["shapes"]
    for wrapped, flat in names["pytorch_fid_wrapper_to_checkpoint"].items():
        assert flat_name(wrapped) == flat


def test_spatial_features_are_a_branch_flattened_with_channels_last(network):
    """sFID's 17 x 17 x 7, by a hook on the layer of that name."""
    seen = []
    branch = network.Mixed_6d.get_submodule("branch1x1")
    handle = branch.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    with torch.no_grad():
        spatial = network(PREPROCESSING["tf"](GOLDEN["s64x64.images_u8"])).spatial
    handle.remove()
    assert seen[0].shape == (2, 192, 17, 17) and spatial.shape == (2, 2023)
    grid = spatial.unflatten(1, (17, 17, 7))
    assert torch.equal(grid[1, 3, 5], seen[0][1, :7, 3, 5])


def test_preprocessing_by_hand():
    """TensorFlow 1: source position i * in / out, without a half-pixel shift."""
    picture = torch.zeros(1, 3, 2, 4, dtype=torch.uint8)
    picture[:, :, 0] = torch.tensor([0, 100, 200, 40])
    picture[:, :, 1] = 255
    x = PREPROCESSING["tf"](picture)[0, 0]
    for row, column in ((0, 0), (0, 100), (120, 200), (298, 298), (30, 260)):
        at_y, at_x = row * 2 / 299, column * 4 / 299
        y, x0 = int(at_y), int(at_x)
        source = picture[0, 0].double()
        across = [
            source[r, x0] + (source[r, min(x0 + 1, 3)] - source[r, x0]) * (at_x - x0)
            for r in (y, min(y + 1, 1))
        ]
        want = (across[0] + (across[1] - across[0]) * (at_y - y) - 128) / 128
        assert float(x[row, column]) == pytest.approx(float(want), abs=4e-5)


def test_every_kind_of_file(weights, network, tmp_path):
    state = seeded_state()
    save_file(state, tmp_path / "flat.safetensors")
    again = Inception.from_file(tmp_path / "flat.safetensors")
    assert torch.equal(again.fc.weight, network.fc.weight)

    blocks = [["1a_3x3", "2a_3x3", "2b_3x3"], ["3b_1x1", "4a_3x3"], [], ["7a", "7b", "7c"]]
    blocks[2] = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e"]
    wrapped = {}
    for i, block in enumerate(blocks):
        for j, name in enumerate(block):
            start = f"Conv2d_{name}." if "x" in name else f"Mixed_{name}."
            for key in (k for k in state if k.startswith(start)):
                wrapped[f"blocks.{i}.{j}.{key.removeprefix(start)}"] = state[key]
    assert len(wrapped) == len(state) - 2
    torch.save(wrapped, tmp_path / "wrapped.pth")
    without = Inception.from_file(tmp_path / "wrapped.pth")
    with torch.no_grad():
        found = without(torch.zeros(1, 3, 299, 299))
        want = network(torch.zeros(1, 3, 299, 299))
    assert found.logits is None and torch.equal(found.pool, want.pool)


def test_a_foreign_or_damaged_file_is_one_error(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Inception.from_file(tmp_path / "none.pth")
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="missing"):
        Inception.from_file(tmp_path / "other.pth")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Path("x"), protocol=2))
    with pytest.raises(UserError, match="evil.pth"):
        Inception.from_file(tmp_path / "evil.pth")


def test_as_a_feature_network(weights):
    """Channels last in, named, and the same numbers; the name tells the preprocessing."""
    pictures = GOLDEN["s64x64.images_u8"].permute(0, 2, 3, 1).numpy()
    features = inception_network(weights)
    found = features.compute(np.ascontiguousarray(pictures))
    assert relative(found["pool"], GOLDEN["s64x64.tf.2048"]) <= STRICT
    assert relative(found["logits"], GOLDEN["s64x64.tf.logits_unbiased"]) <= STRICT
    assert features.short == "fid" and "TensorFlow" in features.name
    other = inception_network(weights, "pytorch")
    assert other.name != features.name and "pytorch-fid" in other.name
    with pytest.raises(UserError, match="bicubic"):
        inception_network(weights, "bicubic")
