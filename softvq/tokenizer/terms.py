"""The terms that training a tokenizer minimises, as a recipe says them. Needs no torch.

Each class here is the config of the file that computes it: objective, adversary, alignment.
"""

from dataclasses import dataclass
from typing import Literal

from softvq.checks import check_fields
from softvq.errors import check_ranges


@dataclass
class ObjectiveConfig:
    """Weights of the terms on pixels; 0 leaves a term out and computes nothing for it.

    The bottleneck's own terms carry their weights in the tokenizer's config.
    """

    l1: float = 0.0
    """Weight of the mean absolute difference of pixels."""
    l2: float = 1.0
    """Weight of the mean squared difference of pixels."""
    log_l2: float = 0.0
    """Weight of the logarithm of each image's L2, + 1e-4, which is what mean PSNR measures: an
    image that is nearly right counts as much as one that is far off."""
    perceptual: float = 0.1
    """Weight of the structural dissimilarity at several scales, which needs no network."""
    eye: float = 0.0
    """Weight of the perceptual distance by the network in the package; 1 is about that of a photo
    and a thumbnail of it."""
    lpips: float = 0.0
    """Weight of LPIPS, the learned perceptual distance on VGG-16."""
    lpips_vgg: str | None = None
    """File of VGG-16's ImageNet weights, for lpips."""
    lpips_warmup: int = 0
    """Images over which the weight of lpips rises from 0."""
    masking: float = 0.0
    """In every batch a share of patches, drawn from 0 to this, is kept from the encoder of a vit,
    as in MAETok (Chen et al. 2025)."""
    latent_noise: float = 0.0
    """What the decoder reads in training is moved towards noise of this many standard deviations,
    by a share drawn from 0 to 1 (Yang et al. 2025, l-DeTok, who take 3)."""
    whole: float = 0.5
    """Share of the images of which a nested tokenizer's decoder reads all tokens; of each other it
    reads the first k, with k drawn anew."""
    prefix: Literal["powers", "uniform"] = "powers"
    """How that k is drawn: evenly in log k, or evenly in k."""

    def __post_init__(self) -> None:
        check_ranges(
            self, "objective", l1=(0, 1e6), l2=(0, 1e6), log_l2=(0, 1e6), perceptual=(0, 1e6),
            lpips=(0, 1e6), lpips_warmup=(0, 10**12), masking=(0, 0.99), latent_noise=(0, 1e3),
            whole=(0, 1), eye=(0, 1e6),
        )  # fmt: skip


@dataclass
class AdversaryConfig:
    """The adversary of a tokenizer."""

    weight: float = 0.0
    """Weight of the generator's loss in the objective; 0 leaves the adversary out whole."""
    adaptive: bool = False
    """Multiply the weight by the ratio of gradients at the decoder's last layer, as VQGAN does."""
    start: int = 0
    """Images seen before anything adversarial is computed."""
    lr: float = 1e-4
    """Learning rate of the discriminator."""
    discriminator: Literal["patchgan", "dino"] = "patchgan"
    """Which discriminator: convolutions on patches, or heads on a frozen ViT's features."""
    width: int = 64
    """Channels of patchgan's first layer."""
    depth: int = 3
    """How often patchgan halves its picture."""
    dino: str | None = None
    """File or folder of the frozen ViT, for the discriminator dino."""
    loss: Literal["hinge", "non_saturating", "vanilla"] = "hinge"
    """The game: hinge, or the cross-entropy against either generator's loss."""
    augment: float = 0.5
    """Probability of each DiffAugment operation (Zhao et al. 2020)."""
    consistency: float = 0.0
    """Weight of the logits not changing under augmentation (Zhang et al. 2020)."""
    lecam: float = 0.0
    """Weight of the pull towards the logits' running means (Tseng et al. 2021)."""

    def __post_init__(self) -> None:
        check_fields(self, "adversary.")
        check_ranges(
            self, "adversary", weight=(0, 1e6), start=(0, 10**12), lr=(0, 10), width=(1, 4096),
            depth=(1, 8), augment=(0, 1), consistency=(0, 1e6), lecam=(0, 1e6),
        )  # fmt: skip


@dataclass
class AlignmentConfig:
    """Alignment of the latents with a vision model's features."""

    weight: float = 0.0
    """Weight of the term; 0 leaves it out and loads nothing."""
    teacher: str | None = None
    """eye for the network in the package, seen at 224 pixels in 14 x 14 places, or eye-7x7 in
    7 x 7, deeper in; or the directory of a vision transformer as transformers saves it (DINOv2,
    DINOv3, CLIP, SigLIP, SigLIP 2 of a fixed size, MAE, ViT), or with download its name on the
    hub."""
    download: bool = False
    """Fetch the teacher from the hub if it is no directory here."""
    scheme: Literal["repeat", "global", "pool", "cross-attention"] = "repeat"
    """How L tokens meet N patches: each predicts its share of them, all their mean, each the mean
    of its share, or learned queries mix the tokens."""
    hidden: int = 1024
    """Width of the head that predicts the features."""
    cache: bool = False
    """Compute the features of all photos once and keep them in the run's folder. For whole photos
    (data.margin=1), mirrored or not: a random crop has features of its own."""

    def __post_init__(self) -> None:
        check_fields(self, "alignment.", above_0=("hidden",), not_below_0=("weight",))
