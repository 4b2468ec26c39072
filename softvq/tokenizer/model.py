"""The tokenizer: images to L continuous tokens of C channels and back."""

# To torch a network that is called gives Any.
# mypy: disable-error-code="no-any-return"

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softvq.errors import UserError
from softvq.io import load_model, save_model
from softvq.tokenizer import cnn, linear, spectral, vit
from softvq.tokenizer.bottleneck import BOTTLENECKS, Tokens
from softvq.tokenizer.config import TokenizerConfig

NETWORKS: dict[str, tuple[Any, Any]] = {
    "vit": (vit.Encoder, vit.Decoder),
    "cnn": (cnn.Encoder, cnn.Decoder),
    "spectral": (spectral.Encoder, spectral.Decoder),
    "linear": (linear.Encoder, linear.Decoder),
}


class Tokenizer(nn.Module):
    """Encoder, bottleneck, decoder, and the mean and standard deviation of the latents.

    >>> tokenizer = Tokenizer.from_pretrained("runs/tokenizer")
    >>> latents = tokenizer.encode(images).latents      # [B, L, C]
    >>> images = tokenizer.decode(latents)              # [B, 3, H, W]
    """

    encoder: Any  # a pair of NETWORKS
    decoder: Any
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        encoder, decoder = (network(config) for network in NETWORKS[config.network])
        self.encoder = encoder
        self.bottleneck = BOTTLENECKS[config.bottleneck](config)
        self.to_latent = nn.Linear(encoder.width, self.bottleneck.features)
        self.from_latent = nn.Linear(config.channels, decoder.width)
        self.decoder = decoder
        self.register_buffer("latent_mean", torch.zeros(config.channels))
        self.register_buffer("latent_std", torch.ones(config.channels))
        self.init_weights()

    def init_weights(self) -> None:
        """All initialisation: of matrices here, of what is special in each part's own."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        self.encoder.init_weights()
        self.decoder.init_weights()
        self.bottleneck.init_weights()
        if isinstance(self.encoder, spectral.Encoder):
            spectral.start_as_transform(self.to_latent, self.from_latent, self.bottleneck)
        if isinstance(self.encoder, linear.Encoder):
            linear.start_as_components(self.to_latent, self.from_latent)

    @property
    def device(self) -> torch.device:
        """Where it is, and where images and latents must be."""
        return self.latent_mean.device

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes pixels; an adaptive adversarial weight is measured on it."""
        return self.decoder.to_pixels.weight

    def encode(
        self, images: Tensor, keep: Tensor | None = None, tokens: int | None = None
    ) -> Tokens:
        """Images [B, 3, H, W] in [-1, 1] -> Tokens; H and W any multiples of the patch.

        ``keep``, int64 [B, K]: the patches, counted row by row, that a vit reads; None for all.
        ``tokens``: k, for the first k tokens of a nested tokenizer alone; None for all.
        """
        height, width = images.shape[-2:]
        if height % self.config.patch or width % self.config.patch:
            raise UserError(
                f"image size {height}x{width} is not divisible by the patch {self.config.patch}"
            )
        if tokens is not None:
            self.check_tokens(tokens)
        chosen = {"keep": keep, "tokens": tokens}
        given = {name: value for name, value in chosen.items() if value is not None}
        return self.bottleneck(self.to_latent(self.encoder(images, **given)))

    def decode(
        self,
        latents: Tensor,
        size: Sequence[int] | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Latents [B, k, C] -> images [B, 3, H, W]; not clamped. ``size`` (H, W) in pixels.

        k is L, or less if the tokenizer is nested. ``lengths``, int64 [B] in 1..k: how many of the
        tokens each image has, if not all k; what stands behind them is not read.
        """
        height, width = size or (self.config.height, self.config.width)
        rows, columns = height // self.config.patch, width // self.config.patch
        count = latents.shape[1]
        if self.config.network != "cnn" and (count != self.config.tokens or lengths is not None):
            self.check_tokens(count)
        if lengths is None:
            return self.decoder(self.from_latent(latents), rows, columns)
        present = torch.arange(count, device=latents.device) < lengths[:, None]
        return self.decoder(self.from_latent(latents), rows, columns, present)

    def check_tokens(self, tokens: int) -> None:
        """Raises UserError unless an image can be kept as that many tokens."""
        most = self.config.tokens
        if not self.config.nested and tokens != most:
            raise UserError(f"this tokenizer has {most} tokens, not {tokens}: it is not nested")
        if not 1 <= tokens <= most:
            raise UserError(f"this tokenizer keeps an image as 1 to {most} tokens, not {tokens}")

    def forward(self, images: Tensor) -> tuple[Tensor, Tokens]:
        """Reconstruction and Tokens, at the images' own size."""
        tokens = self.encode(images)
        height, width = images.shape[-2:]
        return self.decode(tokens.latents, (height, width)), tokens

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> their reconstructions, clamped to [-1, 1]."""
        return self(images)[0].float().clamp(-1, 1)

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents [B, L, C] -> zero mean and unit variance per channel: what generators learn."""
        return (latents - self.latent_mean) / self.latent_std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        return latents * self.latent_std + self.latent_mean

    def save_pretrained(self, directory: str | Path, half: bool = False) -> None:
        """Write config.json and model.safetensors; ``half`` stores the weights in float16."""
        save_model(self, directory, half)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "Tokenizer":
        """Load strictly what :meth:`save_pretrained` wrote, in evaluation mode, on the CPU.

        ``softvq.open_tokenizer`` opens other layouts, pipelines and "shipped" too. Raises
        UserError for a missing or damaged file, an unknown or refused config field, another kind
        of model, and weights that are missing, extra, of another shape or not finite.
        """
        return load_model(cls, TokenizerConfig, directory)
