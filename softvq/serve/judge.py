"""The judge of a roll-out: a trained classifier that says what it takes a photo for."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from softvq import images, models
from softvq.errors import UserError
from softvq.evaluate.pixels import psnr_per_image
from softvq.tokenizer.perceptual import EyeDistance

MOST_DB = 100.0  # equal pictures


@dataclass(frozen=True)
class Opinion:
    """The class a photo is taken for, and how sure: the softmax of its logit."""

    verdict: str
    score: float


class Judge:
    """The probe of a directory, as `softvq train probe` writes it, or of ``"shipped"``.

    Class names are read from ``classes.json`` (a list) beside its config, or from a pipeline's
    index; otherwise they are numbers.
    """

    def __init__(self, source: str):
        folder = models.part(models.find(source), "probe")
        self.network = models.open_probe(source).eval().requires_grad_(False)
        config = self.network.config
        self.size, count = (config.height, config.width), config.classes
        self.classes = _classes(folder, models.model_folder(source)) or [
            str(i) for i in range(count)
        ]
        if len(self.classes) != count:
            raise UserError(f"{folder}: {len(self.classes)} class names for {count} classes")

    @torch.inference_mode()
    def __call__(self, photos: np.ndarray) -> list[Opinion]:
        """uint8 [B, H, W, 3], any size -> an opinion of each."""
        fitted = [np.asarray(images.fit(Image.fromarray(photo), self.size)) for photo in photos]
        shares = self.network(images.to_tensor(np.stack(fitted))).softmax(-1)
        best = shares.max(-1)
        return [
            Opinion(self.classes[i], float(share))
            for i, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _classes(*folders: Path) -> list[str]:
    for folder in folders:
        if (folder / "classes.json").is_file():
            return [str(name) for name in json.loads((folder / "classes.json").read_text("utf-8"))]
        if (folder / models.INDEX).is_file():
            return models.read_classes(folder / models.INDEX)
    return []


class Nearness:
    """How near rebuilt photos are to their originals, uint8 [B, H, W, 3] twice."""

    def __init__(self) -> None:
        self.eye = EyeDistance()

    @torch.inference_mode()
    def __call__(self, photos: np.ndarray, rebuilt: np.ndarray) -> list[tuple[float, float]]:
        """PSNR in dB, at most 100, and distance to the eye, of each."""
        psnr = np.minimum(psnr_per_image(photos, rebuilt), MOST_DB)
        distance = self.eye(images.to_tensor(photos), images.to_tensor(rebuilt))
        return list(zip(psnr.tolist(), distance.tolist(), strict=True))
