"""A trained model's figures on photos it has not seen."""

from typing import Any

import numpy as np
import torch

from softvq import images
from softvq.data import Store
from softvq.errors import UserError
from softvq.evaluate.distances import frechet_distance
from softvq.evaluate.pixels import psnr, ssim
from softvq.evaluate.probe import Probe
from softvq.pipeline import Pipeline
from softvq.tokenizer import Tokenizer
from softvq.train.tokenizer import reconstruct_all


@torch.no_grad()
def probe_features(probe: Probe, pictures: np.ndarray) -> np.ndarray:
    """Features [N, F] of pictures, uint8 [N, H, W, 3]. Raises UserError for another size."""
    size = (probe.config.height, probe.config.width)
    if pictures.shape[1:3] != size:
        raise UserError(
            f"the probe was trained on {size[0]}x{size[1]} pixels, the pictures have "
            f"{pictures.shape[1]}x{pictures.shape[2]}; train one at their size"
        )
    device = next(probe.parameters()).device
    parts = [probe.features(images.to_tensor(some).to(device)).cpu() for some in batches(pictures)]
    return torch.cat(parts).numpy()


def batches(pictures: np.ndarray, size: int = 64) -> list[np.ndarray]:
    """The pictures in order, ``size`` at a time."""
    return [pictures[first : first + size] for first in range(0, len(pictures), size)]


def evaluate_model(
    tokenizer: Tokenizer,
    photos: Store,
    probe: Probe | None = None,
    pipeline: Pipeline | None = None,
    **sampling: Any,
) -> dict[str, float]:
    """PSNR (dB) and SSIM of the reconstructions; with a probe, Frechet distances to the photos.

    Given a pipeline, as many pictures as there are photos are drawn, with the photos' labels;
    ``sampling`` goes to the pipeline. Reconstructions and drawn pictures are rounded to 8 bits.
    """
    originals, rebuilt = reconstruct_all(tokenizer, photos)
    figures = {"psnr_db": psnr(originals, rebuilt), "ssim": ssim(originals, rebuilt)}
    if probe:
        real = probe_features(probe, originals)
        figures["fd_reconstructed"] = frechet_distance(real, probe_features(probe, rebuilt))
        if pipeline:
            if pipeline.classes:
                drawn = pipeline([photos.classes[i] for i in photos.labels], **sampling)
            else:
                drawn = pipeline(count=len(photos), **sampling)
            pictures = np.stack([np.asarray(picture) for picture in drawn])
            figures["fd_generated"] = frechet_distance(real, probe_features(probe, pictures))
    return figures
