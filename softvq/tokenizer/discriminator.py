"""Discriminators: images [B, 3, H, W] in [-1, 1] -> logits [B, ...], high for real ones.

``PatchGAN`` learns everything; ``DinoDiscriminator`` learns small heads on a frozen ViT.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.io import load_strictly, load_weights
from softvq.layers import full_precision
from softvq.processes import BatchNorm2d
from softvq.tokenizer.vit import Block, Grid, PatchStem
from softvq.tokenizer.vit_names import MEAN, OURS, STD, timm_layout

UNREAD = ("norm.", "pooler.", "head.", "mask_token")


class PatchGAN(nn.Module):
    """One logit per overlapping patch of pixels, [B, 1, H', W'] (Isola et al. 2017).

    ``depth`` convolutions halve the side and double the channels from ``width`` on, up to eight
    times; the side of an image is at least 3 x 2^depth pixels.
    """

    def __init__(self, width: int = 64, depth: int = 3):
        super().__init__()
        self.smallest = 3 * 2**depth
        widths = [width * min(2**i, 8) for i in range(depth + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, depth + 1):
            stride = 2 if i < depth else 1
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False),
                BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for layer in self.main:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < self.smallest:
            raise UserError(
                f"the discriminator needs images of at least {self.smallest} pixels a side, got "
                f"{tuple(images.shape[-2:])}; lower adversary.depth"
            )
        return self.main(images)


class FrozenViT(nn.Module):
    """A pretrained vision transformer whose inner features are read and never trained.

    ``features`` is one [B, D, N] per tap: the embedded patches, then the output of each block
    named in ``taps``, each patch with the class token added (Sauer et al. 2023, "StyleGAN-T").
    Images of any size are brought to 224 x 224.
    """

    side = 224
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 16,
        positions: int = 14,
        layer_scale: bool = False,
        taps: tuple[int, ...] | None = None,
    ):
        super().__init__()
        self.width = width
        # The end of each quarter: blocks 3, 6, 9 and 12 of a ViT-S.
        self.taps = taps or tuple(depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
        self.patch_embed = PatchStem(patch, width)
        self.grid = Grid(positions, positions, width, class_token=True)
        scale = 1.0 if layer_scale else None
        blocks = [Block(width, heads, scale) for _ in range(depth)]
        for block in blocks:
            # The released discriminator's approximation; within 1e-3 of the exact GELU's features.
            block.mlp.act = nn.GELU(approximate="tanh")
        self.blocks = nn.ModuleList(blocks)
        mean, std = torch.tensor([MEAN, STD])
        self.register_buffer("scale", (0.5 / std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((0.5 - mean) / std)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_file(cls, path: str | Path) -> "FrozenViT":
        """Open a ViT (DINO, DINOv2) from a local .safetensors or .pth file, or a folder with one.

        Reads the names of Hugging Face's ViTModel and Dinov2Model and of timm; heads are 64
        channels wide, as in every published size. Raises UserError if the file is missing,
        damaged or of another network.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "model.safetensors"
        state = vit_state(load_weights(path))
        try:
            width, _, _, patch = state["patch_embed.proj.weight"].shape
            positions = math.isqrt(state["grid.pos_embed"].shape[1] - 1)
        except (KeyError, ValueError):
            raise UserError(
                f"{path}: not a vision transformer that is known here; give the model.safetensors "
                "of facebook/dino-vits16, of a DINOv2 without registers, or timm's file of one"
            ) from None
        depth = 1 + max((int(k.split(".")[1]) for k in state if k.startswith("blocks.")), default=0)
        layer_scale = "blocks.0.ls1.gamma" in state
        model = cls(width, depth, max(1, width // 64), patch, positions, layer_scale)
        load_strictly(model, state, str(path))
        return model

    def features(self, images: Tensor) -> list[Tensor]:
        x = images * self.scale + self.shift
        if images.shape[-2:] != (self.side, self.side):
            shrinks = min(images.shape[-2:]) > self.side
            x = F.interpolate(x, (self.side, self.side), mode="area" if shrinks else "bicubic")
        patches = self.patch_embed(x)
        x = self.grid(patches.flatten(2).transpose(1, 2), *patches.shape[-2:])
        states = [x]
        for block in self.blocks[: max(self.taps) + 1]:
            states.append(block(states[-1]))
        tapped = [states[0], *(states[1 + tap] for tap in self.taps)]
        return [(x[:, 1:] + x[:, :1]).transpose(1, 2) for x in tapped]


def vit_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ViT's state dict with :class:`FrozenViT`'s names, whichever library wrote it.

    The final norm and what stands behind it are left out. Unknown names pass through, for the
    strict loading to report.
    """
    named = timm_layout(state)
    return {OURS.get(k, k): v for k, v in named.items() if not k.startswith(UNREAD)}


class SpectralConv1d(nn.Conv1d):
    """A convolution whose weight is divided by its largest singular value (Miyato et al. 2018).

    One power iteration per forward pass, in training and while the weight may learn.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, before: int, after: int, kernel: int):
        super().__init__(before, after, kernel, padding=kernel // 2, padding_mode="circular")
        matrix = self.weight.detach().flatten(1)
        self.register_buffer("weight_u", F.normalize(torch.randn(matrix.shape[0]), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(15):  # settled, so that the first step meets no outsized logits
            self.power_iteration(matrix)

    def power_iteration(self, matrix: Tensor) -> None:
        v = F.normalize(matrix.T @ self.weight_u, dim=0, eps=1e-12)
        self.weight_v.copy_(v)
        self.weight_u.copy_(F.normalize(matrix @ v, dim=0, eps=1e-12))

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            matrix = self.weight.flatten(1)
            if self.training and self.weight.requires_grad:
                self.power_iteration(matrix.detach())
            # Clones: another pass moves the buffers before this one is differentiated.
            sigma = self.weight_u.clone() @ (matrix @ self.weight_v.clone())
            weight = self.weight / sigma
        return self._conv_forward(x, weight, self.bias)


class BatchNormLocal(nn.Module):
    """Batch norm of [B, C, N] over groups of at most ``group`` images, without running statistics.

    Training and evaluation are the same (Sauer et al. 2023). Computed and returned in float32.
    """

    def __init__(self, width: int, group: int = 8):
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        groups = next(g for g in range(-(-batch // self.group), batch + 1) if batch % g == 0)
        split = x.float().unflatten(0, (groups, -1))
        variance, mean = torch.var_mean(split, (1, 3), correction=0, keepdim=True)
        x = ((split - mean) * (variance + 1e-6).rsqrt()).flatten(0, 1)
        return x * self.weight[:, None] + self.bias[:, None]


class Head(nn.Module):
    """Features [B, D, N] -> a logit per patch [B, N]."""

    def __init__(self, width: int, kernel: int):
        super().__init__()

        def block(size: int) -> nn.Sequential:
            return nn.Sequential(
                SpectralConv1d(width, width, size), BatchNormLocal(width), nn.LeakyReLU(0.2)
            )

        self.mix = block(1)
        self.neighbours = block(kernel)
        self.out = SpectralConv1d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        x = (x + self.neighbours(x)) / math.sqrt(2)
        return self.out(x).squeeze(1)


class DinoDiscriminator(nn.Module):
    """A head on each feature of a frozen ViT, logits [B, taps x N] (Sauer et al. 2023).

    The ViT moves with the module between devices and is not part of its state dict: it can be
    opened again, and no checkpoint should carry it.
    """

    def __init__(self, vit: FrozenViT, kernel: int = 9):
        super().__init__()
        self.frozen = (vit,)  # in a tuple, which registers nothing
        self.heads = nn.ModuleList(Head(vit.width, kernel) for _ in range(1 + len(vit.taps)))

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self.frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> Tensor:
        features = self.frozen[0].features(images)
        return torch.cat([h(x) for h, x in zip(self.heads, features, strict=True)], dim=1)


@contextmanager
def held(discriminator: nn.Module) -> Iterator[None]:
    """Inside, a pass leaves no trace: no weight learns, no running statistic moves."""
    learning = [p for p in discriminator.parameters() if p.requires_grad]
    tracking = [m for m in discriminator.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        for norm in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for norm in tracking:
            norm.track_running_stats = True
