"""Mean and covariance of features, gathered batch by batch, saved, and opened as published.

A set of any size costs one [D, D] matrix of float64. The files are the field's ``.npz``: ``mu`` and
``sigma``, and for sFID ``mu_s`` and ``sigma_s`` (Dhariwal & Nichol 2021). Ours add ``count``, the
number of images, and ``features``, the network and preprocessing they stand on.
"""

import zipfile
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from softvq.errors import UserError
from softvq.io import replacing

KEYS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # kind of features -> names


class Statistics:
    """Running mean [D] and unbiased covariance [D, D] of features, float64 on the CPU.

    >>> statistics = Statistics()
    >>> for features in batches:        # [B, D], numpy or torch, any float type
    ...     statistics.add(features)

    ``count`` is the number of images, None where a file does not say it.
    """

    def __init__(self) -> None:
        self.count: int | None = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """[D, D], divided by count - 1. ValueError for fewer than two images."""
        if self.count is None:
            return self.scatter
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return self.scatter / (self.count - 1)

    def add(self, features: np.ndarray | Tensor) -> Self:
        """Take in features [B, D]. ValueError for other shapes or numbers that are not finite.

        Scatter matrices about each batch's own mean are merged (Chan et al. 1983, eq. 2.1), so
        features far from zero cost no digits.
        """
        x = as_features(features, least=1)
        mean = x.mean(0)
        centred = x - mean
        return self._merge(len(x), mean, centred.T @ centred)

    def merge(self, other: "Statistics") -> Self:
        """Take in what other statistics have taken in. ValueError as :meth:`add`."""
        if other.count is None:
            raise ValueError("statistics of an unknown number of images cannot be merged")
        return self._merge(other.count, other.mean, other.scatter) if other.count else self

    def _merge(self, n: int, mean: Tensor, scatter: Tensor) -> Self:
        if self.count is None:
            raise ValueError("statistics of an unknown number of images cannot grow")
        if self.count == 0:
            self.mean, self.scatter = torch.zeros_like(mean), torch.zeros_like(scatter)
        if mean.shape != self.mean.shape:
            raise ValueError(f"features of {len(mean)}, before of {len(self.mean)} dimensions")
        step, total = mean - self.mean, self.count + n
        self.scatter.add_(scatter).addr_(step, step, alpha=self.count * n / total)
        self.mean += step * (n / total)
        self.count = total
        return self

    @classmethod
    def published(cls, mean: np.ndarray, covariance: np.ndarray, count: int | None = None) -> Self:
        """Statistics of known moments: mean [D], covariance [D, D]. ValueError for other shapes."""
        mu, sigma = (torch.as_tensor(x).double().clone() for x in (mean, covariance))
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"mean {list(mu.shape)} and covariance {list(sigma.shape)}")
        if not (mu.isfinite().all() and sigma.isfinite().all()):
            raise ValueError("the statistics hold infinite or undefined numbers")
        statistics = cls()
        statistics.mean, statistics.count = mu, count
        statistics.scatter = sigma if count is None else sigma * (count - 1)
        return statistics


def as_features(features: np.ndarray | Tensor, least: int = 2) -> Tensor:
    """Features [N, D] as float64 on the CPU; ValueError if they are no such thing."""
    x = torch.as_tensor(features).detach().cpu().double()
    if x.ndim != 2 or x.shape[0] < least:
        raise ValueError(f"expected [at least {least} images, dimensions], got {list(x.shape)}")
    if not x.isfinite().all():
        raise ValueError("the features hold infinite or undefined numbers")
    return x


def save_statistics(path: str | Path, kinds: dict[str, Statistics], features: str) -> None:
    """Write statistics, {"pool": ..., "spatial": ...}, to an .npz file, whole or not at all."""
    arrays: dict[str, np.ndarray] = {"features": np.array(features)}
    for kind, statistics in kinds.items():
        mu, sigma = KEYS[kind]
        arrays |= {mu: statistics.mean.numpy(), sigma: statistics.covariance.numpy()}
        if statistics.count is not None:
            arrays["count"] = np.array(statistics.count)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy takes arrays by any name


def is_ours(path: Path) -> bool:
    """Whether :func:`save_statistics` wrote a file: it says what its features are."""
    try:
        return open_statistics(path)[1] is not None
    except UserError:
        return False


def open_statistics(path: str | Path) -> tuple[dict[str, Statistics], str | None]:
    """Statistics by kind from an .npz file of ours or a published one, and its features' name.

    Nothing is unpickled. Raises UserError for a missing, damaged or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give an .npz file of reference statistics")
    try:
        with np.load(path, allow_pickle=False) as file:
            count = int(file["count"]) if "count" in file else None
            name = str(file["features"]) if "features" in file else None
            kinds = {
                kind: Statistics.published(file[mu], file[sigma], count)
                for kind, (mu, sigma) in KEYS.items()
                if mu in file and sigma in file
            }
    except (ValueError, OSError, TypeError, AttributeError, zipfile.BadZipFile):
        raise UserError(
            f"{path}: not readable reference statistics; give an .npz file with mu and sigma, as "
            "`softvq evaluate statistics` writes it"
        ) from None
    if not kinds:
        raise UserError(f"{path}: holds no mu and sigma; give reference statistics, not images")
    return kinds, name
