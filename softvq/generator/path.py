"""Interpolants between data and noise, and the loss that learns their velocity.

    x_t = alpha(t) x_0 + sigma(t) e,    e ~ N(0, 1),    t = 0 data, t = 1 noise         (1)
    v_t = dx_t/dt = alpha'(t) x_0 + sigma'(t) e                                         (2)

Times t are tensors [B]; latents [B, L, C].
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from softvq.generator.transformer import SiTConfig


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...], to multiply x [B, ...]."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


class Path(ABC):
    """An interpolant. A subclass gives alpha, sigma, their rates, and ``time_at``."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data, 1 at t = 0 and 0 at t = 1."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise, 0 at t = 0 and 1 at t = 1."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    @abstractmethod
    def time_at(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha = ratio, for ratio >= 0."""

    def interpolate(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of equation (1)."""
        return _per_sample(self.alpha(t), x0) * x0 + _per_sample(self.sigma(t), x0) * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The regression target, v_t of equation (2)."""
        alpha_rate, sigma_rate = self.alpha_rate(t), self.sigma_rate(t)
        return _per_sample(alpha_rate, x0) * x0 + _per_sample(sigma_rate, x0) * noise

    def score_from_velocity(self, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x) from the expected velocity at x, for t > 0.

        Solving (1) and (2) for the noise gives e = (alpha v - alpha' x) / (alpha sigma' - alpha'
        sigma), and the score is -e / sigma. In this form nothing divides by alpha(1) = 0.
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        alpha_rate, sigma_rate = self.alpha_rate(t), self.sigma_rate(t)
        determinant = alpha * sigma_rate - alpha_rate * sigma
        noise = _per_sample(alpha, x) * v - _per_sample(alpha_rate, x) * x
        return -noise / _per_sample(sigma * determinant, x)


@dataclass(frozen=True)
class Linear(Path):
    """alpha = 1 - t, sigma = t: straight lines, velocity e - x_0 (rectified flow)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)


@dataclass(frozen=True)
class Cosine(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): keeps unit variance between unit variances."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(t * (math.pi / 2))

    def sigma_rate(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.cos(t * (math.pi / 2))

    def time_at(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio) / (math.pi / 2)


PATHS: dict[str, Path] = {"linear": Linear(), "cosine": Cosine()}

# Training times [B] from a path, a count, a generator and a device. Lognormal draws the noise level
# sigma / alpha = exp(N(0, 1)) (Karras et al. 2022); on the linear path t is sigmoid(N(0, 1)).
TIMES: dict[str, Callable[[Path, int, torch.Generator | None, torch.device], Tensor]] = {
    "uniform": lambda path, n, generator, device: torch.rand(n, generator=generator, device=device),
    "lognormal": lambda path, n, generator, device: path.time_at(
        torch.randn(n, generator=generator, device=device).exp()
    ),
}


def drop_labels(
    y: Tensor, null: int, probability: float, generator: torch.Generator | None = None
) -> Tensor:
    """Labels [B], each replaced by ``null`` with the given probability.

    Classifier-free guidance needs a model that also knows the unconditional velocity (Ho &
    Salimans 2022).
    """
    device = generator.device if generator else y.device
    drop = torch.rand(y.shape, generator=generator, device=device) < probability
    return torch.where(drop.to(y.device), null, y)


def velocity_loss(
    net: Callable[..., Tensor], path: Path, x0: Tensor, y: Tensor | None, t: Tensor, noise: Tensor
) -> Tensor:
    """Mean squared error of the network's velocity per sample, [B], at given times and noise."""
    prediction = net(path.interpolate(x0, noise, t), t, y)
    return (prediction - path.velocity(x0, noise, t)).square().flatten(1).mean(1)


def training_loss(
    net: Callable[..., Tensor],
    path: Path,
    x0: Tensor,
    y: Tensor | None,
    config: "SiTConfig",
    times: str = "lognormal",
    generator: torch.Generator | None = None,
) -> Tensor:
    """``velocity_loss`` [B] with drawn times, noise and label dropout.

    x0 are normalised latents [B, L, C], y labels [B] (None for an unconditional net), ``times`` a
    key of TIMES. Every draw comes from ``generator``, or from the global one of x0's device.
    ``config`` is the network's, which DistributedDataParallel hides: it holds the dropout
    probability and the null class.
    """
    device = generator.device if generator else x0.device
    t = TIMES[times](path, x0.shape[0], generator, device).to(x0.device)
    noise = torch.randn(x0.shape, generator=generator, device=device).to(x0)
    if y is not None:
        y = drop_labels(y, config.num_classes, config.label_dropout, generator)
    return velocity_loss(net, path, x0, y, t, noise)
