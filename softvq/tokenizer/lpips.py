"""LPIPS (Zhang et al. 2018): how different two pictures look, learned from people's judgements.

The five linear heads beside this file, ``lpips_heads_v0.1.safetensors``, are version 0.1 of the
authors' (github.com/richzhang/PerceptualSimilarity), Copyright (c) 2018, Richard Zhang, Phillip
Isola, Alexei A. Efros, Eli Shechtman, Oliver Wang, under the BSD 2-Clause licence (NOTICE).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from softvq.io import load_strictly, load_tensors, load_weights
from softvq.layers import unit

HEADS = Path(__file__).with_name("lpips_heads_v0.1.safetensors")
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # VGG-16: channels, convolutions


def vgg16() -> nn.Sequential:
    """VGG-16's convolutions (Simonyan & Zisserman 2015), numbered as torchvision numbers them."""
    layers: list[nn.Module] = []
    before = 3
    for channels, count in STAGES:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(inplace=True)]
            before = channels
    return nn.Sequential(*layers)


class LPIPS(nn.Module):
    """Frozen; nothing in it depends on train() or eval(), for there is no dropout.

    A new one has random weights: :meth:`from_file` opens the real ones.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = vgg16()
        for index, (channels, _) in enumerate(STAGES):
            self.register_buffer(f"lin{index}", torch.ones(channels))
        # ImageNet's mean and standard deviation, for images in [-1, 1].
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, vgg: str | Path) -> "LPIPS":
        """With VGG-16's ImageNet weights from a local file and the packaged heads.

        vgg: torchvision's ``vgg16`` state dict (vgg16-397923af.pth, or timm's vgg16.tv_in1k as
        .safetensors); only its ``features.*`` are used. Raises UserError if the file is missing,
        damaged or of another network.
        """
        state = {k: v for k, v in load_weights(vgg).items() if k.startswith("features.")}
        model = cls()
        load_strictly(model, state | load_tensors(HEADS), str(vgg))
        return model.eval()

    def layers(self, a: Tensor, b: Tensor) -> Tensor:
        """Each stage's share of the distance (eq. 1 before its outer sum), [5, B]."""
        a, b = (a - self.shift) / self.scale, (b - self.shift) / self.scale
        layers = []
        start = 0
        # Stage by stage, so that only one stage of the side without gradient is ever held.
        for index, (_, count) in enumerate(STAGES):
            stop = start + 2 * count + (index > 0)
            a, b = self.features[start:stop](a), self.features[start:stop](b)
            difference = unit(a) - unit(b)
            layers.append((difference.square().mean((2, 3)) * getattr(self, f"lin{index}")).sum(1))
            start = stop
        return torch.stack(layers)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> distances [B], 0 for equal ones; at least 16 x 16.

        Autocast reaches the convolutions only; gradients flow to whichever image asks for them.
        """
        return self.layers(a, b).sum(0)
