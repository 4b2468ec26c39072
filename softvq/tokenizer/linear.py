"""Principal components as tokens: linear maps of a picture's spectrum, the largest first.

Encoder: the lowest M coefficients a of the picture's cosine transform, less their mean m, on
K = L x C components: z = (a - m) V. Decoder: a = z W + m, and the inverse transform. Component i is
channel i mod C of token i div C, so the first k tokens are the k x C largest components, the best
linear code of that size for the photos it was fitted to (Eckart and Young 1936), for every k.
Untrained, the components are the coefficients themselves.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from softvq.errors import UserError
from softvq.tokenizer.spectral import Spectrum

if TYPE_CHECKING:
    from softvq.tokenizer.config import TokenizerConfig


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> the first ``tokens`` tokens' components [B, k, C]."""

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        self.width = config.channels
        self.spectrum = Spectrum(config.coefficients, 1)
        self.mean = nn.Parameter(torch.zeros(config.coefficients))
        components = config.tokens * config.channels
        self.components = nn.Parameter(torch.empty(config.coefficients, components))

    @torch.no_grad()
    def init_weights(self) -> None:
        nn.init.eye_(self.components)
        count = self.components.shape[1]
        self.components.div_(self.spectrum.scale[:count].to(self.components))

    def forward(self, images: Tensor, tokens: int | None = None) -> Tensor:
        """``tokens``: how many of the first tokens to compute; None for all."""
        wanted = slice(None if tokens is None else tokens * self.width)
        latents = (amplitudes_of(self, images) - self.mean) @ self.components[:, wanted]
        return latents.unflatten(1, (-1, self.width))


class Decoder(nn.Module):
    """Components [B, k, C] -> images [B, 3, H, W]; absent ones count as their mean, 0."""

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        self.width, self.patch = config.channels, config.patch
        self.spectrum = Spectrum(config.coefficients, 1)
        self.mean = nn.Parameter(torch.zeros(config.coefficients))
        components = config.tokens * config.channels
        self.components = nn.Parameter(torch.empty(components, config.coefficients))

    @torch.no_grad()
    def init_weights(self) -> None:
        nn.init.eye_(self.components)
        self.components.mul_(self.spectrum.scale.to(self.components))

    def forward(
        self, latents: Tensor, rows: int, columns: int, present: Tensor | None = None
    ) -> Tensor:
        """``present``, bool [B, k]: which tokens there are; None for all."""
        if present is not None:
            latents = latents * present[..., None]
        flat = latents.to(self.components).flatten(1)
        amplitudes = flat @ self.components[: flat.shape[1]] + self.mean
        coefficients = (amplitudes / self.spectrum.scale).unsqueeze(-1)
        return self.spectrum.inverse(coefficients, rows * self.patch, columns * self.patch)


@torch.no_grad()
def start_as_components(to_latent: nn.Linear, from_latent: nn.Linear) -> None:
    """Latents are the components."""
    for layer in (to_latent, from_latent):
        nn.init.eye_(layer.weight)


@torch.no_grad()
def fit_components(
    encoder: nn.Module, decoder: nn.Module, amplitudes: Tensor, prior: float
) -> None:
    """Set the components of a linear encoder and decoder to the principal ones of photos.

    amplitudes: [N, M], the photos' coefficients (``amplitudes_of``).  prior: how many photos the
    spectrum of all photographs, by which coefficients are ordered, counts for in the covariance

        S = (sum_i (a_i - m)(a_i - m)' + prior diag(scale^2)) / (N + prior),

    so that fewer photos than components give all components, and new photos are no worse for it.
    Latents have unit variance under S. Raises UserError for another network, or no photo.
    """
    if not (isinstance(encoder, Encoder) and isinstance(decoder, Decoder) and len(amplitudes)):
        raise UserError("components are fitted to photos, of a tokenizer of network linear")
    mean = amplitudes.mean(0)
    centred = amplitudes - mean
    covariance = centred.T @ centred
    covariance.diagonal().add_(prior * encoder.spectrum.scale.square())
    variances, vectors = torch.linalg.eigh(covariance / (len(amplitudes) + prior))
    count = encoder.components.shape[1]
    vectors = vectors.flip(1)[:, :count]
    deviations = variances.flip(0)[:count].clamp_min(1e-12).sqrt()
    # The sign of an eigenvector is the library's whim: its largest entry is positive here.
    vectors *= vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    encoder.mean.copy_(mean)
    decoder.mean.copy_(mean)
    encoder.components.copy_(vectors / deviations)
    decoder.components.copy_((vectors * deviations).T)


@torch.no_grad()
def amplitudes_of(encoder: Encoder, images: Tensor) -> Tensor:
    """The coefficients [B, M] of images that components are fitted to; the mean square of a picture
    is the sum of their squares, but for what M leaves out."""
    return encoder.spectrum(images.to(encoder.components)).squeeze(-1) * encoder.spectrum.scale
