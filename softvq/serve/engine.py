"""What computes: torch or onnxruntime, behind one interface. One thread at a time."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from softvq import coding, models
from softvq.device import pick_device
from softvq.errors import UserError
from softvq.export import verify
from softvq.fingerprint import fingerprint
from softvq.generator.families import draw
from softvq.generator.sampler import NoiseStreams
from softvq.images import to_tensor, to_uint8
from softvq.pipeline import Pipeline
from softvq.precision import cast_weights, pick_precision


@dataclass(frozen=True)
class About:
    """What an engine runs. size: height and width.  classes: of the generator, None without one."""

    tokens: int
    channels: int
    size: tuple[int, int]
    nested: bool
    tokenizer: str
    classes: tuple[str, ...] | None
    runs: str


class Engine(Protocol):
    """Photos uint8 [B, height, width, 3], normalised latents float32 [B, k, C]."""

    about: About

    def encode(self, photos: np.ndarray) -> np.ndarray:
        """All L tokens of photos."""

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pictures of the first k tokens."""

    def generate(self, labels: list[int], seeds: list[int]) -> np.ndarray:
        """Latents, all L tokens; each picture depends on its own label and seed alone."""

    def close(self) -> None:
        """Let go of what it holds."""


class TorchEngine:
    """A model's directory, a pipeline's, or ``"shipped"``."""

    def __init__(self, source: str, precision: str = "auto"):
        device = pick_device()
        self.pipeline: Pipeline | None = None
        if (models.model_folder(source) / models.INDEX).is_file():
            self.pipeline = Pipeline.from_pretrained(source).to(device)
            self.tokenizer = self.pipeline.tokenizer
        else:
            self.tokenizer = models.open_tokenizer(source).to(device)
        config = self.tokenizer.config
        chosen = pick_precision(precision, device)
        self.about = About(
            config.tokens,
            config.channels,
            coding.size_of(self.tokenizer),
            bool(getattr(config, "nested", False)),
            fingerprint(self.tokenizer),
            tuple(self.pipeline.classes) if self.pipeline else None,
            f"torch {chosen} on {device.type}",
        )
        networks = [self.tokenizer, *([self.pipeline.generator] if self.pipeline else [])]
        self.stack = ExitStack()
        for network in networks:
            network.eval().requires_grad_(False)
        if chosen == "bf16":
            self.stack.enter_context(cast_weights(*networks))
        self.device, self.fast = device.type, chosen == "bf16"

    def _computing(self) -> torch.autocast:
        """Around every call, as autocast belongs to a thread."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.fast)

    @torch.inference_mode()
    def encode(self, photos: np.ndarray) -> np.ndarray:
        tokenizer = self.tokenizer
        with self._computing():
            latents = tokenizer.encode(to_tensor(photos).to(tokenizer.device)).latents
        return tokenizer.normalize(latents.float()).cpu().numpy()

    @torch.inference_mode()
    def decode(self, latents: np.ndarray) -> np.ndarray:
        tokenizer = self.tokenizer
        given = tokenizer.denormalize(torch.from_numpy(latents).to(tokenizer.device))
        with self._computing():
            pictures = tokenizer.decode(given)
        return to_uint8(pictures)

    @torch.inference_mode()
    def generate(self, labels: list[int], seeds: list[int]) -> np.ndarray:
        assert self.pipeline is not None
        streams = NoiseStreams(0, ())
        streams.rngs = [NoiseStreams(seed, (0,)).rngs[0] for seed in seeds]
        device = self.tokenizer.device
        y = torch.tensor(labels, device=device) if self.pipeline.classes else None
        with self._computing():
            drawn = draw(self.pipeline.generator, streams, y)
        return drawn.float().cpu().numpy()

    def close(self) -> None:
        self.stack.close()


class OnnxEngine:
    """A folder that ``softvq export --format onnx`` wrote."""

    def __init__(self, folder: Path):
        try:
            manifest = verify.Manifest.read(folder)
            if manifest.format != "onnx":
                raise UserError(f"{folder}: give an export of format onnx, or the model itself")
            self.encoder = verify.open_onnx(folder / "encoder.onnx")
            self.decoder = verify.open_onnx(folder / "decoder.onnx")
            drawn = folder / "generator.onnx"
            self.generator = verify.open_onnx(drawn) if drawn.is_file() else None
        except verify.Unusable as error:
            raise UserError(str(error)) from None
        except ImportError:
            raise UserError("onnxruntime is not installed; pip install 'softvq[onnx]'") from None
        self.manifest = manifest
        self.about = About(
            manifest.tokens,
            manifest.channels,
            (manifest.height, manifest.width),
            manifest.nested,
            manifest.tokenizer,
            tuple(manifest.classes) if self.generator else None,
            f"onnxruntime {manifest.precision}",
        )

    def encode(self, photos: np.ndarray) -> np.ndarray:
        return self.encoder(pixels=photos)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self.decoder(latents=latents)

    def generate(self, labels: list[int], seeds: list[int]) -> np.ndarray:
        assert self.generator is not None
        shape = self.about.tokens, self.about.channels
        noise = np.stack(
            [np.random.default_rng(s).standard_normal(shape, np.float32) for s in seeds]
        )
        given = {"labels": np.array(labels, np.int64)} if self.manifest.classes else {}
        if most := self.manifest.most_guidance:
            scale = min(self.manifest.guidance, most)
            given["guidance"] = np.full(len(labels), scale, np.float32)
        return self.generator(noise=noise, **given)

    def close(self) -> None:
        """Nothing is held."""


def open_engine(source: str, precision: str = "auto") -> Engine:
    """The engine for a model's directory, or for an export's. Raises UserError."""
    folder = Path(source)
    if (folder / verify.MANIFEST).is_file():
        return OnnxEngine(folder)
    return TorchEngine(source, precision)
