"""Alignment: latents are trained to predict the features of a frozen vision model.

Latents from which such features can be read are easier to generate (Chen et al. 2025, Sec. 3.3;
Yu et al. 2024, "REPA"). The teacher gives N patch features of width D, a head turns the L latents
into a prediction of them, and the loss is the mean negative cosine of the two. The head is trained
with the tokenizer and left behind when it is saved; the teacher is neither trained nor saved.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.eye import CHANNELS, STRIDE, Eye
from softvq.layers import full_precision


class Teacher(nn.Module):
    """A frozen vision transformer: images [B, 3, H, W] in [-1, 1] -> patch features [B, N, D].

    Images are resized to the ``size`` x ``size`` pixels it was trained on and normalised with its
    own mean and standard deviation. ``patches`` and ``width`` are N and D.
    ``softvq.models.open_teacher`` opens one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, size: int, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.size = size
        self.patches, self.width = self.shape()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def shape(self) -> tuple[int, int]:
        """Patches and width of the features."""
        return (self.size // self.model.config.patch_size) ** 2, self.model.config.hidden_size

    def kind(self) -> list[Any]:
        """What decides the features beside the weights."""
        return [self.size, self.mean.tolist(), self.std.tolist()]

    def pixels(self, images: Tensor) -> Tensor:
        """Images as the model wants them: its size, its normalisation."""
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(
                images, (self.size, self.size), mode="bicubic", antialias=True
            ).clamp(-1, 1)
        return ((images + 1) / 2 - self.mean) / self.std

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        pixels = self.pixels(images)
        options = {}
        if self.model.config.model_type == "vit_mae":  # it sorts the patches by noise
            order = torch.arange(self.patches, device=images.device)
            options["noise"] = order.expand(images.shape[0], -1).float()
        # Class and register tokens, however many there are, stand before the patches.
        return self.model(pixels, **options).last_hidden_state[:, -self.patches :].float()


class EyeTeacher(Teacher):
    """The eye as a teacher: each place of a stage's map at 224 x 224 pixels is a patch."""

    def __init__(self, stage: str):
        self.stage = stage
        half = [0.5, 0.5, 0.5]  # normalised by these, images stay in [-1, 1]
        super().__init__(Eye.shipped(), 224, half, half)

    def shape(self) -> tuple[int, int]:
        return (self.size // STRIDE[self.stage]) ** 2, CHANNELS[self.stage]

    def kind(self) -> list[Any]:
        return [*super().kind(), self.stage]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with full_precision(images):
            found = self.model.stages(self.pixels(images.float()))
        return found[self.stage].flatten(2).transpose(1, 2)


EYES = {"eye": "block10", "eye-7x7": "block15"}


class Head(nn.Module):
    """Latents [B, L, C] -> predicted features, through an MLP of three layers with SiLU."""

    def __init__(self, hidden: int, latents: tuple[int, int], features: tuple[int, int]):
        super().__init__()
        self.tokens, channels = latents
        self.patches, width = features
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, width),
        )

    def target(self, features: Tensor) -> Tensor:
        """What is to be predicted, of the teacher's features [B, N, D]."""
        return features


class Repeat(Head):
    """Patch i, counted row by row, is predicted by token floor(i L / N): [B, N, D]."""

    def forward(self, latents: Tensor) -> Tensor:
        owner = torch.arange(self.patches, device=latents.device) * self.tokens // self.patches
        return self.mlp(latents)[:, owner]


class Global(Head):
    """The mean latent predicts the mean feature: [B, 1, D]."""

    def forward(self, latents: Tensor) -> Tensor:
        return self.mlp(latents.mean(1, keepdim=True))

    def target(self, features: Tensor) -> Tensor:
        return features.mean(1, keepdim=True)


class Pool(Head):
    """Every token predicts the mean of its share of the patches, counted row by row: [B, L, D]."""

    def forward(self, latents: Tensor) -> Tensor:
        return self.mlp(latents)

    def target(self, features: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(features.transpose(1, 2), self.tokens).transpose(1, 2)


class CrossAttention(Head):
    """Every patch has a learned query and mixes the tokens' predictions: [B, N, D].

    ``Repeat`` with its fixed assignment of patches to tokens replaced by a learned one.
    """

    def __init__(self, hidden: int, latents: tuple[int, int], features: tuple[int, int]):
        super().__init__(hidden, latents, features)
        self.query = nn.Parameter(torch.randn(1, self.patches, hidden))
        self.position = nn.Parameter(torch.randn(1, self.tokens, hidden))
        self.key = nn.Linear(latents[1], hidden)

    def forward(self, latents: Tensor) -> Tensor:
        keys = self.key(latents) + self.position
        values = self.mlp(latents)
        query = self.query.expand(latents.shape[0], -1, -1)
        return F.scaled_dot_product_attention(query.to(keys), keys, values)


HEADS: dict[str, type[Head]] = {
    "repeat": Repeat,
    "global": Global,
    "pool": Pool,
    "cross-attention": CrossAttention,
}


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over all features of minus the cosine, [B, M, D] each -> scalar in [-1, 1], float32."""
    return -F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()
