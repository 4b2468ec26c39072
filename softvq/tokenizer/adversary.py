"""The adversarial term: a discriminator, its losses and its regularisers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.processes import mean_of_all
from softvq.tokenizer.augment import diff_augment
from softvq.tokenizer.discriminator import DinoDiscriminator, FrozenViT, PatchGAN, held
from softvq.tokenizer.terms import AdversaryConfig

LECAM_DECAY = 0.999


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's loss of logits, scalar: nothing to gain beyond +-1 (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def logistic(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's loss of logits, scalar: cross-entropy (Goodfellow et al. 2014)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def linear(fake: Tensor) -> Tensor:
    """Generator's loss of logits, scalar: the mean logit, negative (as in VQGAN)."""
    return -fake.mean()


def non_saturating(fake: Tensor) -> Tensor:
    """Generator's loss of logits, scalar, at least 0: -log D(fake) (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean()


# name -> the discriminator's loss and the generator's
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (hinge, linear),
    "vanilla": (logistic, linear),
    "non_saturating": (logistic, non_saturating),
}

DISCRIMINATORS: dict[str, Callable[[AdversaryConfig], nn.Module]] = {
    "patchgan": lambda config: PatchGAN(config.width, config.depth),
    # A file that is not given is missed under its key.
    "dino": lambda config: DinoDiscriminator(FrozenViT.from_file(config.dino or "adversary.dino")),
}


class LeCam(nn.Module):
    """Pulls each side's logits to the other side's running mean (Tseng et al. 2021, eq. 5).

    The two means are saved with the discriminator, so a resumed run goes on with them.
    """

    real: Tensor
    fake: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of any shape -> scalar; the means move first."""
        self.real.lerp_(mean_of_all(real.mean()), 1 - LECAM_DECAY)
        self.fake.lerp_(mean_of_all(fake.mean()), 1 - LECAM_DECAY)
        # Clones: the next step moves the means, perhaps before this one is differentiated.
        above, below = real - self.fake.clone(), self.real.clone() - fake
        return F.relu(above).square().mean() + F.relu(below).square().mean()


class Adversary(nn.Module):
    """A discriminator with everything its step needs. Images: [B, 3, H, W] in [-1, 1]."""

    def __init__(self, config: AdversaryConfig):
        super().__init__()
        self.config = config
        self.discriminator = DISCRIMINATORS[config.discriminator](config)
        self.lecam = LeCam()

    def logits(self, images: Tensor, probability: float, share: float = 0.2) -> Tensor:
        """The discriminator's opinion of augmented images, float32."""
        return self.discriminator(diff_augment(images.float(), probability, share)).float()

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """How well reconstructions are told from photos: scalar, unweighted.

        Gradients reach the images alone, and nothing in the discriminator moves.
        """
        with held(self.discriminator):
            fake = self.logits(reconstruction, self.config.augment)
        return LOSSES[self.config.loss][1](fake)

    def forward(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, scalar, and its parts and mean logits by name, detached.

        ``reconstruction`` is detached here; call this while the adversary is in training mode.
        """
        config = self.config
        reconstruction = reconstruction.detach()
        real = self.logits(images, config.augment)
        fake = self.logits(reconstruction, config.augment)
        terms = {"discriminator": LOSSES[config.loss][0](real, fake)}
        if config.consistency:
            # Both sides (Zhao et al. 2021), against stronger changes than the plain pass sees.
            changes = [
                F.mse_loss(self.logits(side, 1.0, share=0.5), plain)
                for side, plain in ((images, real), (reconstruction, fake))
            ]
            terms["consistency"] = config.consistency * (changes[0] + changes[1])
        if config.lecam:
            terms["lecam"] = config.lecam * self.lecam(real, fake)
        stats = {"logits_real": real.mean(), "logits_fake": fake.mean()}
        total = torch.stack(list(terms.values())).sum()
        return total, {name: value.detach() for name, value in (terms | stats).items()}


def adaptive_weight(nll: Tensor, generator_loss: Tensor, last: Tensor) -> Tensor:
    """Weight that equals the two losses' gradients at the decoder's last weight (VQGAN, eq. 7).

    nll, generator_loss: scalars whose graphs are kept; last: a parameter. Returns a detached scalar
    in 0 .. 10,000.
    """
    ours, theirs = (
        mean_of_all(torch.autograd.grad(loss, last, retain_graph=True)[0].float()).norm()
        for loss in (nll, generator_loss)
    )
    return (ours / (theirs + 1e-4)).clamp(0, 1e4).detach()
