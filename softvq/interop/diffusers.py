"""Autoencoders of diffusers behind the tokenizer's contract: what you use today, in the same table.

``AutoencoderKL`` (Stable Diffusion, FLUX) and ``AutoencoderDC`` (Sana) keep an image as a grid of
cells. Here each cell is a token, in row-major order, and their parts stand where the tokenizer's
own would. Nothing is downloaded: give a local directory that diffusers wrote.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from softvq.errors import UserError
from softvq.io import check_weights, read_config
from softvq.tokenizer.bottleneck import BOTTLENECKS
from softvq.tokenizer.cnn import as_grid, as_tokens
from softvq.tokenizer.config import TokenizerConfig
from softvq.tokenizer.model import Tokenizer

# Class -> bottleneck.
AUTOENCODERS: dict[str, Literal["kl", "ae"]] = {"AutoencoderKL": "kl", "AutoencoderDC": "ae"}
OURS = "_softvq"  # our key in their config.json; they pass over one that begins with a dash


@dataclass
class DiffusersConfig:
    """The shape of an autoencoder of diffusers, in the words of ``TokenizerConfig``."""

    autoencoder: str
    height: int
    width: int
    patch: int
    tokens: int
    channels: int
    network: ClassVar[str] = "cnn"
    nested: ClassVar[bool] = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the map of tokens."""
        return self.height // self.patch, self.width // self.patch


class Encoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> features [B, L, F]; F = 2C for KL, C otherwise."""

    def __init__(self, vae: Any):
        super().__init__()
        self.network = vae.encoder
        self.quant_conv = getattr(vae, "quant_conv", None) or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return as_tokens(self.quant_conv(self.network(images)))


class Decoder(nn.Module):
    """Latents [B, L, C] -> images [B, 3, H, W]."""

    def __init__(self, vae: Any):
        super().__init__()
        self.post_quant_conv = getattr(vae, "post_quant_conv", None) or nn.Identity()
        self.network = vae.decoder

    @property
    def to_pixels(self) -> nn.Module:
        return self.network.conv_out

    def forward(self, latents: Tensor, rows: int, columns: int) -> Tensor:
        return self.network(self.post_quant_conv(as_grid(latents, rows, columns)))


class DiffusersTokenizer(Tokenizer):
    """A Tokenizer made of the parts of ``vae``, an AutoencoderKL or AutoencoderDC.

    ``size``: height and width in pixels; None takes the config's ``sample_size``. Until others are
    measured, mean and standard deviation of the latents are what diffusers' pipelines shift and
    scale them by: ``latents_mean`` or ``shift_factor``, and ``latents_std`` / ``scaling_factor``.
    Raises UserError for another class, and if the size is not known or does not fit.
    """

    config: DiffusersConfig  # type: ignore[assignment]

    def __init__(self, vae: Any, size: tuple[int, int] | None = None):
        nn.Module.__init__(self)  # not Tokenizer's, which builds networks of its own
        self.config = describe({"_class_name": type(vae).__name__} | dict(vae.config), size)
        channels, kind = self.config.channels, AUTOENCODERS[self.config.autoencoder]
        self.encoder = Encoder(vae)
        self.bottleneck = BOTTLENECKS[kind](TokenizerConfig(channels=channels, bottleneck=kind))
        self.to_latent = nn.Identity()  # type: ignore[assignment]
        self.from_latent = nn.Identity()  # type: ignore[assignment]
        self.decoder = Decoder(vae)
        self.vae = (vae,)  # in a tuple: its parts are already the encoder's and the decoder's

        config = vae.config
        mean = torch.tensor(config.get("latents_mean") or config.get("shift_factor") or 0.0)
        std = torch.tensor(config.get("latents_std") or 1.0) / config.scaling_factor
        self.register_buffer("latent_mean", mean.expand(channels).clone())
        self.register_buffer("latent_std", std.expand(channels).clone())

    def save_pretrained(self, directory: str | Path, half: bool = False) -> None:
        """Write it as diffusers does; ``half`` stores the weights in float16.

        Size, mean and standard deviation go to config.json under a key that diffusers passes over.
        """
        vae = copy.deepcopy(self.vae[0])
        own = {
            "size": [self.config.height, self.config.width],
            "latent_mean": self.latent_mean.tolist(),
            "latent_std": self.latent_std.tolist(),
        }
        vae.register_to_config(**{OURS: own})
        (vae.half() if half else vae).save_pretrained(directory)


def recognises(config: dict[str, Any]) -> bool:
    """Whether a config.json was written by diffusers."""
    return "_class_name" in config


def describe(config: dict[str, Any], size: tuple[int, int] | None = None) -> DiffusersConfig:
    """The shape that a config.json of diffusers tells, for images of ``size``. Raises UserError."""
    name = config["_class_name"]
    if name not in AUTOENCODERS:
        raise UserError(f"a {name} of diffusers, not one of {', '.join(AUTOENCODERS)}")
    known = size or config.get(OURS, {}).get("size") or config.get("sample_size")
    if known is None:
        raise UserError(f"this {name} does not say for what image size it was made; give a size")
    height, width = (known, known) if isinstance(known, int) else known
    levels = config.get("block_out_channels") or config["encoder_block_out_channels"]
    patch = 2 ** (len(levels) - 1)
    if height % patch or width % patch:
        raise UserError(f"image size {height}x{width} is not divisible by the patch {patch}")
    tokens = (height // patch) * (width // patch)
    return DiffusersConfig(name, height, width, patch, tokens, config["latent_channels"])


def load_diffusers(
    directory: str | Path, size: tuple[int, int] | None = None
) -> DiffusersTokenizer:
    """Load what diffusers wrote into a local directory: strictly, in float32, in evaluation mode.

    ``size``: see :class:`DiffusersTokenizer`. Raises UserError for an autoencoder of another class,
    missing or damaged files, weights that do not fit, and if diffusers is not installed.
    """
    config = read_config(Path(directory))
    try:
        shape = describe(config, size)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    except KeyError as error:
        raise UserError(f"{directory}: config.json lacks {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{directory}: not a config.json of diffusers ({error})") from None
    try:
        import diffusers
        from diffusers.utils import logging as speech
    except ImportError:
        raise UserError(
            f"{directory}: {shape.autoencoder} needs diffusers: pip install 'softvq[diffusers]'"
        ) from None
    spoken = speech.get_verbosity()
    speech.set_verbosity(logging.CRITICAL)  # what it warns of is an error here
    try:
        vae, report = getattr(diffusers, shape.autoencoder).from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        raise UserError(f"{directory}: {reason}") from None
    finally:
        speech.set_verbosity(spoken)
    faults = [f"missing {key}" for key in report["missing_keys"]]
    faults += [f"extra {key}" for key in report["unexpected_keys"]]
    if faults:
        raise UserError(f"{directory}: weights do not fit the config: {'; '.join(faults[:20])}")
    tokenizer = DiffusersTokenizer(vae, (shape.height, shape.width))
    if OURS in config:
        tokenizer.latent_mean.copy_(torch.tensor(config[OURS]["latent_mean"]))
        tokenizer.latent_std.copy_(torch.tensor(config[OURS]["latent_std"]))
    check_weights(tokenizer, str(directory))
    return tokenizer.eval()
