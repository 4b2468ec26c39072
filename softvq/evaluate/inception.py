"""The Inception network of the FID (Szegedy et al. 2016; the 2015-12-05 weights), and its inputs.

The layers, names and shapes are those of the field's weight files. It differs from the classifier
of the paper in three ways that move every distance: average pools leave the padding out, the last
block pools by maximum, and there are 1008 classes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.io import load_strictly, load_weights

SIDE = 299
CLASSES = 1008
Kernel = int | tuple[int, int]
Layer = tuple[str, int, Kernel]  # name, output channels, kernel; a stride is the block's


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, pad: bool = True):
        super().__init__()
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (high // 2, wide // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(channels, out, (high, wide), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Chains of convolutions side by side, and a pool, concatenated.

    A chain is a list of steps, a step one layer or two that read the same input; of the last step
    every output is kept. ``pool``: "average" or "max", followed by a 1x1 convolution to ``pooled``
    channels. With ``pooled`` 0 the block halves the grid instead: the last layer of every chain
    and the pool, a maximum, have stride 2.
    """

    def __init__(
        self, channels: int, chains: list[list[list[Layer]]], pooled: int, pool: str = "average"
    ):
        super().__init__()
        self.pool, self.halves = pool, not pooled
        self.chains = [[[name for name, _, _ in step] for step in chain] for chain in chains]
        for chain in chains:
            width = channels
            for i, step in enumerate(chain):
                halve = self.halves and i == len(chain) - 1
                for name, out, kernel in step:
                    conv = Conv(width, out, kernel, 2 if halve else 1, pad=not halve)
                    self.add_module(name, conv)
                width = step[0][1]
        if pooled:
            self.branch_pool = Conv(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for chain in self.chains:
            outputs = [x]
            for names in chain:
                outputs = [self.get_submodule(name)(outputs[0]) for name in names]
            parts += outputs
        if self.halves:
            parts.append(F.max_pool2d(x, 3, 2))
        elif self.pool == "max":
            parts.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
        else:
            mean = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            parts.append(self.branch_pool(mean))
        return torch.cat(parts, dim=1)


ACROSS, DOWN = (1, 7), (7, 1)


def double_3x3(first: int, rest: int) -> list[list[Layer]]:
    return [
        [("branch3x3dbl_1", first, 1)],
        [("branch3x3dbl_2", rest, 3)],
        [("branch3x3dbl_3", rest, 3)],
    ]


def mixed_5(channels: int, pooled: int) -> Mixed:
    """On 35 x 35: 224 channels and those of the pool."""
    five: list[list[Layer]] = [[("branch5x5_1", 48, 1)], [("branch5x5_2", 64, 5)]]
    return Mixed(channels, [[[("branch1x1", 64, 1)]], five, double_3x3(64, 96)], pooled)


def mixed_6(c: int) -> Mixed:
    """On 17 x 17: 768 channels in and out."""
    single: list[list[Layer]] = [
        [("branch7x7_1", c, 1)],
        [("branch7x7_2", c, ACROSS)],
        [("branch7x7_3", 192, DOWN)],
    ]
    double: list[list[Layer]] = [
        [("branch7x7dbl_1", c, 1)],
        [("branch7x7dbl_2", c, DOWN)],
        [("branch7x7dbl_3", c, ACROSS)],
        [("branch7x7dbl_4", c, DOWN)],
        [("branch7x7dbl_5", 192, ACROSS)],
    ]
    return Mixed(768, [[[("branch1x1", 192, 1)]], single, double], 192)


def mixed_7(channels: int, pool: str) -> Mixed:
    """On 8 x 8: 2048 channels out."""
    single: list[list[Layer]] = [
        [("branch3x3_1", 384, 1)],
        [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))],
    ]
    double: list[list[Layer]] = [
        [("branch3x3dbl_1", 448, 1)],
        [("branch3x3dbl_2", 384, 3)],
        [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
    ]
    return Mixed(channels, [[[("branch1x1", 320, 1)]], single, double], 192, pool)


@dataclass
class Activations:
    """What the network computes, [B, ...] each.

    means    spatial means after the first and second pool and Mixed_6e: 64, 192, 768 channels
    spatial  [B, 2023], of sFID: the first 7 channels of Mixed_6d's 1x1 branch, 17 x 17, row by
             row with channels last, as in Dhariwal & Nichol's statistics (2021)
    pool     [B, 2048], of FID
    logits   [B, 1008] without the bias, of the inception score: as its first program had it, and
             all that report it since; None where the weight file has no classifier
    """

    means: tuple[Tensor, Tensor, Tensor]
    spatial: Tensor
    pool: Tensor
    logits: Tensor | None


class Inception(nn.Module):
    """Inputs [B, 3, 299, 299] of :data:`PREPROCESSING` -> :class:`Activations`.

    >>> network = Inception.from_file("pt_inception-2015-12-05-6726825d.pth")
    >>> network(preprocess_tf(pictures)).pool       # pictures uint8 [B, 3, H, W]
    """

    def __init__(self, classifier: bool = True):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
        self.Mixed_5b = mixed_5(192, 32)
        self.Mixed_5c = mixed_5(256, 64)
        self.Mixed_5d = mixed_5(288, 64)
        self.Mixed_6a = Mixed(288, [[[("branch3x3", 384, 3)]], double_3x3(64, 96)], 0)
        self.Mixed_6b = mixed_6(128)
        self.Mixed_6c = mixed_6(160)
        self.Mixed_6d = mixed_6(160)
        self.Mixed_6e = mixed_6(192)
        three: list[list[Layer]] = [[("branch3x3_1", 192, 1)], [("branch3x3_2", 320, 3)]]
        seven: list[list[Layer]] = [
            [("branch7x7x3_1", 192, 1)],
            [("branch7x7x3_2", 192, ACROSS)],
            [("branch7x7x3_3", 192, DOWN)],
            [("branch7x7x3_4", 192, 3)],
        ]
        self.Mixed_7a = Mixed(768, [three, seven], 0)
        self.Mixed_7b = mixed_7(1280, "average")
        self.Mixed_7c = mixed_7(2048, "max")
        self.fc = nn.Linear(2048, CLASSES) if classifier else None

    def forward(self, x: Tensor) -> Activations:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        first = x = F.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        second = x = F.max_pool2d(x, 3, 2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :7]
        third = x = self.Mixed_6e(self.Mixed_6d(x))
        pool = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))
        return Activations(
            means=(first.mean(dim=(2, 3)), second.mean(dim=(2, 3)), third.mean(dim=(2, 3))),
            spatial=spatial.permute(0, 2, 3, 1).flatten(1),
            pool=pool,
            logits=None if self.fc is None else F.linear(pool, self.fc.weight),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "Inception":
        """Weights from the .pth file of torch-fidelity or pytorch-fid, or from .safetensors.

        Strict; names may be flat or those of pytorch-fid's wrapper (``blocks.0.0. ...``), which
        has no classifier. Raises UserError for a missing or damaged file and for other weights.
        """
        # Batch norms count their training steps; some files keep the counter, some do not.
        state = {
            flat_name(k): v
            for k, v in load_weights(path).items()
            if not k.endswith("batches_tracked")
        }
        model = cls(classifier="fc.weight" in state)
        counters = {k: v for k, v in model.state_dict().items() if k.endswith("batches_tracked")}
        load_strictly(model, state | counters, str(path))
        return model.eval().requires_grad_(False)


WRAPPED = (
    ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    tuple(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e")),
    ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)


def flat_name(key: str) -> str:
    """``blocks.B.I.`` of pytorch-fid's wrapper -> the flat name; other keys as they are."""
    parts = key.split(".")
    if parts[0] != "blocks" or len(parts) < 4 or not (parts[1].isdigit() and parts[2].isdigit()):
        return key
    block, index = int(parts[1]), int(parts[2])
    if block >= len(WRAPPED) or index >= len(WRAPPED[block]):
        return key
    return ".".join([WRAPPED[block][index], *parts[3:]])


def preprocess_tf(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> [B, 3, 299, 299] as TensorFlow 1 did it for the published FIDs.

    Bilinear with source position = target x input / 299: no half-pixel shift and no low-pass
    filter; then (x - 128) / 128.
    """
    x = pictures.float()
    for dim in (3, 2):
        size = x.shape[dim]
        # float32 all along: so are TensorFlow's positions, and a floor can hang on the last bit.
        at = torch.arange(SIDE, device=x.device, dtype=torch.float32)
        at = at * torch.tensor(size / SIDE, dtype=torch.float32, device=x.device)
        low = at.floor().long().clamp_max(size - 1)
        high = (low + 1).clamp_max(size - 1)
        share = (at - low).view(-1, *[1] * (3 - dim))
        below = x.index_select(dim, low)
        x = below + (x.index_select(dim, high) - below) * share
    return (x - 128) / 128


def preprocess_pytorch(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> [B, 3, 299, 299] as pytorch-fid does it: half-pixel centres, 2x - 1.

    The two differ by about 1% of the features: name the one that was used.
    """
    x = pictures.float() / 255
    x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * x - 1


PREPROCESSING = {"tf": preprocess_tf, "pytorch": preprocess_pytorch}
