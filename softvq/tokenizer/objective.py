"""What tokenizer training minimises on pixels: reconstruction and perceptual terms.

Terms of the latents stand elsewhere: the bottleneck's own beside it, and alignment.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import check_ranges
from softvq.tokenizer.lpips import LPIPS
from softvq.tokenizer.perceptual import EyeDistance, structural_dissimilarity


@dataclass
class ObjectiveConfig:
    """Weights of the terms; 0 leaves a term out and computes nothing for it.

    The bottleneck's own terms carry their weights in the tokenizer's config.

    log_l2: logarithm of each image's L2, + 1e-4, which is what mean PSNR measures: an image that is
        nearly right counts as much as one that is far off.
    perceptual: structural dissimilarity at several scales, which needs no weights.
    eye: perceptual distance by the stages of the eye, the network in the package; 1 is about that
        of a photo and a thumbnail of it (:class:`EyeDistance`).
    lpips: learned perceptual distance on VGG-16, from the local file ``lpips_vgg``; its weight
        rises linearly from 0 over the first ``lpips_warmup`` images.
    masking: in every batch a share of patches, drawn from 0 .. ``masking``, is kept from the
        encoder, as in MAETok (Chen et al. 2025). For the vit.
    latent_noise: what the decoder reads in training is moved towards noise of this many standard
        deviations, by a share drawn from 0 .. 1 (Yang et al. 2025, "l-DeTok", who take 3).
    whole, prefix: a nested tokenizer keeps this share of the images whole; of the others the
        decoder reads the first k tokens, with k drawn anew for each: ``powers``, evenly in log k,
        or ``uniform``.  prefix_from: images seen before which all are whole.
    """

    l1: float = 0.0
    l2: float = 1.0
    log_l2: float = 0.0
    perceptual: float = 0.1
    eye: float = 0.0
    lpips: float = 0.0
    lpips_vgg: str | None = None
    lpips_warmup: int = 0
    masking: float = 0.0
    latent_noise: float = 0.0
    whole: float = 0.5
    prefix: Literal["powers", "uniform"] = "powers"

    def __post_init__(self) -> None:
        check_ranges(
            self, "objective", l1=(0, 1e6), l2=(0, 1e6), log_l2=(0, 1e6), perceptual=(0, 1e6),
            lpips=(0, 1e6), lpips_warmup=(0, 10**12), masking=(0, 0.99), latent_noise=(0, 1e3),
            whole=(0, 1), eye=(0, 1e6),
        )  # fmt: skip


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
