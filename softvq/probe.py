"""A small domain classifier: what distances and accuracies stand on where no weights are at hand.

Trained on the user's own labelled photos, its pooled activations are the features of
``softvq.evaluate.distances`` and its predictions show whether a reconstruction still means
the same. A figure on such features compares within one probe only.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.checks import check_fields
from softvq.errors import UserError
from softvq.io import load_model, save_model

STAGES = 4  # each halves height and width


@dataclass(frozen=True)
class ProbeConfig:
    """Shape of a probe. Raises UserError if the fields do not fit together.

    height, width: pixels of the photos it is trained on, and the only size it takes
    classes:       labels are 0..classes-1
    channels:      of the first stage, a multiple of 8; the features have 4 x channels dimensions
    """

    height: int = 64
    width: int = 64
    classes: int = 10
    channels: int = 32

    def __post_init__(self) -> None:
        check_fields(self, "probe: ")
        if min(self.height, self.width) < 2**STAGES:
            raise UserError(
                f"probe: photos of {self.height}x{self.width} are smaller than {2**STAGES} pixels"
            )
        if self.classes < 1:
            raise UserError(f"probe: classes must be at least 1, got {self.classes}")
        if self.channels < 8 or self.channels % 8:
            raise UserError(f"probe: channels must be a multiple of 8, got {self.channels}")


class Conv(nn.Module):
    """3x3 convolution, [B, C, H, W] -> [B, out, H/stride, W/stride].

    The weight is kept as the matrix [out, 9 C] that it is, because ``torch.optim.Muon`` takes
    matrices only.
    """

    def __init__(self, channels: int, out: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out, 9 * channels))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.unflatten(1, (-1, 3, 3))
        return F.conv2d(x, kernel, stride=self.stride, padding=1)


class Residual(nn.Module):
    """norm - ReLU - 3x3 convolution, twice, added to the input [B, C, H, W] (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = Conv(channels, channels)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(h)))


class Probe(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> logits [B, classes].

    GroupNorm, not BatchNorm: an image's features do not depend on the batch it is in.
    """

    def __init__(self, config: ProbeConfig):
        super().__init__()
        self.config = config
        widths = [config.channels * factor for factor in (1, 2, 4, 4)]
        self.stem = Conv(3, config.channels, stride=2)
        layers: list[nn.Module] = [Residual(config.channels)]
        for before, after in pairwise(widths):
            layers += [Conv(before, after, stride=2), Residual(after)]
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(8, widths[-1])
        self.head = nn.Linear(widths[-1], config.classes)
        self._initialise()

    def _initialise(self) -> None:
        """He initialisation; residual branches and logits start at zero."""
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, Residual):
                nn.init.zeros_(module.conv2.weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> features [B, 4 * channels], float32.

        Raises ValueError for another size than the configuration's: features of differently
        sized photos do not compare.
        """
        size = (3, self.config.height, self.config.width)
        if tuple(images.shape[1:]) != size:
            raise ValueError(f"expected images [B, {size}], got {list(images.shape)}")
        # Convolutions are faster with channels last, on the CPU and on the GPU.
        x = self.blocks(self.stem(images.contiguous(memory_format=torch.channels_last)))
        return F.relu(self.norm(x)).float().mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def save_pretrained(self, directory: str | Path, half: bool = False) -> None:
        """Write config.json and model.safetensors; ``half`` stores the weights in float16."""
        save_model(self, directory, half)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load what :meth:`save_pretrained` wrote, strictly. Raises UserError."""
        return load_model(cls, ProbeConfig, directory)
