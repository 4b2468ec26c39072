"""What tokenizer training minimises on pixels: reconstruction and perceptual terms.

Terms of the latents stand elsewhere: the bottleneck's own beside it, and alignment.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.tokenizer.lpips import LPIPS
from softvq.tokenizer.perceptual import EyeDistance, structural_dissimilarity
from softvq.tokenizer.terms import ObjectiveConfig


class Objective(nn.Module):
    """The terms, and the frozen networks they need; UserError if LPIPS's file is not given.

    ``forward``: images, reconstruction [B, 3, H, W], images in [-1, 1], ``seen`` images so far ->
    weighted terms by name, scalars, computed in float32.
    """

    def __init__(self, config: ObjectiveConfig):
        super().__init__()
        self.config = config
        self.eye = EyeDistance() if config.eye else None
        self.lpips: LPIPS | None = None
        if config.lpips:
            # A file that is not given is missed under its key.
            self.lpips = LPIPS.from_file(config.lpips_vgg or "objective.lpips_vgg")

    def forward(self, images: Tensor, reconstruction: Tensor, seen: int) -> dict[str, Tensor]:
        config = self.config
        reconstruction = reconstruction.float()
        terms: dict[str, Tensor] = {}
        if config.l1:
            terms["l1"] = config.l1 * F.l1_loss(reconstruction, images)
        if config.l2:
            terms["l2"] = config.l2 * F.mse_loss(reconstruction, images)
        if config.log_l2:
            squares = (reconstruction - images).square().mean((1, 2, 3))
            terms["log_l2"] = config.log_l2 * torch.log(squares + 1e-4).mean()
        if config.perceptual:
            distance = structural_dissimilarity(reconstruction, images)
            terms["perceptual"] = config.perceptual * distance
        if self.eye is not None:
            terms["eye"] = config.eye * self.eye(reconstruction, images).mean()
        rise = min(1.0, seen / config.lpips_warmup) if config.lpips_warmup else 1.0
        if self.lpips is not None and rise:
            distance = self.lpips(reconstruction, images).mean()
            terms["lpips"] = config.lpips * rise * distance
        return terms
