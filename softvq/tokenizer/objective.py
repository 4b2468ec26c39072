"""What tokenizer training minimises: reconstruction, perceptual and bottleneck terms."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from softvq.tokenizer.bottleneck import Tokens
from softvq.tokenizer.perceptual import structural_dissimilarity


@dataclass
class ObjectiveConfig:
    """Weights of the terms; 0 leaves a term out and computes nothing for it.

    The bottleneck's own terms carry their weights in the tokenizer's config.
    """

    l1: float = 0.0
    l2: float = 1.0
    perceptual: float = 0.1


def objective(
    config: ObjectiveConfig, images: Tensor, reconstruction: Tensor, tokens: Tokens
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss (scalar) and its weighted terms by name.

    images, reconstruction: [B, 3, H, W], images in [-1, 1]; computed in float32.
    """
    reconstruction = reconstruction.float()
    terms: dict[str, Tensor] = {}
    if config.l1:
        terms["l1"] = config.l1 * F.l1_loss(reconstruction, images)
    if config.l2:
        terms["l2"] = config.l2 * F.mse_loss(reconstruction, images)
    if config.perceptual:
        terms["perceptual"] = config.perceptual * structural_dissimilarity(reconstruction, images)
    terms |= tokens.losses
    return torch.stack(list(terms.values())).sum(), terms
