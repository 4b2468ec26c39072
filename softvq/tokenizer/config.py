"""Everything that fixes a tokenizer's shape. Needs no network, so it is read in an instant."""

from dataclasses import dataclass
from typing import Literal

from softvq.checks import check_fields
from softvq.errors import UserError


@dataclass
class TokenizerConfig:
    """Everything that fixes a tokenizer's shape. Flat, saved as config.json. UserError.

    height, width: pixels of the images it was trained on, divisible by ``patch``.
    tokens, channels: L and C; an image is kept as L x C floats.
    network: vit (any number of tokens, see :mod:`softvq.tokenizer.vit`) | cnn (one token per cell
        of a grid, see :mod:`softvq.tokenizer.cnn` for how it reads ``patch``, ``encoder_*`` and
        ``decoder_*``) | spectral (tokens that start as the picture's spectrum, see
        :mod:`softvq.tokenizer.spectral`).
    nested: the first k tokens are the same however many are computed, and any k can be decoded
        (vit, spectral); which k training meets is said in the objective.
    bottleneck: softvq | gmm | vq | kl | ae.
    codebook_size, codebooks: K codewords in each of the codebooks (SoftVQ; VQ has one).
    tau, entropy_tau: temperatures of the assignment and of its entropy term.
    gain: rescale soft mixtures by one learned factor (SoftVQ).
    entropy_weight, commitment, kl_weight: weights of the bottleneck's own losses.
    entropy_pooled: average assignments over all codebooks, as if codeword k of each were the same
        one, which is how the published weights were trained; False: one entropy per codebook.
    assignment, codebook_axis, levels: see :class:`softvq.tokenizer.softvq.SoftVQ`.
    vq_update, ema_decay: see :class:`softvq.tokenizer.vq.VQ`.
    free_bits: nats that each channel may hold at no lower cost (KL).

    refine_width, refine_depth: channels and residual blocks over cells of half a patch (spectral).

    Of the vit; elsewhere they have no effect:

    encoder_heads, decoder_heads, class_token.
    stem: patch (one convolution) | conv (two).  layer_scale: initial LayerScale, None for none.
    rope: none | axial (fixed) | mixed (learned) rotary positions of the patches; rope_theta.
    """

    height: int = 256
    width: int = 256
    patch: int = 16
    tokens: int = 64
    channels: int = 32
    network: Literal["vit", "cnn", "spectral"] = "vit"
    nested: bool = False
    rope: Literal["none", "axial", "mixed"] = "none"
    rope_theta: float = 10.0
    bottleneck: Literal["softvq", "gmm", "vq", "kl", "ae"] = "softvq"
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
    stem: Literal["patch", "conv"] = "patch"
    class_token: bool = True
    layer_scale: float | None = 1e-5
    entropy_pooled: bool = False
    assignment: Literal["cosine", "euclidean"] = "cosine"
    codebook_axis: Literal["tokens", "channels"] = "tokens"
    levels: int = 1
    vq_update: Literal["gradient", "ema", "simvq"] = "gradient"
    ema_decay: float = 0.99
    free_bits: float = 0.0
    refine_width: int = 48
    refine_depth: int = 4

    def __post_init__(self) -> None:
        networks = [
            f"{part}_{name}"
            for part in ("encoder", "decoder")
            for name in ("width", "depth", "heads")
        ]
        check_fields(
            self,
            above_0=(
                *("height", "width", "patch", "tokens", "channels", "rope_theta"),
                *("codebook_size", "codebooks", "levels", "tau", "entropy_tau", *networks),
                "refine_width",
            ),
            not_below_0=(
                *("entropy_weight", "commitment", "kl_weight", "layer_scale", "free_bits"),
                "refine_depth",
            ),
            shares=("ema_decay",),
        )
        if max(self.height, self.width) > LARGEST or self.tokens > LARGEST:
            raise UserError(f"height, width and tokens are at most {LARGEST:,}")
        if self.height % self.patch or self.width % self.patch:
            raise UserError(
                f"image size {self.height}x{self.width} is not divisible by patch {self.patch}"
            )
        if self.network == "vit":
            self._check_vit()
        if self.network == "spectral" and self.patch % 2:
            raise UserError(f"network spectral needs an even patch, got {self.patch}")
        if self.nested and self.network == "cnn":
            raise UserError("network cnn has one token per cell, which do not nest; nested=false")
        if self.nested and self.codebooks > 1 and self.codebook_axis == "tokens":
            raise UserError(
                "codebooks of segments of the tokens do not nest; set codebook_axis=channels"
            )

    def _check_vit(self) -> None:
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            if width % heads:
                raise UserError(f"{part}_width {width} is not divisible by heads {heads}")
            if width % 4:
                raise UserError(f"{part}_width {width} is not divisible by 4")
            if self.rope != "none" and width // heads % 4:
                raise UserError(f"rotary positions need heads of 4n channels, got {width // heads}")
        if self.stem == "conv" and self.patch % 2:
            raise UserError(f"stem conv needs an even patch, got {self.patch}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch, self.width // self.patch


LARGEST = 2**18  # pixels of a side, and tokens
