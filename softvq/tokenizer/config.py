"""Everything that fixes a tokenizer's shape. Needs no network, so it is read in an instant."""

from dataclasses import dataclass
from typing import Literal

from softvq.checks import check_fields
from softvq.errors import UserError


@dataclass
class TokenizerConfig:
    """Everything that fixes a tokenizer's shape. Flat, saved as config.json.

    Raises UserError for values that cannot be, alone or together.
    """

    height: int = 256
    """Height of the images that it is trained on, in pixels; a multiple of patch."""
    width: int = 256
    """Width of the images that it is trained on, in pixels; a multiple of patch."""
    patch: int = 16
    """Side of the squares that the encoder cuts images into, in pixels."""
    tokens: int = 64
    """Tokens L of an image, which is kept as L x C floats."""
    channels: int = 32
    """Channels C: the numbers of a token."""
    network: Literal["vit", "cnn", "spectral", "linear"] = "vit"
    """A vit has any number of tokens, a cnn one for each cell of a grid; tokens of spectral start
    as the picture's spectrum, those of linear are principal components of it."""
    nested: bool = False
    """The first k tokens are the same however many are computed, and any k can be decoded (vit,
    spectral, linear)."""
    rope: Literal["none", "axial", "mixed"] = "none"
    """Rotary positions of a vit's patches: axial ones are fixed, mixed ones learned."""
    rope_theta: float = 10.0
    """Base of the frequencies of rotary positions."""
    bottleneck: Literal["softvq", "gmm", "vq", "kl", "ae"] = "softvq"
    """What a token may be: a soft mixture of codewords, the same under a Gaussian mixture, one
    codeword, a draw from a Gaussian, or anything."""
    codebook_size: int = 8192
    """Codewords K of each codebook."""
    codebooks: int = 1
    """Codebooks, each for its own part of the tokens or channels; vq has one."""
    tau: float = 0.07
    """Temperature of the soft assignment; towards 0 a token is one codeword."""
    l2_norm: bool = True
    """Tokens and codewords are scaled to length 1 before they meet."""
    gain: bool = False
    """Rescale soft mixtures by one learned factor."""
    entropy_weight: float = 0.01
    """Weight of the loss that wants sure assignments and a codebook in use (softvq, gmm, vq)."""
    entropy_tau: float = 0.01
    """Temperature of the assignments in that loss."""
    commitment: float = 0.25
    """Weight of the loss that pulls the encoder to its codewords (vq)."""
    kl_weight: float = 1e-6
    """Weight of the divergence from a normal distribution (kl)."""
    encoder_width: int = 384
    """Width of the encoder: of its blocks, or of a cnn's first stage."""
    encoder_depth: int = 12
    """Blocks of the encoder; of a cnn, in each stage."""
    encoder_heads: int = 6
    """Attention heads of a vit's encoder."""
    decoder_width: int = 384
    """Width of the decoder: of its blocks, or of a cnn's last stage."""
    decoder_depth: int = 12
    """Blocks of the decoder; of a cnn, in each stage."""
    decoder_heads: int = 6
    """Attention heads of a vit's decoder."""
    stem: Literal["patch", "conv"] = "patch"
    """How a vit reads patches: by one convolution, or by two."""
    class_token: bool = True
    """The encoder of a vit has a class token, as DINOv2."""
    layer_scale: float | None = 1e-5
    """Initial LayerScale of a vit's blocks; null for none."""
    entropy_pooled: bool = False
    """Average assignments over all codebooks, as if codeword k of each were the same one, which is
    how the published weights were trained; without it each codebook has its own entropy."""
    assignment: Literal["cosine", "euclidean"] = "cosine"
    """Which codewords are near (softvq): by the cosine, as released, or by the distance, as in the
    paper."""
    codebook_axis: Literal["tokens", "channels"] = "tokens"
    """What several codebooks share out: segments of the tokens, or groups of their channels."""
    levels: int = 1
    """Levels of residual quantisation: each has codebooks of its own, for what is left (softvq)."""
    vq_update: Literal["gradient", "ema", "simvq"] = "gradient"
    """How vq's codewords learn: by gradients, as moving averages, or through one linear map."""
    ema_decay: float = 0.99
    """Decay of those moving averages."""
    free_bits: float = 0.0
    """Nats that each channel may hold at no lower cost (kl)."""
    refine_width: int = 48
    """Channels of the residual blocks over cells of half a patch (spectral)."""
    refine_depth: int = 4
    """Residual blocks over cells of half a patch (spectral)."""
    coefficients: int = 4096
    """Coefficients of the picture's cosine transform that are read and written (linear)."""

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
                *("refine_width", "coefficients"),
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
        if self.network == "linear" and self.tokens * self.channels > self.coefficients:
            raise UserError(
                f"{self.tokens} tokens x {self.channels} channels are more than "
                f"{self.coefficients} coefficients; set model.coefficients to as many or more"
            )
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
