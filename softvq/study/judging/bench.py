"""What every arm is judged on: held-out photos, what is known of them, and the detector."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from softvq import images
from softvq.coding import BATCH
from softvq.data import Store
from softvq.evaluate import intervals
from softvq.evaluate.intervals import CONFIDENCE, Figure
from softvq.study.judging.custom import Metric
from softvq.study.regions import Region


class PictureModel(Protocol):
    """A network of pictures [B, 3, H, W] in [-1, 1]: logits [B, classes], and features [B, D]."""

    def __call__(self, pixels: Tensor) -> Tensor: ...
    def features(self, pixels: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class Detected:
    """The class [N] that the detector takes each picture for, and whether it is a defect's."""

    predicted: np.ndarray
    as_defect: np.ndarray


@dataclass
class Bench:
    """Held-out photos, and what is known about them.

    photos:     N of them, with their names, labels and classes
    originals:  uint8 [N, H, W, 3], what the reconstructions are compared with
    detector:   of ``photos.classes``, for pictures of this size; None without labels
    groups:     N names; photos of one group are one piece of evidence
    regions:    marked places in these photos
    normal:     the classes without a defect
    subgroups:  column -> the value of each of the N photos
    confidence: of the two-sided intervals
    metrics:    the user's own, by name
    """

    photos: Store
    originals: np.ndarray
    detector: PictureModel | None
    groups: list[str]
    regions: list[Region] = field(default_factory=list)
    normal: set[str] = field(default_factory=set)
    subgroups: dict[str, list[str]] = field(default_factory=dict)
    confidence: float = CONFIDENCE
    metrics: dict[str, Metric] = field(default_factory=dict)

    @cached_property
    def all(self) -> np.ndarray:
        """bool [N], every photo."""
        return np.ones(len(self.photos), bool)

    @cached_property
    def defect_classes(self) -> np.ndarray:
        """bool [classes]; none is one if no class is known to be defect-free."""
        known = not self.normal.isdisjoint(self.photos.classes)
        return np.array([known and name not in self.normal for name in self.photos.classes], bool)

    @cached_property
    def is_defect(self) -> np.ndarray:
        """bool [N]"""
        if not self.photos.classes:
            return np.zeros(len(self.photos), bool)
        return self.defect_classes[self.photos.labels]

    @cached_property
    def detected(self) -> Detected | None:
        """What the detector makes of the originals."""
        return self.detect(self.originals)

    @cached_property
    def features(self) -> np.ndarray | None:
        """[N, D], the detector's of the originals."""
        return self.features_of(self.originals)

    @cached_property
    def region_photos(self) -> np.ndarray:
        """int [regions], the photo that each is in."""
        return np.array([region.photo for region in self.regions], np.int64)

    def detect(self, pictures: np.ndarray) -> Detected | None:
        """What the detector makes of uint8 [N, H, W, 3]; None without one."""
        if self.detector is None or not self.photos.classes:
            return None
        predicted = _outputs(self.detector, self.detector.__call__, pictures).argmax(axis=1)
        return Detected(predicted, self.defect_classes[predicted])

    def features_of(self, pictures: np.ndarray) -> np.ndarray | None:
        """[N, D] of uint8 [N, H, W, 3]; None without a detector."""
        if self.detector is None:
            return None
        return _outputs(self.detector, self.detector.features, pictures)

    def share(self, kept: np.ndarray, photos: np.ndarray) -> Figure | None:
        """The share that is true of ``kept``, each about the photo in ``photos`` (any index)."""
        return intervals.share(kept, np.asarray(self.groups)[photos], self.confidence)

    def mean(self, values: np.ndarray, photos: np.ndarray) -> Figure | None:
        """The mean of ``values``, each about the photo in ``photos`` (any index).

        None if it is not finite: the user's own metric may be infinite.
        """
        figure = intervals.mean(values, np.asarray(self.groups)[photos], self.confidence)
        return figure if figure and np.isfinite(figure.value) else None


@torch.no_grad()
def _outputs(
    model: PictureModel, compute: Callable[[Tensor], Any], pictures: np.ndarray
) -> np.ndarray:
    """What ``compute``, of ``model``, makes of uint8 [N, H, W, 3]: [N, D], float32."""
    device = next(model.parameters()).device
    parts = [
        compute(images.to_tensor(pictures[i : i + BATCH]).to(device)).float().cpu()
        for i in range(0, len(pictures), BATCH)
    ]
    return torch.cat(parts).numpy()
