"""Networks whose features distances are measured on, under one signature.

Pictures, uint8 [B, H, W, 3] -> {"pool": [B, D], ...}: ``pool`` for every distance; Inception adds
``spatial`` for sFID and ``logits`` for the inception score. A network knows its name, which says
layer, preprocessing and weights, because a figure means nothing without it.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from softvq import images
from softvq.coding import BATCH
from softvq.errors import UserError
from softvq.evaluate.distances import (
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from softvq.evaluate.inception import PREPROCESSING, Inception
from softvq.evaluate.statistics import Statistics
from softvq.eye import Eye
from softvq.io import check_finite
from softvq.models import model_folder, open_probe, open_teacher, part, recognise
from softvq.probe import Probe
from softvq.processes import gathered

EYE_SIZE = 224  # pixels of height and width at which the eye looks: those of its training


@dataclass(frozen=True)
class FeatureNetwork:
    """``name`` states what the features are; ``short`` is "fid" or "fd", how a distance is called.

    ``compute``: pictures uint8 [B, H, W, 3] -> {"pool": [B, D], ...}, float32 on the CPU.
    """

    name: str
    short: str
    compute: Callable[[np.ndarray], dict[str, Tensor]]


def probe_features(probe: Probe, pictures: np.ndarray) -> np.ndarray:
    """Features [N, F] of pictures, uint8 [N, H, W, 3]. Raises UserError for another size."""
    compute = probe_network(probe).compute
    parts = [
        compute(pictures[first : first + BATCH])["pool"] for first in range(0, len(pictures), BATCH)
    ]
    return torch.cat(parts).numpy()


def probe_network(probe: Probe, name: str = "probe") -> FeatureNetwork:
    """A domain probe's pooled features; for pictures of its own size."""
    device = next(probe.parameters()).device
    size = (probe.config.height, probe.config.width)

    @torch.no_grad()
    def compute(pictures: np.ndarray) -> dict[str, Tensor]:
        if pictures.shape[1:3] != size:
            raise UserError(
                f"the probe was trained on {size[0]}x{size[1]} pixels, the pictures have "
                f"{pictures.shape[1]}x{pictures.shape[2]}; train one at their size"
            )
        return {"pool": probe.features(images.to_tensor(pictures).to(device)).cpu()}

    return FeatureNetwork(f"{name}, {size[0]}x{size[1]}", "fd", compute)


def resized(pictures: np.ndarray, size: int) -> Tensor:
    """Pictures uint8 [B, H, W, 3] -> images [B, 3, size, size], whatever their proportions.

    By Pillow (bicubic, antialiased), as every evaluation resizes.
    """
    fitted = [images.fit(Image.fromarray(p), (size, size), "stretch") for p in pictures]
    return images.to_tensor(np.stack([np.asarray(p) for p in fitted]))


def eye_network(device: str = "cpu") -> FeatureNetwork:
    """The eye in the package: mean of its head map, [B, 1280]; pictures of any size."""
    eye = Eye.shipped().to(device)

    @torch.no_grad()
    def compute(pictures: np.ndarray) -> dict[str, Tensor]:
        return {"pool": eye.features(resized(pictures, EYE_SIZE).to(device)).cpu()}

    size = f"{EYE_SIZE}x{EYE_SIZE}"
    return FeatureNetwork(
        f"eye (EfficientNet-Lite0), pool 1280, Pillow bicubic to {size}", "fd", compute
    )


@torch.no_grad()
def eye_features(eye: Eye, pictures: np.ndarray, size: int = EYE_SIZE) -> np.ndarray:
    """What a judge reads: mean and maximum of the eye's head map, float32 [N, 2560].

    pictures: uint8 [N, H, W, 3], looked at in ``size`` x ``size`` pixels. The mean tells what a
    picture is like, the maximum what is somewhere in it, as a small defect.
    """
    device = next(eye.parameters()).device
    parts = []
    for first in range(0, len(pictures), BATCH):
        head = eye(resized(pictures[first : first + BATCH], size).to(device))
        parts.append(torch.cat([head.mean((2, 3)), head.amax((2, 3))], dim=1).cpu())
    return torch.cat(parts).numpy()


def inception_network(
    path: str | Path, preprocessing: str = "tf", device: str = "cpu"
) -> FeatureNetwork:
    """The FID Inception from a weight file; preprocessing as TensorFlow's ("tf") or "pytorch".

    Raises UserError. Float32 throughout: TF32 is switched off for its convolutions.
    """
    if preprocessing not in PREPROCESSING:
        raise UserError(f"preprocessing '{preprocessing}' is none of {', '.join(PREPROCESSING)}")
    network = Inception.from_file(path).to(device)
    prepare = PREPROCESSING[preprocessing]

    @torch.no_grad()
    def compute(pictures: np.ndarray) -> dict[str, Tensor]:
        x = torch.from_numpy(np.moveaxis(pictures, -1, 1).copy()).to(device)
        with torch.backends.cudnn.flags(allow_tf32=False):
            found = network(prepare(x))
        features = {"pool": found.pool.cpu(), "spatial": found.spatial.cpu()}
        return features if found.logits is None else features | {"logits": found.logits.cpu()}

    how = {"tf": "TensorFlow resize", "pytorch": "pytorch-fid resize"}[preprocessing]
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
    return FeatureNetwork(f"Inception 2015-12-05 ({digest}), pool 2048, {how}", "fid", compute)


def vision_network(path: str | Path, device: str = "cpu") -> FeatureNetwork:
    """A vision transformer as transformers saves it: FD-DINOv2 and its like (Stein et al. 2023).

    Features are the class token of the last layer, or the mean over the patches where a model has
    none. Pictures are resized to the model's size by Pillow (bicubic, antialiased), whatever their
    proportions. Raises UserError.
    """
    teacher = open_teacher(path).to(device).eval()
    size = (teacher.size, teacher.size)

    @torch.no_grad()
    def tokens(pictures: np.ndarray) -> Tensor:
        x = resized(pictures, teacher.size).to(device)
        return teacher.model(((x + 1) / 2 - teacher.mean) / teacher.std).last_hidden_state

    has_class = tokens(np.zeros((1, *size, 3), np.uint8)).shape[1] > teacher.patches

    def compute(pictures: np.ndarray) -> dict[str, Tensor]:
        found = tokens(pictures)
        return {"pool": (found[:, 0] if has_class else found.mean(dim=1)).float().cpu()}

    kind = teacher.model.config.model_type
    layer = "class token" if has_class else "mean patch"
    name = f"{kind} {Path(path).resolve().name}, {layer}, Pillow bicubic to {size[0]}x{size[1]}"
    return FeatureNetwork(name, "fd", compute)


def load_network(name: str, preprocessing: str = "tf", device: str = "cpu") -> FeatureNetwork:
    """The network a user names: 'eye', 'shipped' (the small probe), a directory, or a file.

    A directory is a probe's or a transformers model's; a file holds FID Inception weights. Nothing
    is downloaded. Raises UserError.
    """
    if name == "eye":
        return eye_network(device)
    path = model_folder(name)
    if path.is_file() or path.suffix in (".pth", ".safetensors"):
        return inception_network(path, preprocessing, device)
    layout = recognise(part(path, "probe"))
    if layout is not None and layout.kind == "vision model":
        return vision_network(path, device)
    return probe_network(open_probe(path).to(device), f"probe {name}")


@dataclass
class FeatureSet:
    """Features of one set of pictures, gathered batch by batch.

    ``statistics`` of every kind of features grow in place; ``pool`` and ``logits`` are kept, as
    float32 (0.4 and 0.2 GB for 50,000 pictures on Inception), unless ``keep`` is False.
    """

    network: FeatureNetwork
    keep: bool = True
    statistics: dict[str, Statistics] = field(default_factory=dict)
    kept: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, pictures: np.ndarray) -> Self:
        """Take in pictures, uint8 [B, H, W, 3], in batches of at most 64."""
        for first in range(0, len(pictures), BATCH):
            found = self.network.compute(pictures[first : first + BATCH])
            for features in found.values():
                check_finite(features, self.network.name)
            for kind in found.keys() & {"pool", "spatial"}:
                self.statistics.setdefault(kind, Statistics()).add(found[kind])
            for kind in found.keys() & ({"pool", "logits"} if self.keep else set()):
                self.kept.setdefault(kind, []).append(found[kind])
        return self

    @classmethod
    def of(
        cls, network: FeatureNetwork, batches: Iterable[np.ndarray], keep: bool = True
    ) -> "FeatureSet":
        """The features of all batches, each uint8 [B, H, W, 3]."""
        gathered = cls(network, keep)
        for pictures in batches:
            gathered.add(pictures)
        return gathered

    def merged(self) -> "FeatureSet":
        """What the sets of all processes hold together, in their order."""
        whole = FeatureSet(self.network, self.keep)
        for statistics, kept in gathered((self.statistics, self.kept)):
            for kind, some in statistics.items():
                whole.statistics.setdefault(kind, Statistics()).merge(some)
            for kind, parts in kept.items():
                whole.kept.setdefault(kind, []).extend(parts)
        return whole

    def all(self, kind: str) -> Tensor:
        """Everything kept of a kind, [N, D]."""
        return torch.cat(self.kept[kind])


def frechet_distances(
    real: dict[str, Statistics], generated: FeatureSet, prefix: str = ""
) -> dict[str, float]:
    """Distances by name: fid or fd, and sfid where both sides have spatial features.

    ``prefix``: r for reconstructions, g for generated pictures, as the field writes it.
    """
    short = generated.network.short
    names = {"pool": short, "spatial": f"s{short}"}
    return {
        prefix + names[kind]: frechet_distance(real[kind], generated.statistics[kind])
        for kind in names
        if kind in real and kind in generated.statistics
    }


def set_measures(real: FeatureSet | None, generated: FeatureSet) -> dict[str, float]:
    """What needs every picture's features: KID, precision and recall, density and coverage, IS.

    KID is on all pictures at once, precision and recall with k = 3, density and coverage with
    k = 5, the inception score of 10 splits after a shuffle, as in torch-fidelity. The nearest
    neighbours take time with the square of the number of pictures. Without real pictures only the
    inception score is left.
    """
    figures: dict[str, float] = {}
    if real is not None:
        a, b = generated.all("pool"), real.all("pool")
        figures["kid" if generated.network.short == "fid" else "kd"] = kernel_distance(a, b)[0]
        figures["precision"], figures["recall"] = precision_recall(b, a)
        figures["density"], figures["coverage"] = density_coverage(b, a)
    if "logits" in generated.kept:
        logits = generated.all("logits")
        splits = min(10, len(logits))
        figures["is"], figures["is_std"] = inception_score(logits, splits, seed=2020)
    return figures
