"""The tokenizer: images to L continuous tokens of C channels and back."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from softvq.errors import UserError
from softvq.io import load_model, read_config, save_model
from softvq.layers import sincos_2d
from softvq.tokenizer.bottleneck import BOTTLENECKS, Tokens
from softvq.tokenizer.vit import STEMS, Decoder, Encoder


@dataclass
class TokenizerConfig:
    """Everything that fixes a tokenizer's shape. Flat, saved as config.json.

    height, width: pixels of the images it was trained on, divisible by ``patch``.
    tokens, channels: L and C; an image is kept as L x C floats.
    bottleneck: softvq | vq | kl | ae.
    codebook_size, codebooks: K codewords in each of the codebooks (SoftVQ; VQ has one).
    tau, entropy_tau: temperatures of the assignment and of its entropy term.
    gain: rescale soft mixtures by one learned factor (SoftVQ).
    entropy_weight, commitment, kl_weight: weights of the bottleneck's own losses.
    entropy_pooled: average assignments over all codebooks, as if codeword k of each were the same
        one, which is how the published weights were trained; False: one entropy per codebook.
    stem: patch (one convolution) | conv (two).  layer_scale: initial LayerScale, None for none.
    """

    height: int = 256
    width: int = 256
    patch: int = 16
    tokens: int = 64
    channels: int = 32
    bottleneck: str = "softvq"
    codebook_size: int = 8192
    codebooks: int = 1
    tau: float = 0.07
    l2_norm: bool = True
    gain: bool = False
    entropy_weight: float = 0.01
    entropy_tau: float = 0.01
    commitment: float = 0.25
    kl_weight: float = 1e-6
    encoder_width: int = 384
    encoder_depth: int = 12
    encoder_heads: int = 6
    decoder_width: int = 384
    decoder_depth: int = 12
    decoder_heads: int = 6
    stem: str = "patch"
    class_token: bool = True
    layer_scale: float | None = 1e-5
    entropy_pooled: bool = False

    def __post_init__(self) -> None:
        for name in (
            "height",
            "width",
            "patch",
            "tokens",
            "channels",
            "codebook_size",
            "codebooks",
        ):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.bottleneck not in BOTTLENECKS:
            raise UserError(f"bottleneck '{self.bottleneck}' is none of {', '.join(BOTTLENECKS)}")
        if self.stem not in STEMS:
            raise UserError(f"stem '{self.stem}' is none of {', '.join(STEMS)}")
        if self.height % self.patch or self.width % self.patch:
            raise UserError(
                f"image size {self.height}x{self.width} is not divisible by patch {self.patch}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch, self.width // self.patch


def token_rows(tokens: int, aspect: float) -> int:
    """Rows of the coarse grid over a picture of height / width = ``aspect`` that holds L tokens.

    The divisor of L whose grid cells come nearest to squares.
    """
    divisors = [r for r in range(1, tokens + 1) if tokens % r == 0]
    return min(divisors, key=lambda r: abs(math.log(r * r / tokens / aspect)))


class Tokenizer(nn.Module):
    """Encoder, bottleneck, decoder, and the mean and standard deviation of the latents.

    >>> tokenizer = Tokenizer.from_pretrained("runs/tokenizer")
    >>> latents = tokenizer.encode(images).latents      # [B, L, C]
    >>> images = tokenizer.decode(latents)              # [B, 3, H, W]
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.bottleneck = BOTTLENECKS[config.bottleneck](config)
        self.to_latent = nn.Linear(config.encoder_width, self.bottleneck.features)
        self.from_latent = nn.Linear(config.channels, config.decoder_width)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.channels))
        self.register_buffer("latent_std", torch.ones(config.channels))
        self.init_weights()

    def init_weights(self) -> None:
        """All initialisation, in one place; docs/small-recipe.md measures what each step is worth.

        A new model already reads its image locally: patches and latent tokens share one system of
        2-D coordinates (the L tokens are spread over the picture as a coarse grid), queries and
        keys start alike so that attention prefers near positions (Trockman & Kolter 2023), and
        attention outputs start open while MLP outputs start at zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        for block in (*self.encoder.blocks, *self.decoder.blocks):
            with torch.no_grad():
                query, key, _ = block.attn.qkv.weight.chunk(3)
                key.mul_(0.3).add_(query)
                block.attn.proj.weight.mul_(0.5)
                block.mlp.fc2.weight.zero_()
        rows, columns = self.config.grid
        down = token_rows(self.config.tokens, rows / columns)
        for part in (self.encoder, self.decoder):
            width = part.latent_pos_embed.shape[-1]
            coarse = sincos_2d(down, self.config.tokens // down, width, (rows, columns))
            with torch.no_grad():
                part.grid.pos_embed[:, -rows * columns :] = 0.5 * sincos_2d(rows, columns, width)
                part.latent_pos_embed.copy_(0.5 * coarse)
        nn.init.normal_(self.encoder.latent_tokens, std=0.02)
        nn.init.normal_(self.decoder.mask_token, std=0.02)
        self.bottleneck.init_weights()

    def encode(self, images: Tensor) -> Tokens:
        """Images [B, 3, H, W] in [-1, 1] -> Tokens; H and W any multiples of the patch."""
        return self.bottleneck(self.to_latent(self.encoder(images)))

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Latents [B, L, C] -> images [B, 3, H, W]; not clamped. ``size`` (H, W) in pixels."""
        height, width = size or (self.config.height, self.config.width)
        rows, columns = height // self.config.patch, width // self.config.patch
        return self.decoder(self.from_latent(latents), rows, columns)

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
    def from_pretrained(cls, directory: str | Path, num_heads: int | None = None) -> "Tokenizer":
        """Load strictly what :meth:`save_pretrained` or the reference implementation wrote.

        ``num_heads``: attention heads of a checkpoint of the reference, whose config does not say
        them; None takes those of the timm models it names. Raises UserError.
        """
        from softvq.interop import reference  # which imports this module

        if reference.recognises(read_config(Path(directory))):
            return reference.load_reference(directory, num_heads)
        if num_heads is not None:
            raise UserError(f"{directory}: num_heads is read from its config.json, not given")
        return load_model(cls, TokenizerConfig, directory)
