"""Processes between data and noise: every formula of time, and the losses that learn them.

    x_t = alpha(t) x_0 + sigma(t) e,    e ~ N(0, 1),    t = 0 data, t = 1 noise         (1)
    v_t = dx_t/dt = alpha'(t) x_0 + sigma'(t) e                                         (2)

A process also says what its network predicts, the velocity v, the noise e or the data x_0, and how
the network is told the time. Any one of the three and x_t give the other two: ``Process.split``.

Times t are tensors [B], or scalars for a whole batch; latents are tokens [B, L, C] or maps
[B, C, H, W].
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from softvq.errors import UserError
from softvq.processes import ours, randn, whole

TARGETS = ("v", "eps", "x0")
NEARLY_NOISE = (
    0.999  # where a process that ends in pure noise starts, if the network predicts noise
)


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """[B] or scalar -> [B, 1, 1, ...] or [1, 1, 1, ...], to multiply x [B, ...]."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def channel_axis(x: Tensor) -> int:
    """Channels are last in tokens [B, L, C] and second in maps [B, C, H, W]."""
    return 1 if x.ndim == 4 else -1


def split_channels(prediction: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The channels of a prediction that are x's, and the others, a learned variance, if any."""
    axis = channel_axis(x)
    own, others = prediction.tensor_split([x.shape[axis]], axis)
    return own, others if others.shape[axis] else None


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(data x_0 + state x_t, variance) for s < t. All are scalars or [B].

    ``added`` is the variance of q(x_t | x_s), the beta of that step of a diffusion.
    """

    data: Tensor
    state: Tensor
    variance: Tensor
    added: Tensor

    def mean(self, x0: Tensor, x: Tensor) -> Tensor:
        return per_sample(self.data, x) * x0 + per_sample(self.state, x) * x

    def log_variance(self, learned: Tensor) -> Tensor:
        """From the posterior's, at -1, to beta, at 1 (Nichol & Dhariwal 2021, eq. 15)."""
        least, most = (per_sample(v, learned).log() for v in (self.variance, self.added))
        return least + (learned + 1) / 2 * (most - least)


@dataclass(frozen=True)
class Process(ABC):
    """A subclass gives alpha, sigma, their rates, and ``time_at``.

    target: what the network predicts, "v", "eps" or "x0". Raises UserError for another.
    shift: of the times that training draws and samplers take; see ``SiTConfig.time_shift``.
    """

    target: str = "v"
    shift: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UserError(f"target '{self.target}' is none of {', '.join(TARGETS)}")

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data, 1 at t = 0 and (nearly) 0 at t = 1."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise, 0 at t = 0 and (nearly) 1 at t = 1."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    @abstractmethod
    def time_at(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha = ratio, for ratio >= 0."""

    @property
    def latest(self) -> float:
        """The last time at which a prediction tells data and noise apart.

        Predicted noise says nothing of the data where there is none of it, at alpha = 0.
        """
        return NEARLY_NOISE if self.target == "eps" else 1.0

    def clock(self, t: Tensor) -> Tensor:
        """Times as the network is told them."""
        return t

    def snap(self, t: Tensor) -> Tensor:
        """Times in (0, 1) -> those that training knows."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def grid(self, steps: int, last: float | None = None) -> Tensor:
        """See :func:`softvq.generator.sampler.time_grid`."""
        last = self.latest / steps if last is None else last
        times = torch.linspace(self.latest, last, steps, dtype=torch.float64)
        return self.snap(times).clamp(max=self.latest)

    def interpolate(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of equation (1)."""
        return per_sample(self.alpha(t), x0) * x0 + per_sample(self.sigma(t), x0) * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v_t of equation (2)."""
        alpha_rate, sigma_rate = self.alpha_rate(t), self.sigma_rate(t)
        return per_sample(alpha_rate, x0) * x0 + per_sample(sigma_rate, x0) * noise

    def direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of x_0 and e in what a "v" network predicts: those of equation (2)."""
        return self.alpha_rate(t), self.sigma_rate(t)

    def regressed(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network learns to predict at x_t."""
        if self.target == "v":
            data, other = self.direction(t)
            return per_sample(data, x0) * x0 + per_sample(other, x0) * noise
        return x0 if self.target == "x0" else noise

    def split(self, prediction: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Expected x_0 and e from the prediction at x = x_t, for 0 < t <= ``latest``.

        (1) and the definition of the target are two linear equations for the two.
        """
        prediction, _ = split_channels(prediction, x)
        alpha, sigma = per_sample(self.alpha(t), x), per_sample(self.sigma(t), x)
        if self.target == "x0":
            return prediction, (x - alpha * prediction) / sigma
        if self.target == "eps":
            return (x - sigma * prediction) / alpha, prediction
        data, other = (per_sample(weight, x) for weight in self.direction(t))
        determinant = alpha * other - data * sigma
        x0 = (other * x - sigma * prediction) / determinant
        return x0, (alpha * prediction - data * x) / determinant

    def posterior(self, t: Tensor, s: Tensor) -> Posterior:
        """The step back from t to s < t (Kingma et al. 2021, appendix A)."""
        alpha, sigma, sigma_s = self.alpha(t) / self.alpha(s), self.sigma(t), self.sigma(s)
        added = sigma**2 - (alpha * sigma_s) ** 2
        kept = (sigma_s / sigma) ** 2
        return Posterior(self.alpha(s) * added / sigma**2, alpha * kept, added * kept, added)

    def loss(self, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of a prediction at x_t per sample, [B]."""
        return (prediction - self.regressed(x0, noise, t)).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Linear(Process):
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
class Circular(Process):
    """alpha = cos(phi), sigma = sin(phi): keeps unit variance between unit variances.

    A subclass gives the angle phi(t), its rate, and ``time_at``.
    """

    @abstractmethod
    def angle(self, t: Tensor) -> Tensor:
        """phi in 0..pi/2, rising."""

    @abstractmethod
    def angle_rate(self, t: Tensor) -> Tensor:
        """d phi / dt."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self.angle(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self.angle(t))

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -self.angle_rate(t) * self.sigma(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self.angle_rate(t) * self.alpha(t)


@dataclass(frozen=True)
class Cosine(Circular):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""

    def angle(self, t: Tensor) -> Tensor:
        return t * (math.pi / 2)

    def angle_rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, math.pi / 2)

    def time_at(self, ratio: Tensor) -> Tensor:
        return torch.atan(ratio) / (math.pi / 2)


PROCESSES: dict[str, type[Process]] = {"linear": Linear, "cosine": Cosine}
LINEAR = Linear()

# Training times [B] from a process, a count, an rng and a device. Lognormal draws the noise level
# sigma / alpha = exp(N(0, 1)) (Karras et al. 2022); on the linear process t is sigmoid(N(0, 1)).
TIME_LAWS: dict[str, Callable[[Process, int, torch.Generator | None, torch.device], Tensor]] = {
    "uniform": lambda process, n, rng, device: ours(
        torch.rand(whole(n), generator=rng, device=device)
    ),
    "lognormal": lambda process, n, rng, device: process.time_at(
        ours(torch.randn(whole(n), generator=rng, device=device)).exp()
    ),
}


def check_process(network: Any, process: Process) -> None:
    """Raises ValueError if a network whose config names its process is read by another one's rules.

    Another alpha and sigma are allowed: the reference samples linear velocities on the cosine
    process.
    """
    own = getattr(getattr(network, "config", None), "process", process)
    if (own.target, type(own).clock) != (process.target, type(process).clock):
        raise ValueError(f"the network belongs to {own}, not to {process}: give process={own}")


def drop_labels(
    y: Tensor, null: int, probability: float, rng: torch.Generator | None = None
) -> Tensor:
    """Labels [B], each replaced by ``null`` with the given probability.

    Classifier-free guidance needs a model that also knows the unconditional prediction (Ho &
    Salimans 2022).
    """
    device = rng.device if rng else y.device
    drop = ours(torch.rand(whole(y.shape[0]), generator=rng, device=device)) < probability
    return torch.where(drop.to(y.device), null, y)


def denoising_loss(
    network: Callable[..., Tensor],
    process: Process,
    x0: Tensor,
    y: Tensor | None,
    t: Tensor,
    noise: Tensor,
    contrast: float = 0.0,
) -> Tensor:
    """The process's loss of the network per sample, [B], at given times and noise.

    With ``contrast`` less that share of the loss for the data and noise of the sample before in the
    batch: predictions move away from each other (Stoica et al. 2025, contrastive flow matching).
    """
    x = process.interpolate(x0, noise, t).to(x0.dtype)
    prediction = network(x, process.clock(t), y)
    loss = process.loss(prediction, x0, noise, t)
    if not contrast:
        return loss
    return loss - contrast * process.loss(prediction, x0.roll(1, 0), noise.roll(1, 0), t)


class Conditioned(Protocol):
    """What the loss reads of a network's config."""

    @property
    def num_classes(self) -> int: ...

    @property
    def label_dropout(self) -> float: ...


def training_loss(
    network: Callable[..., Tensor],
    process: Process,
    x0: Tensor,
    y: Tensor | None,
    config: Conditioned,
    time: str = "lognormal",
    rng: torch.Generator | None = None,
    contrast: float = 0.0,
) -> Tensor:
    """``denoising_loss`` [B] with drawn times, noise and label dropout.

    x0 are normalised latents as the network takes them, y labels [B] (None for an unconditional
    network), ``time`` a key of TIME_LAWS. Every draw comes from ``rng``, or from the global one of
    x0's device. ``config`` is the network's, which DistributedDataParallel hides: it holds the
    dropout probability and the null class.
    """
    device = rng.device if rng else x0.device
    t = process.snap(TIME_LAWS[time](process, x0.shape[0], rng, device)).to(x0.device)
    noise = randn(x0.shape, rng, device).to(x0)
    if y is not None:
        y = drop_labels(y, config.num_classes, config.label_dropout, rng)
    return denoising_loss(network, process, x0, y, t, noise, contrast)
